"""The doctor on charts made by hand: each finding where its number is bad, and not where it is good."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1jax.cli import main as cli
from r1jax.report import checks, doctor

CONFIG = dict(name="x", stages=["reasoning_rl"], reasoning_rl=dict(
  optimizer=dict(lr=1e-3, clip_norm=1.0), loss=dict(clip_low=0.2, clip_high=0.28, kl_coef=1e-3, negative_control="none",
                                                    aggregation="sequence_mean_token_mean"),
  sampling=dict(max_tokens=64, temperature=1.0), rewards=dict(accuracy=1.0, format=1.0), minibatches=1, group_size=4,
  truncated="wrong", rollouts=60, zero_variance="keep"))


def healthy(steps=60):
  """Reward, accuracy and lengths rise; everything else stays as it should."""
  return [{"step": i, "reward": 1.2 + i / 100, "accuracy": 0.2 + i / 100, "reward/accuracy": 0.2 + i / 100,
           "reward/format": 1.0, "length": 20 + i / 5, "length/correct": 20 + i / 5, "length/wrong": 20 + i / 6,
           "truncated_share": 0.02, "zero_variance_share": 0.3, "entropy": 0.6 - i / 300, "kl": 1e-3 * i,
           "clip_share": 0.01, "grad_norm": 0.5 + (i % 3) / 10, "mismatch/k3": 1e-6, "lr": 1e-3, "loss": 0.0,
           "verdict/correct": 0.2 + i / 100, "verdict/wrong": 0.8 - i / 100,
           **({"eval/greedy_accuracy": 0.5, "eval/greedy_lenient": 0.55} if i % 10 == 0 else {})}
          for i in range(steps)]


def flat(**change):
  return [row | {"reward": 1.2 + 0.01 * (i % 3), "accuracy": 0.2 + 0.01 * (i % 3)} | change
          for i, row in enumerate(healthy())]


def group(problem, verdicts, text="a thought of its own, {}", length=30):
  return [dict(problem=problem, text=text.format(n), length=length, verdict=v, reward=float(v == "correct"))
          for n, v in enumerate(verdicts)]


def names(rows, samples=(), change=None):
  return [finding.name for finding in doctor.diagnose(rows, list(samples), changed(change or {}))]


def changed(change):
  config = json.loads(json.dumps(CONFIG))
  for path, value in change.items():
    *parents, last = path.split(".")
    at = config["reasoning_rl"]
    for parent in parents:
      at = at[parent]
    at[last] = value
  return config


def finding(name, rows, samples=(), **change):
  return next(f for f in doctor.diagnose(rows, list(samples), changed(change)) if f.name == name)


def test_a_healthy_run_is_told_so_with_its_numbers():
  (only,) = doctor.diagnose(healthy(), group(1, ["correct", "wrong"]), CONFIG)
  assert (only.severity, only.name, only.tries) == ("good", "healthy", "")
  # means of the first and the last twelve of sixty steps
  assert only.says.startswith("60 rows: reward 1.26 -> 1.74, accuracy 26% -> 74%, ")
  assert "truncated_share 2% -> 2%" in only.says


def test_a_solved_task_is_healthy_though_nothing_is_left_to_learn():
  rows = [row | dict(accuracy=min(1.0, 0.5 + i / 80), reward=min(2.0, 1.5 + i / 80), entropy=0.6 * 0.9**i,
                     zero_variance_share=min(0.95, i / 50)) | {"length/wrong": 20 + 2 * i}
          for i, row in enumerate(healthy())]
  found = doctor.diagnose(rows, [], CONFIG)
  assert [(f.severity, f.name) for f in found] == [("note", "too easy"), ("good", "healthy")]


@pytest.mark.parametrize("change, name, severity, number", [
  ({"truncated_share": 0.12}, "truncation", "warning", "12%"),
  ({"truncated_share": 0.2}, "truncation", "bad", "20%"),
  ({"mismatch/k3": 2e-3}, "mismatch", "warning", "0.002"),
  ({"mismatch/k3": 0.02}, "mismatch", "bad", "0.02"),
  ({"kl": 0.7}, "KL", "bad", "0.7"),
  ({"clip_share": 0.3}, "clipping", "warning", "30%"),
  ({"verdict/no_answer": 0.2, "verdict/unparseable": 0.1}, "no readable answer", "warning", "no_answer 20%"),
  ({"verdict/no_answer": 0.6}, "no readable answer", "bad", "60%"),
  ({"verdict/timeout": 0.02}, "timeout", "warning", "2.0%"),
  ({"verdict/refused": 0.02}, "refused", "warning", "2.0%"),
  ({"eval/greedy_lenient": 0.7}, "strict below lenient", "warning", "strict 50%, lenient 70%"),
  ({"lr": 0.0}, "no rate", "bad", "lr was 0"),
  ({"zero_variance_share": 0.6}, "always or never", "warning", "60%"),
])
def test_a_bad_number_is_found_and_named(change, name, severity, number):
  rows = [row | change for row in healthy()]
  found = finding(name, rows)
  assert found.severity == severity and number in found.says and found.tries
  assert names(rows) == [name]
  # half as bad, or a healthy value, is not mentioned
  assert names([row | {key: value / 2.1 if key != "lr" else 1e-3 for key, value in change.items()
                       if key != "eval/greedy_lenient"} for row in healthy()
                ]) in (["healthy"], [name])   # the bad ones halved are still warnings
  assert names(healthy()) == ["healthy"]


@pytest.mark.parametrize("key, limit, name", [
  ("truncated_share", checks.TRUNCATED, "truncation"), ("mismatch/k3", checks.MISMATCH, "mismatch"),
  ("kl", checks.KL, "KL"), ("clip_share", checks.CLIPPED, "clipping"), ("verdict/no_answer", checks.PARSE,
                                                                       "no readable answer"),
  ("verdict/timeout", checks.LOST, "timeout"), ("zero_variance_share", checks.AGREE, "always or never")])
def test_thresholds_are_where_they_say(key, limit, name):
  assert names([row | {key: 0.99 * limit} for row in healthy()]) == ["healthy"]
  assert names([row | {key: 1.01 * limit} for row in healthy()]) == [name]


def test_a_verdict_that_most_rows_do_not_name_is_rare():
  rows = [row | ({"verdict/no_answer": 0.5} if i % 10 == 5 else {}) for i, row in enumerate(healthy())]
  assert names(rows) == ["healthy"]        # a tenth of the rows at one half


def test_agreeing_groups_are_told_apart_by_accuracy_and_by_samples():
  hard = flat(zero_variance_share=0.9, accuracy=0.02)
  assert finding("too hard", hard).severity == "bad" and "easier problems" in finding("too hard", hard).tries
  # mean accuracy alone cannot tell half solved from half hopeless; the samples can
  unclear = [row | dict(zero_variance_share=0.9) for row in healthy()]
  wrong = [row for i in range(9) for row in group(i, ["wrong"] * 4)]
  right = [row for i in range(9) for row in group(i, ["correct"] * 4)]
  assert "0 are all right and 9 all wrong" in finding("too hard", unclear, wrong).says
  assert "9 are all right and 0 all wrong" in finding("too easy", unclear, right).says
  assert names(unclear, right + [row | dict(problem=row["problem"] + 50) for row in wrong]) == ["always or never"]
  assert names(unclear) == ["always or never"]


def test_reward_that_is_flat_within_its_noise():
  found = finding("reward flat", flat())
  assert found.severity == "bad" and "1.21 -> 1.21" in found.says
  # moved: KL to the reference is not tiny, so the rate is not the first suspect
  assert names(flat()) == ["reward flat"]
  still = flat(kl=1e-6)
  assert names(still) == ["reward flat", "rate too low"] and "lr 0.001" in finding("rate too low", still).says


def test_reward_that_fell():
  rows = [row | dict(reward=3 - row["reward"]) for row in healthy()]
  assert names(rows) == ["reward fell"] and "1.75 -> 1.26" in finding("reward fell", rows).says


def test_reward_that_another_term_earns():
  rows = [row | dict(accuracy=0.6 - i / 300) for i, row in enumerate(healthy())]
  assert names(rows) == ["earned elsewhere"] and "58% -> 42%" in finding("earned elsewhere", rows).says


def test_form_that_rises_without_content():
  rows = [row | {"accuracy": 0.3 + 0.01 * (i % 2), "reward/format": 0.2 + i / 100} for i, row in enumerate(healthy())]
  assert names(rows) == ["form, not content"]
  assert "0.26 -> 0.73" in finding("form, not content", rows).says
  assert names([row | {"reward/format": 0.2 + i / 100} for i, row in enumerate(healthy())]) == ["healthy"]


def test_entropy_that_collapses_before_the_task_is_solved():
  rows = [row | dict(entropy=0.6 * 0.9**i) for i, row in enumerate(healthy())]
  assert names(rows) == ["entropy collapse"] and "clip_high=0.28" in finding("entropy collapse", rows).tries
  assert names([row | dict(entropy=0.6 * 0.98**i) for i, row in enumerate(healthy())]) == ["healthy"]


def test_twins_in_a_group():
  twins = [row for i in range(4) for row in group(i, ["wrong", "wrong", "wrong", "correct"], text="the same")]
  assert names(healthy(), twins) == ["twins"] and "75%" in finding("twins", healthy(), twins).says
  assert names(healthy(), [row | dict(length=3) for row in twins]) == ["healthy"]     # short answers are alike


def test_gradient_spikes_matter_where_reward_does_not_rise():
  rows = flat()
  rows[40]["grad_norm"] = 30.0
  assert names(rows) == ["reward flat", "rate too high"] and "30" in finding("rate too high", rows).says
  risen = healthy()
  risen[40]["grad_norm"] = 30.0
  assert names(risen) == ["healthy"]


def test_nan_is_the_first_thing_said():
  rows = healthy()
  rows[7]["loss"] = rows[9]["loss"] = None
  first = doctor.diagnose(rows, [], CONFIG)[0]
  assert first.name == "not finite" and "loss was NaN or infinite in 2 row(s), first at step 7" in first.says


def test_wrong_answers_that_grow_alone():
  rows = [row | {"length/wrong": 20 + i} for i, row in enumerate(healthy())]
  assert names(rows) == ["wrong answers grow"] and "25.5 -> 73.5" in finding("wrong answers grow", rows).says
  assert names([row | {"length/wrong": 20 + i, "length/correct": 20 + i} for i, row in enumerate(healthy())]) == [
    "healthy"]


def test_settings_that_cannot_learn():
  assert names(healthy(), change={"loss.negative_control": "flipped_advantages"}) == ["control"]
  assert names(healthy(), change={"rewards": dict(format=1.0)}) == ["no accuracy"]


def test_too_short_to_judge():
  found = doctor.diagnose(healthy(6), [], CONFIG)
  assert [f.name for f in found] == ["few updates", "short", "healthy"]
  assert "6 updates" in found[0].says
  assert [f.name for f in doctor.diagnose([], [], CONFIG)] == ["no rows"]
  assert "few updates" not in names(healthy(20), change={"minibatches": 16})
  assert "few updates" in names(healthy(20))


def test_a_pretraining_stage_has_its_loss_looked_at():
  rows = [dict(step=i, loss=3.0 / (i + 1)) for i in range(20)]
  assert [f.name for f in doctor.diagnose(rows, [], CONFIG, "pretrain")] == ["healthy"]
  rows[3]["loss"] = None
  assert [f.name for f in doctor.diagnose(rows, [], CONFIG, "pretrain")] == ["not finite"]


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  folder = tmp_path / "reasoning_rl"
  (folder / "samples").mkdir(parents=True)
  rows = [row | {"verdict/no_answer": 0.4} for row in healthy()]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  bad = group(1, ["no_answer", "correct"], text="[red]um\x1b[2J {}")
  pq.write_table(pa.Table.from_pylist(bad), folder / "samples" / "step_000010.parquet")
  (folder / "samples" / "step_000020.parquet").write_bytes(b"PAR1 cut short")
  return tmp_path


def test_the_command_prints_a_table_and_quotes_answers_as_text(workdir, capsys):
  assert cli.main(["doctor", str(workdir)]) == 0
  out = capsys.readouterr().out
  assert "warning" in out and "no_answer 40%" in out and "step_000020.parquet could not be read" in out
  assert "\x1b[2J" not in out and "[red]" in out
  assert "…" not in out                  # a key that is cut short cannot be typed


def test_the_command_helps_and_refuses(tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(["doctor", "--help"])
  assert stop.value.code == 0 and "usage: r1jax doctor" in capsys.readouterr().out
  assert cli.main(["doctor", str(tmp_path / "nowhere")]) == 2 and "no run here" in capsys.readouterr().err
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  assert cli.main(["doctor", str(tmp_path)]) == 2 and "logged nothing yet" in capsys.readouterr().err

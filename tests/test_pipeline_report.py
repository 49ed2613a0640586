"""The report of a pipeline: its table of stages, lineage, joined figure, filters, and rewards that are hacked."""

import json
import re

import pytest
from report_folder import FIGURES, R1, rl_rows, sample, write_pipeline, write_rows, write_samples, write_stage
from test_report import charts, embedded

from r1jax import report
from r1jax.cli import main as cli
from r1jax.report import advice, hacking, stages


@pytest.fixture
def run(tmp_path):
  write_pipeline(tmp_path)
  return tmp_path


def page_of(run):
  return report.write(run).read_text(encoding="utf-8")


def rows_of(page, css):
  """The cells of a table of this class, without their markup."""
  table = re.search(rf'<(?:table|div) class="{css}.*?</table>', page, re.S)[0]
  return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]


def test_the_table_of_stages_has_policies_across_in_the_order_of_the_run(run):
  table = rows_of(page_of(run), "stages")
  assert table[0] == ["", *FIGURES]
  assert table[1] == ["pass@1", "31.0%", "92.0%", "55.0%", "91.0%", "88.0%", "93.0%"]
  assert [row[0] for row in table[1:]] == ["pass@1", "greedy accuracy", "language", "mean answer length, tokens",
                                           "general: helpful", "unsafe: safe"]      # no seconds
  assert report.summary(run) == [tuple(row) for row in table]      # the terminal's is the same


def test_the_best_of_a_row_stands_out_where_more_is_better(run):
  page = page_of(run)
  assert re.findall(r'<td class="best">([^<]*)', page) == ["93.0%", "94.0%", "0.98", "0.98", "0.98", "0.7325"]


def test_an_unfinished_pipeline_has_the_columns_that_there_are(tmp_path):
  write_pipeline(tmp_path, until="cold_start_data")
  page = page_of(tmp_path)
  assert rows_of(page, "stages")[0] == ["", "base", "zero"]
  assert "3 of 10 stages finished" in page and "<b>unfinished</b>" in page
  assert [row[-1] for row in rows_of(page, "lineage")[1:]] == ["finished"] * 3 + ["not begun"] * 7
  (tmp_path / "eval" / "zero.json").write_text("{")
  write_rows(tmp_path, "dev1", [dict(step=0, loss=1.0), dict(step=1, loss=0.5)])
  page = page_of(tmp_path)
  assert rows_of(page, "stages")[0] == ["", "base"] and "zero.json could not be read" in page
  assert rows_of(page, "lineage")[4][-1] == "under way, step 1"


def test_lineage_says_what_came_from_what_and_why_a_stage_was_redone(run):
  page = page_of(run)
  table = rows_of(page, "lineage")[1:]
  assert [(row[0], (row[1], row[2], row[3])) for row in table] == list(R1.items())
  assert table[0][4] == "1.6 min" and "dev3 was redone: sft_data/data.jsonl changed" in page
  drawn = re.search(r'<div class="lineage wide">(<svg.*?</svg>)', page)[1]
  assert drawn.count("<circle") == 6 and drawn.count("<rect") == 4      # policies; data and reward models
  assert drawn.count('class="policy"') == 9 and drawn.count('class="data"') == 2


def test_a_start_that_is_not_told_is_the_policy_before(tmp_path):
  names = ["base", "data", "judge", "rl"]
  kinds = ("pretrain", "rejection", "reward_model", "reasoning_rl")
  (tmp_path / "config.json").write_text(json.dumps(
    dict(stages=names) | {name: dict(stage=kind) for name, kind in zip(names, kinds, strict=True)}))
  write_rows(tmp_path, "data", rl_rows(3))
  found = report.read(tmp_path).stages
  assert [stage.start for stage in found] == ["", "base", "base", "base"]
  assert not found[1].is_rl      # it samples and scores, but trains nothing


def test_columns_of_the_drawing_by_hand():
  assert stages.lanes([[], [0], [1]]) == [0, 0, 0]                      # a chain
  assert stages.lanes([[], [0], [0]]) == [0, 1, 0]                      # a fork: the last child stands below
  assert stages.lanes([[], [0], [1], [0, 2], [3]]) == [0, 1, 1, 0, 0]   # data from beside
  assert stages.lanes([[], [0], [1], [0, 2], [0]]) == [0, 1, 1, 2, 0]   # a column is one line of policies
  parents = [[], [0], [1], [0, 2], [3], [4], [0, 5], [6], [6], [6]]     # R1's
  lane = stages.lanes(parents)
  for i, of in enumerate(parents):      # no line runs through another stage's dot
    for parent in of:
      assert all(lane[j] != lane[parent] for j in range(parent + 1, i))


def test_rl_stages_are_joined_on_one_axis(run):
  accuracy, length = charts(page_of(run))[:2]
  assert accuracy["title"] == "Accuracy" and length["title"] == "Mean answer length"
  assert accuracy["bounds"] == [dict(at=0, name="zero"), dict(at=60, name="dev2"), dict(at=120, name="r1")]
  training, held = accuracy["curves"]
  assert training["x"] == list(range(180)) and training["y"][60] == pytest.approx(0.55)
  assert held["marks"] and held["x"][:2] == [4, 9] and len(held["x"]) == 36


def test_joined_stages_keep_their_steps_apart_when_steps_are_updates_of_minibatches(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(dict(stages=["a", "b"])))
  for name in ("a", "b"):
    write_rows(tmp_path, name, [dict(step=16 * i, reward=1.0, accuracy=0.5) for i in range(700)])
    (tmp_path / name / "stage.json").write_text("{}")
  accuracy = charts(page_of(tmp_path))[0]
  assert accuracy["bounds"][1] == dict(at=16 * 700, name="b") and accuracy["x"] == [0, 16 * 1400]
  x = accuracy["curves"][0]["x"]
  assert x == sorted(x) and 400 < len(x) <= 500


def test_filters_are_counted_by_stage(run):
  table = re.search(r'<table class="filters">.*?</table>', page_of(run), re.S)[0]
  text = re.sub(r"<[^>]*>", " ", table).split()
  counts = "400 170 42.5% 180 45.0% 40 10.0% 10 2.5%"
  assert text == f"stage sampled kept wrong language repetition cold_start_data {counts} sft_data {counts}".split()
  assert table.count('width="42.500"') == 2      # the bars
  assert "sft_data: 50 samples of other data were added to what was kept." in page_of(run)
  (run / "sft_data" / "filters.json").write_text('{"sampled": "many"}')
  assert "cold_start_data 400" in " ".join(re.sub(r"<[^>]*>", " ", page_of(run)).split())


def test_answers_carry_scenario_filter_and_what_was_not_asked(run):
  sources = embedded(page_of(run), "samples")
  assert [source["stage"] for source in sources][:3] == ["base", "zero", "zero"]      # evaluation; training, evaluation
  found = {source["stage"]: source["groups"] for source in sources if source["groups"][0]["step"] is not None}
  unsafe = next(g for g in found["r1"] if g["scenario"] == "unsafe")["answers"][0]
  assert unsafe["verdict"] == "not_asked" and ["accuracy", None, "not_asked"] in unsafe["parts"]
  assert ["helpful", 0.8, ""] in unsafe["parts"]
  assert {a["dropped"] for g in found["sft_data"] for a in g["answers"]} == {"", "wrong"}


def test_a_figure_that_falls_while_reward_rises_is_flagged_and_shaded(run):
  found = next(stage for stage in report.read(run).stages if stage.name == "r1")
  [fall] = hacking.falls(found)
  assert fall.key == "eval/general/helpful" and fall.steps == (39, 59)
  assert fall.figure == pytest.approx((0.89, 0.33)) and fall.reward[1] > fall.reward[0]
  page = page_of(run)
  assert "r1: general: helpful fell from 0.89 to 0.33 between steps 39 and 59, while the reward rose" in page
  assert [spec["title"] for spec in charts(page) if spec.get("spans")] == ["What is trained", "What it does not see"]
  assert all(spec["spans"] == [[39, 59]] for spec in charts(page) if spec.get("spans"))


def test_a_policy_worse_than_the_one_it_started_from_is_flagged(run):
  said = hacking.hacked(report.read(run))
  assert said[0] == ("zero: language was 0.97 before the stage and is 0.61 after it, while the reward rose from 1.51 to"
                     " 1.91.")
  assert not any(line.startswith("dev2") for line in said)      # its language went from 0.98 to 0.97: too little


def test_the_terminal_says_what_fell(run, capsys):
  assert cli.main(["report", str(run)]) == 0
  out = " ".join(capsys.readouterr().out.split())
  assert "r1: general: helpful was 0.4 before the stage and is 0.1 after it" in out and "dev3" in out


def held_out(values, rewards):
  return [{"step": i, "reward": r, "eval/x": v} for i, (v, r) in enumerate(zip(values, rewards, strict=True))]


def test_no_flag_without_both_movements():
  up, down = [i / 10 for i in range(10)], [1 - i / 10 for i in range(10)]
  assert hacking.deepest_fall(held_out(down, up), "eval/x").steps == (0, 9)
  assert hacking.deepest_fall(held_out(up, up), "eval/x") is None             # both rise
  assert hacking.deepest_fall(held_out(down, down), "eval/x") is None         # both fall: that is no hack
  noise = [0.9 + 0.05 * (i % 2) for i in range(10)]
  assert hacking.deepest_fall(held_out(noise, up), "eval/x") is None          # within the figure's own noise
  slight = [0.9 - 0.001 * i for i in range(10)]
  assert hacking.deepest_fall(held_out(slight, up), "eval/x") is None
  assert hacking.deepest_fall([], "eval/x") is None


def test_reward_within_its_noise_has_not_risen():
  """Ten rewards of noise 1 before each evaluation: means differ by 0.1, their standard error is 0.45."""
  rows = [{"step": i, "reward": (-1.0) ** i + 0.1 * (i // 10)} | ({"eval/x": 1 - i / 20} if i % 10 == 9 else {})
          for i in range(20)]
  assert hacking.deepest_fall(rows, "eval/x") is None
  for row in rows[10:]:
    row["reward"] += 2
  assert hacking.deepest_fall(rows, "eval/x").steps == (9, 19)


def test_a_reward_of_other_parts_is_not_compared(tmp_path):
  """Preference terms come in for the last part of a stage, as in the paper: the total changes its meaning there."""
  rows = [{"step": i, "reward": 1.0, "eval/x": 0.9, "reward/accuracy": 1.0} for i in range(10)]
  rows += [{"step": i, "reward": 2.0 + i / 100, "eval/x": 0.9 - (i - 10) / 20, "reward/accuracy": 1.0,
            "reward/helpful": 1.0} for i in range(10, 20)]
  assert hacking.deepest_fall(rows, "eval/x").steps == (10, 19)
  for row in rows[10:]:
    row["reward"] = 0.5
  assert hacking.deepest_fall(rows, "eval/x") is None and advice.same_reward(rows) == rows[10:]
  assert not any("Reward fell" in line for line in advice.look_at(rows))


def test_a_fall_within_the_noise_of_so_many_problems_is_no_flag(run):
  problems = hacking.problems_of(report.read(run), "r1")
  assert problems == {"": 200, "reasoning": 100, "general": 50, "unsafe": 50}
  assert hacking.error_of("general/helpful", 0.5, problems) == pytest.approx((0.25 / 50) ** 0.5)
  assert hacking.error_of("pass@1", 0.5, problems) == pytest.approx(0.05)
  assert hacking.error_of("length", 9, problems) == 0
  (run / "eval" / "r1.json").write_text(json.dumps({"r1/general/helpful": 0.3}))      # 0.4 before: 0.1, and 2 x 0.095
  assert not any(line.startswith("r1: general: helpful was") for line in hacking.hacked(report.read(run)))


def test_shorter_answers_are_no_loss():
  assert hacking.seen(["eval/greedy_length", "eval/truncated_share", "eval/language"], "eval/") == ["eval/language"]


def test_a_chain_has_no_lineage_and_its_ends_are_compared(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(dict(stages=["pretrain", "reasoning_rl"])))
  write_rows(tmp_path, "reasoning_rl", rl_rows())
  write_samples(tmp_path, 0, [sample(0)])
  (tmp_path / "result.json").write_text(json.dumps({"base/pass@1": 0.9, "final/pass@1": 0.4}))
  page = page_of(tmp_path)
  assert "lineage" not in page.split("</style>")[1].split("<script")[0] and "<h2>Stages" not in page
  assert "reasoning_rl: pass@1 was 90.0% before the stage and is 40.0% after it" in page
  assert charts(page)[0].get("bounds") is None


def test_pieces_of_another_shape_are_not_trusted(run):
  for name, content in (("stage.json", "[]"), ("filters.json", '{"sampled": 1, "kept": -1, "dropped": []}')):
    (run / "sft_data" / name).write_text(content)
  write_stage(run, "dev1", "sft", "nowhere", "r1")      # from a stage that is not there, with data of a later one
  (run / "eval" / "r1.json").write_text(json.dumps({"r1/pass@1": "high", "r1/language": None, "r1/x": [1]}))
  (run / "eval" / "r1.parquet").write_bytes(b"PAR1")
  page = page_of(run)
  assert "stage.json could not be read" in page and "r1.parquet could not be read" in page
  assert rows_of(page, "stages")[1][-1] == "high"

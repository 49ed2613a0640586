"""The report of a run: whole, in progress, broken, and hostile."""

import base64
import hashlib
import json
import re
import subprocess
import sys

import pytest
from report_folder import HOSTILE, rl_rows, sample, write_rows, write_samples

from r1jax import report
from r1jax.report import browser, figures, folder


@pytest.fixture
def run(tmp_path):
  stages = ["pretrain", "reasoning_rl"]
  (tmp_path / "config.json").write_text(json.dumps(dict(name="carries", stages=stages, lr=0.00123)))
  write_rows(tmp_path, "pretrain", [dict(step=i, loss=3 / (1 + i), lr=1e-3) for i in range(10)])
  write_rows(tmp_path, "reasoning_rl", rl_rows())
  for step in range(0, 60, 6):
    write_samples(tmp_path, step, [sample(step), sample(step, sample=1, verdict="no_answer", text="um")])
  (tmp_path / "result.json").write_text(json.dumps({
    "base/greedy_accuracy": 0.5, "final/greedy_accuracy": 0.98, "base/length": 9.1, "final/pass@8": 1.0,
    "seconds/total": 300}))
  return tmp_path


def page_of(run):
  return report.write(run).read_text(encoding="utf-8")


def embedded(page, id):
  return json.loads(re.search(f'<script type="application/json" id="{id}">(.*?)</script>', page, re.S)[1])


def charts(page):
  return embedded(page, "charts")


def test_a_whole_run_is_one_self_contained_page(run):
  page = page_of(run)
  assert report.write(run) == run / "report.html"
  assert [path.name for path in run.glob("report*")] == ["report.html"]
  assert not re.search(r"""(src|href|action)\s*=|url\(|@import|<link|fetch\(|XMLHttp""", page)
  assert re.findall(r"\w+://[^\s\"'<]+", page) == ["http://www.w3.org/2000/svg"]   # a name, not fetched
  for text in ("carries", "50.0%", "98.0%", "5.0 min", "0.00123",
               "10 of 10 answers of steps 0, 12, 24, 36, 54 (10 were"):
    assert text in page, text
  assert "<b>unfinished</b>" not in page and "Notes on the files" not in page
  [source] = embedded(page, "samples")
  assert source["stage"] == "reasoning_rl" and [g["step"] for g in source["groups"]] == [0, 12, 24, 36, 54]
  right, wrong = source["groups"][0].pop("answers")
  assert source["groups"][0] == dict(step=0, problem="7", prompt="What is 17 + 25?", gold="42", scenario="")
  assert right == dict(text="<think>carry</think> 42", verdict="correct", dropped="", parts=[["format", 1.0, ""]],
                       reward=1.1, advantage=0.75, length=9.0, logp_mean=-0.25, logp_min=-3.5)
  assert wrong["text"] == "um" and wrong["verdict"] == "no_answer"


def test_every_metric_is_drawn_once_and_eval_points_are_marked(run):
  specs = charts(page_of(run))
  titles = [spec["title"] for spec in specs]
  assert titles[:2] == ["Accuracy", "Mean answer length"] and "novel_metric" in titles and "Loss" in titles
  accuracy, length = specs[0]["curves"], specs[1]["curves"]
  assert [(c["name"], c["marks"], len(c["x"])) for c in accuracy] == [
    ("training answers", False, 60), ("held-out, greedy", True, 3)]
  assert length[0]["y"][10] == 10.0 and length[1]["x"] == [0, 20, 40]
  assert len(re.findall("data-chart=", report.write(run).read_text())) == len(specs)


def test_the_policy_admits_our_script_and_no_other(run):
  page = page_of(run)
  scripts = re.findall(r"<script(?: [^>]*)?>(.*?)</script>", page, re.S)
  digest = base64.b64encode(hashlib.sha256(scripts[2].encode()).digest()).decode()
  assert len(scripts) == 3 and f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page


def test_hostile_text_is_only_text(run):
  stages = ["pretrain", "reasoning_rl", HOSTILE.replace("/", "")]
  (run / "config.json").write_text(json.dumps(dict(name=HOSTILE, stages=stages, note="\ud800" + HOSTILE)))
  write_rows(run, "reasoning_rl", [row | {HOSTILE: 1.0, f"reward/{HOSTILE}": 2.0} for row in rl_rows()])
  (run / "result.json").write_text(json.dumps({f"final/{HOSTILE}": 1.0, "final/x": HOSTILE, HOSTILE: [1]}))
  same = dict.fromkeys(("prompt", "gold", "text", "verdict"), HOSTILE)
  longer = same | {"text": HOSTILE * 500, f"reward/{HOSTILE}": 0.5}
  write_samples(run, 54, [sample(54, **longer), sample(54, **same)])
  (run / "reasoning_rl/samples/step_000000.parquet").write_bytes(HOSTILE.encode())
  page = page_of(run)
  assert page.count("<script") == page.count("</script") == 3 and "<img" not in page
  assert page.count("&lt;script&gt;alert(1)") > 8
  assert HOSTILE in [spec["title"] for spec in charts(page)]
  last = embedded(page, "samples")[0]["groups"][-1]
  assert last["prompt"] == last["answers"][0]["verdict"] == HOSTILE      # whole, and in a text node: browser.js
  assert last["answers"][0]["text"].startswith(HOSTILE * 2) and "characters left out" in last["answers"][0]["text"]


def test_a_run_in_progress_or_killed_still_reports(run):
  (run / "result.json").unlink()
  write_rows(run, "reasoning_rl", rl_rows(30), tail='{"step": 30, "rew')
  (run / "reasoning_rl/samples/step_000054.parquet").write_bytes(b"PAR1 cut short")
  page = page_of(run)
  assert "<b>unfinished</b>" in page and "1 unreadable line skipped" in page
  assert "step_000054.parquet could not be read" in page
  assert report.summary(run)[0] == ("so far", "first logged", "last logged")
  assert ("reasoning_rl: accuracy", "40.0%", "54.5%") in report.summary(run)


def test_missing_pieces_are_said_not_raised(run, tmp_path_factory):
  for path in (run / "reasoning_rl").rglob("*.*"):
    path.unlink()
  assert "reasoning_rl: not started" in page_of(run) and "No sample answers" in page_of(run)
  (run / "config.json").write_text('{"stages": ')
  (run / "result.json").write_text("[1]")
  assert "config.json could not be read" in page_of(run) and "result.json could not be read" in page_of(run)
  assert "no stage has run yet" in page_of(tmp_path_factory.mktemp("empty"))


def test_nan_is_a_gap_in_the_curve_and_a_warning(run):
  rows = rl_rows()
  rows[3] |= {"reward": float("nan"), "kl": float("inf"), "length": None, "accuracy": "?", "entropy": 1e300}
  write_rows(run, "reasoning_rl", [*rows, {"step": float("nan")}, [1], 5])
  (run / "result.json").write_text('{"base/greedy_accuracy": NaN, "final/greedy_accuracy": Infinity}')
  page = page_of(run)
  assert ("greedy accuracy", "–", "–") in report.summary(run) and "3 unreadable lines" in page
  assert "reward was not finite in 1 step(s), first at step 3" in page
  accuracy, length = charts(page)[:2]
  assert accuracy["curves"][0]["y"][2:5] == [0.41, None, 0.42] and length["curves"][0]["y"][3] is None


def test_long_runs_are_drawn_with_few_points_that_keep_the_spikes():
  rows = [{"step": i, "grad_norm": 1.0} for i in range(20_000)]
  rows[777]["grad_norm"] = 900.0
  drawn = figures.curve(rows, "grad_norm")
  assert len(drawn["x"]) == len(drawn["hi"]) == 500
  assert max(drawn["hi"]) == 900.0 and max(drawn["y"]) == pytest.approx(1 + 899 / 40, rel=1e-4)
  assert "20,000 logged steps" in figures.Figures().all(0, rows)


def test_a_resumed_run_has_one_history(tmp_path):
  lines = [dict(step=1, x=1), dict(step=2, x=2), dict(step=3, x=3), dict(step=2, x=20), dict(step=2, y=5)]
  write_rows(tmp_path, "s", lines)
  rows = folder.read_rows(tmp_path / "s" / "metrics.jsonl", [])
  assert rows == [dict(step=1, x=1), dict(step=2, x=20, y=5)]


@pytest.mark.parametrize("change, said", [
  (dict(zero_variance_share=0.9), "90% of groups agree"),
  (dict(truncated_share=0.2), "20% of answers are cut off"),
  ({"mismatch/k3": 0.01}, "Sampler and trainer disagree"),
  (dict(clip_share=0.3), "30% of tokens are clipped"),
  (dict(reward=0.5), "Reward is flat"),
])
def test_advice_comes_when_a_number_is_bad_and_not_otherwise(change, said):
  assert report.look_at(rl_rows()) == []
  advice = report.look_at([row | change for row in rl_rows()])
  assert len(advice) == 1 and said in advice[0]


def test_advice_on_what_changes_over_a_run():
  rows = rl_rows()
  assert "Reward fell" in report.look_at(rows[::-1])[0]
  collapsed = [row | dict(entropy=0.5 if i < 20 else 0.01) for i, row in enumerate(rows)]
  assert "Entropy fell" in report.look_at(collapsed)[0]
  farmed = [row | dict(accuracy=0.8 - i / 200) for i, row in enumerate(rows)]
  assert "earned elsewhere" in report.look_at(farmed)[0]
  assert report.look_at(rows[:3]) == []   # too short to judge


def test_the_answers_on_the_page_are_bounded_and_begin_with_whole_groups(tmp_path):
  write_samples(tmp_path, 0, [sample(0, problem=n // 50, prompt=str(n // 50), reward=float(n == 499))
                              for n in range(500)])
  write_samples(tmp_path, 1, [sample(1, text="x" * browser.CHARACTERS)] * 3)
  files = [(step, tmp_path / "reasoning_rl" / "samples" / f"step_{step:06d}.parquet") for step in (0, 1)]
  groups, kept, of = browser.chosen(files, [])
  assert of == 503 and kept == browser.ANSWERS // 2 + 3
  assert [(g["step"], g["problem"], len(g["answers"])) for g in groups] == [(0, "0", 50), (0, "1", 50), (1, "7", 3)]
  assert all(len(answer["text"]) < browser.LONGEST + 100 for group in groups for answer in group["answers"])
  write_samples(tmp_path, 2, [sample(2, problem=n, text="x" * browser.LONGEST) for n in range(100)])
  _, kept, _ = browser.chosen([(2, tmp_path / "reasoning_rl" / "samples" / "step_000002.parquet")], [])
  assert kept == browser.CHARACTERS // (browser.LONGEST + len("What is 17 + 25?"))
  groups, kept, _ = browser.chosen(files[:1], [])
  assert [g["problem"] for g in groups] == ["0", "1", "9", "2"]      # 9 differs: it teaches


def test_reporting_needs_no_jax():
  code = "import sys, r1jax.report; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""`r1jax bench verifier`: marks against judges, by hand and on the first of the real completions."""

import json
from pathlib import Path

import pytest

from r1jax.bench import verifier
from r1jax.cli import bench
from r1jax.problem import Problem, Score

pytest.importorskip("math_verify", reason="math-verify is not installed (extra math)")
REAL = Path(__file__).parents[2] / "shared/data/gsm8k/example_model_solutions.jsonl"


def line(gold: str, **models) -> str:
  return json.dumps(dict(question="q", ground_truth=f"so\nA: {gold}") | {
    name: dict(solution=text, is_correct=mark) for name, (text, mark) in models.items()}) + "\n"


@pytest.fixture
def marked(tmp_path):
  path = tmp_path / "marked.jsonl"
  path.write_text(line("18", a=("A: 18", True), b=("A: 17", False)) + line("5", a=(r"\boxed{\sqrt{25}}", True),
                                                                         b=("A: 5", False)))
  return path


def test_agreement_counts_and_kinds_by_hand(marked, tmp_path, capsys):
  assert bench.main(["verifier", "--data", str(marked), "--workers", "1", "--json", str(tmp_path / "out.json")]) == 0
  out = json.loads((tmp_path / "out.json").read_text())
  assert (out["completions"], out["problems"]) == (4, 2)
  rules, reward, library = (out["judges"][name] for name in ("rules", "reward", "library"))
  assert rules["agreement"] == 0.5 and reward["agreement"] == library["agreement"] == 0.75
  assert rules["verdicts"] == dict(correct=2, wrong=1, unparseable=1) and reward["verdicts"] == dict(correct=3, wrong=1)
  assert rules["false_negatives"]["other"] == [
    dict(problem=1, gold="5", answer=r"\sqrt{25}", verdict="unparseable")]
  assert reward["false_positives"]["number format"] == [dict(problem=1, gold="5", answer="5", verdict="correct")]
  assert reward["timeouts"] == 0 and 0 < reward["p50_s"] <= reward["p99_s"] <= reward["max_s"]
  assert "agreement" in capsys.readouterr().out


def test_an_answer_that_is_not_found_is_told_apart():
  rows = [(Problem(0, "", "7"), "no idea", True), (Problem(0, "", "7"), "A: 7", True)]
  out = verifier.summary(rows, [Score(0.0, "no_answer 0.1"), Score(1.0, "correct 0.3")], 2.0)
  assert (out["agreement"], out["agreement_where_found"], out["found"]) == (0.5, 1.0, 1)
  assert len(out["false_negatives"]["no answer"]) == 1
  assert (out["checks_per_s"], out["p50_s"], out["max_s"]) == (1.0, 0.3, 0.3)


@pytest.mark.parametrize(("answer", "gold", "kind"), [
  (None, "7", "no answer"), ("1,234", "1234", "number format"), ("$7.00", "7", "number format"),
  ("0.33", "1/3", "number format"), ("7 eggs", "7", "unit"), ("7 eggs of 9", "7", "unit"), ("8", "7", "other"),
  ("seven", "7", "other"), (r"\sqrt{49}", "7", "other")])
def test_kinds_of_disagreement(answer, gold, kind):
  assert verifier.kind(answer, gold) == kind


def test_a_file_of_another_form_is_named(tmp_path):
  (tmp_path / "x.jsonl").write_text('{"question": "q", "answer": "a"}\n')
  with pytest.raises(ValueError, match=r"x.jsonl:1: no 'ground_truth'"):
    verifier.load(tmp_path / "x.jsonl")
  with pytest.raises(ValueError, match="needs --data"):
    bench.main(["verifier"])


@pytest.mark.skipif(not REAL.is_file(), reason=f"no GSM8K completions at {REAL}")
@pytest.mark.parametrize("problems", [20, pytest.param(0, marks=pytest.mark.slow)])
def test_the_judges_agree_with_people(problems):
  out = verifier.measure(REAL, problems)
  assert out["completions"] == 4 * (problems or 1319)
  for name, judge in out["judges"].items():
    assert judge["agreement_where_found"] >= verifier.BAR, name
    assert judge["found"] >= 0.99 * out["completions"]
    assert judge["timeouts"] == 0

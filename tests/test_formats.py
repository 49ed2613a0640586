"""Benchmarks' files: what they are told by, what is asked, and what is right."""

import csv
import json

import numpy as np
import pytest
from conftest import DATA

from r1jax.cli import main as cli
from r1jax.evals import formats, significance
from r1jax.rewards.workers import Workers

MATH = dict(problem="Simplify $\\sqrt{242}$.", solution="..", answer="11\\sqrt2", subject="Algebra", level=2,
            unique_id="test/algebra/1.json")
GPQA = {"Question": "Which?", "Correct Answer": "right\n", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
        "Incorrect Answer 3": "w, 3", "High-level domain": "Physics"}
HUMAN = dict(entry_point="f", prompt="def f(): ...", test="def check(candidate): ...")
CODE = dict(question_content="Sum two numbers.", public_test_cases="[]")
IF = dict(prompt="Write.", instruction_id_list=["punctuation:no_comma"], kwargs=[{}])


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def table(path, *rows):
  with path.open("w", newline="") as file:
    out = csv.DictWriter(file, rows[0].keys())
    out.writeheader()
    out.writerows(rows)
  return path


def verdict(found, text, i=0):
  return found.scoring["rewards"]["accuracy"](found.problems[i], text).verdict


@pytest.mark.parametrize("row, name", [
  (MATH, "math500"), (HUMAN, "humaneval"), (CODE, "livecodebench"), (IF, "ifeval"),
  (dict(question="1 + 1?", answer="so #### 2"), "gsm8k"), (dict(question="Which?", answer="so #### B"), "questions"),
  (dict(text="t", code="c", test_list=[]), "mbpp"), (dict(problem="1 + 1?", answer=2), "questions"),
  (dict(prompt="1 + 1?", answer="#### 2"), "questions")])
def test_a_file_is_known_by_its_fields(row, name, tmp_path):
  assert formats.detect(write(tmp_path / "a.jsonl", row)) == name


def test_a_csv_file_is_gpqas_or_refused(tmp_path):
  assert formats.detect(table(tmp_path / "a.csv", GPQA)) == "gpqa"
  with pytest.raises(ValueError, match=r"must have GPQA's columns Question, .* got a, b"):
    formats.detect(table(tmp_path / "b.csv", dict(a="1", b="2")))


def test_a_file_with_the_marks_of_two_is_refused_by_their_names(tmp_path, capsys):
  path = write(tmp_path / "a.jsonl", HUMAN | IF)
  with pytest.raises(ValueError, match="fits humaneval and ifeval: name one by --format"):
    formats.read(path, "{question}")
  assert cli.main(["eval", "--model", "none", "--data", str(path)]) == 2
  assert "fits humaneval and ifeval" in capsys.readouterr().err
  assert cli.main(["eval", "--model", "none", "--data", str(path), "--format", "nope"]) == 2
  assert "none of auto, math500" in capsys.readouterr().err
  assert cli.main(["eval", "--workdir", "none", "--format", "aime"]) == 2
  assert "needs --data" in capsys.readouterr().err


def test_math500_is_equal_as_mathematics(tmp_path):
  pytest.importorskip("math_verify")
  golds = "\\left( 3, \\frac{\\pi}{2} \\right)", "52_8", "\\text{east}"
  rest = [MATH | dict(answer=answer, subject="Geometry") for answer in golds]
  found = formats.read(write(tmp_path / "a.jsonl", MATH, *rest), "Q: {question} A:")
  assert found.format == "math500" and found.hangs
  assert found.subjects[0] == "Algebra" and found.subjects[3] == "Geometry"
  assert found.problems[0].prompt == "Q: Simplify $\\sqrt{242}$.\nPut your final answer within \\boxed{}. A:"
  assert verdict(found, "\\boxed{\\sqrt{242}}") == "correct" and verdict(found, "\\boxed{11}") == "wrong"
  assert verdict(found, "\\boxed{(3, \\pi/2)}", 1) == "correct" and verdict(found, "\\boxed{east}", 3) == "correct"
  with Workers(1, timeout=30.0) as pool:
    terms = {name: (1.0, reward) for name, reward in found.scoring["rewards"].items()}
    (_, parts), = pool.score(terms, found.problems[:1], ["\\boxed{\\sqrt{242}}"])
  assert parts["accuracy"].verdict == "correct"


@pytest.mark.parametrize("change, reason", [
  (dict(subject=None), "'subject' must be a non-empty string, got None"), (dict(answer=""), "'answer' must be"),
  (dict(answer="\\frac{1"), "gold answer")])
def test_a_bad_row_of_math500_is_named(change, reason, tmp_path):
  pytest.importorskip("math_verify")
  with pytest.raises(ValueError, match=r"a\.jsonl:2: ") as error:
    formats.read(write(tmp_path / "a.jsonl", MATH, MATH | change), "{question}")
  assert reason in str(error.value)


def test_math500_without_its_library_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(NotImplementedError, match=r"r1jax\[math\]"):
    formats.read(write(tmp_path / "a.jsonl", MATH), "{question}")


def test_competitions_have_integers(tmp_path):
  path = write(tmp_path / "a.jsonl", dict(problem="p", answer=27.0), dict(question="q", answer="025"))
  found = formats.read(path, "{question}", "aime")
  assert [p.answer for p in found.problems] == ["27", "25"]
  assert verdict(found, "\\boxed{027}") == "correct" and verdict(found, "\\boxed{28}") == "wrong"
  for answer, format in ((2.5, "amc"), ("x", "amc"), (True, "amc"), (None, "amc"), (1000, "aime"), (-1, "aime")):
    with pytest.raises(ValueError, match="b:1: 'answer' must be an integer"):
      formats.read(write(tmp_path / "b", dict(problem="p", answer=answer)), "{question}", format)
  assert formats.read(write(tmp_path / "b", dict(problem="p", answer=-1000)), "{question}", "amc").problems


def test_the_real_amc_file():
  path = DATA / "amc23" / "test.jsonl"
  if not path.is_file():
    pytest.skip(f"no AMC file at {path}")
  found = formats.read(path, "{question}", "amc")
  assert len(found.problems) == 40 and found.problems[0].answer == "27" and "Alicia" in found.problems[0].prompt
  assert formats.read(path, "{question}").format == "questions"


def test_the_real_gsm8k_file(gsm8k):
  found = formats.read(gsm8k[1], "Q: {question}")
  assert found.format == "gsm8k" and len(found.problems) == 1319
  assert found.problems[0].answer == "18" and found.problems[0].prompt.startswith("Q: Janet")


def test_gpqas_choices_are_shuffled_by_their_row(tmp_path):
  found = formats.read(table(tmp_path / "a.csv", *[GPQA] * 40), "{question}")
  assert {p.answer for p in found.problems} == set("ABCD") and found.subjects[0] == "Physics"
  for problem in found.problems:
    assert f"({problem.answer}) right\n" in problem.prompt and problem.prompt.count("\n(") == 4
  one = formats.read(table(tmp_path / "b.csv", *[GPQA] * 3), "{question}")
  assert one.problems == found.problems[:3]


@pytest.mark.parametrize("text, strict, lenient", [
  ("\\boxed{B}", "correct", "correct"), ("<answer>(B)</answer>", "correct", "correct"),
  ("\\boxed{C}", "wrong", "wrong"), ("The answer is $\\text{(B)}$", "no_answer", "correct"),
  ("\\boxed{\\text{B}}", "correct", "correct"), ("\\boxed{E}", "wrong", "wrong"),
  ("So the answer is (B).", "no_answer", "correct"), ("The answer is **B**", "no_answer", "correct"),
  ("\\boxed{12}", "unparseable", "unparseable"), ("A or B, 12 of them", "no_answer", "unparseable"),
  ("The correct answer is B, as 12 > 3", "no_answer", "correct"), ("", "no_answer", "no_answer")])
def test_a_choice_is_its_letter(text, strict, lenient):
  problem = formats.Problem(0, "", "B")
  assert formats.choice_accuracy(problem, text).verdict == strict
  assert formats.choice_accuracy(problem, text, strict=False).verdict == lenient


@pytest.mark.parametrize("rows, reason", [
  ([GPQA | {"Incorrect Answer 2": "w1"}], "a.csv:2: two choices are the same"),
  ([GPQA | {"Question": " "}], "a.csv:2: 'Question' must be a non-empty string")])
def test_a_bad_row_of_gpqa_is_named(rows, reason, tmp_path):
  with pytest.raises(ValueError, match=reason):
    formats.read(table(tmp_path / "a.csv", GPQA, *rows), "{question}")


def test_a_ragged_or_empty_csv_is_named(tmp_path):
  path = table(tmp_path / "a.csv", GPQA)
  whole = path.read_text()
  for cells in ("only one cell", "1,2,3,4,5,6,7"):
    path.write_text(f"{whole}{cells}\n")
    with pytest.raises(ValueError, match=r"a\.csv:2: the row has more or fewer cells than the header's 6"):
      formats.read(path, "{question}")
  path.write_text("Question\n")
  with pytest.raises(ValueError, match="the file has no rows"):
    formats.read(path, "{question}")
  with pytest.raises(FileNotFoundError, match="expected CSV"):
    formats.read(tmp_path / "none.csv", "{question}")


def test_subjects_have_their_own_scores():
  right_BG = np.array([[1, 1], [0, 1], [0, 0]], bool)
  found = significance.by_subject([4, 5, 6], right_BG, {4: "b", 5: "b", 6: "a"})
  assert list(found) == ["a", "b"] and found["b"]["problems"] == 2 and found["b"]["pass@1"] == 0.75
  assert found["b"]["interval"] == significance.interval(right_BG[:2])


def test_eval_prints_a_table_of_subjects(released, tmp_path, capsys):
  path = table(tmp_path / "gpqa.csv", GPQA, GPQA | {"High-level domain": "Biology"})
  argv = ["eval", "--model", str(released), "--data", str(path), "--samples", "2", "--max-tokens", "3", "--template",
          "plain", "--out", str(tmp_path)]
  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  assert "Biology" in out and "Physics" in out and "subject" in out
  record = json.loads((tmp_path / f"gpqa-{released.name}.json").read_text())
  assert record["benchmark"] == "gpqa" and record["subjects"]["Biology"]["problems"] == 1

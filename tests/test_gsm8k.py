"""GSM8K loading: the real files whole, and every way for a line to be malformed."""

import json
from pathlib import Path

import pytest

from r1jax.rewards.accuracy import math_accuracy
from r1jax.tasks import gsm8k
from r1jax.types import Problem

DATA = Path(__file__).parents[2] / "shared/data/gsm8k"
GOOD = b'{"question": "1 + {1}?", "answer": "1 + 1 = 2\\n#### 2"}\n'


def test_template_ends_where_the_answer_begins():
  assert gsm8k.TEMPLATE.startswith("A conversation between User and Assistant. The User asks a question")
  assert gsm8k.TEMPLATE.endswith("<answer> answer here </answer>. User: {question} Assistant:")
  assert gsm8k.TEMPLATE.count("{question}") == 1


def test_load_fills_the_template_and_counts_from_zero(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(GOOD + GOOD.replace(b"#### 2", b"#### 1,080").rstrip() + b"\r\n\n \n")
  prompt = gsm8k.TEMPLATE.replace("{question}", "1 + {1}?")
  assert gsm8k.load(path) == [Problem(0, prompt, "2"), Problem(1, prompt, "1,080")]
  assert gsm8k.load(str(path)) == gsm8k.load(path)


@pytest.mark.parametrize(("line", "reason"), [
  (b"nonsense", "not JSON"), (GOOD[:30], "cut short"), (GOOD[:-2], "cut short"), (b"[1]", "object, got list"),
  (b"null", "object, got NoneType"), (b"[" * 100_000, "not JSON"), (b"1" * 10_000, "not JSON"),
  (GOOD.rstrip() * 2, "not JSON"), (GOOD.replace(b"1 + {1}?", b"\xff"), "not UTF-8 at byte 14"),
  (b"\x00", "not JSON"), (b"\xef\xbb\xbf" + GOOD, "not JSON"),
  (b'{"answer": "#### 2"}', "'question' must"), (b'{"question": "q"}', "'answer' must"),
  (b'{"question": " ", "answer": "#### 2"}', "'question' must"),
  (b'{"question": "q", "answer": ""}', "'answer' must"),
  (b'{"question": 5, "answer": "#### 2"}', "got 5"),
  (b'{"question": "q", "answer": ["#### 2"]}', "'answer' must"),
  (b'{"question": "q", "answer": "2"}', "no '#### N'"), (b'{"question": "q", "answer": "#### "}', "is empty"),
  (b'{"question": "q", "answer": "#### two"}', "problem id=1: gold answer 'two' is not one"),
  (b'{"question": "q", "answer": "#### 1 or 2"}', "is not one"),
  (b'{"question": "q", "answer": "#### 1e999999"}', "is not one"),
  (b"\n" + GOOD, "blank line inside"),
], ids=lambda x: ascii(x)[:30])
def test_malformed_line_is_named(tmp_path, line, reason):
  path = tmp_path / "bad.jsonl"
  path.write_bytes(GOOD + line)
  with pytest.raises(ValueError) as error:
    gsm8k.load(path)
  assert str(error.value).startswith(f"{path}:2: ")
  assert reason in str(error.value)
  assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file_is_an_error(tmp_path, content):
  path = tmp_path / "empty.jsonl"
  path.write_bytes(content)
  with pytest.raises(ValueError, match="empty"):
    gsm8k.load(path)


def test_missing_file_says_what_was_expected(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such file"):
    gsm8k.load(tmp_path / "none.jsonl")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no GSM8K data at {DATA}")
@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_every_real_solution_scores_correct(split, size):
  problems = gsm8k.load(DATA / f"{split}.jsonl")
  assert [problem.id for problem in problems] == list(range(size))
  solutions = [json.loads(line)["answer"] for line in (DATA / f"{split}.jsonl").open(encoding="utf-8")]
  for strict in (True, False):
    assert {math_accuracy(p, s, strict=strict).verdict
            for p, s in zip(problems, solutions, strict=True)} == {"correct"}

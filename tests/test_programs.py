"""HumanEval and LiveCodeBench: their rows, their programs, their outputs."""

import base64
import json
import pickle
import zlib

import pytest

from r1jax.evals import formats, programs
from r1jax.rewards import sandbox

needs_sandbox = pytest.mark.skipif(bool(sandbox.capabilities().missing()), reason="no sandbox here")
HUMAN = dict(task_id="HumanEval/0", entry_point="doubled", canonical_solution="    return helper(xs)\n",
             prompt="from typing import List\n\ndef helper(x):\n    return 2 * x\n\n"
                    "def doubled(xs: List[int]) -> int:\n    \"\"\" Twice the sum. \"\"\"\n",
             test="def check(candidate):\n    for i in range(3):\n        assert candidate([i, 1]) == 2 * i + 2\n")
STDIN = dict(question_content="Sum two numbers.", difficulty="easy", starter_code="", metadata="{}",
             public_test_cases=json.dumps([dict(input="1 2\n", output="3\n", testtype="stdin")]),
             private_test_cases=json.dumps([dict(input="0.5 1\n", output="1.50\n", testtype="stdin")]))
CALL = STDIN | dict(starter_code="class Solution:\n    def f(self, xs: List[int], k: int) -> List[int]:",
                    metadata=json.dumps(dict(func_name="f")), difficulty="hard", private_test_cases="",
                    public_test_cases=json.dumps([dict(input="[1, 2]\n3", output="[4, 5]", testtype="functional")]))


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def verdict(found, text, i=0):
  return found.scoring["rewards"]["accuracy"](found.problems[i], text).verdict


def block(program):
  return f"```python\n{program}\n```"


@needs_sandbox
def test_humaneval_runs_its_check_behind_the_prompt(tmp_path):
  found = formats.read(write(tmp_path / "a.jsonl", HUMAN), "{question}")
  assert "def helper" in found.problems[0].prompt and "check" not in found.problems[0].prompt
  assert verdict(found, block("def doubled(xs: List[int]):\n  return helper(sum(xs))")) == "correct"
  assert verdict(found, block("def doubled(xs): return 2")) == "wrong"
  assert verdict(found, block("x = 1")) == "wrong"               # the prompt's own function returns None
  assert verdict(found, block("raise SystemExit(0)")) == "wrong"
  assert verdict(found, block("import os\nos._exit(0)")) == "wrong"
  assert verdict(found, block("def doubled(")) == "unparseable" and verdict(found, "no") == "no_answer"
  with pytest.raises(ValueError, match="b:1: 'prompt' must define 'other'"):
    formats.read(write(tmp_path / "b", HUMAN | dict(entry_point="other")), "{question}")
  with pytest.raises(ValueError, match="b:1: 'test' is not Python"):
    formats.read(write(tmp_path / "b", HUMAN | dict(test="def check(")), "{question}")


@needs_sandbox
def test_livecodebench_runs_scripts_and_calls(tmp_path):
  packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([dict(input="[]\n1", output="[]")])))).decode()
  found = formats.read(write(tmp_path / "a.jsonl", STDIN, CALL | dict(private_test_cases=packed)), "{question}")
  assert found.subjects == {0: "easy", 1: "hard"} and "class Solution" in found.problems[1].prompt
  assert found.problems[0].answer.startswith("2 tests, crc32 ") and "0.5" not in found.problems[0].prompt
  assert verdict(found, block("print(sum(map(float, input().split())))")) == "correct"
  assert verdict(found, block("print(sum(map(int, input().split())))")) == "wrong"
  assert verdict(found, block("print(3)")) == "wrong"
  assert verdict(found, block("print(sum(map(float, input().split())) * pow(2, 4, 3) * gcd(1, 2))")) == "correct"
  method = "class Solution:\n  def f(self, xs: List[int], k):\n    return tuple(x + k for x in xs)"
  assert verdict(found, block(method), 1) == "correct"
  assert verdict(found, block("def f(xs, k): return [x + k for x in xs]"), 1) == "correct"
  assert verdict(found, block("def f(xs, k): return [4, 5]"), 1) == "wrong"
  assert verdict(found, block("def g(xs, k): return [4, 5]"), 1) == "wrong"


@needs_sandbox
@pytest.mark.parametrize("change, reason", [
  (dict(public_test_cases="[]", private_test_cases=""), "no tests"),
  (dict(private_test_cases="xyz!"), "neither JSON nor"),
  (dict(public_test_cases='[{"input": 1}]'), "the strings 'input' and 'output'"),
  (dict(metadata='{"func_name": "a b"}', public_test_cases="[]"), "testtype 'stdin' where func_name='a b'"),
  (dict(private_test_cases=base64.b64encode(zlib.compress(pickle.dumps(print))).decode()), "names builtins.print")])
def test_a_bad_row_of_livecodebench_is_named(change, reason, tmp_path):
  with pytest.raises(ValueError, match=r"a\.jsonl:2: ") as error:
    formats.read(write(tmp_path / "a.jsonl", STDIN, STDIN | change), "{question}")
  assert reason in str(error.value)


@pytest.mark.parametrize("said, expected, same", [
  ("1\n2\n", "1 \n2", True), ("1.0 2", "1 2.00", True), ("1 2", "1\n2", False), ("1", "1.0001", False),
  ("a b", "a  b", False), ("nan", "NaN", False), ("snan", "1", False), ("", "", True), ("YES", "Yes", False)])
def test_lines_of_output_are_equal_as_strings_or_decimals(said, expected, same):
  assert programs.same_output(said, expected) == same

"""MBPP: loading, the paper's splits, and the 974 reference solutions."""

import concurrent.futures
import json
from collections import Counter

import pytest
from conftest import DATA

from r1jax import tasks
from r1jax.rewards import sandbox
from r1jax.rewards.code import code_accuracy
from r1jax.tasks import DataConfig, mbpp

PATH = DATA / "mbpp" / "mbpp.jsonl"
needs_data = pytest.mark.skipif(not PATH.is_file(), reason=f"no MBPP file at {PATH}")
needs_sandbox = pytest.mark.skipif(bool(sandbox.capabilities().missing()), reason="no sandbox here")
ROW = dict(task_id=601, text="Square a number.", code="def sq(n): return n * n", test_setup_code="",
           test_list=["assert sq(2) == 4", "assert sq(3) == 9"], challenge_test_list=[])
# Its reference needs about 5 s of CPU time for amicable_numbers_sum(9999). No assert is wrong.
SLOW = {123}


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_load_shows_some_tests_and_keeps_all(tmp_path):
  path = write(tmp_path / "a.jsonl", ROW, ROW | dict(task_id=11, test_setup_code="x = 1\n"))
  first, second = mbpp.load(path)
  assert (first.id, second.id) == (601, 11)
  assert first.prompt.endswith(
    "User: Square a number. Your program should pass tests such as\n```python\nassert sq(2) == 4\n```\n"
    "Write the program in a ```python block. Assistant:")
  assert json.loads(first.answer) == dict(asserts=ROW["test_list"], names=["sq"])
  assert json.loads(second.answer) == dict(asserts=ROW["test_list"], names=["sq"], setup="x = 1\n")
  assert "sq(3)" in mbpp.load(path, shown=2)[0].prompt


@pytest.mark.parametrize(("change", "reason"), [
  (dict(text=""), "'text' must"), (dict(code=None), "'code' must"), (dict(test_list=[]), "'test_list' must"),
  (dict(test_list=[1]), "'test_list' must"), (dict(task_id="2"), "'task_id' must"), (dict(task_id=601), "not met"),
  (dict(test_setup_code=1), "'test_setup_code' must"), (dict(code="def"), "not Python"),
  (dict(test_list=["assert"]), "not Python"), (dict(code="x = 1"), "'names' must be what the program defines"),
  (dict(test_list=["assert all(sq(x) == y for x, y in [(1, 1)])"]), "cannot be split"),
  (dict(test_setup_code="assert sq(2) == 4"), "holds an assert")])
def test_malformed_line_is_named(tmp_path, change, reason):
  path = write(tmp_path / "bad.jsonl", ROW, ROW | dict(task_id=602) | change)
  with pytest.raises(ValueError, match=reason) as error:
    mbpp.load(path)
  assert str(error.value).startswith(f"{path}:2: ") and len(str(error.value)) < 500


@needs_sandbox
def test_the_task_pays_a_right_program_and_its_form(tmp_path):
  path = write(tmp_path / "a.jsonl", ROW)
  task = tasks.find("mbpp").make(mbpp.Config(proportional=True), DataConfig(train=str(path), test=str(path)))
  assert (task.name, task.size, len(task.held_out)) == ("mbpp", 1, 1)
  program = "```python\ndef sq(n): return {}\n```"
  right = f"<think>x</think> <answer>\n{program.format('n * n')}\n</answer>"
  paid = {name: reward(task.problem(0), right).value for name, reward in task.rewards.items()}
  assert paid == dict(accuracy=1, format=1)
  half = program.format("n + n")
  assert task.rewards["accuracy"](task.problem(0), half) == (0.5, "wrong")
  assert task.rewards["accuracy"](task.problem(0), "def sq(n): return n * n").verdict == "no_answer"
  assert task.lenient(task.problem(0), "def sq(n): return n * n").verdict == "correct"


@pytest.mark.parametrize(("config", "reason"), [(dict(held_out=-1), "held_out=-1"), (dict(shown=0), "shown=0"),
                                                (dict(seconds=0), "seconds=0"), (dict(memory=10), "memory=10")])
def test_settings_that_make_no_sense_are_refused(config, reason):
  with pytest.raises(ValueError, match=f"task.{reason} must be"):
    mbpp.Config(**config)


def test_what_is_missing_is_said_when_the_task_is_made(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"task mbpp needs a JSONL file: give --config\.data\.train=PATH"):
    mbpp.make(mbpp.Config(), DataConfig())
  path = write(tmp_path / "a.jsonl", ROW)
  monkeypatch.setattr(sandbox, "capabilities", lambda: sandbox.Means(reasons=("seccomp: no",)))
  with pytest.raises(NotImplementedError, match="seccomp: no"):
    mbpp.make(mbpp.Config(), DataConfig(train=str(path)))
  with pytest.raises(ValueError, match="found 0 and 1"):
    mbpp.make(mbpp.Config(unsandboxed=True), DataConfig(train=str(path)))


@needs_data
@needs_sandbox
def test_one_file_is_split_as_in_the_paper():
  task = mbpp.make(mbpp.Config(held_out=3), DataConfig(train=str(PATH)))
  assert task.size == 374 and [p.id for p in task.held_out] == [11, 12, 13]
  assert [task.problem(i).id for i in (0, 373)] == [601, 974]
  assert len(mbpp.make(mbpp.Config(), DataConfig(train=str(PATH))).held_out) == 500


def verdicts(ids, change=lambda code: code):
  problems = {p.id: p for p in mbpp.load(PATH)}
  codes = {row["task_id"]: row["code"] for row in map(json.loads, PATH.open(encoding="utf-8"))}
  limits = {i: sandbox.Limits(cpu=60, wall=120.0) if i in SLOW else sandbox.DEFAULT for i in ids}
  one = lambda i: code_accuracy(problems[i], f"```python\n{change(codes[i])}\n```", limits=limits[i]).verdict
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return dict(zip(ids, pool.map(one, ids), strict=True))


@needs_data
@needs_sandbox
def test_some_reference_solutions_pass_and_broken_ones_do_not():
  ids = [*range(11, 611, 50), 367, 927, 596, 912]       # the last: classes, and asserts that are more than f(x) == y
  assert set(verdicts(ids).values()) == {"correct"}
  assert set(verdicts(ids[:4], lambda code: code + "\nraise SystemExit(0)").values()) == {"wrong"}


@needs_data
@needs_sandbox
@pytest.mark.slow
def test_all_reference_solutions_pass():
  got = verdicts(range(1, 975))
  assert {i: v for i, v in got.items() if v != "correct"} == {} and Counter(got.values()) == dict(correct=974)

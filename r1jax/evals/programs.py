"""HumanEval and LiveCodeBench: loaders, and how their programs are judged. Programs run in rewards/sandbox only.

HumanEval (2107.03374): `prompt` (imports, a signature, a docstring), `test` (defines check(candidate)), `entry_point`.
The prompt is put before the answer's program, which so has its imports and helpers and defines the function anew; then
check(entry_point) must return. As in the benchmark's own harness, the test runs in the program's process, which could
forge it: FOR EVALUATION, never as a reward to train on.

LiveCodeBench (2403.07974): `question_content`, `starter_code`, `public_test_cases`, `private_test_cases` (JSON, or as
released base64 of zlib of a pickled JSON string: read by an unpickler that loads strings only), `metadata` with
func_name. testtype stdin: a script, whose lines of output must equal the expected ones as strings or as decimals, white
space at their ends aside. testtype functional: a call of Solution().func_name, or of a function, with one JSON value
a line; what it returns, a tuple as a list, must equal the output. Usual imports stand before the program.
A script must end with status 0. What is expected never enters the program's process.

Verdicts as in rewards/code.py. Time: each case has SECONDS of CPU time.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import io
import json
import pickle
import zlib
from decimal import Decimal, InvalidOperation
from pathlib import Path

from r1jax.data import read_jsonl
from r1jax.evals.formats import Benchmark, put, text_of
from r1jax.problem import Problem, Score
from r1jax.rewards import code, sandbox
from r1jax.rewards.format import think_answer_format
from r1jax.rewards.sandbox import MB, Case, Limits, values

SECONDS = 6
LIMITS = Limits(cpu=SECONDS, wall=2.0 * SECONDS)
WRITE = "\nWrite the whole program in a ```python block."
STDIN = "\nThe program reads from standard input and writes to standard output."
COMPLETE = "Complete this function.\n```python\n{code}\n```"
VERDICTS = dict(syntax="unparseable", timeout="timeout", overflow="refused", killed="refused")     # others: wrong
# what solutions on such sites take for granted; not `from re import *` and such, whose names hide others
USUAL = ("import sys, math, re, string, random, itertools, functools, collections, heapq, bisect, operator, copy\n"
         "from typing import *\nfrom collections import *\nfrom itertools import *\nfrom functools import *\n"
         "from heapq import *\nfrom bisect import *\nfrom math import *\nfrom builtins import *\n"      # math has a pow
         "sys.setrecursionlimit(50000)\n")


@dataclasses.dataclass(frozen=True)
class Tests:
  """LiveCodeBench's tests of one problem, packed as they came: thousands of them unpacked would fill the memory."""
  public: str
  private: str
  function: str        # empty: a script


def humaneval(path: str | Path, template: str) -> Benchmark:
  sandbox.require()
  problems = []
  for number, row in read_jsonl(path):
    prompt, test, name = (text_of(path, number, row, key) for key in ("prompt", "test", "entry_point"))
    _compiles(path, number, prompt=prompt, test=test)
    if not name.isidentifier() or f"def {name}" not in prompt or "def check" not in test:
      raise ValueError(f"{path}:{number}: 'prompt' must define {name[:80]!r}, 'test' check(candidate)")
    question = COMPLETE.replace("{code}", prompt.strip("\n")) + WRITE
    problems.append(Problem(number - 1, put(template, question),
                            json.dumps(dict(prompt=prompt, test=test, entry_point=name))))
  return Benchmark("humaneval", problems, _scoring(check_accuracy))


def check_accuracy(problem: Problem, text: str, *, strict: bool = True) -> Score:
  """1 if HumanEval's check of the program returns."""
  gold = json.loads(problem.answer)
  program = code.extract(text, strict)
  if program is None or len(program) > code.MAX_PROGRAM:
    return Score(0.0, "no_answer" if program is None else "unparseable")
  case = Case((f"check({gold['entry_point']})",), gold["test"])
  try:
    result, = sandbox.run(f"{gold['prompt']}\n\n{program}", [case], limits=LIMITS)
  except sandbox.SandboxError:
    return Score(0.0, "refused")
  return Score(1.0, "correct") if result.status == "ok" else Score(0.0, VERDICTS.get(result.status, "wrong"))


def livecodebench(path: str | Path, template: str) -> Benchmark:
  sandbox.require()
  problems, tests, subjects = [], {}, {}
  for number, row in read_jsonl(path):
    question, public = (text_of(path, number, row, key) for key in ("question_content", "public_test_cases"))
    private, starter = row.get("private_test_cases") or "[]", row.get("starter_code") or ""
    metadata = row.get("metadata") or {}
    try:
      metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
      of = Tests(public, private, metadata.get("func_name") or "")
      cases = unpack(of)
      if of.function and not of.function.isidentifier():
        raise ValueError(f"func_name {of.function[:80]!r} is no name")
    except (ValueError, AttributeError, TypeError) as error:
      raise ValueError(f"{path}:{number}: {error}") from error
    asked = f"\nBegin with\n```python\n{starter.strip()}\n```" if of.function else STDIN
    # the tests may have megabytes: a table of samples has their fingerprint
    gold = f"{len(cases)} tests, crc32 {zlib.crc32((public + private).encode()):08x}"
    problems.append(Problem(number - 1, put(template, question.strip() + "\n" + asked + WRITE), gold))
    tests[number - 1] = of
    if isinstance(row.get("difficulty"), str) and row["difficulty"].strip():
      subjects[number - 1] = row["difficulty"].strip()
  return Benchmark("livecodebench", problems, _scoring(functools.partial(cases_accuracy, tests=tests)), subjects)


def unpack(tests: Tests) -> list[tuple[object, object]]:
  """(input, expected) of each: texts of a script, or arguments and a value. ValueError for what cannot be read."""
  items = json.loads(tests.public) + _private(tests.private)
  wanted = "functional" if tests.function else "stdin"
  out = []
  for item in items:
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("input", "output")):
      raise ValueError(f"a test must have the strings 'input' and 'output', got {str(item)[:80]}")
    if item.get("testtype", wanted) != wanted:
      raise ValueError(f"testtype {item['testtype']!r} where func_name={tests.function!r} asks for {wanted!r}")
    if tests.function:
      out.append(([json.loads(line) for line in item["input"].split("\n") if line.strip()], json.loads(item["output"])))
    else:
      out.append((item["input"], item["output"]))
  if not out:
    raise ValueError("no tests")
  return out


def cases_accuracy(problem: Problem, text: str, *, tests: dict[int, Tests], strict: bool = True) -> Score:
  """1 if the program passes all of LiveCodeBench's tests."""
  program = code.extract(text, strict)
  if program is None or len(program) > code.MAX_PROGRAM:
    return Score(0.0, "no_answer" if program is None else "unparseable")
  of = tests[problem.id]
  known = unpack(of)
  if of.function:
    called = f"Solution().{of.function}" if "class Solution" in program else of.function
    cases = [Case((f"{called}(*_0)",), names=(("_0", values.encode(given)),)) for given, _ in known]
  else:
    cases = [Case(stdin=given) for given, _ in known]
  most = max(len(json.dumps(expected)) for _, expected in known)
  limits = dataclasses.replace(LIMITS, output=max(MB, 4 * most))
  try:
    results = sandbox.run(USUAL + program, cases, limits=limits, stop=True)
  except sandbox.SandboxError:
    return Score(0.0, "refused")
  for result, (_, expected) in zip(results, known, strict=True):
    if result.status != "ok":
      return Score(0.0, VERDICTS.get(result.status, "wrong"))
    if not (_same_value(result.values[0], expected) if of.function
            else same_output(result.stdout.decode("utf-8", errors="replace"), expected)):
      return Score(0.0, "wrong")
  return Score(1.0, "correct")


def same_output(said: str, expected: str) -> bool:
  lines = [[line.strip() for line in text.strip().split("\n")] for text in (said, expected)]
  return len(lines[0]) == len(lines[1]) and all(a == b or _same_decimals(a, b) for a, b in zip(*lines, strict=True))


def _same_decimals(a: str, b: str) -> bool:
  if len(a.split()) != len(b.split()):
    return False
  try:
    return [Decimal(x) for x in a.split()] == [Decimal(x) for x in b.split()]
  except (InvalidOperation, ValueError):
    return False


def _same_value(sent, expected) -> bool:
  try:
    value = values.decode(sent)
  except Exception:                              # what a program sends may be anything: no value, not equal
    return False
  return (list(value) if isinstance(value, tuple) else value) == expected


def _private(packed: str) -> list:
  if not isinstance(packed, str):
    raise ValueError(f"'private_test_cases' must be a string, got {type(packed).__name__}")
  if packed.lstrip().startswith("["):
    return json.loads(packed)
  try:
    found = _Strings(io.BytesIO(zlib.decompress(base64.b64decode(packed, validate=True)))).load()
    return json.loads(found)
  except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, TypeError, IndexError) as error:
    raise ValueError(f"'private_test_cases' is neither JSON nor packed JSON ({error})") from error


class _Strings(pickle.Unpickler):
  """A pickle can run anything by the names in it: here it has none."""

  def find_class(self, module, name):
    raise pickle.UnpicklingError(f"names {module}.{name}")


def _scoring(accuracy) -> dict:
  return dict(rewards=dict(accuracy=accuracy, format=think_answer_format),
              lenient=functools.partial(accuracy, strict=False))


def _compiles(path, number: int, **sources: str) -> None:
  for name, source in sources.items():
    try:
      compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
      raise ValueError(f"{path}:{number}: {name!r} is not Python: {error}") from error

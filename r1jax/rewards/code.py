r"""Accuracy for code: the program in a completion, run against tests in a sandbox.

R1 report, Methods: code is compiled and run against a test suite. 1 if all tests pass, else 0; or the
share that passes (`proportional`), which was found to hurt (Magistral, arXiv 2506.10910: -2% on LiveCodeBench).

Problem.answer is JSON, one of
  {"asserts": ["assert f(2) == 4", ..], "names": ["f"], "setup": "statements between the program and each assert"}
  {"cases": [{"stdin": "..", "stdout": ".."}, ..]}
`names` are what the program must define; `setup`, which is optional, runs in the program's process.

How results are kept from being forged: an assert is taken apart (asserts.py), and the program's process only ever
evaluates calls; it returns data, which is compared elsewhere. What a script prints is compared here, trailing white
space of lines and empty lines at the end aside; a script must also end with status 0.

Verdicts: correct; wrong; no_answer (no code found); unparseable (not Python, or more than MAX_PROGRAM characters);
timeout (CPU or wall time); refused (stopped for its output, or died of a signal; or the sandbox itself failed).

Which code: STRICT takes the last ```python block (```py, or without a language) after the last </think>, inside
<answer>..</answer> where there is one. LENIENT, where there is none: the last block anywhere, else the whole text.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re

from r1jax.problem import Problem, Score
from r1jax.rewards import asserts, sandbox
from r1jax.rewards.sandbox import Case, Limits, Result, values

MAX_PROGRAM = 100_000    # characters
SMALL_REPLY = 20_000     # characters of JSON that are compared in this process: a set that collides costs little then
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*\r?$", re.MULTILINE)
_PYTHON = ("python", "py", "python3", "")


@dataclasses.dataclass(frozen=True)
class Tests:
  """A gold answer, read."""
  cases: tuple[Case, ...]
  asserts: tuple[asserts.Assert, ...] = ()   # of each case, or
  stdouts: tuple[str, ...] = ()              # what each prints, normalised


@functools.lru_cache(maxsize=4096)
def read_tests(answer: str) -> Tests:
  """ValueError for tests that cannot be read or cannot be split."""
  try:
    gold = json.loads(answer)
  except ValueError as error:
    raise ValueError(f"tests are not JSON: {error}") from None
  if not isinstance(gold, dict) or len(gold.keys() & {"asserts", "cases"}) != 1:
    raise ValueError("tests must be a JSON object with 'asserts' or 'cases'")
  unknown = gold.keys() - ({"asserts", "names", "setup"} if "asserts" in gold else {"cases"})
  items = gold.get("asserts", gold.get("cases"))
  if unknown or not isinstance(items, list) or not items:
    raise ValueError(f"tests: unknown {', '.join(sorted(unknown))}" if unknown else "tests: none given")
  if "cases" in gold:
    for item in items:
      if not isinstance(item, dict) or item.keys() != {"stdin", "stdout"} or not all(
          isinstance(x, str) for x in item.values()):
        raise ValueError(f"a case must have the strings 'stdin' and 'stdout', got {str(item)[:80]}")
    return Tests(tuple(Case(stdin=i["stdin"]) for i in items), stdouts=tuple(normal(i["stdout"]) for i in items))
  names, setup = gold.get("names"), gold.get("setup", "")
  if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.isidentifier() for n in names):
    raise ValueError(f"'names' must be what the program defines, got {str(names)[:80]}")
  if not isinstance(setup, str) or not all(isinstance(item, str) for item in items):
    raise ValueError("'setup' and each assert must be strings")
  try:
    if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(setup))):
      raise ValueError("'setup' holds an assert, which would run in the program's process")
  except SyntaxError as error:
    raise ValueError(f"'setup' is not Python: {error}") from None
  every = []
  for item in items:
    try:
      every.append(asserts.split(item, set(names)))
    except ValueError as error:
      raise ValueError(f"{item[:120]!r}: {error}") from None
  return Tests(tuple(Case(a.expressions, setup) for a in every), asserts=tuple(every))


def check_tests(problem: Problem) -> Tests:
  """The tests of a problem. ValueError that names it, for a fault of the data. Call it when loading."""
  try:
    return read_tests(problem.answer)
  except ValueError as error:
    raise ValueError(f"problem id={problem.id}: {error}") from None


def normal(text: str) -> str:
  """Output without white space at the ends of lines, and without empty lines at the end."""
  return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


def extract(text: str, strict: bool = True) -> str | None:
  """The program in a completion, by the rules at the top of this file; None if there is none."""
  said = text.rpartition("</think>")[2]
  if "<answer>" in said:
    inside, closed, _ = said.partition("<answer>")[2].partition("</answer>")
    said = inside if closed else ""
  found = _last_block(said)
  if found is None and not strict:
    found = _last_block(text) or text.rpartition("</think>")[2]
  return found if found and found.strip() else None


def _last_block(text: str) -> str | None:
  """What stands in the last closed block of Python."""
  found = start = None
  language = ""
  for fence in _FENCE.finditer(text):
    if start is not None and not fence[1]:         # a closing fence names no language
      if language in _PYTHON:
        found = text[start:fence.start()].strip("\r\n")
      start = None
    else:
      start, language = fence.end(), fence[1].lower()
  return found


def code_accuracy(problem: Problem, text: str, *, strict: bool = True, proportional: bool = False,
                  limits: Limits = sandbox.DEFAULT, unsandboxed: bool = False) -> Score:
  """1 if the completion's program passes all tests. Safe to call from many threads at once.

  ValueError if the tests cannot be read, NotImplementedError if this machine has no sandbox (see sandbox.require).
  """
  tests = check_tests(problem)
  if (most := max((len(s.encode()) for s in tests.stdouts), default=0)) > limits.output:
    raise ValueError(f"problem id={problem.id}: expects {most} bytes of output, limits.output={limits.output}")
  program = extract(text, strict)
  if program is None:
    return Score(0.0, "no_answer")
  if len(program) > MAX_PROGRAM:
    return Score(0.0, "unparseable")
  try:
    results = sandbox.run(program, tests.cases, limits=limits, stop=not proportional, unsandboxed=unsandboxed)
    passed = judge(tests, results, limits, unsandboxed)
  except sandbox.SandboxError:
    return Score(0.0, "refused")
  if all(passed):
    return Score(1.0, "correct")
  verdict = _verdict(next(r for r, ok in zip(results, passed, strict=True) if not ok))
  return Score(sum(passed) / len(passed) if proportional else 0.0, verdict)


def _verdict(result: Result) -> str:
  if result.status in ("overflow", "killed"):
    return "refused"
  return {"timeout": "timeout", "syntax": "unparseable"}.get(result.status, "wrong")


def judge(tests: Tests, results: list[Result], limits: Limits, unsandboxed: bool = False) -> list[bool]:
  """Which tests are passed. Only "ok" results can be; what a program returned is data here, whatever it says it is."""
  if tests.stdouts:
    return [r.status == "ok" and normal(r.stdout.decode("utf-8", errors="replace")) == expected
            for r, expected in zip(results, tests.stdouts, strict=True)]
  passed: list[bool | None] = []
  for test, result in zip(tests.asserts, results, strict=True):
    if result.status != "ok":
      passed.append(False)
    elif test.literal is not asserts.NO_LITERAL and len(json.dumps(result.values)) <= SMALL_REPLY:
      passed.append(_equal(result.values[0], test.literal))
    else:
      passed.append(None)
  if (open_ := [i for i, p in enumerate(passed) if p is None]) and False not in passed:
    cases = [Case((f"bool({tests.asserts[i].judge})",), tests.asserts[i].imports,
                  tuple((f"_{k}", v) for k, v in enumerate(results[i].values))) for i in open_]
    for i, verdict in zip(open_, sandbox.run("", cases, limits=limits, unsandboxed=unsandboxed), strict=True):
      passed[i] = verdict.status == "ok" and verdict.values == (True,)
  return [bool(p) for p in passed]


def _equal(data, literal) -> bool:
  try:
    return bool(values.decode(data) == literal)
  except Exception:                              # a signalling NaN raises on ==, and so on: no value, not equal
    return False

r"""Files of benchmarks as they are published: problems, how their answers are scored, and their subjects.

| format | from | fields | scored by |
|---|---|---|---|
| math500 | MATH-500 (2305.20050) | problem, answer, subject, level | symbolic equality (rewards/math.py), in workers |
| aime, amc | AIME, AMC | problem or question, an integer answer | equal numbers; AIME's are 0 .. 999 |
| gpqa | GPQA (2311.12022), CSV | Question, Correct Answer, Incorrect Answer 1 .. 3 | the letter |
| gsm8k | GSM8K (2110.14168) | question, answer with #### | equal numbers |
| mbpp | MBPP (2108.07732) | text, code, test_list | asserts, in a sandbox (tasks/mbpp.py) |
| humaneval, livecodebench | | see programs.py | programs, in a sandbox |
| ifeval | | see ifeval.py | instructions checked by rules |
| questions | any | prompt, question or problem, and answer | as the policy's own task scores |

A format is known by the fields of the first row; one that has the marks of several is refused with their names. AIME's
and AMC's have no mark of their own: such a file is read as `questions` unless the format is named.

GPQA's choices are shuffled by (SEED, row), so that a row has one order whatever else is evaluated.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r1jax import data
from r1jax.problem import Problem, Score
from r1jax.rewards import accuracy, math
from r1jax.rewards.format import think_answer_format

SEED = 0
BOXED = "\nPut your final answer within \\boxed{}."
CHOICE = "\nPut the letter of the right choice within \\boxed{}."
_SAID_CHOICE = re.compile(r"(?i:\b(?:answer|choice|option)(?: is|:){0,2})[\s:*($]{0,8}(?:\\text(?:bf|rm)?\{\(?)?"
                          r"([A-D])\b")


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A file, read."""
  format: str
  problems: list[Problem]
  scoring: dict                    # fields of a Task: rewards, lenient; empty: as the policy's task has them
  subjects: dict[int, str] = dataclasses.field(default_factory=dict)   # problem id -> subject
  hangs: bool = False              # its rewards belong into processes that can be killed


# the fields that tell a format, in the first row
MARKS = dict(
  math500=("problem", "answer", "subject", "level"),
  gpqa=("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
  mbpp=("test_list",),
  humaneval=("prompt", "test", "entry_point"),
  livecodebench=("question_content", "public_test_cases"),
  ifeval=("prompt", "instruction_id_list", "kwargs"))
FORMATS = (*MARKS, "gsm8k", "aime", "amc", "questions")


def read(path: str | Path, template: str, format: str = "auto") -> Benchmark:
  """The problems of a file, put into `template` at {question}. ValueError `path:line: reason` for a bad line."""
  path = Path(path)
  format = detect(path) if format == "auto" else format
  if format not in FORMATS:
    raise ValueError(f"format={format!r} is none of auto, {', '.join(FORMATS)}")
  if format == "questions":
    return Benchmark(format, data.read_problems(path, template), {})
  if format == "mbpp":
    from r1jax.tasks import mbpp
    return Benchmark(format, mbpp.load(path, template=template), mbpp.scoring(mbpp.Config()))
  if format in ("humaneval", "livecodebench"):
    from r1jax.evals import programs
    return getattr(programs, format)(path, template)
  if format == "ifeval":
    from r1jax.evals import ifeval
    return ifeval.load(path, template)
  return dict(math500=math500, aime=integers, amc=integers, gpqa=gpqa, gsm8k=gsm8k)[format](path, template, format)


def detect(path: str | Path) -> str:
  """The format's name. ValueError that names the candidates where a file has the marks of several."""
  row = next(read_csv(path) if Path(path).suffix.lower() == ".csv" else data.read_jsonl(path))[1]
  found = [name for name, fields in MARKS.items() if all(field in row for field in fields)]
  if len(found) > 1:
    raise ValueError(f"{path}: its first row fits {' and '.join(found)}: name one by --format")
  if not found and Path(path).suffix.lower() == ".csv":
    raise ValueError(f"{path}: a CSV file must have GPQA's columns {', '.join(MARKS['gpqa'])}, got {', '.join(row)}")
  _, marked, gold = str(row.get("answer")).rpartition("####")
  if not found and marked and accuracy.parse_number(gold) is not None and "question" in row and "prompt" not in row:
    return "gsm8k"
  return found[0] if found else "questions"


def math500(path, template: str, format: str) -> Benchmark:
  if importlib.util.find_spec("math_verify") is None:
    raise NotImplementedError(f'{path}: {format} is scored by math-verify: pip install "r1jax[math]"')
  problems, subjects = [], {}
  for number, row in data.read_jsonl(path):
    question, answer, subject = (text_of(path, number, row, key) for key in ("problem", "answer", "subject"))
    problems.append(Problem(number - 1, put(template, question + BOXED), answer.strip()))
    _checked(path, number, lambda: math.check_gold(problems[-1]))
    subjects[number - 1] = subject
  scored = functools.partial(math.symbolic_accuracy, strict=False)
  return Benchmark(format, problems, dict(rewards=dict(accuracy=math.symbolic_accuracy, format=think_answer_format),
                                          lenient=scored), subjects, hangs=True)


def integers(path, template: str, format: str) -> Benchmark:
  """AIME's and AMC's: an integer, as a number (also 27.0) or a string (also 025)."""
  problems = []
  for number, row in data.read_jsonl(path):
    question = text_of(path, number, row, "problem" if "problem" in row else "question")
    gold = row.get("answer")
    value = accuracy.parse_number(str(gold)) if isinstance(gold, int | float | str) and gold is not True else None
    if value is None or value.denominator != 1 or (format == "aime" and not 0 <= value <= 999):
      wanted = "an integer within 0 and 999" if format == "aime" else "an integer"
      raise ValueError(f"{path}:{number}: 'answer' must be {wanted}, got {repr(gold)[:80]}")
    problems.append(Problem(number - 1, put(template, question + BOXED), str(value)))
  return Benchmark(format, problems, _numbers())


def gsm8k(path, template: str, format: str) -> Benchmark:
  from r1jax.tasks import gsm8k as task
  problems = [dataclasses.replace(problem, prompt=put(template, row["question"]))
              for problem, (_, row) in zip(task.load(path), data.read_jsonl(path), strict=True)]
  return Benchmark(format, problems, task.SCORING)


def gpqa(path, template: str, format: str) -> Benchmark:
  problems, subjects = [], {}
  for number, row in read_csv(path):
    question, *choices = (text_of(path, number, row, key).strip() for key in MARKS["gpqa"])
    if len(set(choices)) < 4:
      raise ValueError(f"{path}:{number}: two choices are the same")
    order = np.random.default_rng([SEED, number - 1]).permutation(4)
    listed = "\n".join(f"({letter}) {choices[i]}" for letter, i in zip("ABCD", order, strict=True))
    gold = "ABCD"[list(order).index(0)]
    problems.append(Problem(number - 1, put(template, f"{question}\n\n{listed}\n{CHOICE}"), gold))
    if (row.get("High-level domain") or "").strip():
      subjects[number - 1] = row["High-level domain"].strip()
  return Benchmark(format, problems, dict(rewards=dict(accuracy=choice_accuracy, format=think_answer_format),
                                          lenient=functools.partial(choice_accuracy, strict=False)), subjects)


def choice_accuracy(problem: Problem, text: str, *, strict: bool = True) -> Score:
  """1 if the final answer is the gold letter: "B", "(B)", "B. 12". Lenient also reads "the answer is (B)", anywhere."""
  answer = accuracy.extract(text, strict)
  letter = math.letter(answer) if answer is not None and len(answer) <= accuracy.MAX_ANSWER else None
  if letter is None and not strict:
    said = _SAID_CHOICE.findall(text)
    letter = said[-1] if said else None
  if letter is None:
    return Score(0.0, "no_answer" if answer is None else "unparseable")
  return Score(float(letter == problem.answer), "correct" if letter == problem.answer else "wrong")


def read_csv(path: str | Path) -> Iterator[tuple[int, dict]]:
  """(1-based row number, the header not counted; row by column) of a CSV file. ValueError `path:row: reason`."""
  path, number = Path(path), 0
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file (expected CSV with a header)")
  with path.open(encoding="utf-8-sig", newline="") as file:
    rows = csv.DictReader(file, strict=True)
    while True:
      try:
        row = next(rows, None)
      except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}:{number + 1}: not CSV in UTF-8 ({error})") from error
      if row is None:
        break
      number += 1
      if None in row or None in row.values():
        raise ValueError(f"{path}:{number}: the row has more or fewer cells than the header's {len(rows.fieldnames)}")
      yield number, row
  if not number:
    raise ValueError(f"{path}:1: the file has no rows")


def _numbers() -> dict:
  from r1jax.tasks.gsm8k import SCORING
  return SCORING


def text_of(path, number: int, row: dict, key: str) -> str:
  if not isinstance(row.get(key), str) or not row[key].strip():
    raise ValueError(f"{path}:{number}: {key!r} must be a non-empty string, got {repr(row.get(key))[:80]}")
  return row[key]


def put(template: str, question: str) -> str:
  return template.replace("{question}", question.strip())


def _checked(path, number: int, check) -> None:
  try:
    check()
  except ValueError as error:
    raise ValueError(f"{path}:{number}: {error}") from error

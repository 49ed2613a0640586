r"""Accuracy for mathematics: the rules of accuracy.py where they decide, else symbolic equality and multiple choice.

R1 report, Methods: a problem with a deterministic result is right if the final answer, in its required
form (a box), matches; multiple choice by option or its value. How to match is left open. Here, in this order:
1. The final answer is found by accuracy.extract, strict or lenient: no_answer, or unparseable for repeated tags.
2. Multiple choice: where the gold answer is an option's letter, or the prompt lists options "(A) .. (B) ..", a letter
   is read as "B", "(B)", "\text{(B)}", "B. 12", and stands for its option; so letter and value match in either
   direction. A letter beside another option's value is wrong.
3. Stated units that contradict each other are wrong (units.py).
4. Same number or same string by accuracy.equal: correct. Two numbers that differ: wrong. This is all that most answers
   need, in a tenth of a millisecond;
   step 6 takes ten to a hundred times as long.
5. Words (more than letters and operators): wrong if the gold answer is words, else unparseable.
6. The rest by symbolic.same, with math-verify: fractions of expressions, roots, tuples, sets, intervals, matrices,
   equations. What it cannot read is unparseable.

Step 6 can hang on hostile text and belongs into workers.py, whose verdict `timeout` it then gets. A gold answer that
cannot be read, or does not even equal itself, is a ValueError.
"""

from __future__ import annotations

import functools
import re

from r1jax.problem import Problem, Score
from r1jax.rewards import accuracy, latex, symbolic, units

LETTERS = "ABCDEFGHIJ"
_LETTER = re.compile(r"(?:\\text(?:bf|rm)?|\\mathrm|\\mathbf)?[\s{(*]*(?:option\s+|choice\s+)?\(?([A-J])"
                     r"(?:[)}*.:]+\s*(.*)|)", re.IGNORECASE | re.DOTALL)
_OPTION = re.compile(r"(?:\\text(?:bf|rm)?\s*\{\s*)?(?<![\w^_])\(([A-J])\)(?:\s*\})?|"
                     r"^[ \t]*([A-J])[.):](?=\s)", re.MULTILINE)
_VARIABLE = re.compile(r"[0-9]\s*[a-zA-Z]\s*\$?$")
_SUM_OF_VARIABLES = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]\s*[-+*/^]|[-+*/^0-9]\s*[a-zA-Z](?![a-zA-Z])")


def symbolic_accuracy(problem: Problem, text: str, *, strict: bool = True) -> Score:
  """1 if the final answer is mathematically the gold one. ValueError if the gold answer cannot be read."""
  check_gold(problem)
  answer = accuracy.extract(text, strict)
  if answer is None:
    return accuracy.math_accuracy(problem, text, strict=strict)      # no_answer or unparseable
  verdict = judge(answer, problem)
  return Score(float(verdict == "correct"), verdict)


symbolic_accuracy.prepare = symbolic.prepare       # sending.py: in a worker, before its first check is timed


def check_gold(problem: Problem) -> None:
  """ValueError for a gold answer that no answer could match. Cheap for the problem of the last call."""
  try:
    _check_gold(problem)
  except symbolic.Unreadable as error:
    raise ValueError(f"problem id={problem.id}: gold answer {problem.answer[:80]!r}: {error}") from error


@functools.lru_cache(maxsize=64)
def _check_gold(problem: Problem) -> None:
  gold = problem.answer
  accuracy.check_gold(problem)
  plain = latex.plain(gold)
  if accuracy.parse_number(gold) is None and not letter(gold) and not latex.strings_only(plain):
    if not symbolic.readable(plain):
      raise symbolic.Unreadable("it does not equal itself")


def judge(answer: str, problem: Problem) -> str:
  """The verdict on an extracted answer."""
  gold = problem.answer
  if len(answer) > accuracy.MAX_ANSWER:
    return "unparseable"
  listed = options(problem.prompt)
  if letter(gold) or (listed and letter(answer)):
    return _judge_choice(answer, gold, listed)
  return compare(answer, gold)


def compare(answer: str, gold: str) -> str:
  """Steps 3 to 6 of the top of this file."""
  if units.conflict(answer, gold):
    return "wrong"
  if not _hides_variable(answer, gold):
    if accuracy.equal(answer, gold):
      return "correct"
    if None not in (accuracy.parse_number(answer), accuracy.parse_number(gold)):
      return "wrong"
  if latex.strings_only(latex.plain(gold)):
    return "correct" if latex.same_string(answer, gold) else "wrong"
  try:
    return "correct" if symbolic.same(answer, gold) else "wrong"
  except symbolic.Unreadable:
    return "unparseable"


def _hides_variable(answer: str, gold: str) -> bool:
  """Whether accuracy.py, which drops units and what stands before =, might drop mathematics: gold 5m; x + y = 5."""
  return bool(_VARIABLE.search(gold) or "=" in gold or _SUM_OF_VARIABLES.search(answer.rpartition("=")[0]))


def letter(answer: str) -> str | None:
  """The option that an answer names: "B", "(B)", "\\text{(B)}", "B. 12"; None for any other answer."""
  match = _LETTER.fullmatch(answer.strip().strip("$").strip())
  return match[1].upper() if match else None


@functools.lru_cache(maxsize=64)
def options(prompt: str) -> dict[str, str]:
  """The options that a prompt lists, by letter: A, B and so on, each once; empty if it lists none."""
  marks = [(m.group(1) or m.group(2), m.start(), m.end()) for m in _OPTION.finditer(prompt)]
  count = len(marks)
  if count < 2 or [mark for mark, _, _ in marks] != list(LETTERS[:count]):
    return {}
  ends = [start for _, start, _ in marks[1:]] + [len(prompt)]
  texts = [prompt[marks[i][2]:ends[i]] for i in range(count)]
  texts[-1] = re.split(r"\n|\s[A-Z][a-z]+:", texts[-1].lstrip())[0]     # then the template goes on
  if not all(text.strip() for text in texts):
    return {}
  clean = lambda text: re.sub(r"\\qquad|\\quad|\\ |~", " ", text).strip(" \n\t,;.$")
  return {mark: clean(text) for (mark, _, _), text in zip(marks, texts, strict=True)}


def _judge_choice(answer: str, gold: str, listed: dict[str, str]) -> str:
  chosen, right = letter(answer), letter(gold)
  if right is None:                              # the gold answer is the value of an option
    return "wrong" if chosen not in listed else compare(listed[chosen], gold)
  if chosen is None:                             # a value: the right option's, and no other's
    if right not in listed:
      return "unparseable" if len(answer) > 1 else "wrong"
    return compare(answer, listed[right]) if listed[right] else "unparseable"
  beside = _LETTER.fullmatch(answer.strip().strip("$").strip())[2]
  if chosen != right:
    return "wrong"
  if (beside or "").strip(" .)}") and listed.get(right) and compare(beside.strip(), listed[right]) == "wrong":
    return "wrong"
  return "correct"

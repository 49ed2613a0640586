"""How good and how fast the judges of mathematical answers are, on completions that people have marked.

The data: openai/grade-school-math's example_model_solutions.jsonl (1,319 problems, four models, `is_correct` for each
completion; Cobbe et al., arXiv 2110.14168). Three judges see the same final answer, found by accuracy.extract, lenient,
as the completions were not asked for any form:
  rules     rewards/accuracy.py alone
  reward    rewards/math.py as a run uses it: the rules where they decide, else math-verify
  library   math-verify alone, on every answer: what the rules save, and whether they agree with it
Each in worker processes, whose own time per check is the latency; checks per second are those of the pool, transport
included. A disagreement is a false positive (paid, marked wrong) or a false negative, of a kind:
  no answer        nothing was found to judge
  number format    both hold the same digits, but for separators, a sign of currency, a fraction or decimals
  unit             the answer holds the gold number and words besides
  other            none of these: mostly another number
"""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path

from rich.table import Table

from r1jax.data import read_jsonl
from r1jax.problem import Problem, Reward, Score
from r1jax.rewards import accuracy, symbolic
from r1jax.rewards.math import symbolic_accuracy
from r1jax.rewards.workers import Workers

BAR = 0.99     # agreement wanted, where there is an answer to judge
KINDS = ("no answer", "number format", "unit", "other")
SHOWN = 5      # examples of each kind of disagreement


def load(path: str | Path, limit: int = 0) -> list[tuple[Problem, str, bool]]:
  """(problem, completion, whether people call it correct); of the first `limit` problems, 0: all."""
  out = []
  for number, row in read_jsonl(path):
    if limit and number > limit:
      break
    gold = row.get("ground_truth")
    models = {name: value for name, value in row.items() if isinstance(value, dict) and "is_correct" in value}
    if not isinstance(gold, str) or not models:
      raise ValueError(f"{path}:{number}: no 'ground_truth', or no model with 'solution' and 'is_correct'")
    problem = Problem(number - 1, "", gold.rpartition("A:")[2].strip())
    accuracy.check_gold(problem)
    out += [(problem, value["solution"], bool(value["is_correct"])) for value in models.values()]
  return out


def library_accuracy(problem: Problem, text: str) -> Score:
  """math-verify on every answer, without the rules before it."""
  answer = accuracy.extract(text, strict=False)
  if answer is None:
    return Score(0.0, "no_answer")
  try:
    correct = symbolic.same(answer, problem.answer)
  except symbolic.Unreadable:
    return Score(0.0, "unparseable")
  return Score(float(correct), "correct" if correct else "wrong")


library_accuracy.prepare = symbolic.prepare
JUDGES = dict(rules=partial(accuracy.math_accuracy, strict=False), reward=partial(symbolic_accuracy, strict=False),
              library=library_accuracy)


def timed(problem: Problem, text: str, *, judge: Reward) -> Score:
  """The judge's score, with its seconds behind the verdict."""
  began = time.perf_counter()
  score = judge(problem, text)
  return Score(score.value, f"{score.verdict} {time.perf_counter() - began:.9f}")


def measure(path: str | Path, problems: int = 0, workers: int = 2, timeout: float = 10.0) -> dict:
  """Each judge on the same completions: agreement, disagreements by kind, speed."""
  rows = load(path, problems)
  asked, texts = [problem for problem, _, _ in rows], [text for _, text, _ in rows]
  judges = {}
  for name, judge in JUDGES.items():
    with Workers(workers, timeout) as pool:
      reward = partial(timed, judge=judge)
      if name != "rules":
        reward.prepare = symbolic.prepare
      terms = dict(accuracy=(1.0, reward))
      pool.score(terms, asked[:workers * 8], texts[:workers * 8])         # starts the processes
      before, began = pool.counts(), time.perf_counter()
      scores = [parts["accuracy"] for _, parts in pool.score(terms, asked, texts)]
      seconds = time.perf_counter() - began
      judges[name] = summary(rows, scores, seconds) | dict(
        timeouts=pool.counts()["timeouts"] - before["timeouts"])
  return dict(data=str(path), completions=len(rows), problems=len({problem.id for problem in asked}), workers=workers,
              judges=judges)


def summary(rows: list[tuple[Problem, str, bool]], scores: list[Score], seconds: float) -> dict:
  """Agreement of one judge's scores with the marks. A verdict may have its seconds behind it."""
  words = [score.verdict.split() for score in scores]
  latencies = sorted(float(word[1]) for word in words if len(word) > 1)
  verdicts, found, agree, agree_found = {}, 0, 0, 0
  wrong = dict(false_positives={kind: [] for kind in KINDS}, false_negatives={kind: [] for kind in KINDS})
  for (problem, text, mark), score, (verdict, *_) in zip(rows, scores, words, strict=True):
    verdicts[verdict] = verdicts.get(verdict, 0) + 1
    same = bool(score.value) == mark
    agree += same
    if verdict != "no_answer":
      found, agree_found = found + 1, agree_found + same
    if not same:
      answer = accuracy.extract(text, strict=False)
      wrong["false_positives" if score.value else "false_negatives"][kind(answer, problem.answer)].append(
        dict(problem=problem.id, gold=problem.answer, answer=answer, verdict=verdict))
  at = lambda share: latencies[min(len(latencies) - 1, int(share * len(latencies)))] if latencies else float("nan")
  return dict(agreement=agree / len(rows), agreement_where_found=agree_found / max(found, 1), found=found,
              verdicts=verdicts, checks_per_s=len(rows) / seconds, p50_s=at(0.5), p99_s=at(0.99), max_s=at(1.0),
              **wrong)


def kind(answer: str | None, gold: str) -> str:
  """What sort of disagreement this looks like."""
  if answer is None:
    return "no answer"
  digits = lambda text: re.sub(r"\D", "", re.sub(r"\.0+(?!\d)", "", text))
  numbers = lambda text: re.findall(r"-?\d[\d,]*\.?\d*", text)
  if digits(answer) == digits(gold) != "":
    return "unit" if re.search(r"[a-zA-Z°%]", re.sub(r"\\[a-zA-Z]+", "", answer)) else "number format"
  value = accuracy.parse_number(gold)
  if value is not None and any(accuracy.parse_number(number) == value for number in numbers(answer)):
    return "unit"
  said = accuracy.parse_number(answer)
  if None not in (said, value) and abs(said - value) <= abs(value) / 100:
    return "number format"       # rounded, or a fraction in decimals
  return "other"


def table(result: dict) -> Table:
  out = Table("", *result["judges"], title=f"{result['completions']:,} marked completions of {result['problems']:,}"
              f" problems, {result['workers']} worker processes")
  row = lambda name, text: out.add_row(name, *[text(judge) for judge in result["judges"].values()])
  row("agreement", lambda j: f"{j['agreement']:.4f}")
  row(f"where an answer is found (at least {BAR} wanted)",
      lambda j: f"{j['agreement_where_found']:.4f} of {j['found']:,}")
  for name in ("false_positives", "false_negatives"):
    for what in KINDS:
      row(f"{name.replace('_', ' ')}, {what}", lambda j, name=name, what=what: f"{len(j[name][what])}")
  for verdict in sorted({v for judge in result["judges"].values() for v in judge["verdicts"]}):
    row(f"verdict {verdict}", lambda j, verdict=verdict: f"{j['verdicts'].get(verdict, 0):,}")
  row("timeouts", lambda j: f"{j['timeouts']}")
  row("checks a second", lambda j: f"{j['checks_per_s']:,.0f}")
  row("ms a check, p50 / p99 / max", lambda j: " / ".join(f"{1000 * j[k]:.3g}" for k in ("p50_s", "p99_s", "max_s")))
  for name, judge in result["judges"].items():
    for side in ("false_positives", "false_negatives"):
      for what, cases in judge[side].items():
        if cases:
          out.add_section()
        for case in cases[:SHOWN]:
          out.add_row(f"{name}, {side.replace('_', ' ')[:-1]}, {what}", f"problem {case['problem']}",
                      f"gold {case['gold']}", f"answer {str(case['answer'])[:60]}")
  return out

"""GSM8K grade-school problems (Cobbe et al., arXiv 2110.14168) under R1-Zero's prompt template."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from r1jax import tokenizer
from r1jax.data import read_jsonl
from r1jax.problem import Problem, Task
from r1jax.rewards.accuracy import check_gold, math_accuracy
from r1jax.rewards.format import think_answer_format

# R1 report (doi 10.1038/s41586-025-09422-z), the template for R1-Zero, verbatim (the
# typography varies between versions of the paper). The slot stands where the paper writes "prompt.".
TEMPLATE = (
  "A conversation between User and Assistant. The User asks a question and the Assistant solves it. "
  "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
  "answer. The reasoning process and answer are enclosed within <think>...</think> and "
  "<answer>...</answer> tags, respectively, that is, <think>reasoning process here </think> "
  "<answer> answer here </answer>. User: {question} Assistant:")


def load(path: str | Path) -> list[Problem]:
  """Problems of a GSM8K JSONL file; id = 0-based line index, answer = what follows `####`, as written.

  ValueError `path:line: reason` for any line that does not hold a question and a numeric gold answer.
  """
  problems = []
  for number, row in read_jsonl(path):
    for key in ("question", "answer"):
      if not isinstance(row.get(key), str) or not row[key].strip():
        got = repr(row.get(key))[:80]
        raise ValueError(f"{path}:{number}: {key!r} must be a non-empty string, got {got}")
    _, marked, gold = row["answer"].rpartition("####")
    if not marked:
      raise ValueError(f"{path}:{number}: 'answer' has no '#### N' at its end")
    # replace, not format: questions may hold braces
    problem = Problem(number - 1, TEMPLATE.replace("{question}", row["question"].strip()), gold.strip())
    try:
      check_gold(problem, number=True)
    except ValueError as error:
      raise ValueError(f"{path}:{number}: {error}") from error
    problems.append(problem)
  return problems


# how answers to mathematical questions are scored: the fields of a Task
SCORING = dict(rewards=dict(accuracy=math_accuracy, format=think_answer_format),
               lenient=functools.partial(math_accuracy, strict=False))


@dataclasses.dataclass(frozen=True)
class Config:
  held_out: int = 0      # problems of the test file to evaluate on, from its start; 0: all

  def __post_init__(self):
    if self.held_out < 0:
      raise ValueError(f"task.held_out={self.held_out} must not be negative")


def make(cfg: Config, data) -> Task:
  """Reads data.train and data.test; bytes, or the tokenizer.json of data.tokenizer."""
  for name in ("train", "test"):
    if not getattr(data, name):
      raise ValueError(f"task gsm8k needs a JSONL file: give --config.data.{name}=PATH")
  train, test = load(data.train), load(data.test)
  return Task(
    name="gsm8k",
    tokenizer=tokenizer.load_or_bytes(data.tokenizer, data.end_token),
    problem=lambda i: train[i],
    size=len(train),
    held_out=tuple(test[:cfg.held_out or None]),
    **SCORING)

"""Greatest common divisors, asked by examples: a verifiable task at which a small released model is sometimes right.

The prompt is a few solved questions and an open one; an answer is what stands before the line break. A base model that
was never told how to answer then answers in the form of the examples.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from r1jax import tokenizer
from r1jax.problem import Problem, Score, Task

HELD_OUT, TRAIN = range(2)
EXAMPLES = ((12, 18), (35, 10), (9, 27), (16, 40))
NUMBER = re.compile(r"[0-9]{1,9}")


@dataclasses.dataclass(frozen=True)
class Config:
  largest: int = 60              # numbers are 2 .. largest
  held_out: int = 128            # pairs never trained on
  seed: int = 0

  def __post_init__(self):
    pairs = (self.largest - 1) * self.largest // 2
    if self.largest < 8:
      raise ValueError(f"task.largest={self.largest} must be at least 8")
    if not 0 < self.held_out <= pairs // 4:
      raise ValueError(f"task.held_out={self.held_out} must be at least 1 and at most {pairs // 4}, a quarter of"
                       f" all pairs")


def make(cfg: Config, data) -> Task:
  """Needs a tokenizer: that of the released model that the run starts from, with the line break as its end_token."""
  if not data.tokenizer:
    raise ValueError("task gcd needs a released model's tokenizer: give start=DIR")
  held_out = _held_out(cfg)
  kept_out = set(held_out)
  return Task(
    name="gcd", tokenizer=tokenizer.load(data.tokenizer, data.end_token or ""),
    problem=lambda i: problem(i, *_draw(cfg, i, kept_out)), size=None,
    held_out=tuple(problem(i, a, b) for i, (a, b) in enumerate(held_out)),
    rewards=dict(accuracy=exact), lenient=last_number)


def question(a: int, b: int) -> str:
  return f"Question: What is the greatest common divisor of {a} and {b}?\nAnswer:"


def problem(i: int, a: int, b: int) -> Problem:
  shown = "".join(f"{question(x, y)} {math.gcd(x, y)}\n" for x, y in EXAMPLES)
  return Problem(id=i, prompt=shown + question(a, b), answer=str(math.gcd(a, b)))


def exact(problem: Problem, text: str) -> Score:
  """Strict: the whole answer is the number."""
  said = text.strip()
  if not NUMBER.fullmatch(said):
    return Score(0.0, "no_answer")
  return Score(1.0, "correct") if int(said) == int(problem.answer) else Score(0.0, "wrong")


def last_number(problem: Problem, text: str) -> Score:
  """Lenient: the last number that stands in it."""
  found = NUMBER.findall(text)
  if not found:
    return Score(0.0, "no_answer")
  return Score(1.0, "correct") if int(found[-1]) == int(problem.answer) else Score(0.0, "wrong")


def _held_out(cfg: Config) -> list[tuple[int, int]]:
  """Distinct unordered pairs, none of them an example; a fixed choice whatever the training does."""
  rng = np.random.default_rng([cfg.seed, HELD_OUT])
  chosen: dict[tuple[int, int], None] = {}
  while len(chosen) < cfg.held_out:
    pair = _pair(rng, cfg)
    if pair not in EXAMPLES:
      chosen[pair] = None
  return list(chosen)


def _draw(cfg: Config, i: int, kept_out) -> tuple[int, int]:
  """Training pair i, drawn anew while it, or its mirror, is one of those kept out."""
  rng = np.random.default_rng([cfg.seed, TRAIN, i])
  while True:
    a, b = _pair(rng, cfg)
    if (a, b) not in kept_out and (b, a) not in kept_out:
      return a, b


def _pair(rng, cfg: Config) -> tuple[int, int]:
  """Half of the pairs share a divisor by construction: else most answers would be 1."""
  if rng.random() < 0.5:
    d = int(rng.integers(2, cfg.largest // 3 + 1))
    a, b = (d * int(rng.integers(1, cfg.largest // d + 1)) for _ in range(2))
  else:
    a, b = (int(rng.integers(2, cfg.largest + 1)) for _ in range(2))
  return a, b

"""n digits times one digit, from a mixture of short and long demonstrations (the construction of 2510.11495).

The product is asked for most significant digit first, which a small transformer can hardly do in one go: the first
digit depends on the carries of all. Long demonstrations work from the right, writing each digit and its carry.

  direct    4837*6=<think></think><answer>29022</answer>
  long      4837*6=<think>24 22 05 92</think><answer>29022</answer>      7*6 = 42: digit 2, carry 4; ...
"""

from __future__ import annotations

import dataclasses

import numpy as np

from r1jax.problem import Problem, Task
from r1jax.rewards.accuracy import math_accuracy
from r1jax.rewards.format import TAGS, think_answer_format
from r1jax.tokenizer import symbol_tokenizer

HELD_OUT, TRAIN, DEMONSTRATION = range(3)


@dataclasses.dataclass(frozen=True)
class Config:
  digits: int = 4               # of the first factor; the second is 2 .. 9
  p_long: float = 0.2           # share of demonstrations that are written out
  held_out: int = 512           # products never shown
  seed: int = 0

  def __post_init__(self):
    if self.digits < 2:
      raise ValueError(f"task.digits={self.digits} must be at least 2")
    if not 0 <= self.p_long <= 1:
      raise ValueError(f"task.p_long={self.p_long} must be within 0 and 1")
    if not 0 < self.held_out <= 9 * 10 ** (self.digits - 1):
      raise ValueError(f"task.held_out={self.held_out} must be at least 1 and at most"
                       f" {9 * 10 ** (self.digits - 1)}, an eighth of all products")


def make(cfg: Config, data) -> Task:
  if data.train or data.test or data.tokenizer:
    raise ValueError("task multiplication generates its problems and has its own tokenizer: data.* must stay empty")
  held_out: dict[tuple[int, int], None] = {}
  i = 0
  while len(held_out) < cfg.held_out:
    held_out[_factors(cfg, HELD_OUT, i, ())] = None
    i += 1
  return Task(
    name="multiplication",
    tokenizer=symbol_tokenizer([*"0123456789*= ", *TAGS]),
    problem=lambda i: _problem(i, *_factors(cfg, TRAIN, i, held_out)),
    size=None,
    held_out=tuple(_problem(i, *factors) for i, factors in enumerate(held_out)),
    rewards=dict(accuracy=math_accuracy, format=think_answer_format),
    demonstration=lambda i: demonstration(
      *_factors(cfg, DEMONSTRATION, i, held_out),
      written=np.random.default_rng([cfg.seed, DEMONSTRATION, i, 1]).random() < cfg.p_long),
  )


def worked(a: int, b: int) -> str:
  """Digit and carry of each place, from the right: 4837 * 6 -> "24 22 05 92"."""
  carry, pairs = 0, []
  for digit in reversed(str(a)):
    carry, unit = divmod(int(digit) * b + carry, 10)
    pairs.append(f"{unit}{carry}")
  return " ".join(pairs)


def demonstration(a: int, b: int, written: bool) -> tuple[str, str]:
  """(prompt, answer text), with the work written down or not."""
  return f"{a}*{b}=", f"<think>{worked(a, b) if written else ''}</think><answer>{a * b}</answer>"


def _problem(i: int, a: int, b: int) -> Problem:
  return Problem(id=i, prompt=f"{a}*{b}=", answer=str(a * b))


def _factors(cfg: Config, stream: int, i: int, kept_out) -> tuple[int, int]:
  """Factors i of a stream, drawn anew while their product is one of those kept out."""
  rng = np.random.default_rng([cfg.seed, stream, i])
  while True:
    factors = int(rng.integers(10 ** (cfg.digits - 1), 10**cfg.digits)), int(rng.integers(2, 10))
    if factors not in kept_out:
      return factors

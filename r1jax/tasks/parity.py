"""Parity of d bits, from a mixture of short and long demonstrations (2510.11495): R1-Zero's curve on a laptop.

A prompt is d bits and ":", the answer is whether their sum is odd. The base policy reads demonstrations of which most
answer at once (for a small transformer a guess: parity has no shortcut) and few write the running parity down first,
bit by bit. So greedily it answers at once, at chance; sampled, it sometimes thinks, and is then right. RL sees right
and wrong answers only, no demonstration, and finds that thinking pays: accuracy goes up because answers grow longer.

  direct    0110:<think></think><answer>0</answer>
  long      0110:<think>0100</think><answer>0</answer>
  untagged  0110:0                       no format reward, and no answer that a strict matcher reads
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from r1jax.problem import Problem, Task
from r1jax.rewards.accuracy import exact_accuracy
from r1jax.rewards.format import TAGS, think_answer_format
from r1jax.tokenizer import symbol_tokenizer

HELD_OUT, TRAIN, DEMONSTRATION = range(3)   # streams of random numbers that never meet


@dataclasses.dataclass(frozen=True)
class Config:
  bits: int = 16                # d
  p_long: float = 0.1           # share of demonstrations with the running parity. Greedy stays direct below 1/3
  p_untagged: float = 0.2       # share with neither tags nor thought
  held_out: int = 512           # bit strings never shown, neither as demonstration nor in RL
  seed: int = 0

  def __post_init__(self):
    if self.bits < 2:
      raise ValueError(f"task.bits={self.bits} must be at least 2")
    if min(self.p_long, self.p_untagged) < 0 or self.p_long + self.p_untagged > 1:
      raise ValueError(f"task.p_long={self.p_long} and p_untagged={self.p_untagged} are shares of one whole")
    if not 0 < self.held_out <= 2 ** (self.bits - 1):
      raise ValueError(f"task.held_out={self.held_out} must be within 1 and half of the 2^{self.bits} strings")


def make(cfg: Config, data) -> Task:
  if data.train or data.test or data.tokenizer:
    raise ValueError("task parity generates its problems and has its own tokenizer: data.* must stay empty")
  held_out = _held_out(cfg)
  kept_out = set(held_out)
  return Task(
    name="parity",
    tokenizer=symbol_tokenizer(["0", "1", ":", *TAGS]),
    problem=lambda i: _problem(i, _draw(cfg, TRAIN, i, kept_out)[0]),
    size=None,
    held_out=tuple(_problem(i, bits) for i, bits in enumerate(held_out)),
    rewards=dict(accuracy=exact_accuracy, format=think_answer_format),
    demonstration=lambda i: _demonstration(cfg, *_draw(cfg, DEMONSTRATION, i, kept_out)),
  )


def running_parity(bits: str) -> str:
  """0110 -> 0100: the parity of each prefix; its last bit is the answer."""
  return "".join(itertools.accumulate(bits, lambda parity, bit: "01"[parity != bit]))


def demonstration(bits: str, kind: str) -> tuple[str, str]:
  """(prompt, answer text) of the kind "long", "untagged" or "direct"."""
  thought = running_parity(bits)
  answer = thought[-1]
  if kind == "untagged":
    return f"{bits}:", answer
  return f"{bits}:", f"<think>{thought if kind == 'long' else ''}</think><answer>{answer}</answer>"


def _demonstration(cfg: Config, bits: str, u: float) -> tuple[str, str]:
  kind = "long" if u < cfg.p_long else "untagged" if u < cfg.p_long + cfg.p_untagged else "direct"
  return demonstration(bits, kind)


def _problem(i: int, bits: str) -> Problem:
  return Problem(id=i, prompt=f"{bits}:", answer=running_parity(bits)[-1])


def _held_out(cfg: Config) -> list[str]:
  """Distinct bit strings, a fixed choice whatever the training does."""
  rng = np.random.default_rng([cfg.seed, HELD_OUT])
  numbers = []
  for number in (int(n) for n in rng.integers(0, 2**cfg.bits, 20 * cfg.held_out + 100)):
    if number not in numbers and len(numbers) < cfg.held_out:
      numbers.append(number)
  return [f"{n:0{cfg.bits}b}" for n in numbers]


def _draw(cfg: Config, stream: int, i: int, kept_out: set[str]) -> tuple[str, float]:
  """Item i of a stream: a bit string, drawn anew while it is one of those kept out, and a number in [0, 1)."""
  rng = np.random.default_rng([cfg.seed, stream, i])
  u = rng.random()
  while True:
    bits = f"{int(rng.integers(0, 2**cfg.bits)):0{cfg.bits}b}"
    if bits not in kept_out:
      return bits, u

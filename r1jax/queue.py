"""Who answers what, in which row: the queue of continuous batching, on the host (slots.py runs it).

Prompts are numbered; answers to one prompt wait together, so that they find its cache in a lane.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Said:
  """An answer, or what there is of it."""
  tokens: list[int]
  logps: np.ndarray              # of the policies that drew them
  ended: bool                    # by an end token or a stop text
  finished: bool                 # ended, or at its budget; else it goes on in a later rollout (Job.before)
  prompt_experts: np.ndarray | None = None   # MoE: [P, L, k]
  experts: np.ndarray | None = None          # [tokens, L, k]
  kept: np.ndarray | None = None             # keep_mask: [tokens, top_k]


@dataclasses.dataclass(frozen=True)
class Job:
  """One answer to draw. Jobs with the same prompt share its cache when they run side by side."""
  prompt: tuple[int, ...]
  key: np.ndarray                # as jax.random.key_data gives it
  budget: int                    # tokens, those of `before` included
  before: Said | None = None     # what an earlier rollout drew of it

  @property
  def prefix(self) -> tuple[int, ...]:
    """What the prefill runs."""
    return self.prompt + tuple(self.before.tokens) if self.before else self.prompt

  @property
  def done(self) -> int:
    """Tokens of the answer that are in the prefix."""
    return len(self.before.tokens) if self.before else 0


@dataclasses.dataclass
class Stop:
  """The search for a stop text in one row: tokens it has looked at, and what says True where a text is complete."""
  push: Callable[[int], bool]
  looked: int = 0


class Queue:
  """Which job is in which row, and who is next."""

  def __init__(self, jobs: Sequence[Job], lanes: int, width: int, stop: Callable | None = None):
    self.jobs, self.width, self.stop = jobs, width, stop
    number: dict[tuple, int] = {}
    self.of_job = [number.setdefault(job.prefix, len(number)) for job in jobs]
    self.prompts = list(number)
    self.waiting = [collections.deque() for _ in number]     # jobs of each prompt, in order
    for i, prompt in enumerate(self.of_job):
      self.waiting[prompt].append(i)
    self.unseen = collections.deque(range(len(number)))      # prompts that no lane has had
    self.lane: list[int | None] = [None] * lanes             # the prompt of each lane
    self.row: list[int | None] = [None] * (lanes * width)    # the job of each row
    self.stops: list[Stop | None] = [None] * (lanes * width)
    self.fresh: list[int] = []                               # rows to begin
    self.new: list[int] = []                                 # lanes to load
    self.halted = np.zeros(lanes * width, bool)              # rows that a stop text has ended
    self.length_N = np.zeros(lanes * width, np.int32)        # of the answers, as far as the host knows
    self.prompt_experts: dict[int, np.ndarray] = {}

  def fill(self) -> bool:
    """Gives waiting jobs to free rows; whether any row has work."""
    self.fresh, self.new = [], []
    for lane in range(len(self.lane)):
      free = [n for n in range(lane * self.width, (lane + 1) * self.width) if self.row[n] is None]
      if len(free) == self.width and not self._waits(self.lane[lane]):
        self.lane[lane] = self._next()
        if self.lane[lane] is not None:
          self.new.append(lane)
      for n in free:
        if self._waits(self.lane[lane]):
          self._begin(n, self.waiting[self.lane[lane]].popleft())
    return any(i is not None for i in self.row)

  def _waits(self, prompt: int | None) -> bool:
    return prompt is not None and bool(self.waiting[prompt])

  def _begin(self, n: int, i: int) -> None:
    self.row[n] = i
    self.fresh.append(n)
    if self.stop:
      push = self.stop()
      for token in self.jobs[i].before.tokens if self.jobs[i].before else ():
        push(token)
      self.stops[n] = Stop(push)

  def _next(self) -> int | None:
    """The first prompt that no lane has had; else the one with the most answers that wait."""
    if self.unseen:
      return self.unseen.popleft()
    most = max(range(len(self.prompts)), key=lambda prompt: len(self.waiting[prompt]))
    return most if self.waiting[most] else None

  @property
  def active(self) -> list[int]:
    return [n for n, i in enumerate(self.row) if i is not None]

  def only(self, lanes: list[int]) -> None:
    """Goes on with these lanes."""
    rows = [lane * self.width + g for lane in lanes for g in range(self.width)]
    self.lane = [self.lane[lane] for lane in lanes]
    self.row, self.stops = [self.row[n] for n in rows], [self.stops[n] for n in rows]
    self.length_N, self.halted = self.length_N[rows], self.halted[rows]

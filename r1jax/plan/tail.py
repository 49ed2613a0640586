"""A rollout's time from the lengths of its answers: slots on several replicas, simulated tick by tick.

The rules are those of queue.py: a lane holds one prompt and `width` rows that answer it; a row that has ended takes the
next answer to its lane's prompt, an idle lane the next prompt. Rows advance together, at what a decode step costs with
so many at work; replicas share one clock and one queue. tests/test_tail.py and docs/cost.md hold it beside slots.Stats
of real sampling. Letters: R replicas, X lanes of all, W rows of a lane, K ticks;
N answers, prompt-major.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

SCALARS = ("seconds", "steps", "room", "work", "few_seconds")


@dataclasses.dataclass(frozen=True)
class Trace:
  """What happened. Steps are those of one replica; room is their rows, at work or not."""
  seconds: float
  steps: float
  room: float
  work: float
  few_seconds: float             # in which fewer than half of all rows were at work
  time_K: np.ndarray             # ends of ticks
  active_K: np.ndarray           # rows at work in each
  end_N: np.ndarray              # seconds at which an answer ended; inf: it has not
  left_N: np.ndarray             # tokens still to draw

  @property
  def occupancy(self) -> float:
    return self.work / max(self.room, 1e-9)

  @property
  def tail_share(self) -> float:
    return self.few_seconds / max(self.seconds, 1e-9)


def simulate(left_N, before_N, *, lanes: int, width: int = 1, group: int = 1, replicas: int = 1,
             seconds: Callable = lambda rows_R, context_R: np.ones(len(rows_R)), rate: float = 1.0,
             tick: float = 1.0, static: bool = False, enough: int = 0) -> Trace:
  """Answers drawn until all have ended.

  left_N: tokens to draw of each; `group` answers in a row have one prompt. before_N: tokens before these (prompt, and
  what an earlier rollout drew). seconds(rows at work, mean context, each [R]) -> seconds of a step [R]. rate: tokens a
  row gains in a step. static: a step costs what it did with all rows. enough: stop when so many groups are complete.
  """
  left_N = np.array(left_N, np.float64)
  before_N = np.array(np.broadcast_to(before_N, left_N.shape), np.float64)
  N, S, end_N, times, actives = len(left_N), lanes * width, np.full(len(left_N), np.inf), [], []
  waits_G, unseen = np.full(N // group, group), list(range(N // group))[::-1]
  lane_X = np.full(lanes * replicas, -1)                       # the prompt of each lane
  row_XW = np.full((lanes * replicas, width), -1)
  open_G = waits_G.copy()
  now = steps = room = work = few = 0.0

  def fill():
    for x in np.flatnonzero((row_XW < 0).any(1)):       # lane x of replica x % replicas: prompts spread evenly
      if (row_XW[x] < 0).all() and (lane_X[x] < 0 or not waits_G[lane_X[x]]):
        lane_X[x] = unseen.pop() if unseen else waits_G.argmax() if waits_G.any() else -1
      for s in np.flatnonzero(row_XW[x] < 0) if lane_X[x] >= 0 else ():
        if waits := waits_G[lane_X[x]]:
          row_XW[x, s] = (lane_X[x] + 1) * group - waits
          waits_G[lane_X[x]] -= 1

  if width == 1:                       # the same as fill, at once: prompts in order, then again from the first on
    first, prompts = np.arange(min(len(row_XW), N)), len(waits_G)
    row_XW[first, 0], lane_X[first] = first % prompts * group + first // prompts, first % prompts
    waits_G -= np.bincount(first % prompts, minlength=prompts)
    unseen = unseen[:max(prompts - len(first), 0)]
  while True:
    if waits_G.any():
      fill()
    x, s = np.nonzero(row_XW >= 0)
    if not len(x):
      break
    n, r = row_XW[x, s], x % replicas
    rows_R = np.bincount(r, minlength=replicas)
    context_R = np.bincount(r, before_N[n], replicas) / np.maximum(rows_R, 1)
    step_R = np.asarray(seconds(np.full(replicas, S) if static else rows_R, context_R), np.float64)
    share = np.minimum(left_N[n] / (tick / step_R * rate)[r], 1.0)       # of the tick that each row works
    last = share.max()
    ended = left_N[n] <= (tick / step_R * rate)[r]
    gained = np.where(ended, left_N[n], (share * tick / step_R[r] * rate))
    end_N[n[ended]] = now + share[ended] * tick
    left_N[n] -= gained
    before_N[n] += gained
    worked, each = share * tick / step_R[r], tick / step_R * last
    half = (S * replicas + 1) // 2           # as many rows at work are not few
    few += tick * (last - (np.partition(share, -half)[-half] if len(share) >= half else 0.0))
    work, steps, room = work + worked.sum(), steps + each.mean(), room + each.sum() * S
    now += tick * last
    times.append(now)
    actives.append(worked.sum() / max(each.mean(), 1e-12))
    row_XW[x[ended], s[ended]] = -1
    np.subtract.at(open_G, n[ended] // group, 1)
    if enough and (open_G == 0).sum() >= enough:
      break
  return Trace(now, steps, room, work, few, np.array(times), np.array(actives), end_N, left_N)


def total(traces: list[Trace]) -> Trace:
  """Traces that follow each other as one, as `mean` but for their sums."""
  one = mean(traces)
  return dataclasses.replace(one, **{name: getattr(one, name) * len(traces) for name in SCALARS})


def mean(traces: list[Trace]) -> Trace:
  """A mean rollout of several that follow each other; their curves one behind the other, ends and rests of the last."""
  starts = np.cumsum([0.0] + [t.seconds for t in traces[:-1]])
  scalars = {name: float(np.mean([getattr(t, name) for t in traces])) for name in SCALARS}
  return Trace(**scalars, time_K=np.concatenate([t.time_K + s for t, s in zip(traces, starts, strict=True)]),
               active_K=np.concatenate([t.active_K for t in traces]), end_N=traces[-1].end_N, left_N=traces[-1].left_N)

"""`r1jax run --profile UNITS`: a trace of some units of every stage, by jax.profiler, in WORKDIR/profile/STAGE.

TensorBoard's profile page, XProf and Perfetto open it. The device's operations carry the names of `jax.named_scope`,
which read like the recipe: rollout/prefill, rollout/decode, score (log-probs of the reference and of the old policy),
update/policy_loss, update/optimizer, within them attention, mlp, moe, head. What the host does is a TraceAnnotation:
rollout, rewards, reference, old policy, update, eval. Names are metadata: they change no result.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
from pathlib import Path

import jax

from r1jax import hosts

phase = jax.profiler.TraceAnnotation      # of what the host does: `with phase("rewards"):`
named = jax.profiler.annotate_function    # the same around each call of a function: named(f, name="update")


@dataclasses.dataclass(frozen=True)
class Units:
  """Which units of a stage: `first` to `last` - 1; first=-1: as many as `last` says, after the one that compiles."""
  first: int
  last: int

  def of(self, done: int) -> range:
    """Those of a process that begins with unit `done`."""
    return range(self.first, self.last) if self.first >= 0 else range(done + 1, done + 1 + self.last)


def parse(text: str) -> Units:
  """`3`, or `10:13` for units 10, 11 and 12."""
  found = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
  units = found and Units(int(found[1]) if found[1] else -1, int(found[2]))
  if not units or units.last <= max(units.first, 0):
    raise ValueError(f"--profile={text}: give a number of units, or FIRST:END with END after FIRST")
  return units


_asked: contextvars.ContextVar[Units | None] = contextvars.ContextVar("units to trace", default=None)


@contextlib.contextmanager
def asked(units: Units | None):
  """Stages that run within are traced."""
  token = _asked.set(units)
  try:
    yield
  finally:
    _asked.reset(token)


class Trace:
  """The trace of one stage, if one was asked for. folder: the stage's; done: the unit that this process begins with."""

  def __init__(self, folder: Path, done: int):
    units = _asked.get()
    self.units = units.of(done) if units else range(0)
    self.folder = folder.parent / "profile" / folder.name
    if hosts.count() > 1:
      self.folder /= f"process_{jax.process_index()}"
    self.runs = False

  def advance(self, advance, state, unit: int):
    """advance(state, unit), traced if it is one of the units."""
    if unit in self.units and not self.runs:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self.folder)
      self.runs = True
    with jax.profiler.StepTraceAnnotation(self.folder.name, step_num=unit):
      out = advance(state, unit)
    if self.runs and unit + 1 not in self.units:
      jax.block_until_ready(out[0])
      self.close()
    return out

  def close(self) -> None:
    """Writes what there is."""
    if self.runs:
      self.runs = False
      jax.profiler.stop_trace()

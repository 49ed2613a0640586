"""The loop that every training stage runs in: resume, advance, write, save, stop.

A unit is what a stage does between two moments at which it may be saved: an update of pre-training, a rollout with its
updates in RL. All that a unit does follows from (config, state, unit number), so a killed run repeats the lost units
to the bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path

import jax

from r1jax import hosts, metrics, profiling
from r1jax.checkpoint import Checkpoints
from r1jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class SaveConfig:
  every: int = 25        # units between two checkpoints; the last unit is always saved
  keep: int = 2          # checkpoints kept per stage

  def __post_init__(self):
    if self.every < 1 or self.keep < 1:
      raise ValueError(f"checkpoint.every={self.every} and keep={self.keep} must be at least 1")


class Interrupted(Exception):
  """The user asked to stop; the message says where the run is and that it is saved."""


class Stop:
  """Whether the user asked to stop: set by the first Ctrl-C, looked at after each unit."""

  def __init__(self):
    self.asked = False

  def ask(self, *_):
    if self.asked:
      raise KeyboardInterrupt      # the second Ctrl-C does not wait
    self.asked = True


@contextlib.contextmanager
def interruptible():
  """Ctrl-C and SIGTERM finish the unit in hand and save, instead of breaking off in the middle."""
  stop = Stop()
  old = {s: signal.signal(s, stop.ask) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield stop
  finally:
    for s, handler in old.items():
      signal.signal(s, handler)


def run(name: str, folder: Path, state: TrainState, advance: Callable, *, units: int, save: SaveConfig,
        stop: Stop | None = None, console=None, first_step: Callable[[int], int] | None = None) -> TrainState:
  """Runs units `restored`..`units` - 1 of a stage and returns the last state.

  advance(state, unit) -> (state, rows, samples): rows is a list of (step, {name: number}), samples None or
  (step, table) for the sample files. first_step(unit): the step of its first row, from which a resumed run writes anew;
  None: the state's.
  """
  state, asked = hosts.spread(state), False
  with Checkpoints(folder / "checkpoints", save.keep) as checkpoints:
    restored = checkpoints.restore(jax.tree.map(_abstract, state))
    done, saved = 0, -1
    if restored:
      done, state, _ = restored
      saved = done
    if done >= units:
      return state
    writer = metrics.Writer(folder, first_step(done) if first_step else int(state.step), quiet=not hosts.is_main())
    trace = profiling.Trace(folder, done)
    with contextlib.closing(writer), contextlib.closing(trace), metrics.progress(console) as progress:
      bar = progress.add_task(name, total=units, completed=done, numbers="")
      for unit in range(done, units):
        state, rows, samples = trace.advance(advance, state, unit)
        for step, row in rows:
          writer.write(step, row)
          progress.update(bar, numbers=metrics.line(row))
        if samples:
          writer.samples(*samples)
        progress.update(bar, completed=unit + 1)
        asked = hosts.any_of(stop is not None and stop.asked)
        if (unit + 1) % save.every == 0 or unit + 1 == units or asked:
          checkpoints.save(unit + 1, state, dict(unit=unit + 1, update=int(state.step)))
          saved = unit + 1
        if asked:
          break
  if saved < units:      # all is written by now
    raise Interrupted(f"stopped in stage {name} after {saved} of {units}; saved")
  return state


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

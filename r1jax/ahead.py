"""Rollouts drawn ahead of their turn: while the policy learns from one rollout, a thread samples the next.

Rollout u is drawn by the policy that u - ahead rollouts have trained (`reasoning_rl.ahead`; 1: one step off-policy,
2410.18252). So answers are at most `ahead` rollouts stale, and which policy draws what follows from the config, not
from how fast either side is: a resumed run draws the same. With `in_flight` the sampler goes on with the next policy
after every so many decode steps, up to the newest that there can be, in the middle of its answers, and keeps the caches
of the old one (PipelineRL, 2509.19128); an answer's tokens then come from several policies. The ratio of the loss is
against whoever drew each token; with loss.correction it is against the policy at the start of the updates, and the
correction weighs the rest (2505.24298, "decoupled").
With rollout_devices the sampler has devices of its own. Otherwise both share one device; two programs that each talk
among the same several devices could wait for one another for ever.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import hosts, sharding
from r1jax.models.transformer import ModelConfig
from r1jax.resharding import for_rollout


class Closed(Exception):
  """The run has ended: what is being sampled will not be used."""


def check(cfg) -> None:
  """NotImplementedError where rollouts cannot be drawn ahead, on the mesh in use. cfg: the stage's RLConfig."""
  if hosts.count() > 1:
    raise NotImplementedError(f"reasoning_rl.ahead={cfg.ahead} in {hosts.count()} processes: their threads would have"
                              " to agree on an order")
  mesh = jax.sharding.get_mesh()
  if mesh.size > 1 and not sharding.apart():
    raise NotImplementedError(f"reasoning_rl.ahead={cfg.ahead} on the trainer's own {mesh.size} devices, whose"
                              " collectives would meet those of sampling: give some to sampling by rollout_devices")


class Rollouts:
  """The thread, what it has drawn, and the policies that it draws from. Close it when the stage ends.

  draw(unit, params, renew) -> collect.Drawn. renew(steps) -> parameters to go on with after so many decode steps of
  this rollout, or None.
  """

  def __init__(self, cfg, model: ModelConfig, draw: Callable):
    self.cfg, self.model, self.draw = cfg, model, draw
    self._changed = threading.Condition()
    self._policies: dict[int, Any] = {}          # by the number of rollouts that trained them; on the trainer's devices
    self._drawn: dict[int, Any] = {}
    self._error: BaseException | None = None
    self._closed = False
    self._thread: threading.Thread | None = None

  def begin(self, unit: int, behind, params) -> None:
    """Starts to draw rollout `unit` and those after it. behind: the policies before `params`, as the state has them."""
    for version, policy in zip(self._versions(unit), behind, strict=True):
      self._policies[version] = policy
    self._policies[unit] = jax.tree.map(jnp.copy, params)
    where = jax.sharding.get_mesh(), sharding.config(), sharding.rollout_layout()
    self._thread = threading.Thread(target=self._run, args=(unit, *where), daemon=True, name="rollouts")
    self._thread.start()

  @property
  def begun(self) -> bool:
    return self._thread is not None

  def take(self, unit: int):
    """(what was drawn for rollout `unit`, rollouts that its policy was behind: a mean over decode steps); waits."""
    with self._changed:
      self._changed.wait_for(lambda: unit in self._drawn or self._error)
      if unit not in self._drawn:
        raise self._error
      return self._drawn.pop(unit)

  def learnt(self, unit: int, params):
    """Tells of the policy that `unit` rollouts have trained. Returns what the state keeps: those before it."""
    policy = jax.tree.map(jnp.copy, params)      # the state's own is given up to the next update
    with self._changed:
      self._policies[unit] = policy
      behind = tuple(self._policies[version] for version in self._versions(unit))
      for old in [version for version in self._policies if version < unit - self.cfg.ahead]:
        del self._policies[old]
      self._changed.notify_all()
    return behind

  def close(self) -> None:
    """Ends the thread, at the end of the chunk in hand."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    if self._thread:
      self._thread.join()

  def _versions(self, unit: int) -> list[int]:
    return [max(version, 0) for version in range(unit - self.cfg.ahead, unit)]

  def _run(self, first: int, mesh, rules, layout) -> None:
    try:
      with contextlib.nullcontext() if mesh.empty else sharding.entered(mesh, rules), sharding.sampling(layout):
        for unit in range(first, self.cfg.rollouts):
          drawn = self._one(unit)
          with self._changed:
            self._drawn[unit] = drawn
            self._changed.notify_all()
    except Closed:
      pass
    except BaseException as error:     # the main thread's to tell
      with self._changed:
        self._error = error
        self._changed.notify_all()

  def _one(self, unit: int):
    first = version = max(unit - self.cfg.ahead, 0)
    since = {version: 0}                 # decode steps before it came
    with contextlib.ExitStack() as held:
      def policy():
        held.close()                   # the old copy's memory first
        return held.enter_context(for_rollout(self._wait(version), self.model))

      def renew(steps: int):
        nonlocal version
        if self._closed:
          raise Closed
        due = min(first + steps // self.cfg.in_flight, unit) if self.cfg.in_flight else version
        if due == version:
          return None
        version, since[due] = due, steps
        return policy()
      drawn = self.draw(unit, policy(), renew)
    ends = [*list(since.values())[1:], drawn.stats.steps]
    steps = [end - begin for begin, end in zip(since.values(), ends, strict=True)]
    behind = sum((unit - v) * n for v, n in zip(since, steps, strict=True)) / max(sum(steps), 1)
    return drawn, behind

  def _wait(self, version: int):
    with self._changed:
      self._changed.wait_for(lambda: self._closed or version in self._policies)
      if self._closed:
        raise Closed
      policy = self._policies[version]
    return jax.block_until_ready(policy)       # copies that wait for it would hold threads that its own program needs

"""Stages in hours and dollars: the best layouts, each phase of a unit of work, and how often it comes.

A unit of RL: prefill, decode, rewards' rest, switch, weight sync, scoring by the policy and the reference, updates.
Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax.numpy as jnp

from r1jax import costs
from r1jax.plan import layout as layouts_
from r1jax.plan import lengths, memory, phases, rollouts, traffic
from r1jax.plan.layout import Layout
from r1jax.plan.phases import Phase, Site
from r1jax.plan.rollouts import Rollout
from r1jax.plan.settings import RL, Part, Sampling, Schedule, Supervised


@dataclasses.dataclass(frozen=True)
class Tried:
  """A layout of updates, what an update takes there, and bytes on a device."""
  layout: Layout
  seconds: float
  memory: dict[str, float]
  fits: bool


@dataclasses.dataclass(frozen=True)
class Bill:
  """A stage on `devices` devices. phases: of the whole stage, by name; where some run beside others, seconds is less
  than their sum."""
  name: str
  devices: int
  seconds: float
  phases: dict[str, Phase]
  tokens: float                  # drawn, or learnt from where none are drawn
  tried: tuple[Tried, ...] = ()
  rollout: Rollout | None = None  # of the last part
  note: str = ""

  @property
  def hours(self) -> float:
    """Device-hours."""
    return self.seconds * self.devices / 3600

  def fits(self, site: Site) -> bool:
    return ((not self.tried or self.tried[0].fits)
            and (not self.rollout or memory.total(self.rollout.memory) <= room_for(site)))

  @property
  def flops(self) -> float:
    return sum(phase.flops for phase in self.phases.values())

  def mfu(self, peak: float) -> float:
    return self.flops / (peak * self.devices * max(self.seconds, 1e-9))


def room_for(site: Site) -> float:
  """Bytes of a device that may be planned for."""
  return site.hardware.memory * site.numbers.cache


def training_layouts(site: Site, devices: int, prompt: float, length_N, group: int, opt, *, reference: bool,
                     fp8: bool = False, shared: bool = False) -> tuple[Tried, ...]:
  """All layouts, those that fit first, the fastest first. length_N: of a minibatch's answers."""
  out = []
  row = phases.row_tokens(length_N, prompt)
  for layout in layouts_.candidates(site.cfg, devices, site.hardware):
    held = memory.training(site.cfg, layout, row / layout.context, opt, reference, micro_batches=2)
    fits = memory.total(held) <= room_for(site)
    seconds = math.inf
    if fits or layout.data == 1:
      seconds = phases.learning(site, layout, prompt, length_N, group, backward=True, fp8=fp8, shared=shared).seconds
    out.append(Tried(layout, seconds, held, fits))
  if not out:
    raise ValueError(f"no layout of {devices} devices divides this model")
  return tuple(sorted(out, key=lambda t: (not t.fits, t.seconds if t.fits else memory.total(t.memory))))


def best_rollout(site: Site, stage: RL, part: Part, schedule: Schedule, devices: int) -> Rollout:
  """The fastest layout of replicas that fits; where none does, the smallest."""
  ways = {layout: rollouts.fitted(site, layout, stage, part, schedule, devices)
          for layout in rollouts.layouts(site, devices)}
  held = {layout: memory.total(rollouts.held(site, layout, stage, part, way, devices)) for layout, way in ways.items()}
  fit = [layout for layout, size in held.items() if size <= room_for(site)] or [min(held, key=held.get)]
  quick = [rollouts.simulate(site, layout, stage, part, ways[layout], devices, ticks=60) for layout in fit]
  return min(quick, key=lambda r: r.seconds)


def of(site: Site, stage: RL | Supervised | Sampling, schedule: Schedule, devices: int) -> Bill:
  if isinstance(stage, RL):
    return rl(site, stage, schedule, devices)
  if isinstance(stage, Sampling):
    return sampling(site, stage, schedule, devices)
  return supervised(site, stage, devices, schedule.fp8_train)


def rl(site: Site, stage: RL, schedule: Schedule, devices: int) -> Bill:
  """All rollouts of a stage and their updates, on devices that take turns, or on two shares of them (ahead).

  Of five shares, the best for the part with the most tokens.
  """
  if not schedule.ahead:
    return _rl(site, stage, schedule, devices, devices)
  tries = []
  one = dataclasses.replace(stage, parts=(max(stage.parts, key=lambda part: part.rollouts * part.mean),))
  for share in (1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4):
    there = round(devices * share)
    if there and devices - there:
      try:
        made = _rl(site, one, schedule, there, devices - there)
        tries.append((not made.fits(site), made.seconds, there))
      except ValueError:                   # so many devices cannot be laid out
        continue
  if not tries:
    raise ValueError(f"{stage.name}: {devices} devices cannot be shared between rollouts and updates")
  there = min(tries)[2]
  return _rl(site, stage, schedule, there, devices - there)


def _rl(site: Site, stage: RL, schedule: Schedule, there: int, here: int) -> Bill:
  """there, here: devices that sample and devices that learn; the same ones unless schedule.ahead."""
  last = max(stage.parts, key=lambda part: part.mean)
  tried = _layouts_of(_stepless(site), dataclasses.replace(stage, name="", parts=(last,)), here, schedule.offload,
                      schedule.fp8_train, schedule.shared_prompt)
  layout = tried[0].layout
  where = best_rollout(site, stage, last, schedule, there).layout
  sums: dict[str, Phase] = {}
  seconds = tokens = 0.0
  for part in stage.parts:
    way = rollouts.fitted(site, where, stage, part, schedule, there)
    drawn = rollouts.simulate(site, where, stage, part, way, there)
    unit = once(site, stage, part, schedule, layout, drawn)
    sampling = sum(unit[name].seconds for name in ("prefill", "decode", "reward"))
    other = sum(phase.seconds for phase in unit.values()) - sampling
    # ahead: the slower side decides; the sync is both sides'
    one = max(sampling, other - unit["sync"].seconds) + unit["sync"].seconds if schedule.ahead else sampling + other
    seconds += part.rollouts * one
    tokens += part.rollouts * stage.answers * part.mean
    for name, phase in unit.items():
      sums[name] = _plus(sums[name], phase * part.rollouts) if name in sums else phase * part.rollouts
  return Bill(stage.name, here + there if schedule.ahead else here, seconds, sums, tokens, tried, drawn,
              f"{there} devices sample, {here} learn" if schedule.ahead else "")


def _stepless(site: Site) -> Site:
  """The site with nothing that updates do not depend on, for caches."""
  return dataclasses.replace(site, numbers=dataclasses.replace(site.numbers, step=0.0))


@functools.lru_cache(64)
def _layouts_of(site: Site, stage: RL, devices: int, offload: bool, fp8: bool, shared: bool) -> tuple[Tried, ...]:
  length_N = rollouts.drawn(site, stage, stage.parts[0])[:stage.answers // stage.minibatches]
  return training_layouts(site, devices, stage.prompt, length_N, stage.group, stage.optimizer,
                          reference=stage.reference and not offload, fp8=fp8, shared=shared)


def once(site: Site, stage: RL, part: Part, schedule: Schedule, layout: Layout, drawn: Rollout) -> dict[str, Phase]:
  """One rollout and what is learnt from it, by phase."""
  numbers, hardware, cfg = site.numbers, site.hardware, site.cfg
  length_N = rollouts.drawn(site, stage, part)
  per = stage.answers // stage.minibatches
  static = dict(fp8=schedule.fp8_train, shared=schedule.shared_prompt)
  score = phases.learning(site, layout, stage.prompt, length_N, stage.group, backward=False, **static)
  update = phases.learning(site, layout, stage.prompt, length_N[:per], stage.group, backward=True, **static)
  step = phases.step_of_optimizer(site, layout, stage.optimizer)
  item = 1.0 if schedule.fp8_rollout else 0.0
  sent = traffic.synced(cfg, layout, drawn.layout, hardware, item)
  unit = dict(prefill=drawn.prefill, decode=drawn.decode, reward=Phase("reward", numbers.reward),
              sync=Phase("sync", float(sent.seconds(hardware, numbers)), traffic=sent))
  if schedule.offload and not schedule.ahead:
    held = memory.training(cfg, layout, 1, stage.optimizer, stage.reference)
    away = 2 * sum(held[name] for name in ("params", "optimizer", "reference"))
    size = jnp.dtype(cfg.dtype).itemsize
    away += layouts_.shard_bytes(cfg, drawn.layout) * (item or size) / size       # sampling's copy is dropped, not kept
    unit["switch"] = Phase("switch", 2 * numbers.restart + away / numbers.host, bytes=away)
  before = {"reference": int(stage.reference), "old": int(stage.old), "reward models": stage.passes}
  unit |= {name: dataclasses.replace(score * times, name=name) for name, times in before.items() if times}
  return unit | dict(update=update * stage.minibatches, optimizer=step * stage.minibatches)


def supervised(site: Site, stage: Supervised, devices: int, fp8: bool = False) -> Bill:
  """Updates on given samples, whose lengths spread as answers do."""
  return _supervised(_stepless(site), stage, devices, fp8)


@functools.lru_cache(64)
def _supervised(site: Site, stage: Supervised, devices: int, fp8: bool) -> Bill:
  updates = stage.samples / stage.batch
  mean = min(stage.length, max(0.9 * stage.most, 1.0))
  length_N = lengths.lognormal(mean, stage.most, site.numbers.sigma, stage.batch)
  tried = training_layouts(site, devices, 0.0, length_N, 1, stage.optimizer, reference=False, fp8=fp8)
  update = phases.learning(site, tried[0].layout, 0.0, length_N, 1, backward=True, fp8=fp8)
  step = phases.step_of_optimizer(site, tried[0].layout, stage.optimizer)
  return Bill(stage.name, devices, updates * (update.seconds + step.seconds),
              dict(update=update * updates, optimizer=step * updates), stage.samples * stage.length, tried)


def sampling(site: Site, stage: Sampling, schedule: Schedule, devices: int) -> Bill:
  """Answers with no update in between: slots stay full, so a step is at its steady state; the one tail is left out.

  As many rows as memory holds, up to 128 a device.
  """
  best = None
  for layout in rollouts.layouts(site, devices):
    for per in (8, 16, 32, 64, 128):
      rows = per * layout.expert
      held = memory.sampling(site.cfg, layout, per, stage.prompt + stage.mean, 0, 1 + schedule.drafts,
                             1.0 if schedule.fp8_rollout else 0.0, schedule.cache, copied=not schedule.paged)
      if memory.total(held) > room_for(site):
        break
      step = phases.decode_seconds(site, layout, span=1 + schedule.drafts, fp8=schedule.fp8_rollout,
                                   cache=schedule.cache)
      speed = rows * rollouts.rate(site, schedule.drafts) / float(step([rows], [stage.prompt + stage.mean / 2])[0])
      if best is None or speed / layout.devices > best[0]:
        best = speed / layout.devices, layout, per
  if best is None:
    raise ValueError(f"{stage.name}: sampling fits no layout of {devices} devices")
  speed, layout, per = best
  tokens = stage.answers * stage.mean
  one = costs.decode(site.cfg, [round(stage.prompt)], [round(stage.mean)]).flops
  prompts = stage.answers / stage.group if schedule.shared_prompt else stage.answers
  made = phases.prefill(site, layout, stage.prompt, 1000.0, devices, schedule.fp8_rollout) * (prompts / 1000)
  decode = Phase("decode", tokens / speed / devices, one * stage.answers)
  return Bill(stage.name, devices, made.seconds + decode.seconds, dict(prefill=made, decode=decode), tokens,
              note=f"{per} rows a device, {speed:,.0f} tokens/s a device, {layout}")


def _plus(a: Phase, b: Phase) -> Phase:
  parts = {name: a.parts.get(name, 0) + b.parts.get(name, 0) for name in {**a.parts, **b.parts}}
  return Phase(a.name, a.seconds + b.seconds, a.flops + b.flops, a.bytes + b.bytes, a.traffic + b.traffic, parts)

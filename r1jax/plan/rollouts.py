"""The time of a rollout: prompts, then decode steps as tail.simulate lets them follow, on the best layout of replicas.

Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from r1jax import costs
from r1jax.plan import lengths, memory, phases, tail, traffic
from r1jax.plan.layout import Layout, check
from r1jax.plan.phases import Phase, Site
from r1jax.plan.settings import RL, Part, Schedule


@dataclasses.dataclass(frozen=True)
class Rollout:
  """prefill, decode; the simulation of the last one; bytes on a device by part."""
  layout: Layout
  prefill: Phase
  decode: Phase
  trace: tail.Trace
  memory: dict[str, float]
  stale: float = 0.0             # share of tokens that an earlier policy drew
  slots: int = 0                 # rows that run at one time, on all devices

  @property
  def seconds(self) -> float:
    return self.prefill.seconds + self.decode.seconds


def layouts(site: Site, devices: int) -> Iterator[Layout]:
  """Replicas: experts apart over most of their devices, heads over few; data is what is left."""
  cfg = site.cfg
  for tensor in (1, 2, 4, 8):
    for expert in ((1, 8, 16, 32, 64, 128, 256) if cfg.moe else (1,)):
      layout = Layout(expert=expert, tensor=tensor)
      if tensor <= site.hardware.neighbours and devices % layout.devices == 0 and not check(layout, cfg):
        yield layout


def held(site: Site, layout: Layout, stage: RL, part: Part, schedule: Schedule, devices: int) -> dict[str, float]:
  """Bytes on a device while a rollout is drawn."""
  replicas = devices // layout.devices
  rows = math.ceil(rows_at_once(stage, schedule) / replicas / layout.expert)
  length_N = drawn(site, stage, part)
  if schedule.paged:
    width = part.mean
  elif schedule.continuous:
    width = memory.columns(length_N, schedule.slots, part.most)
  else:
    width = max(memory.columns(part_N, 0, part.most) for part_N in parts(stage, schedule, length_N))
  prompts = math.ceil(rows / schedule.width) * stage.prompt
  return memory.sampling(site.cfg, layout, rows, width, prompts, 1 + schedule.drafts,
                         1.0 if schedule.fp8_rollout else 0.0, schedule.cache, copied=not schedule.paged)


def fitted(site: Site, layout: Layout, stage: RL, part: Part, schedule: Schedule, devices: int) -> Schedule:
  """The schedule with no more rows at one time than memory holds; the others wait for their turn (sampling.slots)."""
  way = lambda slots: dataclasses.replace(schedule, slots=slots)
  size = lambda slots: memory.total(held(site, layout, stage, part, way(slots), devices))
  slots, least = rows_at_once(stage, schedule), devices // layout.devices * layout.expert
  space = site.hardware.memory * site.numbers.cache
  while size(slots) > space and slots * 0.9 >= least:
    slots = round(0.9 * slots)
  return way(slots)


def rows_at_once(stage: RL, schedule: Schedule) -> int:
  """Answers that are drawn at one time, on all devices."""
  under_way = round(stage.answers * (1 + schedule.partial))
  return min(schedule.slots or under_way, under_way)


def parts(stage: RL, schedule: Schedule, length_N: np.ndarray) -> list[np.ndarray]:
  """Answers that run in step, whole groups of them, part after part."""
  size = max(rows_at_once(stage, schedule) // stage.group, 1) * stage.group
  return [length_N[i:i + size] for i in range(0, len(length_N), size)]


def drawn(site: Site, stage: RL, part: Part, seed: int = 0, count: int = 0) -> np.ndarray:
  return lengths.lognormal(part.mean, part.most, site.numbers.sigma, count or stage.answers, seed)


def rate(site: Site, drafts: int) -> float:
  """Tokens of a step: the one that is drawn, and guesses up to the first that is wrong."""
  return sum(site.numbers.acceptance**k for k in range(drafts + 1))


def simulate(site: Site, layout: Layout, stage: RL, part: Part, schedule: Schedule, devices: int,
             ticks: int = 250) -> Rollout:
  """One rollout; with `partial`, a mean one of those that carry on what others left."""
  replicas = devices // layout.devices
  slots = rows_at_once(stage, schedule)
  width = min(schedule.width, math.ceil(slots / replicas))          # a group may be split over replicas
  lanes = max(math.ceil(slots / replicas / width), 1)
  step = phases.decode_seconds(site, layout, span=1 + schedule.drafts, fp8=schedule.fp8_rollout, cache=schedule.cache)
  gain = rate(site, schedule.drafts)
  longest = part.most if not schedule.partial else 2 * part.mean
  tick = float(step(np.array([1.0]), np.array([part.mean]))[0]) * longest / gain / ticks
  go = functools.partial(tail.simulate, lanes=lanes, width=width, group=stage.group, replicas=replicas,
                         seconds=step, rate=gain, tick=tick, static=not schedule.continuous)
  once = schedule.shared_prompt or schedule.prefill_once
  prompts, again, stale = stage.questions * (1 if once else stage.group), 0.0, 0.0
  if not schedule.partial:
    length_N = drawn(site, stage, part)
    waits = [length_N] if schedule.continuous or schedule.paged else parts(stage, schedule, length_N)
    trace, tokens = tail.total([go(part_N, stage.prompt) for part_N in waits]), length_N.sum()
    flops = costs.decode(site.cfg, np.full(stage.questions, round(stage.prompt)), length_N).flops
  else:
    trace, tokens, again, stale, flops = _steady(site, stage, part, schedule, go)
  made = phases.prefill(site, layout, stage.prompt, prompts, devices, schedule.fp8_rollout)
  if again:           # tokens of answers under way are run anew by the new policy
    more = phases.prefill(site, layout, 2 * part.mean, again / (2 * part.mean), devices, schedule.fp8_rollout)
    made = dataclasses.replace(made, seconds=made.seconds + more.seconds, flops=made.flops + more.flops,
                               bytes=made.bytes + more.bytes, traffic=made.traffic + more.traffic)
  sent = traffic.experts(site.cfg, layout, tokens / gain * (1 + schedule.drafts) / replicas / layout.expert,
                         site.hardware, site.numbers, 1.0 if schedule.fp8_rollout else 0.0)
  work = costs.decode(site.cfg, np.full(stage.questions, round(stage.prompt)), drawn(site, stage, part),
                      schedule.cache)
  decode = Phase("decode", trace.seconds, flops, work.bytes / devices, sent, dict(
    tail=trace.few_seconds, rest=trace.seconds - trace.few_seconds))
  return Rollout(layout, made, decode, trace, held(site, layout, stage, part, schedule, devices), stale,
                 slots)


def _steady(site: Site, stage: RL, part: Part, schedule: Schedule, go, rollouts: int = 8, last: int = 6):
  """A mean rollout of the last of several partial ones: (trace, tokens drawn, tokens run anew, stale share, FLOPs).

  A mean, because they differ: with groups of which one answer is nearly always long, a rollout that waits for many
  such groups leaves an easy one behind it.
  """
  G, extra = stage.group, max(round(schedule.partial * stage.questions), 1)
  left_N = had_N = np.zeros(0)
  traces, sums = [], np.zeros(4)
  for unit in range(rollouts):
    new = (stage.questions + (extra if unit == 0 else 0)) * G
    fresh = drawn(site, stage, part, seed=unit, count=new).astype(float)
    left_N, had_N = np.concatenate([left_N, fresh]), np.concatenate([had_N, np.zeros(new)])
    trace = go(left_N, had_N + stage.prompt, enough=stage.questions)
    drew_N = left_N - trace.left_N
    used = np.zeros(len(left_N) // G, bool)
    used[np.flatnonzero((trace.left_N.reshape(-1, G) <= 0).all(1))[:stage.questions]] = True
    stale = had_N.reshape(-1, G)[used].sum() / max((had_N + left_N).reshape(-1, G)[used].sum(), 1)
    if unit >= rollouts - last:
      flops = (costs.layer_flops(site.cfg, had_N + stage.prompt, had_N + stage.prompt + drew_N, absorbed=True)
               + costs.head_flops(site.cfg, drew_N.sum()))
      traces.append(trace)
      sums += np.array([drew_N.sum(), had_N[left_N > 0].sum(), stale, flops]) / last
    keep = np.repeat(~used, G)
    left_N, had_N = trace.left_N[keep], (had_N + drew_N)[keep]
  return tail.mean(traces), *map(float, sums)

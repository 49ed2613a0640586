"""The time of updates and scoring on one layout: operations by roofline, traffic, unlike lengths, pipeline bubbles.

A minibatch's sequences are packed to equal loads (lengths.balance) over the layout's groups of devices; a group is as
slow as the busiest. Rematerialisation repeats the forward pass. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from r1jax import costs
from r1jax.hardware import Hardware
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.plan import lengths, memory, ops, traffic
from r1jax.plan.assumptions import Assumptions
from r1jax.plan.layout import Layout
from r1jax.plan.traffic import Traffic


@dataclasses.dataclass(frozen=True)
class Phase:
  """flops: of the model, on all devices (costs.py); bytes and traffic: of one device; parts: seconds by cause."""
  name: str
  seconds: float
  flops: float = 0.0
  bytes: float = 0.0
  traffic: Traffic = dataclasses.field(default_factory=Traffic)
  parts: dict[str, float] = dataclasses.field(default_factory=dict)

  def __mul__(self, times: float) -> Phase:
    return Phase(self.name, self.seconds * times, self.flops * times, self.bytes * times, self.traffic * times,
                 {name: value * times for name, value in self.parts.items()})


@dataclasses.dataclass(frozen=True)
class Site:
  """Where it all happens."""
  cfg: ModelConfig
  hardware: Hardware
  numbers: Assumptions


def learning(site: Site, layout: Layout, prompt: float, length_N, group: int, *, backward: bool, fp8: bool = False,
             shared: bool = False, name: str = "") -> Phase:
  """One pass over answers of these lengths: scored, or with backward learnt from. group: answers of one prompt."""
  cfg, hardware, numbers = site.cfg, site.hardware, site.numbers
  length_N = np.asarray(length_N, np.float64)
  prompt_B = np.full(len(length_N) // group, prompt)
  once = costs.score(cfg, prompt_B, length_N, shared)
  body = length_N + (prompt / group if shared else prompt)
  each_N = 2 * costs.layer_values(cfg) * body + costs.attention_flops(cfg, 1.0) * costs.seen(prompt, prompt + length_N)
  even = lengths.balance(each_N, layout.rows)
  share = 1 / (layout.rows * layout.context)
  tokens, pairs = body.sum() * share, costs.seen(prompt, prompt + length_N).sum() * share
  longest = row_tokens(length_N, prompt)
  passes = max(math.ceil(body.sum() / layout.rows / longest), 1)
  if layout.stage > 1:
    passes = max(passes, min(len(length_N) // layout.rows, 2 * layout.stage), 1)
  # each part reads the weights again
  work = ops.forward(cfg, layout, tokens / passes, pairs / passes, length_N.sum() * share / passes)
  times = passes * ((4 if cfg.remat != "none" else 3) if backward else 1)
  compute = times * ops.total(work, hardware, numbers, cfg.dtype, fp8)
  wait = compute * (1 / even - 1)
  bubble = (compute + wait) * numbers.bubble * (layout.stage - 1) / passes
  sent = traffic.layer_pass(cfg, layout, tokens, hardware, numbers) * (times / passes)
  sent += traffic.gathered(cfg, layout, hardware) * (passes * (3 if backward else 1))
  sent += traffic.reduced(cfg, layout, hardware) if backward else Traffic()
  moved = sent.seconds(hardware, numbers)
  exposed = max((1 - numbers.overlap) * moved, moved - compute)
  return Phase(name or ("update" if backward else "score"), compute + wait + bubble + exposed,
               once.flops * (3 if backward else 1), float(times * sum(np.sum(op.bytes) for op in work)), sent,
               dict(products_and_memory=compute, unlike_lengths=wait, bubble=bubble, traffic=exposed))


def row_tokens(length_N, prompt: float) -> float:
  """Tokens of a packed row: it must hold the longest sample."""
  return float(np.max(length_N) + prompt)


def step_of_optimizer(site: Site, layout: Layout, opt: OptimizerConfig) -> Phase:
  """Parameters, gradients and moments read, the first and the last written."""
  held = memory.training(site.cfg, layout, 1, opt, False)
  moved = 3 * held["params"] + 2 * held["optimizer"]
  return Phase("optimizer", moved / (site.hardware.bandwidth * site.numbers.memory), 0.0, moved)


def decode_seconds(site: Site, layout: Layout, *, span: int = 1, fp8: bool = False, cache: str = "",
                   detail: bool = False):
  """seconds(rows_R, context_R) of a decode step of a replica laid out so; detail: its parts by name instead."""
  cfg, hardware, numbers = site.cfg, site.hardware, site.numbers
  ways = layout.expert * layout.context
  item = 1.0 if fp8 else 0.0

  def seconds(rows_R, context_R):
    rows_R, context_R = np.asarray(rows_R, np.float64), np.asarray(context_R, np.float64)
    mine = np.maximum(np.ceil(rows_R / ways), rows_R / ways)          # the fullest device
    tokens = mine * span
    work = ops.forward(cfg, layout, tokens, tokens * context_R, tokens, absorbed=True, cached=mine * context_R,
                       cache=cache, item=item, group_tokens=rows_R * span)
    sent = traffic.experts(cfg, layout, tokens, hardware, numbers, sent=item)
    hidden = tokens * cfg.dim * jnp.dtype(cfg.dtype).itemsize * 2 * cfg.layers
    sent += traffic.collective(layout, "tensor", hidden, hardware, 2)
    guess = 1 + (span - 1) / cfg.layers * (2 if cfg.mtp else 1)      # each guess: one layer, and its pairs once more
    parts = {op.name: guess * op.seconds(hardware, numbers, cfg.dtype, fp8) for op in work}
    parts |= dict(traffic=guess * sent.seconds(hardware, numbers), step=numbers.step + 0 * rows_R)
    return parts if detail else sum(parts.values())
  return seconds


def prefill(site: Site, layout: Layout, prompt: float, prompts: float, devices: int, fp8: bool = False) -> Phase:
  """All prompts once, spread over all devices in the layout of rollouts."""
  cfg, hardware, numbers = site.cfg, site.hardware, site.numbers
  replicas = devices // layout.devices
  tokens = prompts * prompt / replicas / (layout.expert * layout.context)
  work = ops.forward(cfg, layout, tokens, tokens * (prompt + 1) / 2, 0.0, item=1.0 if fp8 else 0.0)
  sent = traffic.experts(cfg, layout, tokens, hardware, numbers)
  compute, moved = ops.total(work, hardware, numbers, cfg.dtype, fp8), sent.seconds(hardware, numbers)
  return Phase("prefill", float(compute + (1 - numbers.overlap) * moved),
               costs.prefill(cfg, np.full(max(round(prompts), 1), max(round(prompt), 1))).flops,
               float(sum(np.sum(op.bytes) for op in work)), sent)

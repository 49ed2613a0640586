"""Layouts of devices that a plan tries: how many ways each axis splits the model and the batch.

  data     copies of the policy, rows apart           fsdp     rows apart, parameters split and gathered layer by layer
  expert   rows apart, experts apart (all_to_all)     tensor   heads, feed-forward and vocabulary apart (all_reduce)
  context  a row's tokens apart (ring attention),     stage    layers apart (a pipeline)
           parameters split as by fsdp
From the nearest devices to the farthest: tensor, context, expert, fsdp, stage, data. RULES are the axes that declared
parameters are split along: sharding.RULES, but that a plan splits them by context too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from r1jax.hardware import Hardware
from r1jax.models import param, transformer
from r1jax.models.transformer import ModelConfig

AXES = ("tensor", "context", "expert", "fsdp", "stage", "data")       # from near to far
RULES = dict(embed=("fsdp", "context"), heads=("tensor",), kv_heads=("tensor",), ffn=("tensor",), vocab=("tensor",),
             expert=("expert",))


@dataclasses.dataclass(frozen=True)
class Layout:
  data: int = 1
  fsdp: int = 1
  expert: int = 1
  tensor: int = 1
  context: int = 1
  stage: int = 1

  def __post_init__(self):
    for axis in AXES:
      if getattr(self, axis) < 1:
        raise ValueError(f"layout {axis}={getattr(self, axis)} must be at least 1")

  @property
  def devices(self) -> int:
    return math.prod(getattr(self, axis) for axis in AXES)

  @property
  def rows(self) -> int:
    """Ways that a batch's rows are split."""
    return self.data * self.fsdp * self.expert

  def stride(self, axis: str) -> int:
    """Devices between neighbours of an axis."""
    return math.prod(getattr(self, near) for near in AXES[:AXES.index(axis)])

  def __str__(self) -> str:
    return " x ".join(f"{axis} {getattr(self, axis)}" for axis in reversed(AXES) if getattr(self, axis) > 1) or "1"


def check(layout: Layout, cfg: ModelConfig) -> str:
  """Why the model cannot be laid out so; empty if it can."""
  if layout.tensor > 1 and cfg.kv_heads % layout.tensor:
    return f"tensor={layout.tensor} does not divide {cfg.kv_heads} heads"
  if layout.expert > 1 and (not cfg.moe or cfg.moe.experts % layout.expert):
    return f"expert={layout.expert} does not divide {cfg.moe.experts if cfg.moe else 0} experts"
  if cfg.dim % (layout.fsdp * layout.context):
    return f"fsdp={layout.fsdp} x context={layout.context} does not divide the model's width {cfg.dim}"
  if layout.stage > cfg.layers:
    return f"stage={layout.stage} is more than {cfg.layers} layers"
  return ""


def candidates(cfg: ModelConfig, devices: int, hardware: Hardware) -> Iterator[Layout]:
  """All layouts of so many devices worth trying: tensor within a server, at most 16 parts of a row, 16 stages."""
  near = min(hardware.neighbours, 16)
  for tensor in _divisors(devices):
    for context in _divisors(devices // tensor):
      if tensor > near or context > 16:
        continue
      for expert in _divisors(devices // tensor // context):
        for stage in _divisors(devices // tensor // context // expert):
          for fsdp in _divisors(devices // tensor // context // expert // stage):
            data = devices // (tensor * context * expert * stage * fsdp)
            layout = Layout(data, fsdp, expert, tensor, context, stage)
            if stage <= 16 and not check(layout, cfg):
              yield layout


@functools.cache
def _divisors(n: int) -> tuple[int, ...]:
  return tuple(d for d in range(1, n + 1) if n % d == 0)


def ways(p: param.Param, layout: Layout) -> int:
  """Parts that a weight is split into. An axis that does not divide stays whole."""
  out = 1
  for axis, size in zip(p.axes, p.shape, strict=True):
    n = math.prod(getattr(layout, name) for name in RULES.get(axis, ()))
    out *= n if size % n == 0 else 1
  return out


def shard_bytes(cfg: ModelConfig, layout: Layout, dtype: str = "", kind: str = "all") -> float:
  """Bytes of the parameters on the fullest device, in `dtype` or the model's.

  kind: "plain" without routed experts, "routed" these alone. With stages, the ends hold embedding, head and MTP.
  """
  sizes = dict(layers=0.0, first=0.0, last=0.0)
  for place, routed, p in _leaves(cfg):
    if kind == "all" or routed == (kind == "routed"):
      item = jnp.dtype(p.dtype or dtype or cfg.dtype).itemsize
      sizes[place] += math.prod(p.shape) * item / ways(p, layout)
  if layout.stage == 1:
    return sum(sizes.values())
  most = math.ceil(cfg.layers / layout.stage) / cfg.layers
  return sizes["layers"] * most + max(sizes["first"], sizes["last"])


@functools.cache
def _leaves(cfg: ModelConfig) -> tuple:
  out = []
  for path, p in jax.tree_util.tree_leaves_with_path(transformer.params(cfg), is_leaf=param.is_param):
    top = path[0].key
    place = "first" if top == "embed" else "layers" if top in cfg.stacks else "last"
    out.append((place, "expert" in p.axes, p))
  return tuple(out)

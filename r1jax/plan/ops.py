"""A forward pass as operations: FLOPs and bytes of each on one device, and the least time each takes (a roofline).

Sizes come from the declared parameters. A product is bound by the share of the peak, or of the memory's bandwidth, that
assumptions.py grants. Softmax, rotary turns and routing are in the bytes of activations alone. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import costs
from r1jax.hardware import Hardware
from r1jax.models import param, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.plan.assumptions import Assumptions
from r1jax.plan.layout import Layout, ways


@dataclasses.dataclass(frozen=True)
class Op:
  """flops, bytes: on one device; numbers or arrays, one for each of several steps."""
  name: str
  flops: float | np.ndarray
  bytes: float | np.ndarray
  fp8: bool = False              # its products can be in FP8: those with weights, but for the head

  def seconds(self, hardware: Hardware, numbers: Assumptions, dtype: str, fp8: bool = False):
    peak = hardware.peak("fp8" if fp8 and self.fp8 else dtype)
    return np.maximum(self.flops / (peak * numbers.matmul), self.bytes / (hardware.bandwidth * numbers.memory))


@functools.cache
def values(cfg: ModelConfig) -> dict[str, tuple[tuple[param.Param, ...], bool]]:
  """Weights by the part of the model that they belong to, and whether they are routed experts."""
  out: dict[str, list] = {}
  for path, p in jax.tree_util.tree_leaves_with_path(transformer.params(cfg), is_leaf=param.is_param):
    keys = [key.key for key in path]
    routed = "expert" in p.axes
    if keys[0] not in cfg.stacks:
      name = keys[0]
    elif "norm" in keys[-1]:
      name = "norms"
    else:
      name = "experts" if routed else {"moe": "router", "ffn": "feed-forward"}.get(keys[1], keys[1])
      name = "shared expert" if "shared" in keys else name
    out.setdefault(name, []).append(p)
  return {name: (tuple(leaves), name == "experts") for name, leaves in out.items()}


def forward(cfg: ModelConfig, layout: Layout, tokens, pairs, head_tokens, *, absorbed: bool = False, cached=0.0,
            cache: str = "", item: float = 0.0, group_tokens=None) -> list[Op]:
  """One pass of `tokens` tokens of one device through its layers. All may be arrays, one value for each step.

  pairs: (token, token that it sees), of these tokens, in one layer. cached: tokens whose cache, of type `cache`, is
  read. item: bytes of a weight, 0 for the model's. group_tokens: tokens of all devices that share one set of experts;
  None: tokens x expert. Weights are read whole where fsdp has gathered them.
  """
  size = jnp.dtype(cfg.dtype).itemsize
  item = item or size
  depth = math.ceil(cfg.layers / layout.stage) / cfg.layers
  tokens = np.asarray(tokens, np.float64)
  out = [Op("embedding", 0.0, tokens * cfg.dim * 2 * size)]
  for name, routed, held, per_token in _held(cfg, layout):
    acts = _activations(cfg, name) * depth * tokens * size
    if routed:
      share = cfg.moe.top_k / cfg.moe.experts
      among = tokens * layout.expert if group_tokens is None else np.asarray(group_tokens, np.float64)
      chosen = 1 - (1 - share) ** among
      out.append(Op(name, 2 * per_token * share * tokens, held * item * chosen + acts, True))
    elif name in ("norms", "router"):
      out.append(Op(name, 2 * per_token * tokens if name == "router" else 0.0, held * item + acts))
    else:
      out.append(Op(name, 2 * per_token * tokens, held * item + acts, True))
  flops = costs.attention_flops(cfg, 1.0, absorbed) * depth / layout.tensor * np.asarray(pairs, np.float64)
  out.append(Op("attention scores", flops, np.asarray(cached, np.float64) * costs.cache_bytes(cfg, cache) * depth))
  head_tokens = np.asarray(head_tokens, np.float64)
  out.append(Op("head", costs.head_flops(cfg, 1.0) / layout.tensor * head_tokens,
                (head_tokens > 0) * cfg.dim * cfg.vocab / layout.tensor * size + head_tokens * cfg.dim * size))
  return out


@functools.lru_cache(4096)
def _held(cfg: ModelConfig, layout: Layout) -> tuple[tuple[str, bool, float, float], ...]:
  """Each part's name, whether it is experts, its values on a device as gathered, and at work on a token there."""
  gathered = dataclasses.replace(layout, fsdp=1, context=1)
  depth = math.ceil(cfg.layers / layout.stage) / cfg.layers
  out = []
  for name, (leaves, routed) in values(cfg).items():
    if name not in ("embed", "head", "final_norm", "mtp"):
      counts = [math.prod(p.shape) for p in leaves]
      held = sum(n / ways(p, gathered) for n, p in zip(counts, leaves, strict=True)) * depth
      out.append((name, routed, held, sum(counts) * depth / layout.tensor))
  return tuple(out)


@functools.cache
def _activations(cfg: ModelConfig, name: str) -> float:
  """Values read and written of a token in all layers, beside weights: what goes into products and comes out."""
  m = cfg.moe
  moe = cfg.stacks.get("moe_layers", 0)
  dense = cfg.layers - moe
  heads = cfg.heads * (cfg.mla.nope_dim * 2 + cfg.mla.rope_dim * 2 + cfg.mla.v_dim if cfg.mla else 2 * cfg.head_dim)
  return {"attention": cfg.layers * (2 * cfg.dim + heads), "norms": cfg.layers * 4 * cfg.dim,
          "feed-forward": dense * (2 * cfg.dim + 3 * cfg.ffn),
          "experts": moe * (m.top_k * (4 * cfg.dim + 3 * m.ffn) if m else 0),
          "shared expert": moe * (2 * cfg.dim + 3 * m.ffn * m.shared if m else 0),
          "router": moe * (cfg.dim + (m.experts if m else 0))}.get(name, 0)


def total(ops: list[Op], hardware: Hardware, numbers: Assumptions, dtype: str, fp8: bool = False):
  """Seconds of all, one after the other."""
  return sum(op.seconds(hardware, numbers, dtype, fp8) for op in ops)

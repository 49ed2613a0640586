"""Bytes on one device by part, by formulas: what updates hold, and what sampling holds.

Parameters, gradients, optimizer and reference are exact (declared shapes, split by layout.RULES). Activations: the
inputs of all layers (and, by model.remat, results of products) wait for the backward pass, which holds what one layer
computes and its gradients. Attention is taken to have a kernel: no [T, T] scores. Checked against XLA's memory_analysis
in tests/test_memory.py; XLA's own number for a layout: compiled.py. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import costs, optimizer, room
from r1jax.models import param, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.plan.layout import Layout, shard_bytes

PARTS = ("params", "gradients", "optimizer", "reference", "activations", "cache", "logits", "buffers")


def training(cfg: ModelConfig, layout: Layout, tokens: float, opt: OptimizerConfig, reference: bool,
             micro_batches: int = 1) -> dict[str, float]:
  """While an update runs. tokens: of a device's micro-batch. reference: it stays on the device beside."""
  item = jnp.dtype(cfg.dtype).itemsize
  params = shard_bytes(cfg, layout)
  one = {kind: w * tokens * item for kind, w in widths(cfg, layout).items()}
  layers = math.ceil(cfg.layers / layout.stage)
  saved = layers * (one["input"] + (one["products"] if cfg.remat in ("elementwise", "none", "dots") else 0.0))
  if layout.stage > 1:            # a pipeline has as many micro-batches under way as there are stages
    saved *= layout.stage
  head = cfg.dim * cfg.vocab / layout.tensor * item
  return dict.fromkeys(PARTS, 0.0) | dict(
    params=params, gradients=params * (2 if micro_batches > 1 else 1), optimizer=moments(cfg, layout, opt),
    reference=params if reference else 0.0, activations=saved + 2 * one["layer"],
    logits=max(_logits(cfg, layout, min(cfg.logit_chunk, tokens)) - 2 * one["layer"], 0.0),
    buffers=(3 * _layer(cfg, layout) + head if layout.fsdp * layout.context > 1 else 0.0))


def sampling(cfg: ModelConfig, layout: Layout, rows: float, columns: float, prompt_tokens: float, span: int = 1,
             item: float = 0.0, cache: str = "", copied: bool = True) -> dict[str, float]:
  """While answers are drawn. rows: of a device; columns: of their caches; prompt_tokens: of the prompts held here.

  item: bytes of a weight, 0 for the model's. copied: the layers' weights lie there twice (sampler.advance unstacks
  them).
  """
  size = jnp.dtype(cfg.dtype).itemsize
  params = shard_bytes(cfg, layout) * (item or size) / size
  tokens = rows * span
  ends = (2 - cfg.tied_head) * cfg.dim * cfg.vocab / layout.tensor * size
  return dict.fromkeys(PARTS, 0.0) | dict(
    params=params, cache=(rows * columns + prompt_tokens) * costs.cache_bytes(cfg, cache),
    activations=2 * widths(cfg, layout)["layer"] * tokens * size, logits=3 * tokens * cfg.vocab / layout.tensor * 4,
    buffers=max(params - ends, 0.0) if copied else 0.0)


def widths(cfg: ModelConfig, layout: Layout) -> dict[str, float]:
  """Values of a token: a layer's input, the results of its products with weights, and all that the layer computes."""
  t, D, H, C = layout.tensor, cfg.dim, cfg.heads, cfg.head_dim
  m = cfg.mla
  if m:
    attention = (m.q_rank + m.kv_rank + m.rope_dim) + H * (C + m.nope_dim + m.v_dim) / t + D
    inside = 2 * (m.q_rank + m.kv_rank) + H * (3 * C + m.v_dim) / t
  else:
    attention = (H + 2 * cfg.kv_heads) * C / t + D
    inside = (H + cfg.kv_heads) * C / t + H * C / t
  dense = 2 * cfg.ffn / t + D
  e = cfg.moe
  moe = (e.shared * 2 * e.ffn / t + D * bool(e.shared)) if e else 0.0
  routed = e.top_k * (4 * D + 5 * e.ffn / t + e.experts) + 3 * e.experts if e else 0.0
  has_dense = not e or cfg.dense_layers
  return dict(input=D, products=attention + (moe if e else dense),
              layer=attention + inside + 3 * D + max(dense + cfg.ffn / t if has_dense else 0.0, moe + routed))


def moments(cfg: ModelConfig, layout: Layout, opt: OptimizerConfig) -> float:
  """The optimizer's state on one device: two moments of each parameter, in their own type."""
  return shard_bytes(cfg, layout) * _moments(cfg, opt)


@functools.cache
def _moments(cfg: ModelConfig, opt: OptimizerConfig) -> float:
  """Bytes of the optimizer's state in units of the parameters'."""
  params = param.abstract(transformer.params(cfg), cfg.dtype)
  return costs.tree_bytes(jax.eval_shape(optimizer.make(opt, 1).init, params)) / costs.tree_bytes(params)


def total(parts: dict[str, float]) -> float:
  return sum(parts.values())


def columns(length_N, slots: int, most: int) -> float:
  """Cache columns a row, at the peak, of answers that are drawn together: sizes grow by fours, and lanes are given up
  when a quarter is at work (slots.py)."""
  length_N = np.sort(np.asarray(length_N))
  if slots and slots < len(length_N):
    return float(room.bucket(int(length_N[-1]), most))
  out, rows, at = 0.0, len(length_N), 0
  while rows and at < len(length_N):
    stays = len(length_N) - rows // 4                     # until so many have ended
    out = max(out, rows / len(length_N) * room.bucket(int(length_N[stays - 1]), most))
    rows, at = rows // 4, stays
  return out


def _logits(cfg: ModelConfig, layout: Layout, tokens: float) -> float:
  return 3 * tokens * cfg.vocab / layout.tensor * 4


def _layer(cfg: ModelConfig, layout: Layout) -> float:
  """Bytes of the largest layer, gathered."""
  whole = dataclasses.replace(layout, fsdp=1, context=1, stage=1)
  kind = "moe_layers" if cfg.moe else "layers"
  one = dataclasses.replace(cfg, layers=1, dense_layers=0, mtp=0) if kind == "moe_layers" else dataclasses.replace(
    cfg, layers=1, mtp=0)
  ends = (2 - cfg.tied_head) * cfg.dim * cfg.vocab / whole.tensor * jnp.dtype(cfg.dtype).itemsize
  return max(shard_bytes(one, whole) - ends, 0.0)

"""AdamW with warm-up, schedule and gradient clipping, from a config. For RL, DeepSeek publishes the rate only.

state_dtype: DeepSeek-V3 (2412.19437, 3.3.3) keeps both moments in bfloat16, with no loss that they could see: half the
optimizer's memory. Arithmetic is in f32; what is stored is rounded.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "linear")
STATE_DTYPES = ("", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  lr: float                      # peak learning rate
  warmup: int = 0                # updates of linear warm-up
  schedule: str = "constant"     # after warm-up: constant, or cosine / linear down to lr * final
  final: float = 0.1             # R1's SFT: cosine to a tenth
  b1: float = 0.9
  b2: float = 0.95               # DeepSeek-V3 pre-training: 0.9 / 0.95
  weight_decay: float = 0.0      # on matrices only, not on norms
  clip_norm: float = 1.0         # of the whole gradient; 0: off
  state_dtype: str = ""          # of the moments; of STATE_DTYPES, "": that of the parameters. Changes memory

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f"optimizer.schedule={self.schedule!r} is none of {SCHEDULES}")
    if self.state_dtype not in STATE_DTYPES:
      raise ValueError(f"optimizer.state_dtype={self.state_dtype!r} is none of {STATE_DTYPES}")
    if self.state_dtype == "bfloat16" and max(self.b1, self.b2) > 1 - 2**-7:
      raise ValueError(f"optimizer.state_dtype=bfloat16 keeps 8 bits: with b1={self.b1}, b2={self.b2} above"
                       f" {1 - 2**-7:.4f} a moment's step would be rounded away")
    if self.lr < 0 or self.warmup < 0 or self.weight_decay < 0 or self.clip_norm < 0:
      raise ValueError(f"optimizer lr={self.lr}, warmup={self.warmup}, weight_decay={self.weight_decay},"
                       f" clip_norm={self.clip_norm} must not be negative")


def schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of update i, i = 0 .. steps - 1."""
  rest = max(steps - cfg.warmup, 1)
  after = dict(constant=lambda: optax.constant_schedule(cfg.lr),
               cosine=lambda: optax.cosine_decay_schedule(cfg.lr, rest, alpha=cfg.final),
               linear=lambda: optax.linear_schedule(cfg.lr, cfg.lr * cfg.final, rest))[cfg.schedule]()
  if not cfg.warmup:
    return after
  # not from 0: an update with rate 0 is a step thrown away
  start = optax.linear_schedule(cfg.lr / cfg.warmup, cfg.lr, max(cfg.warmup - 1, 1))
  return optax.join_schedules([start, after], [cfg.warmup])


def make(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  clip = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm else []
  tx = optax.chain(*clip, optax.adamw(schedule(cfg, steps), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay,
                                      mask=matrices))
  return stored(tx, cfg.state_dtype) if cfg.state_dtype else tx


def stored(tx: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
  """`tx` in f32, with its state kept in `dtype` from one update to the next; updates are f32."""
  def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

  def update(grads, state, params=None):
    updates, state = tx.update(cast(grads, "float32"), cast(state, "float32"), cast(params, "float32"))
    return updates, cast(state, dtype)
  return optax.GradientTransformation(lambda params: cast(tx.init(params), dtype), update)


def matrices(params):
  """What weight decay applies to: all but norms' scales and biases, a router's selection bias among them."""
  def decays(path, _):
    return not any(word in jax.tree_util.keystr(path) for word in ("norm", "bias"))
  return jax.tree_util.tree_map_with_path(decays, params)

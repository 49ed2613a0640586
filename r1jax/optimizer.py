"""AdamW with warm-up, schedule and gradient clipping, from a config. For RL, DeepSeek publishes the rate only."""

from __future__ import annotations

import dataclasses

import jax
import optax

SCHEDULES = ("constant", "cosine", "linear")


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

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f"optimizer.schedule={self.schedule!r} is none of {SCHEDULES}")
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
  return optax.chain(*clip, optax.adamw(schedule(cfg, steps), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay,
                                        mask=matrices))


def matrices(params):
  """What weight decay applies to: all but norms' scales and biases, a router's selection bias among them."""
  def decays(path, _):
    return not any(word in jax.tree_util.keystr(path) for word in ("norm", "bias"))
  return jax.tree_util.tree_map_with_path(decays, params)

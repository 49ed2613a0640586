"""Rotary positions (2104.09864) and their extensions to longer texts: linear, Llama 3's, YaRN (2309.00071).

One table of cosines and sines per forward pass serves all layers: a CPU takes ten times longer for a cosine than for
the rest of the rotation. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels.rope import ref

KINDS = ("default", "linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Frequencies theta ** (-2 i / C) of channel pair i, changed as `kind` says. Names of fields as in HF configs."""
  theta: float = 10_000.0
  kind: str = "default"
  factor: float = 1.0            # how many times longer than `original` texts may be
  original: int = 0              # length before the extension, in tokens
  low_freq_factor: float = 1.0   # llama3: pairs that turn less often than this in `original` tokens are slowed down
  high_freq_factor: float = 4.0  # llama3: those that turn more often than this are not
  beta_fast: float = 32.0        # yarn: the same, turns from which a pair stays as it was
  beta_slow: float = 1.0         # yarn: turns below which it is slowed down in full
  mscale: float = 0.0            # yarn: DeepSeek's two scales of attention; both 0: the paper's 0.1 ln(factor) + 1
  mscale_all_dim: float = 0.0
  attention_factor: float = 0.0  # yarn: cosines and sines times this; 0: from the two above
  interleaved: bool = False      # DeepSeek: channels 2i and 2i + 1 are a pair, not i and i + C / 2

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"model.rope.kind={self.kind!r} is none of {KINDS}")
    if self.theta <= 1:
      raise ValueError(f"model.rope.theta={self.theta} must be above 1")
    if self.kind != "default" and self.factor < 1:
      raise ValueError(f"model.rope.factor={self.factor} must be at least 1")
    if self.kind in ("llama3", "yarn") and self.original < 1:
      raise ValueError(f"model.rope.original={self.original} must be given for {self.kind}")
    if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
      raise ValueError(f"model.rope needs low_freq_factor={self.low_freq_factor} <"
                       f" high_freq_factor={self.high_freq_factor}")


class Table(NamedTuple):
  """cos and sin of every token's position, [N, T, 1, C / 2], f32."""
  cos: jax.Array
  sin: jax.Array


def _mscale(factor: float, weight: float = 1.0) -> float:
  return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def frequencies(cfg: RopeConfig, channels: int) -> np.ndarray:
  """Radians a token of each channel pair, [C / 2], f64."""
  frequency_C = cfg.theta ** (-np.arange(0, channels, 2) / channels)
  if cfg.kind == "linear":
    return frequency_C / cfg.factor
  if cfg.kind == "llama3":
    turns_C = cfg.original * frequency_C / (2 * math.pi)
    keep_C = np.clip((turns_C - cfg.low_freq_factor) / (cfg.high_freq_factor - cfg.low_freq_factor), 0, 1)
    return frequency_C * (keep_C + (1 - keep_C) / cfg.factor)
  if cfg.kind == "yarn":
    def pair_that_turns(times):   # in `original` tokens
      return channels * math.log(cfg.original / (times * 2 * math.pi)) / (2 * math.log(cfg.theta))
    low = max(math.floor(pair_that_turns(cfg.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(cfg.beta_slow)), channels - 1)
    slow_C = np.clip((np.arange(channels // 2) - low) / max(high - low, 0.001), 0, 1)
    return frequency_C * ((1 - slow_C) + slow_C / cfg.factor)
  return frequency_C


def magnitude(cfg: RopeConfig) -> float:
  """YaRN's factor on cosines and sines."""
  if cfg.kind != "yarn":
    return 1.0
  if cfg.attention_factor:
    return cfg.attention_factor
  if cfg.mscale and cfg.mscale_all_dim:
    return _mscale(cfg.factor, cfg.mscale) / _mscale(cfg.factor, cfg.mscale_all_dim)
  return _mscale(cfg.factor)


def score_scale(cfg: RopeConfig) -> float:
  """DeepSeek's factor on attention scores beside 1 / sqrt(C): (0.1 mscale_all_dim ln(factor) + 1)^2 with YaRN."""
  return _mscale(cfg.factor, cfg.mscale_all_dim) ** 2 if cfg.kind == "yarn" and cfg.mscale_all_dim else 1.0


def table(cfg: RopeConfig, position_NT, channels: int) -> Table:
  frequency_C = jnp.asarray(frequencies(cfg, channels), jnp.float32)
  angle_NT1C = position_NT[..., None, None].astype(jnp.float32) * frequency_C
  scale = magnitude(cfg)
  return Table(jnp.cos(angle_NT1C) * scale, jnp.sin(angle_NT1C) * scale)


def lookup(by: Table, position_NS) -> Table:
  """The rows [N, S, 1, C / 2] of positions, from a table of all positions [1, T, 1, C / 2].

  A decode loop computes the table before it starts. A position beyond the table gives NaN, not a wrong angle.
  """
  return Table(*(jnp.take(x[0], position_NS, axis=0, mode="fill") for x in by))


def turn(x_NTHC, by: Table, interleaved: bool = False):
  """One of q and k alone, turned by its positions (r1jax/kernels/rope)."""
  return ref.turn(x_NTHC, by.cos, by.sin, interleaved)

"""Rotary positions (2104.09864): one table of cosines and sines per forward pass, shared by all layers.

The table is computed once because CPUs take ten times longer for a cosine than for the rest of the rotation.
Letters: r1jax/types.py.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Table(NamedTuple):
  """cos and sin of every token's position, [N, T, 1, C / 2], f32."""
  cos: jax.Array
  sin: jax.Array


def table(position_NT, channels: int, theta: float) -> Table:
  """Channel pair i turns by position * theta ** (-2 i / channels)."""
  half = channels // 2
  frequency_C = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_NT1C = position_NT[..., None, None].astype(jnp.float32) * frequency_C
  return Table(jnp.cos(angle_NT1C), jnp.sin(angle_NT1C))


def lookup(by: Table, position_N) -> Table:
  """The rows [N, 1, 1, C / 2] of positions, one a sequence, from a table of all positions [1, T, 1, C / 2].

  A decode loop computes the table before it starts. A position beyond the table gives NaN, not a wrong angle.
  """
  return Table(*(jnp.take(x, position_N, axis=1, mode="fill").swapaxes(0, 1) for x in by))


def turn(x_NTHC, by: Table):
  """Rotates x by its positions, in f32: the first half of the channels is paired with the second, as in HF models."""
  a, b = jnp.split(x_NTHC.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * by.cos - b * by.sin, b * by.cos + a * by.sin], axis=-1).astype(x_NTHC.dtype)

"""Blocks of 128 in FP8 (E4M3), each with a scale: its largest absolute value / 448 (DeepSeek-V3 report, section 3.3.2).

The same convention as a checkpoint's weight_scale_inv (safetensors.quantize_blocks): value = q * scale, a block of
zeros has scale 1, no scale is below the smallest normal number. A NaN or an infinity makes its whole block NaN.
Sizes need not be multiples of 128: the last blocks are smaller.
"""

from __future__ import annotations

import jax.numpy as jnp

BLOCK = 128
E4M3 = jnp.float8_e4m3fn
LARGEST = 448.0


def padded(a, axis: int = -1, to: int = BLOCK):
  """Zeros up to a multiple of `to`: they change no scale and no product."""
  pads = [(0, 0)] * a.ndim
  pads[axis] = (0, -a.shape[axis] % to)
  return jnp.pad(a, pads) if pads[axis][1] else a


def _scale(largest):
  # maximum and == let NaN through
  return jnp.where(largest == 0, 1.0, jnp.maximum(largest / LARGEST, jnp.finfo(jnp.float32).tiny))


def _quantise(a_MK, high: int):
  """In blocks of high x 128."""
  M, K = a_MK.shape
  a_mhkb = padded(padded(a_MK.astype(jnp.float32)), 0, high).reshape(-(-M // high), high, -(-K // BLOCK), BLOCK)
  scale_mk = _scale(jnp.max(jnp.abs(a_mhkb), axis=(1, 3)))
  q_mhkb = (a_mhkb / scale_mk[:, None, :, None]).astype(E4M3)
  return q_mhkb.reshape(-(-M // high) * high, -1)[:M, :K], scale_mk


def quantise_rows(x_MK):
  """Activations, in tiles of 1 x 128: (E4M3 [M, K], f32 [M, ceil(K / 128)])."""
  return _quantise(x_MK, 1)


def quantise_blocks(w_DF):
  """Weights, in blocks of 128 x 128: (E4M3 [D, F], f32 [ceil(D / 128), ceil(F / 128)])."""
  return _quantise(w_DF, BLOCK)


def dequantise(q_MK, scale_mk):
  """f32 [M, K], of either."""
  M, K = q_MK.shape
  high = -(-M // scale_mk.shape[0]) if scale_mk.shape[0] == M else BLOCK
  return q_MK.astype(jnp.float32) * jnp.repeat(jnp.repeat(scale_mk, BLOCK, 1)[:, :K], high, 0)[:M]

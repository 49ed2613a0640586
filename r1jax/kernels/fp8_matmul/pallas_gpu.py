"""The scaled FP8 product on NVIDIA cards with FP8 units (Ada, Hopper and later): Pallas, lowered by Triton.

A program multiplies 128 of the depth by the tensor cores, whose sums of FP8 products keep few bits on Hopper, then adds
that to an f32 sum with both scales: V3's promotion (section 3.3.2, figure 7b). Both factors are read along the depth,
as the FP8 wgmma wants them. Checked by the interpreter; no real card has run this yet.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from r1jax.kernels.fp8_matmul.quantise import BLOCK, padded

WIDE = 128
GROUP = 8        # tiles of rows that run at a time: their columns' factors are then read once into the L2 cache


def _tile_of(i, high_tiles: int, wide_tiles: int):
  """Which tile program i computes: GROUP tiles of rows go along the columns together."""
  first = i // (GROUP * wide_tiles) * GROUP
  together = jnp.minimum(high_tiles - first, GROUP)
  within = i % (GROUP * wide_tiles)
  return first + within % together, within // together


def _kernel(a_ref, scale_a_ref, b_ref, scale_b_ref, out_ref, *, high):
  m, n = _tile_of(pl.program_id(0), a_ref.shape[0] // high, b_ref.shape[0] // WIDE)
  rows, columns = pl.ds(m * high, high), pl.ds(n * WIDE, WIDE)

  def add(k, sum_):
    depth = pl.ds(k * BLOCK, BLOCK)
    part = plgpu.dot(plgpu.load(a_ref.at[rows, depth]), plgpu.load(b_ref.at[columns, depth]), trans_b=True)
    scale_a, scale_b = plgpu.load(scale_a_ref.at[k, rows]), plgpu.load(scale_b_ref.at[k, columns])
    return sum_ + part * scale_a[:, None] * scale_b[None, :]
  out = jax.lax.fori_loop(0, a_ref.shape[1] // BLOCK, add, jnp.zeros((high, WIDE), jnp.float32))
  plgpu.store(out_ref.at[rows, columns], out.astype(out_ref.dtype))


def product(a_MK, scale_Mk, b_NK, scale_Nk, dtype, *, interpret: bool = False):
  """ref.product."""
  M, N = len(a_MK), len(b_NK)
  high = min(128, max(16, pl.next_power_of_2(M)))
  a_MK, b_NK = padded(padded(a_MK), 0, high), padded(padded(b_NK), 0, WIDE)
  if max(a_MK.size, b_NK.size) >= 2**31:
    raise NotImplementedError(f"Triton's offsets into 8-bit arrays have 32 bits, got {a_MK.shape} by {b_NK.shape}")
  scale_kM, scale_kN = padded(scale_Mk.T, 1, high), padded(scale_Nk.T, 1, WIDE)      # a tile's are neighbours
  out_MN = pl.pallas_call(
    functools.partial(_kernel, high=high),
    grid=(len(a_MK) // high * (len(b_NK) // WIDE),),
    out_shape=jax.ShapeDtypeStruct((len(a_MK), len(b_NK)), dtype),
    compiler_params=plgpu.CompilerParams(num_warps=8 if high == 128 else 4, num_stages=4),
    interpret=interpret, name="fp8_matmul",
  )(a_MK, scale_kM, b_NK, scale_kN)
  return out_MN[:M, :N]

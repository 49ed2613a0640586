"""The scaled FP8 product on TPUs: FP8 in memory, bfloat16 in the matrix unit, f32 sums with both scales.

No TPU before v7 multiplies FP8, so this saves memory and its traffic, not multiplications: E4M3 is exact in bfloat16,
the products and sums of 128 are those of f32. Compiled for v5e (also by the tests), v5p and v6e by libtpu's compiler;
not run on one.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.fp8_matmul.quantise import BLOCK, padded

LANES = 128


def _kernel(a_ref, scale_a_ref, b_ref, scale_b_ref, out_ref, sum_ref, *, blocks: int):
  k = pl.program_id(2)

  @pl.when(k == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)
  lane = jax.lax.broadcasted_iota(jnp.int32, scale_a_ref.shape, 1)
  for i in range(blocks):
    depth = pl.ds(i * BLOCK, BLOCK)
    part = jax.lax.dot_general(a_ref[:, depth].astype(jnp.bfloat16), b_ref[:, depth].astype(jnp.bfloat16),
                               (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    # a row's scales lie along the lanes, and there is no way to take lane number k but to add up all of one
    mine = jnp.where(lane == (k * blocks + i) % LANES, scale_a_ref[...], 0.0).sum(axis=1, keepdims=True)
    sum_ref[...] += part * mine * scale_b_ref[i]

  @pl.when(k == pl.num_programs(2) - 1)
  def _():
    out_ref[...] = sum_ref[...].astype(out_ref.dtype)


def product(a_MK, scale_Mk, b_NK, scale_Nk, dtype, *, interpret: bool = False):
  """ref.product."""
  (M, K), N = a_MK.shape, len(b_NK)
  high, wide = (min(512, -(-n // 128) * 128) for n in (M, N))
  blocks = next(n for n in (4, 2, 1) if -(-K // BLOCK) % n == 0)
  a_MK, b_NK = padded(padded(a_MK), 0, high), padded(padded(b_NK), 0, wide)
  scale_Mk = padded(padded(scale_Mk, 1, LANES), 0, high)
  scale_k1N = padded(scale_Nk.T, 1, wide)[:, None]
  (M_, K_), N_ = a_MK.shape, len(b_NK)
  out_MN = pl.pallas_call(
    functools.partial(_kernel, blocks=blocks),
    grid=(M_ // high, N_ // wide, K_ // (blocks * BLOCK)),
    in_specs=[pl.BlockSpec((high, blocks * BLOCK), lambda m, n, k: (m, k)),
              pl.BlockSpec((high, LANES), lambda m, n, k: (m, k * blocks // LANES)),
              pl.BlockSpec((wide, blocks * BLOCK), lambda m, n, k: (n, k)),
              pl.BlockSpec((blocks, 1, wide), lambda m, n, k: (k, 0, n))],
    out_specs=pl.BlockSpec((high, wide), lambda m, n, k: (m, n)),
    out_shape=jax.ShapeDtypeStruct((M_, N_), dtype),
    scratch_shapes=[pltpu.VMEM((high, wide), jnp.float32)],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=pl.CostEstimate(flops=2 * M_ * N_ * K_, transcendentals=0, bytes_accessed=(
      M_ * K_ * (N_ // wide) + N_ * K_ * (M_ // high) + M_ * N_ * jnp.dtype(dtype).itemsize)),
    interpret=interpret, name="fp8_matmul",
  )(a_MK, scale_Mk, b_NK, scale_k1N)
  return out_MN[:M, :N]

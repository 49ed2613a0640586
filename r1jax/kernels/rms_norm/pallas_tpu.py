"""RMSNorm for TPUs, Pallas's Mosaic lowering: blocks of whole rows, every array read and written once.

Letters: R rows, r of a block, D columns.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.rms_norm import tile

BLOCK = 2**18      # numbers: 1 MiB of f32 for each of a block's arrays


def _rows(R: int, D: int) -> int:
  return min(max(16, BLOCK // D // 16 * 16), pl.cdiv(R, 16) * 16)


def _specs(r: int, D: int):
  return pl.BlockSpec((r, D), lambda i: (i, 0)), pl.BlockSpec((1, D), lambda i: (0, 0))


def _forward_kernel(x_ref, *refs, eps, added):
  residual_ref, scale_ref, out_ref, total_ref = refs if added else (None, *refs, None)
  x_rD = x_ref[...]
  if added:
    x_rD = (x_rD.astype(jnp.float32) + residual_ref[...].astype(jnp.float32)).astype(total_ref.dtype)
    total_ref[...] = x_rD
  out_ref[...] = tile.forward(x_rD, scale_ref[...], x_ref.shape[1], eps).astype(out_ref.dtype)


def forward(x_RD, residual_RD, scale_D, eps: float, interpret: bool = False):
  """normed, or (normed, x + residual) if residual is not None."""
  (R, D), added = x_RD.shape, residual_RD is not None
  rows, one = _specs(_rows(R, D), D)
  like = jax.ShapeDtypeStruct((R, D), x_RD.dtype)
  return pl.pallas_call(
    functools.partial(_forward_kernel, eps=eps, added=added), out_shape=[like, like] if added else like,
    grid=(pl.cdiv(R, _rows(R, D)),), in_specs=[rows] * (1 + added) + [one], out_specs=[rows, rows] if added else rows,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)), interpret=interpret, name="rms_norm",
  )(x_RD, *([residual_RD] if added else []), scale_D[None])


def _backward_kernel(x_ref, scale_ref, g_ref, *refs, eps, added, R):
  g_total_ref, dx_ref, d_scale_ref = refs if added else (None, *refs)
  i, (r, D) = pl.program_id(0), x_ref.shape
  dx_rD, d_scale_rD = tile.backward(x_ref[...], scale_ref[...], g_ref[...], D, eps)
  if added:
    dx_rD += g_total_ref[...].astype(jnp.float32)
  dx_ref[...] = dx_rD.astype(dx_ref.dtype)
  if R % r:                                        # rows beyond the array may hold anything
    d_scale_rD = jnp.where(i * r + jax.lax.broadcasted_iota(jnp.int32, (r, D), 0) < R, d_scale_rD, 0)

  @pl.when(i == 0)
  def _():
    d_scale_ref[...] = jnp.zeros_like(d_scale_ref)
  d_scale_ref[...] += jnp.sum(d_scale_rD, axis=0, keepdims=True)


def backward(x_RD, scale_D, g_RD, g_total_RD, eps: float, interpret: bool = False):
  """Gradients of x (what was normed) and of scale. g_total_RD: of x + residual, or None."""
  (R, D), added = x_RD.shape, g_total_RD is not None
  rows, one = _specs(_rows(R, D), D)
  dx_RD, d_scale_1D = pl.pallas_call(
    functools.partial(_backward_kernel, eps=eps, added=added, R=R),
    out_shape=[jax.ShapeDtypeStruct((R, D), x_RD.dtype), jax.ShapeDtypeStruct((1, D), jnp.float32)],
    grid=(pl.cdiv(R, _rows(R, D)),), in_specs=[rows, one, rows] + [rows] * added, out_specs=[rows, one],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)), interpret=interpret,
    name="rms_norm_backward",
  )(x_RD, scale_D[None], g_RD, *([g_total_RD] if added else []))
  return dx_RD, d_scale_1D[0].astype(scale_D.dtype)

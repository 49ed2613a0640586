"""RMSNorm for NVIDIA GPUs, Pallas's Triton lowering: one launch each way, every array read and written once.

A program has whole rows, as many as fill a tile of TILE numbers. Backward: PROGRAMS programs loop over the tiles, and
each leaves one row of the scale's gradient, which XLA adds up. Not run on a card yet: checked in the interpreter, and
that it lowers. Letters: R rows, r of a tile, D columns and d of them with what makes it a power of two.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from r1jax.kernels.rms_norm import tile

TILE = 4096
PROGRAMS = 528         # four for each of Hopper's 132 SMs


def _sizes(R: int, D: int):
  """(rows and columns of a tile, tiles, warps)."""
  d = max(16, pl.next_power_of_2(D))
  r = max(1, min(TILE // d, pl.next_power_of_2(R)))
  return r, d, pl.cdiv(R, r), 4 if r * d <= TILE else 8


def _at(ref, i, r, d):
  """Tile i and its mask. By indices: newer jax refuses a slice that reaches beyond the array, masked or not."""
  R, D = ref.shape
  row, col = (i * r + jnp.arange(r))[:, None], jnp.arange(d)[None, :]
  return ref.at[jnp.broadcast_to(row, (r, d)), jnp.broadcast_to(col, (r, d))], (row < R) & (col < D)


def _load(ref, i, r, d):
  at, mask = _at(ref, i, r, d)
  return plgpu.load(at, mask=mask, other=0)


def _store(ref, i, value_rd):
  at, mask = _at(ref, i, *value_rd.shape)
  plgpu.store(at, value_rd.astype(ref.dtype), mask=mask)


def _forward_kernel(x_ref, *refs, r, d, eps, added):
  residual_ref, scale_ref, out_ref, total_ref = refs if added else (None, *refs, None)
  i = pl.program_id(0)
  x_rd = _load(x_ref, i, r, d)
  if added:
    x_rd = (x_rd.astype(jnp.float32) + _load(residual_ref, i, r, d).astype(jnp.float32)).astype(total_ref.dtype)
    _store(total_ref, i, x_rd)
  _store(out_ref, i, tile.forward(x_rd, _load(scale_ref, 0, 1, d), x_ref.shape[1], eps))


def forward(x_RD, residual_RD, scale_D, eps: float, interpret: bool = False):
  """normed, or (normed, x + residual) if residual is not None."""
  (R, D), added = x_RD.shape, residual_RD is not None
  r, d, tiles, warps = _sizes(R, D)
  like = jax.ShapeDtypeStruct((R, D), x_RD.dtype)
  return pl.pallas_call(
    functools.partial(_forward_kernel, r=r, d=d, eps=eps, added=added), out_shape=[like, like] if added else like,
    grid=(tiles,), compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1), interpret=interpret,
    name="rms_norm",
  )(x_RD, *([residual_RD] if added else []), scale_D[None])


def _backward_kernel(x_ref, scale_ref, g_ref, *refs, r, d, eps, added, tiles, share):
  g_total_ref, dx_ref, d_scale_ref = refs if added else (None, *refs)
  program = pl.program_id(0)
  scale_1d = _load(scale_ref, 0, 1, d)

  def body(j, d_scale_d):
    i = program * share + j
    dx_rd, d_scale_rd = tile.backward(_load(x_ref, i, r, d), scale_1d, _load(g_ref, i, r, d), x_ref.shape[1], eps)
    if added:
      dx_rd += _load(g_total_ref, i, r, d).astype(jnp.float32)
    _store(dx_ref, i, dx_rd)
    return d_scale_d + jnp.sum(d_scale_rd, axis=0)
  steps = jnp.minimum(share, tiles - program * share)
  d_scale_d = jax.lax.fori_loop(0, steps, body, jnp.zeros((d,), jnp.float32))
  plgpu.store(d_scale_ref.at[program, jnp.arange(d)], d_scale_d, mask=jnp.arange(d) < d_scale_ref.shape[1])


def backward(x_RD, scale_D, g_RD, g_total_RD, eps: float, interpret: bool = False):
  """Gradients of x (what was normed) and of scale. g_total_RD: of x + residual, or None."""
  (R, D), added = x_RD.shape, g_total_RD is not None
  r, d, tiles, warps = _sizes(R, D)
  share = pl.cdiv(tiles, min(tiles, PROGRAMS))
  programs = pl.cdiv(tiles, share)
  dx_RD, d_scale = pl.pallas_call(
    functools.partial(_backward_kernel, r=r, d=d, eps=eps, added=added, tiles=tiles, share=share),
    out_shape=[jax.ShapeDtypeStruct((R, D), x_RD.dtype), jax.ShapeDtypeStruct((programs, D), jnp.float32)],
    grid=(programs,), compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1), interpret=interpret,
    name="rms_norm_backward",
  )(x_RD, scale_D[None], g_RD, *([g_total_RD] if added else []))
  return dx_RD, d_scale.sum(axis=0).astype(scale_D.dtype)

"""Grouped matmul on NVIDIA cards: our kernel in Pallas, lowered by Triton, and jax's Mosaic GPU kernel for Hopper.

Triton: XLA lays out a table of tiles, up to `rows` rows of one expert each (blocks.py's rule), and a program multiplies
one tile by one stretch of its expert's columns. Loads and stores are masked, so any size does. The rows that belong to
no expert are one more group whose product is zero. The weights' gradient walks an expert's rows.
f32 is multiplied as f32, not as TF32. Checked by the interpreter; no real card has run this yet.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

MOSAIC_EXPERTS = 64      # jax's kernel looks for a tile's expert in code that is unrolled over all of them


def _tiles(M: int, E: int, dtype) -> tuple[int, int, int]:
  """Rows, columns and depth of a block. Few rows to an expert: low tiles, as a half-filled one costs as much."""
  most, columns, depth = (128, 128, 64) if jnp.dtype(dtype).itemsize <= 2 else (64, 64, 32)
  return min(most, max(16, pl.next_power_of_2(max(M // E, 1)))), columns, depth


def _table(count_E, M: int, E: int, rows: int):
  """Expert, first row and number of rows of each tile; expert E: rows of none. At most M / rows + E + 1 tiles."""
  count_E = count_E.astype(jnp.int32)
  count_X = jnp.append(count_E, jnp.maximum(M - count_E.sum(), 0))
  tiles_X = -(-count_X // rows)
  upto_X = jnp.cumsum(tiles_X)
  i = jnp.arange(M // rows + E + 1)
  # compare_all: one small fusion; the default is a loop of launches
  expert = jnp.minimum(jnp.searchsorted(upto_X, i, side="right", method="compare_all"), E).astype(jnp.int32)
  nth = i - (upto_X - tiles_X)[expert]
  first = ((jnp.cumsum(count_X) - count_X)[expert] + nth * rows).astype(jnp.int32)
  filled = jnp.where(i < upto_X[-1], jnp.minimum(count_X[expert] - nth * rows, rows), 0)
  return expert, first, jnp.clip(filled, 0, jnp.maximum(M - first, 0)).astype(jnp.int32)


def _load(ref, at, *inside):
  """A block of ref; zero where a row or a column is outside. None: the whole axis of the block is inside."""
  masks = [m if axis else m[:, None] for axis, m in enumerate(inside) if m is not None]
  if not masks:
    return plgpu.load(ref.at[at])
  mask = functools.reduce(jnp.logical_and, [m if m.ndim == 2 else m[None, :] for m in masks])
  shape = tuple(d.size for d in at if isinstance(d, pl.Slice))
  return plgpu.load(ref.at[at], mask=jnp.broadcast_to(mask, shape), other=0)


def _inside(start, size: int, whole: int):
  """Which of an axis's indices start, start + 1, ... exist; None where that is all of them."""
  return None if whole % size == 0 else start + jnp.arange(size) < whole


def _forward_kernel(expert_ref, first_ref, filled_ref, x_ref, w_ref, out_ref, *, tile, transposed):
  rows, columns, depth = tile
  D, F, E = x_ref.shape[1], out_ref.shape[1], w_ref.shape[0]
  column, i = pl.program_id(0) * columns, pl.program_id(1)
  expert, first, filled = expert_ref[i], first_ref[i], filled_ref[i]
  dtype = jnp.promote_types(x_ref.dtype, w_ref.dtype)

  @pl.when(filled > 0)
  def _():
    mine = jnp.arange(rows) < filled
    there = _inside(column, columns, F)
    matrix = jnp.minimum(expert, E - 1)

    def add(k, sum_):
      d = k * depth
      deep = _inside(d, depth, D)
      x = _load(x_ref, (pl.ds(first, rows), pl.ds(d, depth)), mine, deep).astype(dtype)
      if transposed:
        w = _load(w_ref, (matrix, pl.ds(column, columns), pl.ds(d, depth)), there, deep)
      else:
        w = _load(w_ref, (matrix, pl.ds(d, depth), pl.ds(column, columns)), deep, there)
      return sum_ + plgpu.dot(x, w.astype(dtype), trans_b=transposed)
    steps = jnp.where(expert < E, pl.cdiv(D, depth), 0)
    out = jax.lax.fori_loop(0, steps, add, jnp.zeros((rows, columns), jnp.float32))
    mask = mine[:, None] if there is None else mine[:, None] & there[None, :]
    plgpu.store(out_ref.at[pl.ds(first, rows), pl.ds(column, columns)], out.astype(out_ref.dtype),
                mask=jnp.broadcast_to(mask, (rows, columns)))


def forward(x_MD, w_EDF, count_E, *, transposed: bool = False, interpret: bool = False):
  """[M, F]; transposed: of w_EFD, each expert's matrix transposed, as the gradient of x needs it."""
  (M, _), E, F = x_MD.shape, w_EDF.shape[0], w_EDF.shape[1 if transposed else 2]
  tile = _tiles(M, E, jnp.promote_types(x_MD.dtype, w_EDF.dtype))
  table = _table(count_E, M, E, tile[0])
  return pl.pallas_call(
    functools.partial(_forward_kernel, tile=tile, transposed=transposed),
    # a tile's columns are neighbours in time: its rows, and its expert's matrix from tile to tile, stay in the L2 cache
    grid=(pl.cdiv(F, tile[1]), table[0].shape[0]),
    out_shape=jax.ShapeDtypeStruct((M, F), x_MD.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=8 if tile[0] == 128 else 4, num_stages=3),
    interpret=interpret, name="grouped_matmul",
  )(*table, x_MD, w_EDF)


def _weights_kernel(start_ref, stop_ref, x_ref, g_ref, dw_ref, *, tile):
  high, wide, rows = tile
  D, F = x_ref.shape[1], g_ref.shape[1]
  f, d, e = pl.program_id(0) * wide, pl.program_id(1) * high, pl.program_id(2)
  start, stop = start_ref[e], stop_ref[e]
  high_in, wide_in = _inside(d, high, D), _inside(f, wide, F)
  dtype = jnp.promote_types(x_ref.dtype, g_ref.dtype)

  def add(i, sum_):
    first = start + i * rows
    mine = first + jnp.arange(rows) < stop
    x = _load(x_ref, (pl.ds(first, rows), pl.ds(d, high)), mine, high_in).astype(dtype)
    g = _load(g_ref, (pl.ds(first, rows), pl.ds(f, wide)), mine, wide_in).astype(dtype)
    return sum_ + plgpu.dot(x, g, trans_a=True)
  dw = jax.lax.fori_loop(0, pl.cdiv(stop - start, rows), add, jnp.zeros((high, wide), jnp.float32))
  masks = [m for m in (None if high_in is None else high_in[:, None], None if wide_in is None else wide_in[None]) if
           m is not None]
  mask = functools.reduce(jnp.logical_and, masks, jnp.ones((high, wide), bool)) if masks else None
  plgpu.store(dw_ref.at[e, pl.ds(d, high), pl.ds(f, wide)], dw.astype(dw_ref.dtype), mask=mask)


def weights_gradient(x_MD, g_MF, count_E, dtype, *, interpret: bool = False):
  """[E, D, F]: x^T g over each expert's rows; zero where it has none."""
  (M, D), F, E = x_MD.shape, g_MF.shape[1], count_E.shape[0]
  high = wide = 128 if jnp.promote_types(x_MD.dtype, g_MF.dtype).itemsize <= 2 else 64
  stop_E = jnp.minimum(jnp.cumsum(count_E.astype(jnp.int32)), M)
  start_E = jnp.minimum(stop_E - count_E, stop_E).astype(jnp.int32)
  return pl.pallas_call(
    functools.partial(_weights_kernel, tile=(high, wide, 64 if high == 128 else 32)),
    grid=(pl.cdiv(F, wide), pl.cdiv(D, high), E),
    out_shape=jax.ShapeDtypeStruct((E, D, F), dtype),
    compiler_params=plgpu.CompilerParams(num_warps=8 if high == 128 else 4, num_stages=3),
    interpret=interpret, name="grouped_matmul_weights_gradient",
  )(start_E, stop_E, x_MD, g_MF)


def backward(x_MD, w_EDF, count_E, g_MF, *, interpret: bool = False):
  """Gradients of x and w."""
  dx_MD = forward(g_MF, w_EDF, count_E, transposed=True, interpret=interpret)
  return dx_MD.astype(x_MD.dtype), weights_gradient(x_MD, g_MF, count_E, w_EDF.dtype, interpret=interpret)


def mosaic_forward(x_MD, w_EDF, count_E, *, transposed: bool = False):
  """As `forward`, by the Hopper kernel that jax ships (wgmma and TMA): 16-bit floats, sizes in blocks, few experts."""
  from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu  # pulls in Mosaic GPU and jax's test helpers
  (M, D), E, F = x_MD.shape, w_EDF.shape[0], w_EDF.shape[1 if transposed else 2]
  if x_MD.dtype != w_EDF.dtype or x_MD.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"mosaic_gpu multiplies bfloat16 or float16, not {x_MD.dtype} by {w_EDF.dtype}")
  if D % 64 or F % 128 or E > MOSAIC_EXPERTS:
    raise NotImplementedError(f"mosaic_gpu needs a depth in 64s, a width in 128s and at most {MOSAIC_EXPERTS} experts,"
                              f" got depth {D}, width {F}, {E} experts")
  out_MF = ragged_dot_mgpu.ragged_dot(
    x_MD, w_EDF, group_sizes=count_E.astype(jnp.int32), block_m=64 if M // E < 128 else 128, block_n=128, block_k=64,
    max_concurrent_steps=4, grid_block_n=1, transpose_rhs=transposed)
  return jnp.where((jnp.arange(M) < count_E.sum())[:, None], out_MF, 0)     # it leaves the other rows as they were


def mosaic_backward(x_MD, w_EDF, count_E, g_MF):
  """Gradients of x, by Mosaic GPU, and w, by Triton: jax's transposed kernel multiplies garbage by zero at the ends."""
  dx_MD = mosaic_forward(g_MF, w_EDF, count_E, transposed=True)
  return dx_MD, weights_gradient(x_MD, g_MF, count_E, w_EDF.dtype)

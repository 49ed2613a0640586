"""Grouped matmul on TPUs: megablox, the kernels that jax ships, with rows padded to their tiles.

gmm multiplies each expert's rows, also by the transposed matrices (the gradient of x); tgmm sums x^T g over each
expert's rows (the gradient of w). Both leave rows of no expert as they were, so those are set to zero here.
Compiled for v5e (also by the tests), v5p and v6e by libtpu's compiler; not run on one.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

DEEP, WIDE = 512, 1024      # of a block in bfloat16: 8 of the 16 MB that a v5e's kernel has by default


def _rows(M: int, E: int) -> int:
  """Of a tile: few rows to an expert, low tiles, as each expert touches at least one. 128 is a v5e's matrix unit."""
  return min(512, max(128, pl.next_power_of_2(max(M // E, 1))))


def _padded(a_MX, rows: int):
  return jnp.pad(a_MX, ((0, -len(a_MX) % rows), (0, 0)))


def _zeroed(a_MX, count_E):
  """Zero in the rows of no expert, whatever stands there."""
  return jnp.where((jnp.arange(len(a_MX)) < count_E.sum())[:, None], a_MX, 0)


def forward(x_MD, w_EDF, count_E, *, transposed: bool = False, interpret: bool = False):
  """[M, F]; transposed: of w_EFD, each expert's matrix transposed, as the gradient of x needs it."""
  (M, D), E, F = x_MD.shape, w_EDF.shape[0], w_EDF.shape[1 if transposed else 2]
  rows, half = _rows(M, E), max(x_MD.dtype.itemsize, w_EDF.dtype.itemsize) // 2
  out_MF = gmm(_padded(x_MD, rows), w_EDF, count_E.astype(jnp.int32), x_MD.dtype,
               (rows, min(D, DEEP), min(F, WIDE // half)), transpose_rhs=transposed, interpret=interpret)
  return _zeroed(out_MF[:M], count_E)


def weights_gradient(x_MD, g_MF, count_E, dtype, *, interpret: bool = False):
  """[E, D, F]: x^T g over each expert's rows; zero where it has none."""
  (M, D), F, E = x_MD.shape, g_MF.shape[1], count_E.shape[0]
  rows, half = _rows(M, E), max(x_MD.dtype.itemsize, g_MF.dtype.itemsize) // 2
  return tgmm(_padded(x_MD, rows).T, _padded(g_MF, rows), count_E.astype(jnp.int32), dtype,
              (rows, min(D, DEEP), min(F, WIDE // 2 // half)), interpret=interpret)


def backward(x_MD, w_EDF, count_E, g_MF, *, interpret: bool = False):
  """Gradients of x and w."""
  dx_MD = forward(g_MF, w_EDF, count_E, transposed=True, interpret=interpret)
  return dx_MD.astype(x_MD.dtype), weights_gradient(x_MD, g_MF, count_E, w_EDF.dtype, interpret=interpret)

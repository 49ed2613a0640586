"""DeepSeek-V3's FP8 matmul (V3 report, section 3.3): E4M3 factors with fine scales, f32 sums, in all three products.

  Fprop  y = x w      x in tiles of 1 x 128 along D, w in blocks of 128 x 128
  Dgrad  dx = g w^T   g in tiles of 1 x 128 along F, the same w
  Wgrad  dw = x^T g   the x that Fprop kept in FP8, quantised again in tiles of 128 x 1 (along M), and g likewise
Every 128 of the depth are summed apart and promoted to f32 with both scales. Between the passes x and w are kept in
FP8. Not done here: scales that are powers of two and the E5M6 format, which V3 uses for some layers' activations.
impl=None: "triton" on cuda, "pallas_tpu" on tpu, else "ref" (quantise.py, ref.py), which XLA multiplies in f32. An
NVIDIA card before Ada has no FP8: ask for "ref" there. As with every Pallas call, a mesh needs shard_map around it.
Letters: M rows, D input and F output width; lower case: in blocks of 128.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from r1jax.kernels.fp8_matmul import pallas_gpu, pallas_tpu, ref
from r1jax.kernels.fp8_matmul.quantise import BLOCK, dequantise, quantise_blocks, quantise_rows

__all__ = ["IMPLS", "dequantise", "fp8_matmul", "quantise_blocks", "quantise_rows"]
IMPLS = ("triton", "pallas_tpu", "ref")


def fp8_matmul(x_MD, w_DF, impl: str | None = None):
  """[M, F] in x's dtype; bfloat16 or float32 in, quantised here. impl: one of IMPLS, or None for the platform's."""
  if impl not in (None, *IMPLS):
    raise ValueError(f"impl={impl!r} is none of {IMPLS}")
  if x_MD.ndim != 2 or w_DF.ndim != 2 or x_MD.shape[1] != w_DF.shape[0] or 0 in (*x_MD.shape, *w_DF.shape):
    raise ValueError(f"expected [M, D] and [D, F] with no empty axis, got {x_MD.shape} and {w_DF.shape}")
  return _fp8_matmul(x_MD, w_DF, impl)


def _product(impl, a, scale_a, b, scale_b, dtype):
  of_impl = {name: functools.partial(f, dtype=dtype) for name, f in dict(
    triton=pallas_gpu.product, pallas_tpu=pallas_tpu.product, ref=ref.product).items()}
  if impl:
    return of_impl[impl](a, scale_a, b, scale_b)
  return jax.lax.platform_dependent(a, scale_a, b, scale_b, cuda=of_impl["triton"], tpu=of_impl["pallas_tpu"],
                                    default=of_impl["ref"])


def _each_row(scale_mk, rows: int):
  """Scales of blocks of 128 x 128 as those of the rows."""
  return jnp.repeat(scale_mk, BLOCK, 0)[:rows]


def forward(x_MD, w_DF, product):
  """Fprop by a function like ref.product: (y, what the gradient needs)."""
  x, w = quantise_rows(x_MD), quantise_blocks(w_DF)
  y_MF = product(*x, w[0].T, _each_row(w[1].T, w_DF.shape[1]), dtype=x_MD.dtype)
  return y_MF, (x, w, jnp.zeros(0, x_MD.dtype), jnp.zeros(0, w_DF.dtype))      # the last two: dtypes alone


def backward(saved, g_MF, product):
  """Dgrad and Wgrad: (dx, dw)."""
  (q_MD, scale_Md), (q_DF, scale_df), of_x, of_w = saved
  dx_MD = product(*quantise_rows(g_MF), q_DF, _each_row(scale_df, len(q_DF)), dtype=of_x.dtype)
  x_DM = dequantise(q_MD, scale_Md).T
  return dx_MD, product(*quantise_rows(x_DM), *quantise_rows(g_MF.T), dtype=of_w.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fp8_matmul(x_MD, w_DF, impl):
  return forward(x_MD, w_DF, functools.partial(_product, impl))[0]


_fp8_matmul.defvjp(lambda x, w, impl: forward(x, w, functools.partial(_product, impl)),
                   lambda impl, saved, g: backward(saved, g, functools.partial(_product, impl)))

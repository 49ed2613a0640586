"""RMSNorm, with the addition before it if wanted: a kernel each way, or the formula for XLA to fuse.

ref.py says what it computes. Letters: R rows (all axes but the last, flattened), D columns.
"""

from __future__ import annotations

import functools

import jax

from r1jax.kernels.rms_norm import pallas_gpu, pallas_tpu, ref

IMPLS = ("pallas_gpu", "pallas_tpu", "ref")


def rms_norm(x, scale, eps: float, residual=None, impl: str | None = None):
  """x / rms(x) * scale over the last axis, f32 within; with a residual (rms_norm(x + residual), x + residual).

  impl: one of IMPLS. None is "ref" on every platform, with XLA's fusions and XLA's gradient.
  On TPUs because a kernel wins nothing: XLA puts norm and addition into the products around them. Bytes of add, norm
  and SwiGLU, forward and backward, as the v5p's compiler counts them, 4,096 tokens: Qwen2.5-1.5B's 1,919 MB by XLA
  and 2,019 with the kernels, Qwen3-8B's 3,256 and 3,389, a dense layer of DeepSeek-V3 5,345 and 5,344.
  On GPUs because no card has shown a gain yet (one launch each way, where XLA may need several, but XLA fuses into what
  stands around), and because XLA cannot split a kernel over a mesh: it would gather x.
  """
  if impl not in (None, *IMPLS):
    raise ValueError(f"impl={impl!r} is none of {IMPLS}")
  if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
    raise ValueError(f"residual {residual.dtype}{residual.shape} is added to x {x.dtype}{x.shape}")
  if impl in (None, "ref"):
    return ref.rms_norm(x, scale, eps) if residual is None else ref.add_rms_norm(x, residual, scale, eps)
  return by_kernel(x, residual, scale, eps, dict(pallas_gpu=pallas_gpu, pallas_tpu=pallas_tpu)[impl])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def by_kernel(x, residual, scale, eps, kernel, interpret=False):
  """kernel: the module with its forward and backward."""
  flat = None if residual is None else residual.reshape(-1, x.shape[-1])
  out = kernel.forward(x.reshape(-1, x.shape[-1]), flat, scale, eps, interpret)
  return jax.tree.map(lambda y: y.reshape(x.shape), out if residual is None else tuple(out))


def _forward(x, residual, scale, eps, kernel, interpret):
  out = by_kernel(x, residual, scale, eps, kernel, interpret)
  return out, (x if residual is None else out[1], scale, residual is None)


def _backward(eps, kernel, interpret, saved, g):
  x, scale, alone = saved
  flat = lambda y: y.reshape(-1, x.shape[-1])
  g, g_total = (g, None) if alone else (g[0], flat(g[1]))
  dx_RD, d_scale = kernel.backward(flat(x), scale, flat(g), g_total, eps, interpret)
  dx = dx_RD.reshape(x.shape)
  return dx, None if alone else dx, d_scale


by_kernel.defvjp(_forward, _backward)

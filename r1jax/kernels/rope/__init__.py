"""Rotary turn of queries and keys by their positions: a kernel for both in one pass, or the formula for XLA to fuse.

ref.py says what it computes. Letters: M = N T tokens, X heads x channels; r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from r1jax.kernels.rope import pallas_gpu, pallas_tpu, ref

IMPLS = ("pallas_gpu", "pallas_tpu", "ref")


def turn(q_NTHC, k_NTKC, cos, sin, interleaved: bool = False, impl: str | None = None):
  """(q, k) turned by cosines and sines [N, T, 1, C / 2], through which no gradient flows in the kernels.

  impl: one of IMPLS. None is "ref" on every platform, with XLA's fusions and XLA's gradient, because XLA cannot split
  a kernel over a mesh (it would gather q and k), fuses the turn with what stands around it (projection, bias, norm of
  heads, transposes), and no accelerator has shown a gain yet. Bytes of the projections and the turn, forward and
  backward, as the v5p's compiler counts them (what it keeps on the chip included), 4,096 tokens: Qwen2.5-1.5B's 609 MB
  by XLA and 634 with the kernel; 32 and 8 heads of 128 channels, width 4,096, 1,877 and 1,286: worth a try by name.
  """
  if impl not in (None, *IMPLS):
    raise ValueError(f"impl={impl!r} is none of {IMPLS}")
  if impl in (None, "ref"):
    return ref.turn(q_NTHC, cos, sin, interleaved), ref.turn(k_NTKC, cos, sin, interleaved)
  if q_NTHC.shape[-1] != 2 * cos.shape[-1]:
    raise ValueError(f"{q_NTHC.shape[-1]} channels of q need half as many cosines, not {cos.shape[-1]}")
  kernel = dict(pallas_gpu=pallas_gpu, pallas_tpu=pallas_tpu)[impl]
  return by_kernel(q_NTHC, k_NTKC, cos, sin, interleaved, kernel)


def _flat(kernel, interleaved, back, interpret, cos, sin, *xs):
  N, T = xs[0].shape[:2]
  angles = [jnp.broadcast_to(x[:, :, 0], (N, T, x.shape[-1])).reshape(N * T, -1) for x in (cos, sin)]
  outs = kernel.turn([x.reshape(N * T, -1) for x in xs], *angles, interleaved, back, interpret)
  return tuple(out.reshape(x.shape) for out, x in zip(outs, xs, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def by_kernel(q_NTHC, k_NTKC, cos, sin, interleaved, kernel, interpret=False):
  """kernel: the module with its turn."""
  return _flat(kernel, interleaved, False, interpret, cos, sin, q_NTHC, k_NTKC)


def _forward(q_NTHC, k_NTKC, cos, sin, interleaved, kernel, interpret):
  return by_kernel(q_NTHC, k_NTKC, cos, sin, interleaved, kernel, interpret), (cos, sin)


def _backward(interleaved, kernel, interpret, saved, g):
  return *_flat(kernel, interleaved, True, interpret, *saved, *g), *map(jnp.zeros_like, saved)


by_kernel.defvjp(_forward, _backward)

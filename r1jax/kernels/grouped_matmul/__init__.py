"""Grouped matmul: rows sorted by expert, each multiplied by its expert's matrix (the products of a dropless MoE layer).

ref.py says what it computes. impl=None takes, by the platform that is lowered for:
  cpu     "blocks": a loop over blocks of rows in XLA, as ragged_dot there multiplies every row by every expert.
  cuda    "triton": XLA's ragged_dot is dense there too (jaxlib 0.10.2 makes an array of [M, E D]; openxla/xla 40189).
          "mosaic_gpu", jax's Hopper kernel, is asked for by name until a card has shown that it is the faster one.
  tpu     "megablox": XLA's ragged_dot is a kernel forward, but its gradient costs E times as much (cost_analysis of
          a compile for v5e, v5p and v6e: 33 forwards with 32 experts, 257 with 256; megablox: 2).
  others  "ragged_dot".
jit does not split a Pallas call over devices (on TPUs it refuses, on GPUs every device computes all): under a mesh of
several None takes "ragged_dot" on all but cpu, and inside a shard_map (with check_vma=False) the kernels again.
Letters: M rows, E experts, D input and F output width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from r1jax.kernels import mesh
from r1jax.kernels.grouped_matmul import blocks, pallas_gpu, pallas_tpu, ref

IMPLS = ("blocks", "ragged_dot", "triton", "mosaic_gpu", "megablox", "ref")
BLOCK = 64       # rows; small enough that half-filled last blocks cost little, large enough for a fast product


def grouped_matmul(x_MD, w_EDF, count_E, impl: str | None = None, block: int = BLOCK):
  """[M, F]. Rows beyond sum(count_E) give zero.

  impl: one of IMPLS; None takes the one for the platform that is lowered for. block: rows at a time of "blocks".
  """
  if impl not in (None, *IMPLS):
    raise ValueError(f"impl={impl!r} is none of {IMPLS}")
  x_MD, w_EDF = jnp.asarray(x_MD), jnp.asarray(w_EDF)      # a loop cannot index numpy's arrays
  if impl == "ref":
    return ref.grouped_matmul(x_MD, w_EDF, count_E)
  return _grouped_matmul(x_MD, w_EDF, count_E, impl, block)


def _ragged_dot_backward(x_MD, w_EDF, count_E, g_MF):
  return jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, count_E), x_MD, w_EDF)[1](g_MF)


def _dispatch(impl, of_impl, *args):
  """The function of `impl` in of_impl, or of the platform, on args."""
  if impl:
    return of_impl[impl](*args)
  if mesh.splits():
    return jax.lax.platform_dependent(*args, cpu=of_impl["blocks"], default=of_impl["ragged_dot"])
  return jax.lax.platform_dependent(*args, cpu=of_impl["blocks"], cuda=of_impl["triton"], tpu=of_impl["megablox"],
                                    default=of_impl["ragged_dot"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _grouped_matmul(x_MD, w_EDF, count_E, impl, block):
  forward = dict(blocks=functools.partial(blocks.forward, block=block), ragged_dot=jax.lax.ragged_dot,
                 triton=pallas_gpu.forward, mosaic_gpu=pallas_gpu.mosaic_forward, megablox=pallas_tpu.forward)
  return _dispatch(impl, forward, x_MD, w_EDF, count_E)


def _forward(x_MD, w_EDF, count_E, impl, block):
  return _grouped_matmul(x_MD, w_EDF, count_E, impl, block), (x_MD, w_EDF, count_E)


def _backward(impl, block, saved, g_MF):
  backward = dict(blocks=functools.partial(blocks.backward, block=block), ragged_dot=_ragged_dot_backward,
                  triton=pallas_gpu.backward, mosaic_gpu=pallas_gpu.mosaic_backward, megablox=pallas_tpu.backward)
  return *_dispatch(impl, backward, *saved, g_MF), None


_grouped_matmul.defvjp(_forward, _backward)

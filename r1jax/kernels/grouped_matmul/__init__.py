"""Grouped matmul: rows sorted by expert, each multiplied by its expert's matrix (the products of a dropless MoE layer).

ref.py says what it computes. On CPU blocks.py does it; elsewhere XLA's ragged_dot, whose cost follows the rows there.
Letters: M rows, E experts, D input and F output width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from r1jax.kernels.grouped_matmul import blocks, ref

IMPLS = ("blocks", "ragged_dot", "ref")
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _grouped_matmul(x_MD, w_EDF, count_E, impl, block):
  by_blocks = functools.partial(blocks.forward, block=block)
  by_xla = lambda x, w, count: jax.lax.ragged_dot(x, w, count)
  if impl:
    return dict(blocks=by_blocks, ragged_dot=by_xla)[impl](x_MD, w_EDF, count_E)
  return jax.lax.platform_dependent(x_MD, w_EDF, count_E, cpu=by_blocks, default=by_xla)


def _forward(x_MD, w_EDF, count_E, impl, block):
  return _grouped_matmul(x_MD, w_EDF, count_E, impl, block), (x_MD, w_EDF, count_E)


def _backward(impl, block, saved, g_MF):
  by_blocks = lambda x, w, count, g: blocks.backward(x, w, count, g, block)

  def by_xla(x, w, count, g):
    return jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, count), x, w)[1](g)
  if impl:
    grads = dict(blocks=by_blocks, ragged_dot=by_xla)[impl](*saved, g_MF)
  else:
    grads = jax.lax.platform_dependent(*saved, g_MF, cpu=by_blocks, default=by_xla)
  return *grads, None


_grouped_matmul.defvjp(_forward, _backward)

"""Which blocks of keys a block of queries has to look at, from the ids in each: no list, three numbers a block.

What a block of queries sees lies in two runs of blocks: from the row's start, those that hold SHARED tokens, and, up to
the diagonal, those that may hold its own segments. Blocks are told apart by the lowest and highest id in them, so a
run may hold blocks too many, never too few; kernels mask inside each block.
Letters: Q blocks of queries, S blocks of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels.attention.ref import SHARED

FAR = np.iinfo(np.int32).max


class Bounds(NamedTuple):
  """int32. Queries a look at key blocks [0, shared) and [own, diagonal(a)); keys s are seen by [first query, upto)."""
  shared_NQ: jax.Array
  own_NQ: jax.Array
  upto_NS: jax.Array


def diagonal(a, block_q: int, block_k: int, S: int):
  """The first block of keys behind all queries of block a."""
  return jnp.minimum(jax.lax.div((a + 1) * block_q + block_k - 1, block_k), S)     # // asks for signs: no lowering


def _ids(segment_NT, block: int):
  """Of each block [N, blocks]: lowest and highest id beside SHARED, and whether a SHARED token is there."""
  N, T = segment_NT.shape
  x = jnp.pad(segment_NT, ((0, 0), (0, -T % block)), mode="edge").reshape(N, -1, block)
  shared = x == SHARED
  return jnp.where(shared, FAR, x).min(-1), jnp.where(shared, -FAR, x).max(-1), shared.any(-1)


def bounds(segment_NT, N: int, T: int, block_q: int, block_k: int) -> Bounds:
  Q, S = -(-T // block_q), -(-T // block_k)
  if segment_NT is None:
    zero_NQ = jnp.zeros((N, Q), jnp.int32)
    return Bounds(zero_NQ, zero_NQ, jnp.full((N, S), Q, jnp.int32))
  q, s = jnp.arange(Q), jnp.arange(S)
  end_Q = diagonal(q, block_q, block_k, S)
  (low_q, high_q, _), (low_k, high_k, shared_NS) = _ids(segment_NT, block_q), _ids(segment_NT, block_k)
  before_QS = s < end_Q[:, None]
  own_NQS = (low_q[:, :, None] <= high_k[:, None]) & (low_k[:, None] <= high_q[:, :, None]) & before_QS
  shared_NQS = shared_NS[:, None] & before_QS
  shared_NQ = jnp.where(shared_NQS, s + 1, 0).max(-1)
  own_NQ = jnp.maximum(jnp.where(own_NQS, s, end_Q[:, None]).min(-1), shared_NQ)
  upto_NS = jnp.where(own_NQS | shared_NQS, q[:, None] + 1, 0).max(1)
  return Bounds(*(x.astype(jnp.int32) for x in (shared_NQ, own_NQ, upto_NS)))

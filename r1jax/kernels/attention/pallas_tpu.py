"""Flash attention (2307.08691) for TPUs with segments and SHARED tokens, forward and backward.

For what jax's splash attention does not do: tokens that others see though they are of another segment. The last axis of
the grid walks over the blocks that bounds.py names; steps beyond them fetch and compute nothing.
Scores are held transposed, keys x queries: what belongs to a query (highest score, total, logsumexp) is then a row of
lanes and is neither repeated over 128 lanes nor turned. The kernels were compiled for TPUs, and not run on one.
Letters: E width of the values, a block of queries, b block of keys; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.bounds import Bounds, bounds, diagonal
from r1jax.kernels.attention.ref import MASKED, SHARED

LANES = 128


class Grid(NamedTuple):
  """T is what rows are padded to, a multiple of the blocks of `size` tokens."""
  T: int
  size: int
  scale: float

  @property
  def blocks(self) -> int:
    return self.T // self.size


def grid(T: int, C: int, E: int) -> Grid:
  padded = -(-T // LANES) * LANES
  largest = 512 if C + E <= 512 else 256
  size = next(x for x in (512, 256, 128) if padded % x == 0 and x <= largest)
  return Grid(padded, size, C**-0.5)


def _dot(x, y, over):
  """Contracts axis over[0] of x with axis over[1] of y, in f32."""
  return jax.lax.dot_general(x, y, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def _scores(q, k, a, b, g: Grid, id_q, id_k):
  """[keys, queries], f32. id_q: a row; id_k: a column; or None."""
  score = _dot(k, q, (1, 1)) * g.scale
  at = lambda block, axis: block * g.size + jax.lax.broadcasted_iota(jnp.int32, score.shape, axis)
  sees = at(b, 0) <= at(a, 1)
  if id_q is not None:
    sees &= (id_k[...] == id_q[...]) | (id_k[...] == SHARED)
  return jnp.where(sees, score, MASKED)


def _key_block(n, a, step, shared, own, g: Grid):
  """(the block of keys that query block a looks at in this step, whether there is one). Without, the last again."""
  at, end = n * g.blocks + a, diagonal(a, g.size, g.size, g.blocks)
  b = jnp.where(step < shared[at], step, own[at] + step - shared[at])
  return jnp.minimum(b, end - 1), b < end


def _query_block(n, b, step, upto, g: Grid):
  """(query head of the group, block of queries that see key block b, whether there is one)."""
  a, end = b + jax.lax.rem(step, g.blocks), upto[n * g.blocks + b]
  return jax.lax.div(step, g.blocks), jnp.minimum(a, end - 1), a < end


def _forward(shared, own, q_ref, k_ref, v_ref, id_q, id_k, o_ref, lse_ref, o_EQ, highest_1Q, total_1Q, *, g: Grid):
  n, a, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
  b, there = _key_block(n, a, step, shared, own, g)

  @pl.when(step == 0)
  def _():
    o_EQ[...] = jnp.zeros_like(o_EQ)
    highest_1Q[...] = jnp.full_like(highest_1Q, MASKED)
    total_1Q[...] = jnp.zeros_like(total_1Q)

  @pl.when(there)
  def _():
    score = _scores(q_ref[...], k_ref[...], a, b, g, id_q, id_k)
    higher = jnp.maximum(highest_1Q[...], score.max(0, keepdims=True))
    # a row that has seen nothing yet weighs MASKED alike; its first real score makes that nothing
    fade, weight = jnp.exp(highest_1Q[...] - higher), jnp.exp(score - higher)
    o_EQ[...] = o_EQ[...] * fade + _dot(v_ref[...], weight.astype(v_ref.dtype), (0, 0))
    highest_1Q[...] = higher
    total_1Q[...] = total_1Q[...] * fade + weight.sum(0, keepdims=True)

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    o_ref[...] = (o_EQ[...] / total_1Q[...]).T.astype(o_ref.dtype)
    lse_ref[...] = highest_1Q[...] + jnp.log(total_1Q[...])


def _gradient(q_ref, k_ref, v_ref, id_q, id_k, do_ref, lse_ref, delta_ref, a, b, g: Grid):
  """The weights and the scores' gradient, both [keys, queries]."""
  weight = jnp.exp(_scores(q_ref[...], k_ref[...], a, b, g, id_q, id_k) - lse_ref[...])
  return weight, weight * (_dot(v_ref[...], do_ref[...], (1, 1)) - delta_ref[...])


def _dq(shared, own, q_ref, k_ref, v_ref, id_q, id_k, do_ref, lse_ref, delta_ref, dq_ref, sum_QC, *, g: Grid):
  n, a, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
  b, there = _key_block(n, a, step, shared, own, g)

  @pl.when(step == 0)
  def _():
    sum_QC[...] = jnp.zeros_like(sum_QC)

  @pl.when(there)
  def _():
    _, dscore = _gradient(q_ref, k_ref, v_ref, id_q, id_k, do_ref, lse_ref, delta_ref, a, b, g)
    sum_QC[...] += _dot(dscore.astype(k_ref.dtype), k_ref[...], (0, 0))

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    dq_ref[...] = (sum_QC[...] * g.scale).astype(dq_ref.dtype)


def _dkv(upto, q_ref, k_ref, v_ref, id_q, id_k, do_ref, lse_ref, delta_ref, dk_ref, dv_ref, sum_SC, sum_SE, *, g: Grid):
  n, b, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
  _, a, there = _query_block(n, b, step, upto, g)

  @pl.when(step == 0)
  def _():
    sum_SC[...] = jnp.zeros_like(sum_SC)
    sum_SE[...] = jnp.zeros_like(sum_SE)

  @pl.when(there)
  def _():
    weight, dscore = _gradient(q_ref, k_ref, v_ref, id_q, id_k, do_ref, lse_ref, delta_ref, a, b, g)
    sum_SE[...] += _dot(weight.astype(do_ref.dtype), do_ref[...], (1, 0))
    sum_SC[...] += _dot(dscore.astype(q_ref.dtype), q_ref[...], (1, 0))

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    dk_ref[...] = (sum_SC[...] * g.scale).astype(dk_ref.dtype)
    dv_ref[...] = sum_SE[...].astype(dv_ref.dtype)


def _call(kernel, name, limits, steps, in_specs, out_specs, out_shape, scratch, interpret):
  """A pallas_call whose block indices may depend on `limits`, [N, blocks] each."""
  call = pl.pallas_call(
    kernel, name=name, interpret=interpret, out_shape=out_shape,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(limits), grid=steps, in_specs=in_specs, out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch]),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")))
  return functools.partial(call, *(x.reshape(-1) for x in limits))


def _padded(g: Grid, q_NTHC, k_NKTC, v_NKTE, segment_NT):
  """All with tokens before channels and T as the grid's; ids as rows and as columns, or None twice."""
  pad = lambda x, axis: jnp.pad(x, [(0, g.T - x.shape[i] if i == axis else 0) for i in range(x.ndim)])
  q_NHTC, k_NKTC, v_NKTE = pad(q_NTHC.swapaxes(1, 2), 2), pad(k_NKTC, 2), pad(v_NKTE, 2)
  if segment_NT is None:
    return q_NHTC, k_NKTC, v_NKTE, None, None
  segment_NT = jnp.pad(segment_NT, ((0, 0), (0, g.T - segment_NT.shape[1])), mode="edge")
  return q_NHTC, k_NKTC, v_NKTE, segment_NT[:, None], segment_NT[:, :, None]


def _specs(g: Grid, queries, keys, ids: bool):
  """Specs by width of blocks of queries and of keys, and of the ids. queries, keys: (step) -> (n, head, block)."""
  def tokens(where, width):
    return pl.BlockSpec((None, None, g.size, width), lambda *i: (*where(*i), 0))

  def row(where):
    def index(*i):
      n, head, block = where(*i)
      return n, head, 0, block
    return pl.BlockSpec((None, None, 1, g.size), index)

  id_q = pl.BlockSpec((None, 1, g.size), lambda *i: (queries(*i)[0], 0, queries(*i)[2])) if ids else None
  id_k = pl.BlockSpec((None, g.size, 1), lambda *i: (keys(*i)[0], keys(*i)[2], 0)) if ids else None
  return functools.partial(tokens, queries), functools.partial(tokens, keys), row(queries), [id_q, id_k]


def _by_query(g: Grid, R: int, ids: bool):
  """Specs of a walk over the keys that one block of queries sees."""
  keys = lambda n, h, a, step, shared, own: (n, jax.lax.div(h, R), _key_block(n, a, step, shared, own, g)[0])
  return _specs(g, lambda n, h, a, step, *_: (n, h, a), keys, ids)


def _by_key(g: Grid, R: int, ids: bool):
  """Specs of a walk over the queries, of all heads of the group, that see one block of keys."""
  def queries(n, k, b, step, upto):
    r, a, _ = _query_block(n, b, step, upto, g)
    return n, k * R + r, a
  return _specs(g, queries, lambda n, k, b, step, *_: (n, k, b), ids)


@functools.partial(jax.jit, static_argnames=("interpret",))      # so that a shape is traced once
def forward(q_NTHC, k_NKTC, v_NKTE, segment_NT=None, *, interpret: bool = False):
  """(o [N, T, H, E], logsumexp of each query's scores [N, H, T])."""
  N, T, H, C = q_NTHC.shape
  K, E = v_NKTE.shape[1], v_NKTE.shape[3]
  g = grid(T, C, E)
  q_NHTC, k_NKTC, v_NKTE, *ids = _padded(g, q_NTHC, k_NKTC, v_NKTE, segment_NT)
  limit: Bounds = bounds(None if segment_NT is None else ids[0][:, 0], N, g.T, g.size, g.size)
  by_q, by_k, row, id_specs = _by_query(g, H // K, segment_NT is not None)
  o_NHTE, lse_NH1T = _call(
    functools.partial(_forward, g=g), "attention_forward", (limit.shared_NQ, limit.own_NQ), (N, H, g.blocks, g.blocks),
    [by_q(C), by_k(C), by_k(E), *id_specs], [by_q(E), row],
    [jax.ShapeDtypeStruct((N, H, g.T, E), v_NKTE.dtype), jax.ShapeDtypeStruct((N, H, 1, g.T), jnp.float32)],
    [(E, g.size), (1, g.size), (1, g.size)], interpret)(q_NHTC, k_NKTC, v_NKTE, *ids)
  return o_NHTE[:, :, :T].swapaxes(1, 2), lse_NH1T[:, :, 0, :T]


@functools.partial(jax.jit, static_argnames=("interpret",))
def backward(q_NTHC, k_NKTC, v_NKTE, segment_NT, o_NTHE, lse_NHT, do_NTHE, *, interpret: bool = False):
  """Gradients of q, k and v."""
  N, T, H, C = q_NTHC.shape
  K, E = v_NKTE.shape[1], v_NKTE.shape[3]
  R, g = H // K, grid(T, C, E)
  delta_NTH = jnp.sum(o_NTHE.astype(jnp.float32) * do_NTHE.astype(jnp.float32), axis=-1)
  q_NHTC, k_NKTC, v_NKTE, *ids = _padded(g, q_NTHC, k_NKTC, v_NKTE, segment_NT)
  pad = ((0, 0), (0, 0), (0, g.T - T))
  do_NHTE = jnp.pad(do_NTHE.swapaxes(1, 2), (*pad, (0, 0)))
  lse_NH1T, delta_NH1T = (jnp.pad(x, pad)[:, :, None] for x in (lse_NHT, delta_NTH.swapaxes(1, 2)))
  limit: Bounds = bounds(None if segment_NT is None else ids[0][:, 0], N, g.T, g.size, g.size)
  args = (q_NHTC, k_NKTC, v_NKTE, *ids, do_NHTE, lse_NH1T, delta_NH1T)
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)

  by_q, by_k, row, id_specs = _by_query(g, R, segment_NT is not None)
  dq_NHTC = _call(
    functools.partial(_dq, g=g), "attention_dq", (limit.shared_NQ, limit.own_NQ), (N, H, g.blocks, g.blocks),
    [by_q(C), by_k(C), by_k(E), *id_specs, by_q(E), row, row], by_q(C), shape(q_NHTC), [(g.size, C)], interpret)(*args)
  by_q, by_k, row, id_specs = _by_key(g, R, segment_NT is not None)
  dk_NKTC, dv_NKTE = _call(
    functools.partial(_dkv, g=g), "attention_dkv", (limit.upto_NS,), (N, K, g.blocks, R * g.blocks),
    [by_q(C), by_k(C), by_k(E), *id_specs, by_q(E), row, row], [by_k(C), by_k(E)], [shape(k_NKTC), shape(v_NKTE)],
    [(g.size, C), (g.size, E)], interpret)(*args)
  return dq_NHTC[:, :, :T].swapaxes(1, 2), dk_NKTC[:, :, :T], dv_NKTE[:, :, :T]

"""Flash attention (2307.08691) for GPUs, forward and backward, by Pallas' Triton lowering.

The forward saves each query's logsumexp; the backward computes the probabilities again, in one pass for dq and one for
dk and dv, which loops over the query heads of its key head. A head's channels are read in parts of powers of two,
192 as 128 + 64, so that nothing is multiplied in vain. Rows beyond T are masked where T is no multiple of a block.
Blocks are sized for the 227 KB of shared memory of an H100; float32 is multiplied as TF32, as XLA does on GPUs.
The kernels were not run on a card, only interpreted and lowered.
Letters: E width of the values, a block of queries, b block of keys; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from r1jax.kernels.attention import tiles
from r1jax.kernels.attention.bounds import bounds, diagonal
from r1jax.kernels.attention.ref import MASKED, SHARED

LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
  q: int
  k: int
  warps: int
  stages: int = 2


def blocks(T: int, C: int, E: int, dtype, backward: bool) -> Blocks:
  """Of a head of these widths. Halved for float32, and no longer than the row."""
  if C + E <= 384:
    q, k = (64, 64) if backward else (128, 64)
  elif C + E <= 512:
    q, k = (32, 32) if backward else (64, 64)
  else:                                     # MLA's absorbed form, 576 + 512
    q, k = (16, 16) if backward else (32, 32)
  if jnp.dtype(dtype).itemsize > 2:
    q, k = q // 2, k // 2
  longest = max(16, pl.next_power_of_2(T))
  q, k = (min(max(x, 16), longest) for x in (q, k))
  return Blocks(q, k, warps=4 if max(C, E) <= 64 or q * k < 2048 else 8)


def _sees(a, b, size: Blocks, id_q, id_k):
  q, k = a * size.q + jnp.arange(size.q), b * size.k + jnp.arange(size.k)
  sees = q[:, None] >= k[None, :]
  if id_q is not None:
    sees &= (id_q[:, None] == id_k[None, :]) | (id_k == SHARED)[None, :]
  return sees


def _scores(q, k, scale, sees):
  """In powers of two: exp2 is one instruction."""
  score = tiles.dot(q, k) * (scale * LOG2E)
  return score if sees is None else jnp.where(sees, score, MASKED)


def _over_keys(step, carry, a, size: Blocks, S: int, segment, shared_ref, own_ref):
  """step(b, carry, masked) over the key blocks that query block a needs."""
  end = diagonal(a, size.q, size.k, S)
  if segment is None:
    whole = jax.lax.div(a * size.q + 1, size.k)         # blocks that all of a's queries see whole
    runs = (0, whole, False), (whole, end, True)
  else:
    runs = (0, shared_ref[a], True), (own_ref[a], end, True)
  for low, high, masked in runs:
    carry = jax.lax.fori_loop(low, high, functools.partial(step, masked=masked), carry)
  return carry


def _forward(q_ref, k_ref, v_ref, segment, shared_ref, own_ref, o_ref, lse_ref, *, size: Blocks, T, C, E, scale):
  S = pl.cdiv(T, size.k)
  a = pl.cdiv(T, size.q) - 1 - pl.program_id(0)         # the longest first
  q = tiles.load(q_ref, T, C, a * size.q, size.q)
  id_q = None if segment is None else tiles.row(segment, T, a * size.q, size.q, 0)

  def step(b, carry, masked):
    o, highest, total = carry
    k = tiles.load(k_ref, T, C, b * size.k, size.k)
    id_k = None if segment is None else tiles.row(segment, T, b * size.k, size.k, 0)
    score = _scores(q, k, scale, _sees(a, b, size, id_q, id_k) if masked else None)
    higher = jnp.maximum(highest, score.max(1))
    # a row that has seen nothing yet weighs MASKED alike; its first real score makes that nothing
    fade, weight = jnp.exp2(highest - higher), jnp.exp2(score - higher[:, None])
    v = tiles.load(v_ref, T, E, b * size.k, size.k)
    o = [x * fade[:, None] + plgpu.dot(weight.astype(y.dtype), y) for x, y in zip(o, v, strict=True)]
    return o, higher, total * fade + weight.sum(1)

  start = ([jnp.zeros((size.q, n), jnp.float32) for _, n in tiles.parts(E)], jnp.full((size.q,), MASKED, jnp.float32),
           jnp.zeros((size.q,), jnp.float32))
  o, highest, total = _over_keys(step, start, a, size, S, segment, shared_ref, own_ref)
  tiles.store(o_ref, T, E, a * size.q, size.q, [x / total[:, None] for x in o])
  inside = a * size.q + jnp.arange(size.q) < T if T % size.q else None
  plgpu.store(lse_ref.at[pl.ds(a * size.q, size.q)], highest / LOG2E + jnp.log(total), mask=inside)


def _dq(q_ref, k_ref, v_ref, segment, shared_ref, own_ref, do_ref, lse_ref, delta_ref, dq_ref, *, size: Blocks, T, C, E,
        scale):
  S = pl.cdiv(T, size.k)
  a = pl.cdiv(T, size.q) - 1 - pl.program_id(0)
  q, do = (tiles.load(ref, T, width, a * size.q, size.q) for ref, width in ((q_ref, C), (do_ref, E)))
  id_q = None if segment is None else tiles.row(segment, T, a * size.q, size.q, 0)
  lse, delta = (tiles.row(ref, T, a * size.q, size.q, 0.0) for ref in (lse_ref, delta_ref))

  def step(b, dq, masked):
    k, v = (tiles.load(ref, T, width, b * size.k, size.k) for ref, width in ((k_ref, C), (v_ref, E)))
    id_k = None if segment is None else tiles.row(segment, T, b * size.k, size.k, 0)
    score = _scores(q, k, scale, _sees(a, b, size, id_q, id_k) if masked else None)
    weight = jnp.exp2(score - (lse * LOG2E)[:, None])
    dscore = weight * (tiles.dot(do, v) - delta[:, None])
    return [x + plgpu.dot(dscore.astype(y.dtype), y) for x, y in zip(dq, k, strict=True)]

  dq = [jnp.zeros((size.q, n), jnp.float32) for _, n in tiles.parts(C)]
  dq = _over_keys(step, dq, a, size, S, segment, shared_ref, own_ref)
  tiles.store(dq_ref, T, C, a * size.q, size.q, [x * scale for x in dq])


def _dkv(q_ref, k_ref, v_ref, segment, upto_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref, *, size: Blocks, T, C, E,
         R, scale):
  Q, b = pl.cdiv(T, size.q), pl.program_id(0)
  k, v = (tiles.load(ref, T, width, b * size.k, size.k) for ref, width in ((k_ref, C), (v_ref, E)))
  id_k = None if segment is None else tiles.row(segment, T, b * size.k, size.k, 0)

  def step(a, carry, masked, r):
    dk, dv = carry
    q, do = (tiles.load(ref, T, width, a * size.q, size.q, (r,)) for ref, width in ((q_ref, C), (do_ref, E)))
    id_q = None if segment is None else tiles.row(segment, T, a * size.q, size.q, 0)
    lse, delta = (tiles.row(ref, T, a * size.q, size.q, 0.0, (r,)) for ref in (lse_ref, delta_ref))
    score = _scores(q, k, scale, _sees(a, b, size, id_q, id_k) if masked else None)
    weight = jnp.exp2(score - (lse * LOG2E)[:, None])
    dscore = weight * (tiles.dot(do, v) - delta[:, None])
    dv = [x + plgpu.dot(weight.astype(y.dtype).T, y) for x, y in zip(dv, do, strict=True)]
    return [x + plgpu.dot(dscore.astype(y.dtype).T, y) for x, y in zip(dk, q, strict=True)], dv

  first = jax.lax.div(b * size.k, size.q)
  if segment is None:
    behind = jnp.minimum(jax.lax.div((b + 1) * size.k + size.q - 2, size.q), Q)     # from here all queries see all keys
    runs = (first, behind, True), (behind, Q, False)
  else:
    runs = ((first, upto_ref[b], True),)

  def head(r, carry):
    for low, high, masked in runs:
      carry = jax.lax.fori_loop(low, high, functools.partial(step, masked=masked, r=r), carry)
    return carry
  zeros = lambda width: [jnp.zeros((size.k, n), jnp.float32) for _, n in tiles.parts(width)]
  dk, dv = jax.lax.fori_loop(0, R, head, (zeros(C), zeros(E)))
  tiles.store(dk_ref, T, C, b * size.k, size.k, [x * scale for x in dk])
  tiles.store(dv_ref, T, E, b * size.k, size.k, dv)


def _specs(T, R):
  """Blocks are whole rows of one head: the kernels cut them up themselves. (q-like, key-like, per-query) by width."""
  by_q = lambda width: pl.BlockSpec((None, T, None, tiles.covered(width)), lambda i, h, n: (n, 0, h, 0))
  by_k = lambda width: pl.BlockSpec((None, None, T, tiles.covered(width)), lambda i, h, n: (n, jax.lax.div(h, R), 0, 0))
  row = pl.BlockSpec((None, None, T), lambda i, h, n: (n, h, 0))
  return by_q, by_k, row


def _per_row(x):
  """The spec of [N, X], or None for None."""
  return None if x is None else pl.BlockSpec((None, x.shape[1]), lambda i, h, n: (n, 0))


def _limits(segment_NT, N, T, size: Blocks):
  return (None, None, None) if segment_NT is None else bounds(segment_NT, N, T, size.q, size.k)


@functools.partial(jax.jit, static_argnames=("interpret",))      # so that a shape is traced once
def forward(q_NTHC, k_NKTC, v_NKTE, segment_NT=None, *, interpret: bool = False):
  """(o [N, T, H, E], logsumexp of each query's scores [N, H, T])."""
  N, T, H, C = q_NTHC.shape
  K, E = v_NKTE.shape[1], v_NKTE.shape[3]
  size = blocks(T, C, E, q_NTHC.dtype, backward=False)
  by_q, by_k, row = _specs(T, H // K)
  shared_NQ, own_NQ, _ = _limits(segment_NT, N, T, size)
  return pl.pallas_call(
    functools.partial(_forward, size=size, T=T, C=C, E=E, scale=C**-0.5),
    grid=(pl.cdiv(T, size.q), H, N),
    in_specs=[by_q(C), by_k(C), by_k(E), *map(_per_row, (segment_NT, shared_NQ, own_NQ))],
    out_specs=[by_q(E), row],
    out_shape=[jax.ShapeDtypeStruct((N, T, H, E), v_NKTE.dtype), jax.ShapeDtypeStruct((N, H, T), jnp.float32)],
    compiler_params=plgpu.CompilerParams(num_warps=size.warps, num_stages=size.stages),
    interpret=interpret, name="attention_forward",
  )(q_NTHC, k_NKTC, v_NKTE, segment_NT, shared_NQ, own_NQ)


@functools.partial(jax.jit, static_argnames=("scale", "interpret"))
def backward(q_NTHC, k_NKTC, v_NKTE, segment_NT, o_NTHE, lse_NHT, do_NTHE, *, scale: float | None = None,
             interpret: bool = False):
  """Gradients of q, k and v. scale: of the scores, C**-0.5 by default."""
  N, T, H, C = q_NTHC.shape
  K, E = v_NKTE.shape[1], v_NKTE.shape[3]
  R = H // K
  scale = C**-0.5 if scale is None else scale
  size = blocks(T, C, E, q_NTHC.dtype, backward=True)
  delta_NHT = jnp.sum(o_NTHE.astype(jnp.float32) * do_NTHE.astype(jnp.float32), axis=-1).swapaxes(1, 2)
  shared_NQ, own_NQ, upto_NS = _limits(segment_NT, N, T, size)
  call = functools.partial(pl.pallas_call, interpret=interpret, compiler_params=plgpu.CompilerParams(
    num_warps=size.warps, num_stages=size.stages))
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  by_q, by_k, row = _specs(T, R)
  dq_NTHC = call(
    functools.partial(_dq, size=size, T=T, C=C, E=E, scale=scale),
    grid=(pl.cdiv(T, size.q), H, N),
    in_specs=[by_q(C), by_k(C), by_k(E), *map(_per_row, (segment_NT, shared_NQ, own_NQ)), by_q(E), row, row],
    out_specs=by_q(C), out_shape=shape(q_NTHC), name="attention_dq",
  )(q_NTHC, k_NKTC, v_NKTE, segment_NT, shared_NQ, own_NQ, do_NTHE, lse_NHT, delta_NHT)
  # the query heads of a key head together
  _, by_k, _ = _specs(T, 1)
  by_q = lambda width: pl.BlockSpec((None, T, R, tiles.covered(width)), lambda i, k, n: (n, 0, k, 0))
  row = pl.BlockSpec((None, R, T), lambda i, k, n: (n, k, 0))
  dk_NKTC, dv_NKTE = call(
    functools.partial(_dkv, size=size, T=T, C=C, E=E, R=R, scale=scale),
    grid=(pl.cdiv(T, size.k), K, N),
    in_specs=[by_q(C), by_k(C), by_k(E), *map(_per_row, (segment_NT, upto_NS)), by_q(E), row, row],
    out_specs=[by_k(C), by_k(E)], out_shape=[shape(k_NKTC), shape(v_NKTE)], name="attention_dkv",
  )(q_NTHC, k_NKTC, v_NKTE, segment_NT, upto_NS, do_NTHE, lse_NHT, delta_NHT)
  return dq_NTHC, dk_NKTC, dv_NKTE

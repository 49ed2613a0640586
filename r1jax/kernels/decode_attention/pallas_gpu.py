"""Decode attention for NVIDIA GPUs, by Pallas' Triton lowering: split over length (flash-decoding).

A program takes a block of queries of one key head and one part of the length, and leaves partial sums; split.py
joins them. The prompt's cache is read once for the G answers (through L2, where their queries fill several blocks).
Parts are equal in what is valid, not in what is allocated, so a long empty cache costs nothing.
Sized for Hopper's 227 KB of shared memory. Lowered and interpreted in the tests, not yet timed on a card.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from r1jax.kernels.decode_attention import split
from r1jax.kernels.decode_attention.cache import MASKED, Part

PROGRAMS = 264           # two for each of an H100's 132 multiprocessors
QUERIES = 64             # of a program, at most: a tensor core's block
TILE_BYTES = 2**14       # of keys (and as many of values) at a time, before pipelining
LATENT_TILE_BYTES = 2**16


def decode_attention(q_NSHC, prompt: Part, prompt_length_B, own: Part, sees_NSA, interpret: bool = False):
  partial = functools.partial(partial_sums, interpret=interpret)
  return split.decode_attention(partial, q_NSHC, prompt, prompt_length_B, own, sees_NSA)


def decode_latent_attention(q_NSHX, prompt: Part, prompt_length_B, own: Part, sees_NSA, kv_rank: int,
                            interpret: bool = False):
  partial = functools.partial(partial_sums, interpret=interpret)
  return split.decode_latent_attention(partial, q_NSHX, prompt, prompt_length_B, own, sees_NSA, kv_rank)


def _power(n: int) -> int:
  """Triton's arrays have powers of two for sizes, and its products at least 16."""
  return max(16, 1 << (n - 1).bit_length())


def partial_sums(q_NKMC, part: Part, length_N, sees_NSA, kv_rank=None, interpret=False) -> split.Sums:
  """split.Sums of every row. part: keys [N, K, C, T] and values [N, K, T, E], or latents [N, T, X]."""
  if part.k.dtype.itemsize == 1 and max(part.k.size, part.v.size if part.v is not None else 0) >= 2**31:
    raise NotImplementedError(f"an 8-bit cache of {part.k.shape}: Pallas' offsets end at 2^31 numbers")
  N, K, M, C = q_NKMC.shape
  T, E = (part.k.shape[1], kv_rank) if part.v is None else part.v.shape[2:]
  wide = max(q_NKMC.dtype.itemsize, part.k.dtype.itemsize)        # of what the products read
  rest = 0 if part.v is not None or C == E else _power(C - E)     # the keys' channels beyond the value
  channels = _power(C) if part.v is not None else E + max(rest, _power(E) - E)
  tile = (TILE_BYTES if part.v is not None else LATENT_TILE_BYTES) // (wide * _power(channels))
  block = min(max(16, tile), 128, _power(T))
  queries = min(_power(M), QUERIES if (part.v is not None and C <= 256) or wide < 4 else 16)
  q_blocks, blocks = pl.cdiv(M, queries), pl.cdiv(T, block)
  splits = max(1, min(blocks, pl.cdiv(PROGRAMS, N * K * q_blocks)))
  whole = blocks * block                                            # of the length, to full blocks
  at = lambda f: lambda h, i, n: f(h // q_blocks, h % q_blocks, i, n)
  of_queries = lambda width: pl.BlockSpec((None, None, None, queries, width), at(lambda k, m, i, n: (n, k, i, m, 0)))
  of_query = pl.BlockSpec((None, None, None, queries), at(lambda k, m, i, n: (n, k, i, m)))
  if part.v is None:
    k_spec, v_spec = pl.BlockSpec((None, whole, channels), at(lambda k, m, i, n: (n, 0, 0))), None
    k_scale_spec = v_scale_spec = pl.BlockSpec((None, whole), at(lambda k, m, i, n: (n, 0)))
  else:
    k_spec = pl.BlockSpec((None, None, channels, whole), at(lambda k, m, i, n: (n, k, 0, 0)))
    v_spec = pl.BlockSpec((None, None, whole, _power(E)), at(lambda k, m, i, n: (n, k, 0, 0)))
    k_scale_spec = v_scale_spec = pl.BlockSpec((None, None, whole), at(lambda k, m, i, n: (n, k, 0)))
  S = 0 if sees_NSA is None else sees_NSA.shape[1]
  given = [
    (q_NKMC, pl.BlockSpec((None, None, queries, channels), at(lambda k, m, i, n: (n, k, m, 0)))),
    (part.k, k_spec), (part.v, v_spec), (part.k_scale, k_scale_spec), (part.v_scale, v_scale_spec),
    (length_N.astype(jnp.int32), pl.BlockSpec((None,), at(lambda k, m, i, n: (n,)))),
    (None if sees_NSA is None else sees_NSA.astype(jnp.int8),
     pl.BlockSpec((None, max(S, 1), whole), at(lambda k, m, i, n: (n, 0, 0)))),
  ]
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  kernel = functools.partial(_kernel, M=M, C=C, E=E, T=T, block=block, splits=splits, heads=M // max(S, 1), rest=rest)
  out, highest, total = pl.pallas_call(
    kernel, grid=(K * q_blocks, splits, N), interpret=interpret, name="decode_attention",
    in_specs=[None if x is None else spec for x, spec in given],
    out_specs=[of_queries(_power(E)), of_query, of_query],
    out_shape=[f32((N, K, splits, M, E)), f32((N, K, splits, M)), f32((N, K, splits, M))],
    compiler_params=plgpu.CompilerParams(num_warps=4 if part.v is not None else 8, num_stages=2),
  )(*[x for x, _ in given])
  return split.Sums(highest, total, out)


def _kernel(q_ref, k_ref, v_ref, k_scale_ref, v_scale_ref, length_ref, sees_ref, o_ref, highest_ref, total_ref, *,
            M, C, E, T, block, splits, heads, rest):
  queries, width = q_ref.shape[0], _power(E)
  first = pl.program_id(0) % pl.cdiv(M, queries) * queries
  mine = first + jnp.arange(queries) < M
  dtype = split.working_dtype(q_ref.dtype, k_ref.dtype)
  latent = v_ref is None

  def load(ref, at, rows, columns, axes):
    """ref[at] in dtype, zero outside of rows < axes[0] and columns < axes[1]; masks only where needed."""
    mask = (rows < axes[0])[:, None] & (columns < axes[1])[None]
    zero = 0.0 if jnp.issubdtype(ref.dtype, jnp.floating) else 0        # float8 has no cast from integers
    return plgpu.load(ref.at[at], mask=mask, other=zero).astype(dtype)

  rows = first + jnp.arange(queries)
  value_part, rest_part = (pl.ds(0, width if latent else q_ref.shape[1]), pl.ds(E, max(rest, 16)))
  channel = jnp.arange(value_part.size)
  q = load(q_ref, (slice(None), value_part), rows, channel, (M, E if latent else C))
  q_rest = load(q_ref, (slice(None), rest_part), rows, E + jnp.arange(rest), (M, C)) if rest else None

  length = length_ref[...]
  blocks = pl.cdiv(length, block)
  each = pl.cdiv(blocks, splits)
  start = pl.program_id(1) * each

  def body(i, state):
    columns = pl.ds(i * block, block)
    t = i * block + jnp.arange(block)
    if latent:
      x = load(k_ref, (columns, value_part), t, channel, (T, E))
      score = split.product(q, x, 1)
      if rest:
        score += split.product(q_rest, load(k_ref, (columns, rest_part), t, E + jnp.arange(rest), (T, C)), 1)
    else:
      score = split.product(q, load(k_ref, (value_part, columns), channel, t, (C, T)), 0)
    score *= split.LOG2_E * C**-0.5
    scale = lambda ref: plgpu.load(ref.at[columns], mask=t < T, other=0.0)[None]
    if k_scale_ref is not None:
      score *= scale(k_scale_ref)
    visible = (t < length)[None]
    if sees_ref is not None:
      tokens = [plgpu.load(sees_ref.at[pl.ds(s, 1), columns], mask=(t < T)[None], other=0) != 0
                for s in range(sees_ref.shape[0])]
      visible &= split.seen(tokens, first, queries, heads)

    def values(weight):
      if latent:
        weight = weight if k_scale_ref is None else weight * scale(k_scale_ref)
        return split.product(weight.astype(dtype), x, 0)
      weight = weight if v_scale_ref is None else weight * scale(v_scale_ref)
      value = jnp.arange(width)
      return split.product(weight.astype(dtype), load(v_ref, (columns, slice(None)), t, value, (T, E)), 0)
    return split.update(state, score, visible, values)
  column = lambda fill: jnp.full((queries, 1), fill, jnp.float32)
  state = column(MASKED), column(0), jnp.zeros((queries, width), jnp.float32)
  highest, total, out = jax.lax.fori_loop(start, jnp.minimum(start + each, blocks), body, state)
  plgpu.store(highest_ref, highest.reshape(queries), mask=mine)
  plgpu.store(total_ref, total.reshape(queries), mask=mine)
  plgpu.store(o_ref, out, mask=mine[:, None] & (jnp.arange(width) < E)[None])

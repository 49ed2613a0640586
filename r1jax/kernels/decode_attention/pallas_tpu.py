"""Decode attention for TPUs, by Pallas' Mosaic lowering: a grid of rows and blocks of the length, sums on the chip.

A step takes one block of the keys and values of all key heads of a row, or of a prompt with the queries of its G
answers; the sums stay in VMEM over the blocks, and split.py joins the prompt's and the row's own. Blocks beyond what a
row sees are neither read nor computed. A core goes through the length in order: nothing is won there by splitting it.
Compiled for v5e, v5p and v6e in the tests where libtpu is, not yet timed on a device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.decode_attention import split
from r1jax.kernels.decode_attention.cache import MASKED, Part

BLOCK_BYTES = 2**20       # of keys (and as many of values) in VMEM, twice for the next block
OUT_BYTES = 2**20         # of the sums, likewise


def decode_attention(q_NSHC, prompt: Part, prompt_length_B, own: Part, sees_NSA, interpret: bool = False):
  partial = functools.partial(partial_sums, interpret=interpret)
  return split.decode_attention(partial, q_NSHC, prompt, prompt_length_B, own, sees_NSA)


def decode_latent_attention(q_NSHX, prompt: Part, prompt_length_B, own: Part, sees_NSA, kv_rank: int,
                            interpret: bool = False):
  partial = functools.partial(partial_sums, interpret=interpret)
  return split.decode_latent_attention(partial, q_NSHX, prompt, prompt_length_B, own, sees_NSA, kv_rank)


def partial_sums(q_NKMC, part: Part, length_N, sees_NSA, kv_rank=None, interpret=False) -> split.Sums:
  """split.Sums of every row, of one part. part: keys [N, K, C, T] and values [N, K, T, E], or latents [N, T, X]."""
  N, K, M, C = q_NKMC.shape
  latent = part.v is None
  # of latents, values of all channels where cutting them off would cut through a register
  T, E = (part.k.shape[1], kv_rank if kv_rank % 128 == 0 else C) if latent else part.v.shape[2:]
  whole = pl.cdiv(T, 128) * 128
  block = min(max(128, BLOCK_BYTES // (K * C * part.k.dtype.itemsize) // 128 * 128), 1024, whole)
  queries = min(max(16, OUT_BYTES // (4 * K * E) // 16 * 16), pl.cdiv(M, 16) * 16)
  q_NKMC = jnp.pad(q_NKMC, ((0, 0), (0, 0), (0, -M % queries), (0, 0)))
  S = 0 if sees_NSA is None else sees_NSA.shape[1]
  last = lambda n, j, length: jnp.minimum(j, jnp.maximum(pl.cdiv(length[n], block) - 1, 0))
  across = lambda n, m, j, length: (n, 0, last(n, j, length))              # [N, .., T] and [N, K, T]
  if latent:
    k_spec, v_spec = pl.BlockSpec((None, block, C), lambda n, m, j, length: (n, last(n, j, length), 0)), None
  else:
    k_spec = pl.BlockSpec((None, K, C, block), lambda n, m, j, length: (n, 0, 0, last(n, j, length)))
    v_spec = pl.BlockSpec((None, K, block, E), lambda n, m, j, length: (n, 0, last(n, j, length), 0))
  scale = lambda x: x if x is None or x.ndim == 3 else x[:, None]
  given = [
    (q_NKMC, pl.BlockSpec((None, K, queries, C), lambda n, m, j, length: (n, 0, m, 0))),
    (part.k, k_spec), (part.v, v_spec),
    (scale(part.k_scale), pl.BlockSpec((None, K, block), across)),
    (scale(part.v_scale), pl.BlockSpec((None, K, block), across)),
    (None if sees_NSA is None else sees_NSA.astype(jnp.int32), pl.BlockSpec((None, S, block), across)),
  ]
  out = lambda width: (jax.ShapeDtypeStruct((N, K, q_NKMC.shape[2], width), jnp.float32),
                       pl.BlockSpec((None, K, queries, width), lambda n, m, j, length: (n, 0, m, 0)))
  shapes, specs = zip(out(1), out(1), out(E), strict=True)
  kernel = functools.partial(_kernel, given=[x is not None for x, _ in given], T=T, heads=M // max(S, 1))
  highest, total, summed = pl.pallas_call(
    kernel, out_shape=shapes, interpret=interpret, name="decode_attention",
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(N, q_NKMC.shape[2] // queries, pl.cdiv(T, block)), out_specs=specs,
      in_specs=[spec for x, spec in given if x is not None]),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
  )(length_N.astype(jnp.int32), *[x for x, _ in given if x is not None])
  column = lambda x: x[:, :, None, :M, 0]
  return split.Sums(column(highest), column(total), summed[:, :, None, :M, :E if kv_rank is None else kv_rank])


def _kernel(length_ref, *refs, given, T, heads):
  refs = iter(refs)
  q_ref, k_ref, v_ref, k_scale_ref, v_scale_ref, sees_ref = (next(refs) if x else None for x in given)
  highest_ref, total_ref, o_ref = refs
  latent = v_ref is None
  K, queries, E = o_ref.shape
  block = k_ref.shape[0 if latent else 2]
  first, j = pl.program_id(1) * queries, pl.program_id(2)
  length = length_ref[pl.program_id(0)]
  dtype, narrow = split.working_dtype(q_ref.dtype, k_ref.dtype), k_ref.dtype.itemsize == 1
  widen = lambda x: (x.astype(jnp.float32) if narrow else x).astype(dtype)

  def clean(x, axis):
    """Zero beyond the array: what a ragged last block has there may be nan."""
    if T % block == 0:
      return x
    return jnp.where(j * block + jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < T, x, 0)

  @pl.when(j == 0)
  def _():
    highest_ref[...] = jnp.full_like(highest_ref, MASKED)
    total_ref[...] = jnp.zeros_like(total_ref)
    o_ref[...] = jnp.zeros_like(o_ref)

  @pl.when(j * block < length)
  def _():
    visible = j * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1) < length
    if sees_ref is not None:
      tokens = [sees_ref[pl.ds(s, 1), :] != 0 for s in range(sees_ref.shape[0])]
      visible &= split.seen(tokens, first, queries, heads)

    def head(k):
      scale = lambda ref: clean(ref[pl.ds(k, 1), :], 1)
      q = q_ref[k].astype(dtype)
      keys = clean(widen(k_ref[...]), 0) if latent else widen(k_ref[k])
      score = split.product(q, keys, 1 if latent else 0) * (split.LOG2_E * q.shape[1] ** -0.5)
      score = score if k_scale_ref is None else score * scale(k_scale_ref)

      def values(weight):
        ref = k_scale_ref if latent else v_scale_ref
        weight = (weight if ref is None else weight * scale(ref)).astype(dtype)
        return split.product(weight, keys[:, :E] if latent else clean(widen(v_ref[k]), 0), 0)
      state = split.update((highest_ref[k], total_ref[k], o_ref[k]), score, visible, values)
      highest_ref[k], total_ref[k], o_ref[k] = state
    for k in range(K):
      head(k)

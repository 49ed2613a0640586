"""token_logprobs for NVIDIA GPUs (Hopper first), Pallas's Triton lowering.

Forward: a program has a block of tokens and a share of the vocabulary's blocks; it loops over those and, within, over
D, keeps the online softmax's sums, and writes four numbers a token, which XLA adds up over the shares: no logits in
memory.

Backward: sums for all of D (128 tokens x D x 4 bytes) fit no SM, so neither gradient can stay on the chip while a
kernel loops over the vocabulary. Instead a kernel recomputes the logits of a strip of the vocabulary and writes their
gradient [M, strip] in hidden's type, which two products of XLA's (cuBLAS) take at full speed. Strips have M * strip <=
chunk * V: the memory of the chunked form or less. The head's gradient is written once, strip by strip, without an f32
accumulator of the head's size.

Products of f32 are as exact as jax_default_matmul_precision asks for (TF32 if it is not set, as elsewhere on GPUs).
Not run on a card yet: checked in the interpreter, and that it lowers. Blocks need 128 KB of shared memory (4 stages of
two 128 x 128-byte tiles), less than Hopper's 227. Letters: M tokens, m and v of a block; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from r1jax.kernels.token_logprobs import parts

TOKENS = VOCAB = 128
DEPTH_BYTES = 128     # of D at a time
PROGRAMS = 1024       # about, of the forward pass: some for each of 132 SMs, few partial results
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=4)


def _mask(ref_size: int, start, size: int):
  return start + jnp.arange(size) < ref_size


def _tile(ref, row, col, rows: int, cols: int):
  """[rows, cols] from there on, zero beyond the array."""
  M, N = ref.shape
  row_mask = _mask(M, row, rows)[:, None] if M % rows else None
  col_mask = _mask(N, col, cols)[None, :] if N % cols else None
  mask = row_mask if col_mask is None else col_mask if row_mask is None else row_mask & col_mask
  at = ref.at[pl.ds(row, rows), pl.ds(col, cols)]
  return plgpu.load(at) if mask is None else plgpu.load(at, mask=mask, other=0)


def _of_tokens(ref_M, row):
  return plgpu.load(ref_M.at[pl.ds(row, TOKENS)], mask=_mask(ref_M.shape[0], row, TOKENS), other=0)


def _logits(hidden_ref, head_ref, row, col, temperature, tied):
  """[m, v], f32, of the tokens from `row` and the vocabulary from `col`."""
  D = hidden_ref.shape[1]
  dtype = jnp.promote_types(hidden_ref.dtype, head_ref.dtype)
  depth = DEPTH_BYTES // jnp.dtype(dtype).itemsize

  def body(i, sum_mv):
    hidden_md = _tile(hidden_ref, row, i * depth, TOKENS, depth).astype(dtype)
    if tied:
      head = _tile(head_ref, col, i * depth, VOCAB, depth).astype(dtype)
    else:
      head = _tile(head_ref, i * depth, col, depth, VOCAB).astype(dtype)
    return sum_mv + plgpu.dot(hidden_md, head, trans_b=tied)
  sum_mv = jax.lax.fori_loop(0, pl.cdiv(D, depth), body, jnp.zeros((TOKENS, VOCAB), jnp.float32))
  return sum_mv * (1 / temperature)


def _stats_kernel(hidden_ref, head_ref, target_ref, *out_refs, temperature, tied, V, share, blocks):
  row, first = pl.program_id(0) * TOKENS, pl.program_id(1) * share
  target_m1 = _of_tokens(target_ref, row)[:, None]

  def body(j, s):
    col = (first + j) * VOCAB
    entry_1v = (col + jnp.arange(VOCAB))[None, :]
    logit_mv = _logits(hidden_ref, head_ref, row, col, temperature, tied)
    if V % VOCAB:
      logit_mv = jnp.where(entry_1v < V, logit_mv, parts.LOWEST)
    return parts.add_block(s, logit_mv, target_m1 == entry_1v)
  s = jax.lax.fori_loop(0, jnp.minimum(share, blocks - first), body, parts.none((TOKENS,)))
  for ref, value in zip(out_refs, s, strict=True):
    mask = _mask(ref.shape[1], row, TOKENS)
    plgpu.store(ref.at[pl.program_id(1), pl.ds(row, TOKENS)], value, mask=mask)


def stats(hidden_MD, head, target_M, temperature: float, tied: bool, interpret: bool = False) -> parts.Stats:
  """head: [V, D] if tied, else [D, V]; targets count from its start."""
  M, V = hidden_MD.shape[0], head.shape[0 if tied else 1]
  rows, blocks = pl.cdiv(M, TOKENS), pl.cdiv(V, VOCAB)
  share = pl.cdiv(blocks, max(1, min(blocks, PROGRAMS // rows)))
  shares = pl.cdiv(blocks, share)
  kernel = functools.partial(_stats_kernel, temperature=temperature, tied=tied, V=V, share=share, blocks=blocks)
  out = pl.pallas_call(
    kernel, out_shape=[jax.ShapeDtypeStruct((shares, M), jnp.float32)] * 4, grid=(rows, shares),
    compiler_params=PARAMS, interpret=interpret, name="token_logprobs_stats",
  )(hidden_MD, head, target_M.astype(jnp.int32))
  return parts.combine(parts.Stats(*out), lambda x: x.max(axis=0), lambda x: x.sum(axis=0))


def _gradient_kernel(hidden_ref, head_ref, target_ref, start_ref, *refs, temperature, tied):
  """The gradient of the logits of one block of the strip that starts at start_ref."""
  *token_refs, out_ref = refs
  row, col = pl.program_id(0) * TOKENS, pl.program_id(1) * VOCAB
  from_start = start_ref[0] + col
  logit_mv = _logits(hidden_ref, head_ref, row, from_start, temperature, tied)
  hit_mv = _of_tokens(target_ref, row)[:, None] == (from_start + jnp.arange(VOCAB))[None, :]
  d_mv = parts.logit_gradient(logit_mv, hit_mv, *(_of_tokens(ref, row)[:, None] for ref in token_refs))
  mask = _mask(out_ref.shape[0], row, TOKENS)[:, None] & _mask(out_ref.shape[1], col, VOCAB)[None, :]
  plgpu.store(out_ref.at[pl.ds(row, TOKENS), pl.ds(col, VOCAB)], (d_mv * (1 / temperature)).astype(out_ref.dtype),
              mask=mask)


def backward(hidden_MD, head, target_M, logsumexp_M, entropy_M, g_logp_M, g_entropy_M, temperature: float, chunk: int,
             tied: bool, dtypes, interpret: bool = False):
  """Gradients of hidden and of head in its own layout, of these types."""
  (M, D), axis = hidden_MD.shape, 0 if tied else 1
  V = head.shape[axis]
  strip = min(V, max(VOCAB, chunk * V // M // VOCAB * VOCAB))
  of_tokens = (logsumexp_M, entropy_M, g_logp_M, g_entropy_M)

  def add(start, width, sums):
    d_hidden_MD, d_head = sums
    d_Ms = pl.pallas_call(
      functools.partial(_gradient_kernel, temperature=temperature, tied=tied),
      out_shape=jax.ShapeDtypeStruct((M, width), hidden_MD.dtype), grid=(pl.cdiv(M, TOKENS), pl.cdiv(width, VOCAB)),
      compiler_params=PARAMS, interpret=interpret, name="token_logprobs_gradient",
    )(hidden_MD, head, target_M.astype(jnp.int32), jnp.full((1,), start, jnp.int32), *of_tokens)
    part = jax.lax.dynamic_slice_in_dim(head, start, width, axis)
    d_hidden_MD += jnp.dot(d_Ms, part if tied else part.T, preferred_element_type=jnp.float32)
    ends = (d_Ms.T, hidden_MD) if tied else (hidden_MD.T, d_Ms)
    d_part = jnp.dot(*ends, preferred_element_type=jnp.float32).astype(dtypes[1])
    return d_hidden_MD, jax.lax.dynamic_update_slice_in_dim(d_head, d_part, start, axis)

  sums = jnp.zeros((M, D), jnp.float32), jnp.zeros(head.shape, dtypes[1])
  full = V // strip
  if full > 1:
    sums = jax.lax.fori_loop(0, full, lambda i, sums: add(i * strip, strip, sums), sums)
  else:
    sums = add(0, strip, sums)
  if V % strip:
    sums = add(full * strip, V % strip, sums)
  return sums[0].astype(dtypes[0]), sums[1]

"""token_logprobs for TPUs, Pallas's Mosaic lowering: three kernels, no logits in memory.

Each multiplies a block of tokens by a block of the vocabulary, both with all of D on the chip. Forward: for a block of
tokens over the vocabulary's blocks, the online softmax's sums stay on the chip. dhidden: the same loop, the sum [m, D]
stays there; dhead: for a block of the vocabulary over the tokens' blocks, the sum [D, v] does. Both recompute the
logits. The outer block is as large as OUTER_BYTES allow: it says how often the other operand is read again.

VMEM_BYTES are asked for, which v5e, v5p and later have and v4 has not (16 MiB; take impl="chunked" there). Products of
f32 are as exact as jax_default_matmul_precision asks for. Not run on a TPU yet: checked in the interpreter, and
compiled for v5e, v5p and v6e.
Letters: M tokens, m and v of a block, 1 a kept axis; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.token_logprobs import parts

INNER = 256
OUTER_BYTES = 24 * 2**20
VMEM_BYTES = 56 * 2**20


def _outer(size: int, D: int, dtype) -> int:
  """Rows of a block: two buffers of its input and of its gradient, and an f32 sum, each of D columns."""
  fits = OUTER_BYTES // (D * (4 * jnp.dtype(dtype).itemsize + 4))
  largest = max(128, min(1024, 1 << (fits.bit_length() - 1)))
  return min(largest, pl.cdiv(size, 128) * 128)


def _params(*semantics):
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM_BYTES)


def _clean(x, axis: int, start, size: int):
  """Zero beyond the array: what a ragged last block has there may be nan."""
  if size % x.shape[axis] == 0:
    return x
  return jnp.where(start + jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < size, x, 0)


def _block(hidden_ref, head_ref, target_ref, start, V: int, temperature: float, tied: bool):
  """(hidden [m, D], the head's block, its logits [m, v], where the target is) for the vocabulary from `start`."""
  dtype = jnp.promote_types(hidden_ref.dtype, head_ref.dtype)
  hidden_mD = hidden_ref[...]
  head = _clean(head_ref[...], 0 if tied else 1, start, V)
  logit_mv = _product(hidden_mD.astype(dtype), head.astype(dtype), 1, 1 if tied else 0) * (1 / temperature)
  entry_mv = start + jax.lax.broadcasted_iota(jnp.int32, logit_mv.shape, 1)
  if V % logit_mv.shape[1]:
    logit_mv = jnp.where(entry_mv < V, logit_mv, parts.LOWEST)
  return hidden_mD, head, logit_mv, target_ref[...] == entry_mv


def _product(a, b, a_axis: int, b_axis: int):
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _stats_kernel(hidden_ref, head_ref, target_ref, *out_refs, V, temperature, tied):
  j = pl.program_id(1)

  @pl.when(j == 0)
  def _():
    for ref, value in zip(out_refs, parts.none(out_refs[0].shape), strict=True):
      ref[...] = value
  _, _, logit_mv, hit_mv = _block(hidden_ref, head_ref, target_ref, j * INNER, V, temperature, tied)
  s = parts.add_block(parts.Stats(*(ref[...] for ref in out_refs)), logit_mv, hit_mv)
  for ref, value in zip(out_refs, s, strict=True):
    ref[...] = value


def _head_spec(D: int, size: int, tied: bool, at):
  """at: which block of the vocabulary, of the grid's indices."""
  if tied:
    return pl.BlockSpec((size, D), lambda *i: (at(*i), 0))
  return pl.BlockSpec((D, size), lambda *i: (0, at(*i)))


def _padded(m: int, *arrays):
  """Rows to a multiple of m; [M] becomes [M, 1]."""
  pad = -arrays[0].shape[0] % m
  columns = [a if a.ndim == 2 else a[:, None] for a in arrays]
  return [jnp.pad(a, ((0, pad), (0, 0))) for a in columns] if pad else columns


def stats(hidden_MD, head, target_M, temperature: float, tied: bool, interpret: bool = False) -> parts.Stats:
  """head: [V, D] if tied, else [D, V]; targets count from its start."""
  (M, D), V = hidden_MD.shape, head.shape[0 if tied else 1]
  m = _outer(M, D, hidden_MD.dtype)
  hidden_MD, target_M1 = _padded(m, hidden_MD, target_M.astype(jnp.int32))
  column = pl.BlockSpec((m, 1), lambda i, j: (i, 0))
  out = pl.pallas_call(
    functools.partial(_stats_kernel, V=V, temperature=temperature, tied=tied),
    out_shape=[jax.ShapeDtypeStruct((hidden_MD.shape[0], 1), jnp.float32)] * 4,
    grid=(hidden_MD.shape[0] // m, pl.cdiv(V, INNER)),
    in_specs=[pl.BlockSpec((m, D), lambda i, j: (i, 0)), _head_spec(D, INNER, tied, lambda i, j: j), column],
    out_specs=[column] * 4, compiler_params=_params("parallel", "arbitrary"), interpret=interpret,
    name="token_logprobs_stats",
  )(hidden_MD, head, target_M1)
  return parts.Stats(*(x[:M, 0] for x in out))


def _gradient(refs, start, V, temperature, tied):
  """_block's hidden and head, and the gradient of the logits [m, v] in hidden's type."""
  hidden_ref, head_ref, target_ref, *columns = refs
  hidden_mD, head, logit_mv, hit_mv = _block(hidden_ref, head_ref, target_ref, start, V, temperature, tied)
  d_mv = parts.logit_gradient(logit_mv, hit_mv, *(ref[...] for ref in columns)) * (1 / temperature)
  return hidden_mD, head, d_mv.astype(hidden_mD.dtype)


def _sum_over(axis: int, part, sum_ref, out_ref):
  """Adds `part` to the sum that stays on the chip along a grid axis, and writes it at the end."""
  @pl.when(pl.program_id(axis) == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)
  sum_ref[...] += part

  @pl.when(pl.program_id(axis) == pl.num_programs(axis) - 1)
  def _():
    out_ref[...] = sum_ref[...].astype(out_ref.dtype)


def _d_hidden_kernel(*refs, V, temperature, tied):
  *ins, out_ref, sum_ref = refs
  _, head, d_mv = _gradient(ins, pl.program_id(1) * INNER, V, temperature, tied)
  dtype = jnp.promote_types(d_mv.dtype, head.dtype)
  _sum_over(1, _product(d_mv.astype(dtype), head.astype(dtype), 1, 0 if tied else 1), sum_ref, out_ref)


def _d_head_kernel(*refs, v, V, temperature, tied):
  *ins, out_ref, sum_ref = refs
  hidden_mD, _, d_mv = _gradient(ins, pl.program_id(0) * v, V, temperature, tied)
  ends = (d_mv, hidden_mD) if tied else (hidden_mD, d_mv)
  _sum_over(1, _product(*ends, 0, 0), sum_ref, out_ref)


def backward(hidden_MD, head, target_M, logsumexp_M, entropy_M, g_logp_M, g_entropy_M, temperature: float, tied: bool,
             dtypes, interpret: bool = False):
  """Gradients of hidden and of head in its own layout, of these types."""
  (M, D), V = hidden_MD.shape, head.shape[0 if tied else 1]
  m = _outer(M, D, hidden_MD.dtype)
  v = _outer(V, D, head.dtype)
  # rows that pad have gradients g of zero, so nothing comes of them
  args = _padded(m, hidden_MD, target_M.astype(jnp.int32), logsumexp_M, entropy_M, g_logp_M, g_entropy_M)
  args.insert(1, head)
  rows = args[0].shape[0]
  static = dict(V=V, temperature=temperature, tied=tied)

  def specs(m, v, row, entry):
    return [pl.BlockSpec((m, D), lambda *i: (row(*i), 0)), _head_spec(D, v, tied, entry),
            *[pl.BlockSpec((m, 1), lambda *i: (row(*i), 0))] * 5]
  d_hidden_MD = pl.pallas_call(
    functools.partial(_d_hidden_kernel, **static), out_shape=jax.ShapeDtypeStruct((rows, D), dtypes[0]),
    grid=(rows // m, pl.cdiv(V, INNER)), in_specs=specs(m, INNER, lambda i, j: i, lambda i, j: j),
    out_specs=pl.BlockSpec((m, D), lambda i, j: (i, 0)), scratch_shapes=[pltpu.VMEM((m, D), jnp.float32)],
    compiler_params=_params("parallel", "arbitrary"), interpret=interpret, name="token_logprobs_d_hidden",
  )(*args)
  inner = min(INNER, m)
  d_head = pl.pallas_call(
    functools.partial(_d_head_kernel, v=v, **static), out_shape=jax.ShapeDtypeStruct(head.shape, dtypes[1]),
    grid=(pl.cdiv(V, v), rows // inner), in_specs=specs(inner, v, lambda j, i: i, lambda j, i: j),
    out_specs=_head_spec(D, v, tied, lambda j, i: j),
    scratch_shapes=[pltpu.VMEM((v, D) if tied else (D, v), jnp.float32)],
    compiler_params=_params("parallel", "arbitrary"), interpret=interpret, name="token_logprobs_d_head",
  )(*args)
  return d_hidden_MD[:M], d_head

"""One softmax from partial ones: what the kernels leave of the parts of the length, and how it is joined
(flash-decoding; the max, sum and output of FlashAttention, 2205.14135, are associative).

The prompt's part has the G * M queries of a prompt, the own part the M queries of a row, M = S x heads of a key head.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.kernels.decode_attention.cache import MASKED, Part

LOG2_E = 1.4426950408889634     # the kernels' exponentials are powers of two: scores are multiplied by it


class Sums(NamedTuple):
  """Of I parts of the length: scores' maximum, sum of 2^(score - highest), and the values' sum with these weights."""
  highest: jax.Array          # f32 [rows, K, I, M]
  total: jax.Array            # f32 [rows, K, I, M]
  out: jax.Array              # f32 [rows, K, I, M, E]


def decode_attention(partial, q_NSHC, prompt: Part, prompt_length_B, own: Part, sees_NSA):
  """[N, S, H, E]. partial(q [rows, K, M, C], part, length of each row, sees or None) -> Sums."""
  N, S, H, C = q_NSHC.shape
  K = prompt.k.shape[1]
  q_NKMC = q_NSHC.reshape(N, S, K, H // K, C).swapaxes(1, 2).reshape(N, K, S * (H // K), C)
  o_NKME = _attend(partial, q_NKMC, prompt, prompt_length_B, own, sees_NSA)
  return o_NKME.reshape(N, K, S, H // K, -1).swapaxes(1, 2).reshape(N, S, H, -1)


def decode_latent_attention(partial, q_NSHX, prompt: Part, prompt_length_B, own: Part, sees_NSA, kv_rank: int):
  """[N, S, H, kv_rank]. partial has kv_rank in place of a v in its parts."""
  N, S, H, X = q_NSHX.shape
  o_N1MZ = _attend(functools.partial(partial, kv_rank=kv_rank), q_NSHX.reshape(N, 1, S * H, X), prompt,
                   prompt_length_B, own, sees_NSA)
  return o_N1MZ.reshape(N, S, H, kv_rank)


def _attend(partial, q_NKMC, prompt, prompt_length_B, own, sees_NSA):
  N, K, M, C = q_NKMC.shape
  B = prompt.k.shape[0]
  G = N // B
  of_prompt = partial(q_NKMC.reshape(B, G, K, M, C).swapaxes(1, 2).reshape(B, K, G * M, C), prompt,
                      prompt_length_B, None)
  columns = jnp.arange(1, sees_NSA.shape[2] + 1)
  own_length_N = jnp.max(jnp.where(sees_NSA.any(axis=1), columns, 0), axis=1).astype(jnp.int32)   # nothing beyond
  of_own = partial(q_NKMC, own, own_length_N, sees_NSA)

  def of_rows(x):
    x = x.reshape(B, K, x.shape[2], G, M, *x.shape[4:])
    return jnp.moveaxis(x, 3, 1).reshape(N, K, x.shape[2], M, *x.shape[5:])
  return join([jax.tree.map(of_rows, of_prompt), of_own]).astype(q_NKMC.dtype)


def join(sums: list[Sums]):
  """[rows, K, M, E], f32."""
  highest = functools.reduce(jnp.maximum, [s.highest.max(axis=2) for s in sums])
  total, out = 0.0, 0.0
  for s in sums:
    share = jnp.exp2(s.highest - highest[:, :, None])
    total += (s.total * share).sum(axis=2)
    out += (s.out * share[..., None]).sum(axis=2)
  return out / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]


def product(a, b, b_axis: int):
  """a's rows times b along b_axis, summed in f32; of f32, in full."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(a, b, (((1,), (b_axis,)), ((), ())), precision=precision,
                             preferred_element_type=jnp.float32)


def working_dtype(queries, cache):
  """What the kernels' products read: the queries' type, or the cache's where that is wider."""
  return queries if cache.itemsize == 1 else jnp.promote_types(queries, cache)


def seen(tokens: list, first_row, rows: int, heads: int):
  """[rows, columns], or [1, columns] of one token. tokens: bool [1, columns] of each; row m is of token m // heads."""
  if len(tokens) == 1:
    return tokens[0]
  row = first_row + jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
  out = tokens[0] & (row < heads)
  for s, token in enumerate(tokens[1:], 1):
    out |= token & (row >= s * heads) & (row < (s + 1) * heads)
  return out


def update(state, score, visible, values):
  """(highest, total, out) [rows, 1], [rows, 1], [rows, E] after a block: values(weight) is the weighted values' sum."""
  highest, total, out = state
  score = jnp.where(visible, score, MASKED)
  new = jnp.maximum(highest, jnp.max(score, axis=1, keepdims=True))
  weight = jnp.where(visible, jnp.exp2(score - new), 0.0)
  keep = jnp.exp2(highest - new)
  return new, total * keep + jnp.sum(weight, axis=1, keepdims=True), out * keep + values(weight)

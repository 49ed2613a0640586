"""Grouped-query attention (2305.13245): H query heads share K key/value heads, R = H / K each.

The functions of who sees whom (causal, shared_prompt, decode) are called `attend(q_NTHC, kv, cache)` by the layer and
divide scores by the root of q's width; the values may have another width (MLA).
Keys and values are laid out [N, K, T, C]; the decode step's keys [N, K, C, T], which thin products read in half the
time on CPU. Scores and softmax are f32. Letters here: S tokens of a row in one decode step, A columns of its cache.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.kernels import attention as kernels
from r1jax.kernels.decode_attention import decode_attention, quantise
from r1jax.kernels.rope import turn
from r1jax.models import rope
from r1jax.models.layers import linear, norm_params, rms_norm
from r1jax.models.param import Param, normal, zeros


class KV(NamedTuple):
  """Keys and values of one layer [N, K, T, C], or of all layers with a leading L."""
  k: jax.Array
  v: jax.Array


class Cached(NamedTuple):
  """Keys and values of one layer as decode steps read them. Of narrow types with one scale a token and key head."""
  k: jax.Array                         # [N, K, C, T]; latents (MLA): [N, T, X] with no v
  v: jax.Array | None = None           # [N, K, T, C]
  k_scale: jax.Array | None = None     # [N, K, T]; latents: [N, T]
  v_scale: jax.Array | None = None

  def part(self) -> tuple:
    return tuple(x for x in self if x is not None)


COLUMNS = Cached(3, 2, 2, 2)     # where each has its tokens


class DecodeCache(NamedTuple):
  """What G answers to each of B prompts can look back on in one layer: the prompt, held once, and what they said."""
  prompt: Cached
  own: Cached


def params(cfg):
  D, H, K, C = cfg.dim, cfg.heads, cfg.kv_heads, cfg.head_dim
  tree = dict(
    q=Param((D, H, C), ("embed", "heads", None), normal(D**-0.5)),
    k=Param((D, K, C), ("embed", "kv_heads", None), normal(D**-0.5)),
    v=Param((D, K, C), ("embed", "kv_heads", None), normal(D**-0.5)),
    out=Param((H, C, D), ("heads", None, "embed"), normal((H * C) ** -0.5 * cfg.out_std)),
  )
  if cfg.qkv_bias:
    tree |= {f"{x}_bias": Param((n, C), (axis, None), zeros)
             for x, n, axis in (("q", H, "heads"), ("k", K, "kv_heads"), ("v", K, "kv_heads"))}
  if cfg.qk_norm:
    tree |= dict(q_norm=norm_params(C), k_norm=norm_params(C))
  return tree


def block(p, cfg, x_NTD, turned: rope.Table, attend, cache=None):
  """x through the attention of one layer [N, T, D], and what `attend` kept of its keys and values.

  Biases are Qwen2's, norms over each head's channels Qwen3's.
  """
  q_NTHC, k_NTKC, v_NTKC = (linear(x_NTD, p[x]) for x in "qkv")
  if cfg.qkv_bias:
    q_NTHC, k_NTKC, v_NTKC = q_NTHC + p["q_bias"], k_NTKC + p["k_bias"], v_NTKC + p["v_bias"]
  if cfg.qk_norm:
    q_NTHC, k_NTKC = (rms_norm(x, p[name], cfg.norm_eps) for x, name in ((q_NTHC, "q_norm"), (k_NTKC, "k_norm")))
  q_NTHC, k_NTKC = turn(q_NTHC, k_NTKC, *turned)
  o_NTHC, kept = attend(q_NTHC, KV(k_NTKC.swapaxes(1, 2), v_NTKC.swapaxes(1, 2)), cache)
  return linear(o_NTHC, p["out"], axes=2), kept


def causal(q_NTHC, kv: KV, cache=None, segment_NT=None):
  """Each token sees itself and what came before. Right-padding needs no mask: it is never looked at.

  segment_NT: of packed rows; a token sees its own segment alone. Returns [N, T, H, C], and kv as the cache to keep.
  """
  del cache
  return kernels.attention(q_NTHC, kv.k, kv.v, segment_NT), kv


def shared_prompt(P: int, G: int, prompt_length_B, q_BSHC, kv: KV, cache=None):
  """Rows of one prompt followed by its G answers, S = P + G * A: the prompt is computed once for all of them.

  Prompt tokens are causal; answer tokens see the prompt's valid tokens and, causally, their own answer. Exact, in value
  and gradient, as if each answer stood behind a prompt of its own. Returns [B, S, H, C], and None.
  """
  del cache
  return kernels.shared_prompt(P, G, prompt_length_B, q_BSHC, kv.k, kv.v), None


def cached(kv: KV, dtype) -> Cached:
  """Keys and values [N, K, T, C] as a decode step wants them."""
  if narrow(dtype):
    (k, k_scale), (v, v_scale) = (quantise(x, dtype, 3) for x in kv)
    return Cached(k.swapaxes(2, 3), v, k_scale, v_scale)
  return Cached(kv.k.swapaxes(2, 3).astype(dtype), kv.v.astype(dtype))


def narrow(dtype) -> bool:
  """Whether values of this type need a scale."""
  return jnp.dtype(dtype).itemsize == 1


def empty(cfg, N: int, T: int, dtype) -> Cached:
  """Room for T tokens of N rows."""
  zero = jnp.zeros((N, cfg.kv_heads, T, cfg.head_dim), dtype)
  scale = jnp.zeros(zero.shape[:3]) if narrow(dtype) else None
  return Cached(zero.swapaxes(2, 3), zero, scale, scale)


def write(cache: Cached, new: Cached, column, axes: Cached = COLUMNS) -> Cached:
  """The cache with tokens put at `column` and behind, the same for all rows."""
  put = lambda old, x, axis: None if x is None else jax.lax.dynamic_update_slice_in_dim(old, x, column, axis)
  return Cached(*map(put, cache, new, axes))


def decode(prompt_length_B, column, sees_NSA, q_NSHC, kv: KV, cache: DecodeCache):
  """S new tokens of every answer look at its prompt, at its own answer so far, and at each other.

  prompt_length_B: valid tokens of each prompt's cache. column: where the new tokens go in the own cache. sees_NSA:
  which of its columns each of them sees. Returns [N, S, H, C], and the own cache with the new tokens in it.
  """
  own = write(cache.own, cached(kv, cache.own.k.dtype), column)
  return decode_attention(q_NSHC, cache.prompt.part(), prompt_length_B, own.part(), sees_NSA), own


def extend(start, q_NTHC, kv: KV, cache: Cached):
  """The next T tokens of prompts whose first `start` are in the cache: a part of a prefill.

  Returns [N, T, H, C], and the cache with them in it.
  """
  N, T = q_NTHC.shape[:2]
  new = cached(kv, cache.k.dtype)
  sees_NTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (N, T, T))
  o_NTHC = decode_attention(q_NTHC, cache.part(), jnp.full(N, start), new.part(), sees_NTT)
  return o_NTHC, write(cache, new, start)

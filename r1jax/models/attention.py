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

from r1jax.kernels.decode_attention import decode_attention, quantise
from r1jax.models import rope
from r1jax.models.layers import linear, norm_params, rms_norm
from r1jax.models.param import Param, normal, zeros

MASKED = -1e30   # not -inf: a row with nothing to see must stay finite


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
  q_NTHC, k_NTKC = rope.turn(q_NTHC, turned), rope.turn(k_NTKC, turned)
  o_NTHC, kept = attend(q_NTHC, KV(k_NTKC.swapaxes(1, 2), v_NTKC.swapaxes(1, 2)), cache)
  return linear(o_NTHC, p["out"], axes=2), kept


def _sees(R: int, T: int):
  """[R * T, T]: query heads of one key head lie one after the other; token t sees itself and what came before."""
  return jnp.tile(jnp.tril(jnp.ones((T, T), bool)), (R, 1))


def _scores(q, k, sees):
  """q k^T where `sees`, f32. One axis of queries [..., M, C], M = heads x tokens: the gradients contract one axis."""
  score = jnp.einsum("...mc,...sc->...ms", q, k, preferred_element_type=jnp.float32)
  return jnp.where(sees, score, MASKED)


def causal(q_NTHC, kv: KV, cache=None, segment_NT=None):
  """Each token sees itself and what came before. Right-padding needs no mask: it is never looked at.

  segment_NT: of packed rows; a token sees its own segment alone. Returns [N, T, H, C], and kv as the cache to keep.
  """
  del cache
  N, T, H, C = q_NTHC.shape
  K = kv.k.shape[1]
  R = H // K
  q_NKMC = q_NTHC.reshape(N, T, K, R, C).transpose(0, 2, 3, 1, 4).reshape(N, K, R * T, C) * C**-0.5
  sees = _sees(R, T)
  if segment_NT is not None:
    same_NTT = segment_NT[:, :, None] == segment_NT[:, None, :]
    sees = sees & jnp.tile(same_NTT, (1, R, 1))[:, None]
  weight_NKMT = jax.nn.softmax(_scores(q_NKMC, kv.k, sees), axis=-1).astype(kv.v.dtype)
  o_NKMC = weight_NKMT @ kv.v
  o_NTKRC = o_NKMC.reshape(N, K, R, T, kv.v.shape[3]).transpose(0, 3, 1, 2, 4)
  return o_NTKRC.reshape(N, T, H, kv.v.shape[3]), kv


def shared_prompt(P: int, G: int, prompt_length_B, q_BSHC, kv: KV, cache=None):
  """Rows of one prompt followed by its G answers, S = P + G * A: the prompt is computed once for all of them.

  Prompt tokens are causal; answer tokens see the prompt's valid tokens and, causally, their own answer. Exact, in value
  and gradient, as if each answer stood behind a prompt of its own. Returns [B, S, H, C], and None.
  """
  del cache
  B, S, H, C = q_BSHC.shape
  K = kv.k.shape[1]
  A, R = (S - P) // G, H // K
  o_BPHC, _ = causal(q_BSHC[:, :P], KV(kv.k[:, :, :P], kv.v[:, :, :P]))
  q_BKGMC = q_BSHC[:, P:].reshape(B, G, A, K, R, C).transpose(0, 3, 1, 4, 2, 5).reshape(B, K, G, R * A, C) * C**-0.5
  k_BKGAC, v_BKGAC = (x[:, :, P:].reshape(B, K, G, A, x.shape[3]) for x in kv)
  valid_B11P = jnp.arange(P) < prompt_length_B[:, None, None, None]
  to_prompt = _scores(q_BKGMC.reshape(B, K, G * R * A, C), kv.k[:, :, :P], valid_B11P).reshape(B, K, G, R * A, P)
  to_own = _scores(q_BKGMC, k_BKGAC, _sees(R, A))
  # one softmax over both parts
  highest = jnp.maximum(to_prompt.max(-1, keepdims=True), to_own.max(-1, keepdims=True, initial=MASKED))
  highest = jax.lax.stop_gradient(highest)
  to_prompt, to_own = jnp.exp(to_prompt - highest), jnp.exp(to_own - highest)
  total = to_prompt.sum(-1, keepdims=True) + to_own.sum(-1, keepdims=True)
  to_prompt, to_own = to_prompt.astype(kv.v.dtype), to_own.astype(kv.v.dtype)
  o_BKMC = to_prompt.reshape(B, K, G * R * A, P) @ kv.v[:, :, :P]
  o_BKGMC = o_BKMC.reshape(B, K, G, R * A, kv.v.shape[3]) + to_own @ v_BKGAC
  o_BKGRAC = (o_BKGMC / total).astype(kv.v.dtype).reshape(B, K, G, R, A, kv.v.shape[3])
  o_BSHC = o_BKGRAC.transpose(0, 2, 4, 1, 3, 5).reshape(B, G * A, H, kv.v.shape[3])
  return jnp.concatenate([o_BPHC, o_BSHC], axis=1), None


def cached(kv: KV, dtype) -> Cached:
  """Keys and values [N, K, T, C] as a decode step wants them."""
  if narrow(dtype):
    (k, k_scale), (v, v_scale) = (quantise(x, dtype) for x in kv)
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

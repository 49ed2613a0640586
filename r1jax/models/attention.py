"""Grouped-query attention (2305.13245): H query heads share K key/value heads, R = H / K each.

Keys and values are laid out [N, K, T, C]: the decode step reads the cache as it lies. Scores and softmax are f32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.models.layers import linear, rope
from r1jax.models.param import Param, normal

MASKED = -1e30   # not -inf: a row with nothing to see must stay finite


class KV(NamedTuple):
  """Keys and values of one layer [N, K, T, C], or of all layers with a leading L."""
  k: jax.Array
  v: jax.Array


class DecodeCache(NamedTuple):
  """What G answers to each of B prompts can look back on in one layer: the prompt, held once, and what they said."""
  prompt: KV          # [B, K, P, C]
  own: KV             # [N, K, A, C]


def params(cfg):
  D, H, K, C = cfg.dim, cfg.heads, cfg.kv_heads, cfg.head_dim
  return dict(
    q=Param((D, H, C), ("embed", "heads", None), normal(D**-0.5)),
    k=Param((D, K, C), ("embed", "kv_heads", None), normal(D**-0.5)),
    v=Param((D, K, C), ("embed", "kv_heads", None), normal(D**-0.5)),
    out=Param((H, C, D), ("heads", None, "embed"), normal((H * C) ** -0.5 * cfg.out_std)),
  )


def project(p, cfg, x_NTD, position_NT):
  """Queries [N, T, H, C] and the KV [N, K, T, C] of these tokens, both with rotary positions applied."""
  q_NTHC = rope(linear(x_NTD, p["q"]), position_NT, cfg.rope_theta)
  k_NTKC = rope(linear(x_NTD, p["k"]), position_NT, cfg.rope_theta)
  v_NTKC = linear(x_NTD, p["v"])
  return q_NTHC, KV(k_NTKC.swapaxes(1, 2), v_NTKC.swapaxes(1, 2))


def causal(q_NTHC, kv: KV, cache=None):
  """Each token sees itself and what came before. Right-padding needs no mask: it is never looked at.

  Returns [N, T, H, C], and kv as the cache to keep.
  """
  del cache
  N, T, H, C = q_NTHC.shape
  K = kv.k.shape[1]
  q_NKRTC = q_NTHC.reshape(N, T, K, H // K, C).transpose(0, 2, 3, 1, 4) * C**-0.5
  score = jnp.einsum("nkrtc,nksc->nkrts", q_NKRTC, kv.k, preferred_element_type=jnp.float32)
  score = jnp.where(jnp.tril(jnp.ones((T, T), bool)), score, MASKED)
  weight = jax.nn.softmax(score, axis=-1).astype(kv.v.dtype)
  o_NKRTC = jnp.einsum("nkrts,nksc->nkrtc", weight, kv.v)
  return o_NKRTC.transpose(0, 3, 1, 2, 4).reshape(N, T, H, C), kv


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
  f32 = dict(preferred_element_type=jnp.float32)
  q_BKGRAC = q_BSHC[:, P:].reshape(B, G, A, K, R, C).transpose(0, 3, 1, 4, 2, 5) * C**-0.5
  k_BKGAC, v_BKGAC = (x[:, :, P:].reshape(B, K, G, A, C) for x in kv)
  to_prompt = jnp.einsum("bkgrac,bkpc->bkgrap", q_BKGRAC, kv.k[:, :, :P], **f32)
  to_prompt = jnp.where(jnp.arange(P) < prompt_length_B[:, None, None, None, None, None], to_prompt, MASKED)
  to_own = jnp.einsum("bkgrac,bkgsc->bkgras", q_BKGRAC, k_BKGAC, **f32)
  to_own = jnp.where(jnp.tril(jnp.ones((A, A), bool)), to_own, MASKED)
  weight = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1), axis=-1).astype(kv.v.dtype)
  o_BKGRAC = jnp.einsum("bkgrap,bkpc->bkgrac", weight[..., :P], kv.v[:, :, :P])
  o_BKGRAC += jnp.einsum("bkgras,bkgsc->bkgrac", weight[..., P:], v_BKGAC)
  o_BSHC = o_BKGRAC.transpose(0, 2, 4, 1, 3, 5).reshape(B, G * A, H, C)
  return jnp.concatenate([o_BPHC, o_BSHC], axis=1), None


def decode(prompt_length_B, t, q_N1HC, kv: KV, cache: DecodeCache):
  """One new token of every answer looks at its prompt, at its own answer so far, and at itself.

  prompt_length_B: valid tokens of each prompt's cache. t: the new token's index in its answer, the same for all.
  One softmax runs over both parts; the prompt's keys are read once for G answers.
  Returns [N, 1, H, C], and the layer's cache with the new token in it.
  """
  N, _, H, C = q_N1HC.shape
  B, K, P, _ = cache.prompt.k.shape
  A = cache.own.k.shape[2]
  G, R = N // B, H // K
  own = KV(*(jax.lax.dynamic_update_slice(old, new, (0, 0, t, 0)) for old, new in zip(cache.own, kv, strict=True)))
  q_NKRC = q_N1HC.reshape(N, K, R, C) * C**-0.5
  q_BKMC = q_NKRC.reshape(B, G, K, R, C).swapaxes(1, 2).reshape(B, K, G * R, C)
  f32 = dict(preferred_element_type=jnp.float32)
  to_prompt = jnp.einsum("bkmc,bkpc->bkmp", q_BKMC, cache.prompt.k, **f32)
  to_prompt = jnp.where(jnp.arange(P) < prompt_length_B[:, None, None, None], to_prompt, MASKED)
  to_prompt = to_prompt.reshape(B, K, G, R, P).swapaxes(1, 2).reshape(N, K, R, P)
  to_own = jnp.einsum("nkrc,nkac->nkra", q_NKRC, own.k, **f32)
  to_own = jnp.where(jnp.arange(A) <= t, to_own, MASKED)
  weight = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1), axis=-1).astype(kv.v.dtype)
  w_prompt = weight[..., :P].reshape(B, G, K, R, P).swapaxes(1, 2).reshape(B, K, G * R, P)
  o_prompt = jnp.einsum("bkmp,bkpc->bkmc", w_prompt, cache.prompt.v)
  o_prompt = o_prompt.reshape(B, K, G, R, C).swapaxes(1, 2).reshape(N, K, R, C)
  o = o_prompt + jnp.einsum("nkra,nkac->nkrc", weight[..., P:], own.v)
  return o.reshape(N, 1, H, C), DecodeCache(cache.prompt, own)

"""Grouped-query attention (2305.13245): H query heads share K key/value heads, R = H / K each.

The functions of who sees whom (causal, shared_prompt, decode) are called `attend(q_NTHC, kv, cache)` by the layer and
divide scores by the root of q's width; the values may have another width (MLA).
Keys and values are laid out [N, K, T, C]; the decode step's keys [N, K, C, T], which thin products read in half the
time on CPU. Scores and softmax are f32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.kernels import attention as kernels
from r1jax.kernels.attention import MASKED
from r1jax.models import rope
from r1jax.models.layers import linear, norm_params, rms_norm
from r1jax.models.param import Param, normal, zeros


class KV(NamedTuple):
  """Keys and values of one layer [N, K, T, C], or of all layers with a leading L."""
  k: jax.Array
  v: jax.Array


class DecodeCache(NamedTuple):
  """What G answers to each of B prompts can look back on in one layer: the prompt, held once, and what they said."""
  prompt: KV          # k [B, K, C, P], v [B, K, P, C]
  own: KV             # k [N, K, C, A], v [N, K, A, C]; latents (MLA) are k [N, 1, A, X] with no v

  @property
  def prompt_tokens(self) -> int:
    return (self.prompt.k if self.prompt.v is None else self.prompt.v).shape[2]


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


def decode_cache(prompt: KV, N: int, A: int) -> DecodeCache:
  """The cache of N answers of up to A tokens to the B prompts whose KV this is, N a multiple of B."""
  _, K, _, C = prompt.k.shape
  own = KV(jnp.zeros((N, K, C, A), prompt.k.dtype), jnp.zeros((N, K, A, C), prompt.v.dtype))
  return DecodeCache(KV(prompt.k.swapaxes(2, 3), prompt.v), own)


def decode(prompt_length_B, t, q_N1HC, kv: KV, cache: DecodeCache):
  """One new token of every answer looks at its prompt, at its own answer so far, and at itself.

  prompt_length_B: valid tokens of each prompt's cache. t: the new token's index in its answer, the same for all.
  One softmax runs over both parts; the prompt's keys are read once for G answers.
  Returns [N, 1, H, C], and the layer's cache with the new token in it.
  """
  N, _, H, C = q_N1HC.shape
  B, K, _, P = cache.prompt.k.shape
  A = cache.own.k.shape[3]
  G, R = N // B, H // K
  own = KV(jax.lax.dynamic_update_slice(cache.own.k, kv.k.swapaxes(2, 3), (0, 0, 0, t)),
           jax.lax.dynamic_update_slice(cache.own.v, kv.v, (0, 0, t, 0)))
  q_NKRC = q_N1HC.reshape(N, K, R, C) * C**-0.5
  q_BKMC = q_NKRC.reshape(B, G, K, R, C).swapaxes(1, 2).reshape(B, K, G * R, C)
  f32 = dict(preferred_element_type=jnp.float32)
  to_prompt = jnp.einsum("bkmc,bkcp->bkmp", q_BKMC, cache.prompt.k, **f32)
  to_prompt = jnp.where(jnp.arange(P) < prompt_length_B[:, None, None, None], to_prompt, MASKED)
  to_prompt = to_prompt.reshape(B, K, G, R, P).swapaxes(1, 2).reshape(N, K, R, P)
  to_own = jnp.einsum("nkrc,nkca->nkra", q_NKRC, own.k, **f32)
  to_own = jnp.where(jnp.arange(A) <= t, to_own, MASKED)
  weight = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1), axis=-1).astype(kv.v.dtype)
  w_prompt = weight[..., :P].reshape(B, G, K, R, P).swapaxes(1, 2).reshape(B, K, G * R, P)
  o_prompt = jnp.einsum("bkmp,bkpc->bkmc", w_prompt, cache.prompt.v)
  o_prompt = o_prompt.reshape(B, K, G, R, C).swapaxes(1, 2).reshape(N, K, R, C)
  o = o_prompt + jnp.einsum("nkra,nkac->nkrc", weight[..., P:], own.v)
  return o.reshape(N, 1, H, C), DecodeCache(cache.prompt, own)

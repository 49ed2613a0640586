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

from r1jax.kernels.rope import turn
from r1jax.models import rope
from r1jax.models.layers import linear, norm_params, rms_norm
from r1jax.models.param import Param, normal, zeros

MASKED = -1e30   # not -inf: a row with nothing to see must stay finite


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
  q_NTHC, k_NTKC = turn(q_NTHC, k_NTKC, *turned)
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

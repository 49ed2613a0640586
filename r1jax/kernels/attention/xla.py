"""Causal attention as plain products: the form for CPU. Scores are in memory, and autodiff keeps them for the gradient.

Query heads of one key head lie one after the other, so that one product serves them, and the gradients contract one
axis. Letters: E width of the values, M queries = heads x tokens; the rest in r1jax/types.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.kernels.attention.ref import MASKED, SHARED


def _sees(R: int, T: int):
  """[R * T, T]: query heads of one key head lie one after the other; token t sees itself and what came before."""
  return jnp.tile(jnp.tril(jnp.ones((T, T), bool)), (R, 1))


def _scores(q, k, sees):
  """q k^T where `sees`, f32. One axis of queries [..., M, C], M = heads x tokens: the gradients contract one axis."""
  score = jnp.einsum("...mc,...sc->...ms", q, k, preferred_element_type=jnp.float32)
  return jnp.where(sees, score, MASKED)


def attention(q_NTHC, k_NKTC, v_NKTE, segment_NT=None):
  N, T, H, C = q_NTHC.shape
  K, E = v_NKTE.shape[1], v_NKTE.shape[3]
  R = H // K
  q_NKMC = q_NTHC.reshape(N, T, K, R, C).transpose(0, 2, 3, 1, 4).reshape(N, K, R * T, C) * C**-0.5
  sees = _sees(R, T)
  if segment_NT is not None:
    same_NTT = segment_NT[:, :, None] == segment_NT[:, None, :]
    same_NTT |= (segment_NT == SHARED)[:, None, :]
    sees = sees & jnp.tile(same_NTT, (1, R, 1))[:, None]
  weight_NKMT = jax.nn.softmax(_scores(q_NKMC, k_NKTC, sees), axis=-1).astype(v_NKTE.dtype)
  o_NKME = weight_NKMT @ v_NKTE
  return o_NKME.reshape(N, K, R, T, E).transpose(0, 3, 1, 2, 4).reshape(N, T, H, E)


def shared_prompt(P: int, G: int, prompt_length_B, q_BSHC, k_BKSC, v_BKSE):
  """attention on rows of P prompt tokens and G answers, without the answers' scores of each other."""
  B, S, H, C = q_BSHC.shape
  K, E = v_BKSE.shape[1], v_BKSE.shape[3]
  A, R = (S - P) // G, H // K
  o_BPHE = attention(q_BSHC[:, :P], k_BKSC[:, :, :P], v_BKSE[:, :, :P])
  q_BKGMC = q_BSHC[:, P:].reshape(B, G, A, K, R, C).transpose(0, 3, 1, 4, 2, 5).reshape(B, K, G, R * A, C) * C**-0.5
  k_BKGAC, v_BKGAE = (x[:, :, P:].reshape(B, K, G, A, x.shape[3]) for x in (k_BKSC, v_BKSE))
  valid_B11P = jnp.arange(P) < prompt_length_B[:, None, None, None]
  to_prompt = _scores(q_BKGMC.reshape(B, K, G * R * A, C), k_BKSC[:, :, :P], valid_B11P).reshape(B, K, G, R * A, P)
  to_own = _scores(q_BKGMC, k_BKGAC, _sees(R, A))
  # one softmax over both parts
  highest = jnp.maximum(to_prompt.max(-1, keepdims=True), to_own.max(-1, keepdims=True, initial=MASKED))
  highest = jax.lax.stop_gradient(highest)
  to_prompt, to_own = jnp.exp(to_prompt - highest), jnp.exp(to_own - highest)
  total = to_prompt.sum(-1, keepdims=True) + to_own.sum(-1, keepdims=True)
  to_prompt, to_own = to_prompt.astype(v_BKSE.dtype), to_own.astype(v_BKSE.dtype)
  o_BKME = to_prompt.reshape(B, K, G * R * A, P) @ v_BKSE[:, :, :P]
  o_BKGME = o_BKME.reshape(B, K, G, R * A, E) + to_own @ v_BKGAE
  o_BKGRAE = (o_BKGME / total).astype(v_BKSE.dtype).reshape(B, K, G, R, A, E)
  o_BSHE = o_BKGRAE.transpose(0, 2, 4, 1, 3, 5).reshape(B, G * A, H, E)
  return jnp.concatenate([o_BPHE, o_BSHE], axis=1)

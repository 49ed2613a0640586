"""Guesses for speculative decoding: what the text so far suggests, and DeepSeek-V3's multi-token prediction module.

The sampler checks guesses by drawing the tokens itself, so a guess changes only the time (sampler.step).
Letters: N rows, T tokens of prompt and answer so far, S tokens run in a step; the rest in r1jax/types.py.
"""

from __future__ import annotations

import jax.numpy as jnp

from r1jax.models import mtp as module
from r1jax.models.attention import causal


def right_aligned(prompt_BP, length_B):
  """The tokens of right-padded prompts at the end of their rows, -1 before them."""
  P = prompt_BP.shape[1]
  from_BP = jnp.arange(P) - (P - length_B[:, None])
  return jnp.where(from_BP >= 0, jnp.take_along_axis(prompt_BP, jnp.maximum(from_BP, 0), axis=1), -1)


def lookup(text_NT, length_N, token_N1, guesses: int):
  """Prompt look-up: [N, 1 + guesses], the pending token and what followed the last place that reads like the end.

  text_NT: prompt and answer, the pending token included, in columns up to length_N; -1 elsewhere. The place: the last
  where the two latest tokens stood before, else the latest one. Where there is none, and past the text, the guess is 0.
  """
  T = text_NT.shape[1]
  at_T = jnp.arange(T)
  last_N = length_N - 1
  before_N1 = jnp.take_along_axis(text_NT, jnp.maximum(last_N - 1, 0)[:, None], axis=1)
  same_NT = (text_NT == token_N1) & (at_T < last_N[:, None])
  both_NT = same_NT & (jnp.pad(text_NT, ((0, 0), (1, 0)), constant_values=-2)[:, :-1] == before_N1)
  place_N = jnp.max(jnp.where(both_NT, at_T + T, jnp.where(same_NT, at_T, -1)), axis=1)     # both: before the others
  from_NS = place_N[:, None] % T + 1 + jnp.arange(guesses)
  guess_NS = jnp.take_along_axis(text_NT, jnp.minimum(from_NS, T - 1), axis=1)
  known_NS = (place_N[:, None] >= 0) & (from_NS < length_N[:, None])
  return jnp.concatenate([token_N1, jnp.where(known_NS, jnp.maximum(guess_NS, 0), 0)], axis=1)


def mtp_prompt(params, model, hidden_BPD, next_BP, position_BP):
  """Keys and values of the module's layer over prompts: pairs (state at i, token i + 1); the last has no token yet."""
  keep = lambda q_NTHC, kv, cache: causal(q_NTHC, kv)
  return module.forward(params, model, hidden_BPD, next_BP, position_BP, keep)[1]


def mtp(params, model, hidden_NSD, next_NS, turned, attend, cache):
  """The module's states [N, S, D], which predict the token after `next_NS`, and its cache with the pairs in it."""
  return module.forward(params, model, hidden_NSD, next_NS, turned, attend, cache)

"""What token_logprobs computes, with all [M, V] logits in memory. Letters: M tokens, k kept of each; r1jax/types.py."""

import jax
import jax.numpy as jnp


def token_logprobs(hidden_MD, head_DV, target_M, temperature: float, kept_Mk=None):
  """log softmax(hidden head / temperature)[target] and that softmax's entropy, each [M], f32."""
  logp_MV = jax.nn.log_softmax(logits(hidden_MD, head_DV, temperature, kept_Mk))
  logp_M = jnp.take_along_axis(logp_MV, target_M[:, None], axis=1)[:, 0]
  return logp_M, -jnp.sum(jnp.exp(logp_MV) * logp_MV, axis=1)


def logits(hidden_MD, head_DV, temperature: float, kept_Mk=None):
  """[M, V], f32; those of tokens that are not kept are out of reach."""
  logit_MV = jnp.dot(hidden_MD, head_DV, preferred_element_type=jnp.float32) / temperature
  return logit_MV if kept_Mk is None else jnp.where(allowed(kept_Mk, head_DV.shape[1]), logit_MV, -1e30)


def allowed(kept_Mk, V: int):
  """[M, V]: whether a token is among those kept; -1 is none."""
  M = kept_Mk.shape[0]
  at_Mk = jnp.where(kept_Mk < 0, V, kept_Mk)               # out of bounds: dropped
  return jnp.zeros((M, V), bool).at[jnp.arange(M)[:, None], at_Mk].set(True, mode="drop")

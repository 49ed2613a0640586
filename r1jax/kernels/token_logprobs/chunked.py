"""token_logprobs as a scan over chunks of tokens in XLA: the CPU's way, and every platform's for a kept subset.

Logits live for `chunk` tokens at a time, in the forward pass and (recomputed) in the backward pass: memory is
chunk * V instead of M * V. Letters: M tokens, c of one chunk, k kept of each; the rest in r1jax/types.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.kernels.token_logprobs import parts
from r1jax.kernels.token_logprobs.ref import logits


def chunks(chunk: int, *arrays):
  """[M, ...] -> [M / chunk, chunk, ...], zero-padded. None stays None."""
  pad = -arrays[0].shape[0] % chunk
  split = lambda a: jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:])
  return jax.tree.map(split, arrays)


def _scan(one, M: int, chunk: int, *arrays):
  _, outs = jax.lax.scan(lambda _, inputs: (None, one(*inputs)), None, chunks(min(chunk, M), *arrays))
  return jax.tree.map(lambda x: x.reshape(-1)[:M], outs)


def forward(hidden_MD, head_DV, target_M, kept_Mk, temperature: float, chunk: int):
  """(logp_M, entropy_M) over the whole vocabulary."""
  def one(hidden_cD, target_c, kept_ck):
    logp_cV = jax.nn.log_softmax(logits(hidden_cD, head_DV, temperature, kept_ck))
    logp_c = jnp.take_along_axis(logp_cV, target_c[:, None], axis=1)[:, 0]
    return logp_c, -jnp.sum(jnp.exp(logp_cV) * logp_cV, axis=1)
  return _scan(one, hidden_MD.shape[0], chunk, hidden_MD, target_M, kept_Mk)


def stats(hidden_MD, head_DV, target_M, kept_Mk, temperature: float, chunk: int) -> parts.Stats:
  """Of a head that is a slice of the vocabulary; targets and kept tokens count from its start."""
  def one(hidden_cD, target_c, kept_ck):
    logit_cV = logits(hidden_cD, head_DV, temperature, kept_ck)
    hit_cV = target_c[:, None] == jnp.arange(head_DV.shape[1])
    return parts.add_block(parts.none(target_c.shape), logit_cV, hit_cV)
  return _scan(one, hidden_MD.shape[0], chunk, hidden_MD, target_M, kept_Mk)


def backward(hidden_MD, head_DV, target_M, kept_Mk, whole, g_logp_M, g_entropy_M, temperature: float, chunk: int,
             dtypes):
  """Gradients of hidden and head, of these types.

  whole: (logsumexp_M, entropy_M) of a vocabulary that the head is a slice of; None: the head is all of it.
  """
  M, V = hidden_MD.shape[0], head_DV.shape[1]

  def one(d_head_DV, inputs):
    hidden_cD, target_c, kept_ck, whole, g_logp_c, g_entropy_c = inputs
    logit_cV = logits(hidden_cD, head_DV, temperature, kept_ck)
    if whole is None:
      logp_cV = jax.nn.log_softmax(logit_cV)
      p_cV = jnp.exp(logp_cV)
      entropy_c1 = -jnp.sum(p_cV * logp_cV, axis=1, keepdims=True)
      onehot_cV = target_c[:, None] == jnp.arange(V)
      d_cV = g_logp_c[:, None] * (onehot_cV - p_cV) - g_entropy_c[:, None] * p_cV * (logp_cV + entropy_c1)
    else:
      hit_cV = target_c[:, None] == jnp.arange(V)
      d_cV = parts.logit_gradient(logit_cV, hit_cV, *(x[:, None] for x in (*whole, g_logp_c, g_entropy_c)))
    d_cV = (d_cV / temperature).astype(hidden_cD.dtype)
    d_head_DV += jnp.dot(hidden_cD.T, d_cV, preferred_element_type=jnp.float32)
    d_hidden_cD = jnp.dot(d_cV, head_DV.T, preferred_element_type=jnp.float32 if dtypes[0] == jnp.float32 else None)
    return d_head_DV, d_hidden_cD.astype(dtypes[0])

  inputs = chunks(min(chunk, M), hidden_MD, target_M, kept_Mk, whole, g_logp_M, g_entropy_M)
  d_head_DV, d_hidden = jax.lax.scan(one, jnp.zeros(head_DV.shape, jnp.float32), inputs)
  return d_hidden.reshape(-1, hidden_MD.shape[1])[:M], d_head_DV.astype(dtypes[1])

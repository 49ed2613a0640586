"""Token log-probs without [N, T, V] in memory, cross-entropy, and means that stay sums until they are printed.

Letters: M tokens of any layout flattened, c tokens of one chunk; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mean:
  """A total and the weight to divide it by, once, after all micro-batches, devices and hosts were added up."""
  total: jax.Array
  weight: jax.Array

  def __add__(self, other: Mean) -> Mean:
    return Mean(self.total + other.total, self.weight + other.weight)

  def value(self):
    return self.total / jnp.maximum(self.weight, 1e-9)


@flax.struct.dataclass
class Max:
  """The largest of what it was added up from."""
  largest: jax.Array

  def __add__(self, other: Max) -> Max:
    return Max(jnp.maximum(self.largest, other.largest))

  def value(self):
    return self.largest


def masked_mean(x, mask) -> Mean:
  """Mean of x where mask is 1, x and mask of one shape."""
  return Mean(jnp.sum(x * mask), jnp.sum(mask))


def cross_entropy(logp_NT, mask_NT) -> Mean:
  """-log p, token mean: the pre-training and SFT loss."""
  return masked_mean(-logp_NT, mask_NT)


def _chunks(chunk, *arrays):
  """[M, ...] -> [M / chunk, chunk, ...], zero-padded. None stays None."""
  pad = -arrays[0].shape[0] % chunk
  split = lambda a: jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:])
  return jax.tree.map(split, arrays)


def _logits(hidden_cD, head_DV, temperature, kept_ck):
  logit_cV = jnp.dot(hidden_cD, head_DV, preferred_element_type=jnp.float32) / temperature
  return logit_cV if kept_ck is None else jnp.where(allowed(kept_ck, head_DV.shape[1]), logit_cV, -1e30)


def allowed(kept_Mk, V: int):
  """[M, V]: whether a token is among those kept; -1 is none."""
  M = kept_Mk.shape[0]
  at_Mk = jnp.where(kept_Mk < 0, V, kept_Mk)               # out of bounds: dropped
  return jnp.zeros((M, V), bool).at[jnp.arange(M)[:, None], at_Mk].set(True, mode="drop")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def token_logprobs(hidden_MD, head_DV, target_M, temperature: float, chunk: int, kept_Mk=None):
  """log softmax(hidden head / temperature)[target] and the entropy of that softmax, each [M], f32.

  kept_Mk: the tokens that the softmax is over, -1 for none; None: all of the vocabulary.

  Logits live for `chunk` tokens at a time, in the forward pass and (recomputed) in the backward pass: memory
  is chunk * V instead of M * V. Differentiable in hidden and head, through both outputs.
  """
  def one(_, inputs):
    hidden_cD, target_c, kept_ck = inputs
    logp_cV = jax.nn.log_softmax(_logits(hidden_cD, head_DV, temperature, kept_ck))
    logp_c = jnp.take_along_axis(logp_cV, target_c[:, None], axis=1)[:, 0]
    return None, (logp_c, -jnp.sum(jnp.exp(logp_cV) * logp_cV, axis=1))
  M = hidden_MD.shape[0]
  _, outs = jax.lax.scan(one, None, _chunks(min(chunk, M), hidden_MD, target_M, kept_Mk))
  return tuple(o.reshape(-1)[:M] for o in outs)


def _forward(hidden_MD, head_DV, target_M, temperature, chunk, kept_Mk=None):
  out = token_logprobs(hidden_MD, head_DV, target_M, temperature, chunk, kept_Mk)
  return out, (hidden_MD, head_DV, target_M, kept_Mk)


def _backward(temperature, chunk, saved, grads):
  """d logp / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)."""
  hidden_MD, head_DV, target_M, kept_Mk = saved
  M, V = hidden_MD.shape[0], head_DV.shape[1]

  def one(d_head_DV, inputs):
    hidden_cD, target_c, kept_ck, g_logp_c, g_entropy_c = inputs
    logp_cV = jax.nn.log_softmax(_logits(hidden_cD, head_DV, temperature, kept_ck))
    p_cV = jnp.exp(logp_cV)
    entropy_c1 = -jnp.sum(p_cV * logp_cV, axis=1, keepdims=True)
    onehot_cV = target_c[:, None] == jnp.arange(V)
    d_cV = g_logp_c[:, None] * (onehot_cV - p_cV) - g_entropy_c[:, None] * p_cV * (logp_cV + entropy_c1)
    d_cV = (d_cV / temperature).astype(hidden_cD.dtype)
    d_head_DV += jnp.dot(hidden_cD.T, d_cV, preferred_element_type=jnp.float32)
    return d_head_DV, jnp.dot(d_cV, head_DV.T)

  inputs = _chunks(min(chunk, M), hidden_MD, target_M, kept_Mk, *grads)
  d_head_DV, d_hidden = jax.lax.scan(one, jnp.zeros(head_DV.shape, jnp.float32), inputs)
  return d_hidden.reshape(-1, hidden_MD.shape[1])[:M], d_head_DV.astype(head_DV.dtype), None, None


token_logprobs.defvjp(_forward, _backward)


def token_kl(student_MD, student_head_DV, teacher_MD, teacher_head_DV, temperature: float, chunk: int, reverse: bool):
  """KL between two policies' next-token distributions [M], f32, over the whole vocabulary; the teacher is constant.

  reverse False: KL(teacher || student), which covers all that the teacher does; True: KL(student || teacher), which
  keeps to what it does. Widths may differ, the vocabulary not. Logits live for `chunk` tokens, as in token_logprobs.
  """
  def one(_, inputs):
    student_cD, teacher_cD = inputs
    s_cV = jax.nn.log_softmax(_logits(student_cD, student_head_DV, temperature, None))
    t_cV = jax.lax.stop_gradient(jax.nn.log_softmax(_logits(teacher_cD, teacher_head_DV, temperature, None)))
    p_cV, q_cV = (s_cV, t_cV) if reverse else (t_cV, s_cV)
    return None, jnp.sum(jnp.exp(p_cV) * (p_cV - q_cV), axis=1)
  M = student_MD.shape[0]
  _, out = jax.lax.scan(jax.checkpoint(one), None, tuple(_chunks(min(chunk, M), student_MD, teacher_MD)))
  return out.reshape(-1)[:M]

"""Token log-probs without [N, T, V] in memory, cross-entropy, and means that stay sums until they are printed.

Letters: M tokens of any layout flattened, c tokens of one chunk; the rest in r1jax/types.py.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.kernels import token_logprobs as kernel
from r1jax.kernels.token_logprobs import parallel
from r1jax.kernels.token_logprobs.chunked import chunks
from r1jax.kernels.token_logprobs.ref import allowed, logits

__all__ = ["Max", "Mean", "allowed", "cross_entropy", "masked_mean", "token_kl", "token_logprobs"]


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


@jax.named_scope("head")
def token_logprobs(hidden_MD, head_DV, target_M, temperature: float, chunk: int, kept_Mk=None,
                   impl: str | None = None, tied: bool = False):
  """log softmax(hidden head / temperature)[target] and the entropy of that softmax, each [M], f32.

  Differentiable in hidden and head, through both outputs. Where the arguments are explained, and how it is computed on
  each platform: r1jax/kernels/token_logprobs. Under a mesh each device does its rows and its slice of the vocabulary.
  """
  mesh = sharding.split_mesh()
  if mesh is None:
    return kernel.token_logprobs(hidden_MD, head_DV, target_M, temperature, chunk, kept_Mk, impl, tied)
  rows, vocab = sharding.spec(mesh, ("token", "vocab"), (hidden_MD.shape[0], head_DV.shape[1]))
  return parallel.vocab_parallel(hidden_MD, head_DV, target_M, temperature, chunk, kept_Mk, impl, tied, mesh=mesh,
                                 rows=rows, vocab=vocab)


def token_kl(student_MD, student_head_DV, teacher_MD, teacher_head_DV, temperature: float, chunk: int, reverse: bool):
  """KL between two policies' next-token distributions [M], f32, over the whole vocabulary; the teacher is constant.

  reverse False: KL(teacher || student), which covers all that the teacher does; True: KL(student || teacher), which
  keeps to what it does. Widths may differ, the vocabulary not. Logits live for `chunk` tokens, as in token_logprobs.
  """
  def one(_, inputs):
    student_cD, teacher_cD = inputs
    s_cV = jax.nn.log_softmax(logits(student_cD, student_head_DV, temperature))
    t_cV = jax.lax.stop_gradient(jax.nn.log_softmax(logits(teacher_cD, teacher_head_DV, temperature)))
    p_cV, q_cV = (s_cV, t_cV) if reverse else (t_cV, s_cV)
    return None, jnp.sum(jnp.exp(p_cV) * (p_cV - q_cV), axis=1)
  M = student_MD.shape[0]
  _, out = jax.lax.scan(jax.checkpoint(one), None, tuple(chunks(min(chunk, M), student_MD, teacher_MD)))
  return out.reshape(-1)[:M]

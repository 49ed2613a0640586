"""Log-probs of given tokens and the softmax's entropy, from hidden states and head weights, without [M, V] in memory.

ref.py says what it computes. On CPU chunked.py does it (XLA, a scan over chunks of tokens); on NVIDIA GPUs and TPUs
Pallas kernels; on meshes parallel.py, with any of them on each device's slice of the vocabulary. Gradients belong to
the op: all but ref recompute the logits from hidden, head and, in the kernels, the saved logsumexp and entropy.
Letters: M tokens of any layout flattened, k kept of each; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from r1jax.kernels.token_logprobs import chunked, pallas_gpu, pallas_tpu, parts, ref

IMPLS = ("pallas_gpu", "pallas_tpu", "chunked", "ref")


def token_logprobs(hidden_MD, head_DV, target_M, temperature: float, chunk: int, kept_Mk=None,
                   impl: str | None = None, tied: bool = False):
  """log softmax(hidden head / temperature)[target] and the entropy of that softmax, each [M], f32.

  kept_Mk: the tokens that the softmax is over, -1 for none; None: all of the vocabulary. Given, every platform takes
  "chunked": the kernels have no subset, and say so if they are named.
  chunk: tokens whose logits (or logits' gradient) may be in memory at a time.
  impl: one of IMPLS; None takes the one for the platform that is lowered for.
  tied: head_DV is the transpose of an embedding [V, D]. The kernels' operands are row-major, so XLA would write a
  transposed copy of it for them; told so, they read embedding and write its gradient as they lie: transposing twice is
  no work for XLA. "chunked" needs no hint: XLA's products take either layout.
  """
  impl = checked(impl, kept_Mk)
  if impl == "ref":
    return ref.token_logprobs(hidden_MD, head_DV, target_M, temperature, kept_Mk)
  return _token_logprobs(hidden_MD, head_DV, target_M, kept_Mk, temperature, chunk, impl, tied)


def checked(impl, kept_Mk):
  """impl, or the one that kept_Mk leaves."""
  if impl not in (None, *IMPLS):
    raise ValueError(f"impl={impl!r} is none of {IMPLS}")
  if kept_Mk is not None and impl in ("pallas_gpu", "pallas_tpu"):
    raise NotImplementedError(f"impl={impl!r} has no softmax over kept_Mk {kept_Mk.shape}; impl='chunked' has")
  return "chunked" if kept_Mk is not None and impl is None else impl


def _pick(impl, gpu, tpu, xla, *args):
  if impl:
    return dict(pallas_gpu=gpu, pallas_tpu=tpu, chunked=xla)[impl](*args)
  return jax.lax.platform_dependent(*args, cuda=gpu, tpu=tpu, default=xla)


def stats(hidden_MD, head_DV, target_M, kept_Mk, temperature, chunk, impl, tied) -> parts.Stats:
  """Of a head that is a slice of the vocabulary."""
  def by(kernel):
    return lambda h, w, t, kept: kernel.stats(h, w.T if tied else w, t, temperature, tied)
  xla = functools.partial(chunked.stats, temperature=temperature, chunk=chunk)
  return _pick(impl, by(pallas_gpu), by(pallas_tpu), xla, hidden_MD, head_DV, target_M, kept_Mk)


def backward(hidden_MD, head_DV, target_M, kept_Mk, logsumexp_M, entropy_M, g_logp_M, g_entropy_M, temperature, chunk,
             impl, tied, part: bool, dtypes):
  """Gradients of hidden and head, of these types. part: the head is a slice of the vocabulary."""
  def by(kernel, **more):
    def run(h, w, t, kept, *rest):
      d_hidden_MD, d_head = kernel.backward(h, w.T if tied else w, t, *rest, temperature, tied=tied, dtypes=dtypes,
                                            **more)
      return d_hidden_MD, d_head.T if tied else d_head
    return run

  def xla(h, w, t, kept, logsumexp, entropy, *g):
    return chunked.backward(h, w, t, kept, (logsumexp, entropy) if part else None, *g, temperature, chunk, dtypes)
  return _pick(impl, by(pallas_gpu, chunk=chunk), by(pallas_tpu), xla, hidden_MD, head_DV, target_M, kept_Mk,
               logsumexp_M, entropy_M, g_logp_M, g_entropy_M)


def _run(hidden_MD, head_DV, target_M, kept_Mk, temperature, chunk, impl, tied):
  """(logp_M, entropy_M, logsumexp_M); chunked's backward pass has no use for the last, and gets zeros."""
  def by(kernel):
    return lambda h, w, t, kept: parts.finish(kernel.stats(h, w.T if tied else w, t, temperature, tied))

  def xla(h, w, t, kept):
    logp_M, entropy_M = chunked.forward(h, w, t, kept, temperature, chunk)
    return logp_M, entropy_M, jnp.zeros_like(logp_M)
  return _pick(impl, by(pallas_gpu), by(pallas_tpu), xla, hidden_MD, head_DV, target_M, kept_Mk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _token_logprobs(hidden_MD, head_DV, target_M, kept_Mk, temperature, chunk, impl, tied):
  return _run(hidden_MD, head_DV, target_M, kept_Mk, temperature, chunk, impl, tied)[:2]


def _forward(hidden_MD, head_DV, target_M, kept_Mk, temperature, chunk, impl, tied):
  logp_M, entropy_M, logsumexp_M = _run(hidden_MD, head_DV, target_M, kept_Mk, temperature, chunk, impl, tied)
  return (logp_M, entropy_M), (hidden_MD, head_DV, target_M, kept_Mk, logsumexp_M, entropy_M)


def _backward(temperature, chunk, impl, tied, saved, grads):
  dtypes = saved[0].dtype, saved[1].dtype
  return *backward(*saved, *grads, temperature, chunk, impl, tied, False, dtypes), None, None


_token_logprobs.defvjp(_forward, _backward)

"""Attention of decode steps: a few new tokens of every row look at their prompt's cache, shared by the G answers to it,
and at their own row's cache. For grouped queries and for the latents of MLA's absorbed form.

ref.py says what it computes. On CPU xla.py does it, on NVIDIA GPUs and TPUs Pallas kernels, which read the caches once
and split them over the length. Caches may be f32, bf16, or 8 bits with scales (quantise.py).
There is no gradient: nothing is learned through a decode step, and jax.grad says so.
Letters: S query tokens of a row, E value channels, X latent channels (those of the value, Z, first); the rest in
r1jax/types.py. A row's own cache has A columns.
"""

from __future__ import annotations

import functools

import jax

from r1jax.kernels import mesh
from r1jax.kernels.decode_attention import cache, pallas_gpu, pallas_tpu, ref, xla
from r1jax.kernels.decode_attention.quantise import quantise

__all__ = ["IMPLS", "decode_attention", "decode_latent_attention", "quantise"]

IMPLS = ("pallas_gpu", "pallas_tpu", "xla", "ref")


def decode_attention(q_NSHC, prompt, prompt_length_B, own, sees_NSA, impl: str | None = None):
  """softmax(q k^T / sqrt(C)) v over [prompt, own] of every row: [N, S, H, E], in q's dtype.

  Rows n = b * G + g belong to prompt b. prompt: (k [B, K, C, P], v [B, K, P, E]), valid up to prompt_length_B. own: (k
  [N, K, C, A], v [N, K, A, E]). Of int8 or float8_e4m3fn: (k, v, k_scale, v_scale), scales f32 [.., K, T].
  sees_NSA: bool, the columns of the own cache that each query token sees; it sees one at least, or its prompt has a
  token. impl: one of IMPLS; None takes the one for the platform that is lowered for, or "xla" under a mesh of several
  devices, over which XLA cannot split a kernel (inside a shard_map it takes the kernel again).
  """
  prompt, own = cache.parts("prompt", prompt), cache.parts("own", own)
  cache.check(q_NSHC, prompt, prompt_length_B, own, sees_NSA)
  return _run(q_NSHC, prompt, prompt_length_B, own, sees_NSA, None, _known(impl))


def decode_latent_attention(q_NSHX, prompt_BPX, prompt_length_B, own_NAX, sees_NSA, kv_rank: int,
                            impl: str | None = None):
  """The same over latents: one key head [.., X], whose first kv_rank channels are the value: [N, S, H, kv_rank].

  Scores are divided by the root of X. Of int8 or float8_e4m3fn, a cache is (x, scale), scale f32 [.., T].
  """
  prompt, own = cache.latents("prompt", prompt_BPX), cache.latents("own", own_NAX)
  cache.check_latents(q_NSHX, prompt, prompt_length_B, own, sees_NSA, kv_rank)
  return _run(q_NSHX, prompt, prompt_length_B, own, sees_NSA, kv_rank, _known(impl))


def _known(impl):
  if impl not in (None, *IMPLS):
    raise ValueError(f"impl={impl!r} is none of {IMPLS}")
  return "xla" if impl is None and mesh.splits() else impl


@functools.partial(jax.jit, static_argnums=(5, 6))        # traced once, however many layers call it
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _run(q, prompt, prompt_length_B, own, sees_NSA, kv_rank, impl):
  def of(module):
    if kv_rank is None:
      return module.decode_attention
    return functools.partial(module.decode_latent_attention, kv_rank=kv_rank)
  args = (q, prompt, prompt_length_B, own, sees_NSA)
  if impl:
    return of(dict(pallas_gpu=pallas_gpu, pallas_tpu=pallas_tpu, xla=xla, ref=ref)[impl])(*args)
  return jax.lax.platform_dependent(*args, cuda=of(pallas_gpu), tpu=of(pallas_tpu), default=of(xla))


def _no_gradient(*_):
  raise NotImplementedError("decode attention has no gradient: nothing is learned through a decode step")


_run.__wrapped__.defvjp(_no_gradient, _no_gradient)

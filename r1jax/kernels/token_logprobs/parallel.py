"""token_logprobs on a mesh: tokens over some of its axes, the vocabulary over another (as the parallel cross-entropy of
Megatron-LM, 1909.08053 section 3; here with the entropy).

Each device runs its platform's implementation on its tokens and its slice of the head. Four numbers a token cross the
vocabulary's axis (a maximum, three sums), and in the backward pass hidden's gradient [M, D], f32; the head's gradient
is summed over the tokens' axes, f32. The head is not gathered along the vocabulary. Pallas kernels, which XLA cannot
split by itself, need this on every mesh. Letters: M tokens, k kept of each; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from r1jax.kernels import token_logprobs as op
from r1jax.kernels.token_logprobs import parts


def vocab_parallel(hidden_MD, head_DV, target_M, temperature: float, chunk: int, kept_Mk=None,
                   impl: str | None = None, tied: bool = False, *, mesh, rows=None, vocab: str | None = None):
  """(logp_M, entropy_M), as of token_logprobs, on `mesh`.

  rows: the mesh axes (a name, a tuple of them, None) that M is split over; vocab: the one that V is. An axis that is
  neither repeats the work. chunk: tokens of a device whose logits may be in its memory at a time.
  """
  impl = op.checked(impl, kept_Mk)
  if impl == "ref":
    raise NotImplementedError("impl='ref' is not split over a mesh")
  for name, size, axes in (("M", hidden_MD.shape[0], rows), ("V", head_DV.shape[1], vocab)):
    if size % _ways(mesh, axes):
      raise ValueError(f"{name}={size} does not divide over {axes!r}, {_ways(mesh, axes)} devices")
  return _parallel(hidden_MD, head_DV, target_M, kept_Mk, (temperature, chunk, impl, tied), (mesh, rows, vocab))


def _names(axes) -> tuple[str, ...]:
  return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _ways(mesh, axes) -> int:
  return math.prod(mesh.shape[name] for name in _names(axes))


def _shard(f, how, outs: str, *args):
  """f on each device. Arguments: hidden, head, then arrays of tokens or None. outs: for each result h (as hidden), w
  (as head) or m (of tokens)."""
  mesh, rows, vocab = how
  by = dict(h=P(rows, None), w=P(None, vocab))
  spec = lambda i, x: by["hw"[i]] if i < 2 else P(rows, *[None] * (x.ndim - 1))
  in_specs = tuple(None if x is None else spec(i, x) for i, x in enumerate(args))
  out_specs = tuple(by.get(letter, P(rows)) for letter in outs)
  return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)


def _own(how, head, target_m, kept_mk):
  """Targets and kept tokens, counted from the start of this device's slice; elsewhere is negative or beyond."""
  vocab = how[2]
  start = jax.lax.axis_index(vocab) * head.shape[1] if vocab else 0
  return target_m - start, None if kept_mk is None else jnp.where(kept_mk < 0, -1, kept_mk - start)


def _sum(x, axes):
  return jax.lax.psum(x, _names(axes)) if axes else x


def _run(hidden_MD, head_DV, target_M, kept_Mk, static, how):
  vocab = how[2]

  def one(hidden, head, target, kept):
    s = op.stats(hidden, head, *_own(how, head, target, kept), *static)
    if vocab:
      s = parts.combine(s, lambda x: jax.lax.pmax(x, vocab), lambda x: jax.lax.psum(x, vocab))
    return parts.finish(s)
  return _shard(one, how, "mmm", hidden_MD, head_DV, target_M, kept_Mk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _parallel(hidden_MD, head_DV, target_M, kept_Mk, static, how):
  return _run(hidden_MD, head_DV, target_M, kept_Mk, static, how)[:2]


def _forward(hidden_MD, head_DV, target_M, kept_Mk, static, how):
  logp_M, entropy_M, logsumexp_M = _run(hidden_MD, head_DV, target_M, kept_Mk, static, how)
  return (logp_M, entropy_M), (hidden_MD, head_DV, target_M, kept_Mk, logsumexp_M, entropy_M)


def _backward(static, how, saved, grads):
  mesh, rows, vocab = how

  def one(hidden, head, target, kept, *of_tokens):
    # f32 where it is summed over devices; the head's gradient can be large
    dtypes = [x.dtype if _ways(mesh, axes) == 1 else jnp.float32 for x, axes in ((hidden, vocab), (head, rows))]
    d_hidden, d_head = op.backward(hidden, head, *_own(how, head, target, kept), *of_tokens, *static, True, dtypes)
    return _sum(d_hidden, vocab).astype(hidden.dtype), _sum(d_head, rows).astype(head.dtype)
  return *_shard(one, how, "hw", *saved, *grads), None, None


_parallel.defvjp(_forward, _backward)

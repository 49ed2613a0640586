"""Causal attention with segments over a sequence whose parts lie on different devices (ring attention, 2310.01889).

A device keeps its own queries. Keys and values go round: in each of W steps every device has the part of another one,
adds it to an online softmax (as xla.py's numbers, in another order), and passes it on. Only two parts of keys and
values and scores of one part by another are in memory; the gradient computes these anew. What all of a part's tokens
are before, it is not worth a product: such steps are passed over, which saves power, but not time, as the last device
has none of them.
Plain XLA on every platform: the kernels know no queries that begin behind the keys. Letters: W devices, E width of the
values, R query heads per key head, S keys of a part; the rest in r1jax/types.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.kernels.attention.ref import MASKED, SHARED


def attention(q_NTHC, k_NKSC, v_NKSE, segment_NT, axis: tuple[str, ...]):
  """[N, T, H, E] of this device's part of the sequence, in a shard_map. axis: the mesh axes that it is split over."""
  N, T, H, C = q_NTHC.shape
  K, E = v_NKSE.shape[1], v_NKSE.shape[3]
  W, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
  q_NKRTC = q_NTHC.reshape(N, T, K, H // K, C).transpose(0, 2, 3, 1, 4) * C**-0.5
  at_T = jnp.arange(T)

  def add(sums, part, source):
    """The softmax's sums with the keys and values of device `source`."""
    top_NKRT, total_NKRT, o_NKRTE = sums
    k_NKSC, v_NKSE, segment_NS = part
    sees = (source * T + at_T)[None, :] <= (me * T + at_T)[:, None]
    if segment_NT is not None:
      same_NTS = segment_NT[:, :, None] == segment_NS[:, None, :]
      sees = (sees & (same_NTS | (segment_NS == SHARED)[:, None, :]))[:, None, None]
    score = jnp.einsum("nkrtc,nksc->nkrts", q_NKRTC, k_NKSC, preferred_element_type=jnp.float32)
    score = jnp.where(sees, score, MASKED)
    new_NKRT = jax.lax.stop_gradient(jnp.maximum(top_NKRT, score.max(-1)))
    e = jnp.exp(score - new_NKRT[..., None])
    shrink_NKRT = jnp.exp(top_NKRT - new_NKRT)
    more = jnp.einsum("nkrts,nkse->nkrte", e.astype(v_NKSE.dtype), v_NKSE, preferred_element_type=jnp.float32)
    return new_NKRT, total_NKRT * shrink_NKRT + e.sum(-1), o_NKRTE * shrink_NKRT[..., None] + more

  def step(carry, i):
    sums, part = carry
    part = jax.tree.map(lambda x: jax.lax.ppermute(x, axis, [(w, (w + 1) % W) for w in range(W)]), part)
    source = (me - i) % W
    sums = jax.lax.cond(source < me, lambda sums: add(sums, part, source), lambda sums: sums, sums)
    return (sums, part), None

  # its own part comes first: every token sees itself, so the maximum is a score from then on
  zero = jnp.zeros(q_NKRTC.shape[:4], jnp.float32)
  part = (k_NKSC, v_NKSE, segment_NT)
  sums = jax.checkpoint(add)((zero + MASKED, zero, jnp.zeros((*zero.shape, E), jnp.float32)), part, me)
  ((_, total_NKRT, o_NKRTE), _), _ = jax.lax.scan(jax.checkpoint(step), (sums, part), jnp.arange(1, W))
  o_NKRTE = (o_NKRTE / total_NKRT[..., None]).astype(v_NKSE.dtype)
  return o_NKRTE.transpose(0, 3, 1, 2, 4).reshape(N, T, H, E)

"""Softmax, target and entropy from parts of the vocabulary: what one part leaves, how parts add up, and the gradient.

Shared by all implementations: a part is a kernel's block, a kernel's share of the blocks, or a device's slice of the
head. The sums are shifted by the maximum, the entropy's too, so that large logits lose no digits (as in the online
softmax, 1805.02867). Letters: m tokens and v vocabulary entries of a block, 1 a kept axis.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOWEST = -1e30        # finite: 0 * LOWEST is 0, not nan


class Stats(NamedTuple):
  """Of each token's logits l over some of the vocabulary, f32."""
  top: jax.Array        # max l
  total: jax.Array      # sum of e^(l - top)
  moment: jax.Array     # sum of e^(l - top) (l - top)
  target: jax.Array     # the target's logit; 0 where it is in another part


def none(shape) -> Stats:
  zero = jnp.zeros(shape, jnp.float32)
  return Stats(zero + LOWEST, zero, zero, zero)


def add_block(s: Stats, logit_mv, hit_mv) -> Stats:
  """s, [m] or [m, 1], with a block of logits more. hit_mv: where the target is."""
  keep = s.top.ndim == 2
  column = (lambda x: x) if keep else (lambda x: x[:, None])
  add = lambda x: jnp.sum(x, axis=1, keepdims=keep)
  top = jnp.maximum(s.top, jnp.max(logit_mv, axis=1, keepdims=keep))
  below_mv = logit_mv - column(top)
  e_mv = jnp.exp(below_mv)
  shift = s.top - top
  scale = jnp.exp(shift)
  return Stats(top, scale * s.total + add(e_mv), scale * (s.moment + shift * s.total) + add(e_mv * below_mv),
               s.target + add(jnp.where(hit_mv, logit_mv, 0.0)))


def combine(s: Stats, largest, add) -> Stats:
  """Of all parts. largest, add: max and sum over parts, along an axis or over devices."""
  top = largest(s.top)
  shift = s.top - top
  scale = jnp.exp(shift)
  return Stats(top, add(scale * s.total), add(scale * (s.moment + shift * s.total)), add(s.target))


def finish(s: Stats):
  """(log p of the target, entropy, logsumexp) from the stats of the whole vocabulary."""
  log_total = jnp.log(s.total)
  return s.target - s.top - log_total, log_total - s.moment / s.total, s.top + log_total


def logit_gradient(logit_mv, hit_mv, logsumexp_m1, entropy_m1, g_logp_m1, g_entropy_m1):
  """d logp / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)."""
  logp_mv = logit_mv - logsumexp_m1
  p_mv = jnp.exp(logp_mv)
  return g_logp_m1 * (jnp.where(hit_mv, 1.0, 0.0) - p_mv) - g_entropy_m1 * p_mv * (logp_mv + entropy_m1)

"""What causal attention with segments computes, with every score in memory."""

import jax
import jax.numpy as jnp

MASKED = -1e30   # not -inf: a row with nothing to see must stay finite
SHARED = -1      # the segment that all that stands behind it may see


def sees(segment_NT, T: int):
  """[N or 1, T, T]: token i sees j <= i of its own segment or of SHARED; without segments, all of them."""
  causal_1TT = jnp.tril(jnp.ones((1, T, T), bool))
  if segment_NT is None:
    return causal_1TT
  same_NTT = segment_NT[:, :, None] == segment_NT[:, None, :]
  return causal_1TT & (same_NTT | (segment_NT == SHARED)[:, None, :])


def attention(q_NTHC, k_NKTC, v_NKTE, segment_NT=None):
  """[N, T, H, E]: softmax over the keys that are seen of q k / sqrt(C), in f32, times v."""
  N, T, H, C = q_NTHC.shape
  K, E = v_NKTE.shape[1], v_NKTE.shape[3]
  q_NTKRC = q_NTHC.reshape(N, T, K, H // K, C)
  score_NKRTS = jnp.einsum("ntkrc,nksc->nkrts", q_NTKRC, k_NKTC, preferred_element_type=jnp.float32) * C**-0.5
  score_NKRTS = jnp.where(sees(segment_NT, T)[:, None, None], score_NKRTS, MASKED)
  weight_NKRTS = jax.nn.softmax(score_NKRTS, axis=-1).astype(v_NKTE.dtype)
  o_NTKRE = jnp.einsum("nkrts,nkse->ntkre", weight_NKRTS, v_NKTE, preferred_element_type=jnp.float32)
  return o_NTKRE.reshape(N, T, H, E).astype(v_NKTE.dtype)

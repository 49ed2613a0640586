"""What decode attention computes, with a copy of its prompt in front of every row, in f32."""

import jax
import jax.numpy as jnp

from r1jax.kernels.decode_attention.cache import MASKED, Part


def _wide(x, scale, axis):
  x = x.astype(jnp.float32)
  return x if scale is None else x * jnp.expand_dims(scale, axis)


def _sees(prompt_length_B, P, G, sees_NSA):
  """[N, S, P + A]"""
  N, S, _ = sees_NSA.shape
  valid_NP = jnp.repeat(jnp.arange(P) < prompt_length_B[:, None], G, axis=0)
  return jnp.concatenate([jnp.broadcast_to(valid_NP[:, None], (N, S, P)), sees_NSA], axis=2)


def decode_attention(q_NSHC, prompt: Part, prompt_length_B, own: Part, sees_NSA):
  """[N, S, H, E]"""
  N, S, H, C = q_NSHC.shape
  B, K, _, P = prompt.k.shape
  G, R = N // B, H // K
  with jax.default_matmul_precision("float32"):
    k_NKCT = jnp.concatenate([jnp.repeat(_wide(prompt.k, prompt.k_scale, 2), G, axis=0),
                              _wide(own.k, own.k_scale, 2)], axis=3)
    v_NKTE = jnp.concatenate([jnp.repeat(_wide(prompt.v, prompt.v_scale, 3), G, axis=0),
                              _wide(own.v, own.v_scale, 3)], axis=2)
    q_NSKRC = q_NSHC.astype(jnp.float32).reshape(N, S, K, R, C)
    score_NKRST = jnp.einsum("nskrc,nkct->nkrst", q_NSKRC, k_NKCT) * C**-0.5
    sees_NST = _sees(prompt_length_B, P, G, sees_NSA)
    weight_NKRST = jax.nn.softmax(jnp.where(sees_NST[:, None, None], score_NKRST, MASKED), axis=-1)
    o_NSKRE = jnp.einsum("nkrst,nkte->nskre", weight_NKRST, v_NKTE)
  return o_NSKRE.reshape(N, S, H, -1).astype(q_NSHC.dtype)


def decode_latent_attention(q_NSHX, prompt: Part, prompt_length_B, own: Part, sees_NSA, kv_rank: int):
  """[N, S, H, kv_rank]: one key head, whose value is the first kv_rank channels of its key."""
  def keys_and_values(part):
    x = _wide(part.k, part.k_scale, 2)[:, None]
    return Part(x.swapaxes(2, 3), x[..., :kv_rank])
  return decode_attention(q_NSHX, keys_and_values(prompt), prompt_length_B, keys_and_values(own), sees_NSA)

"""Decode steps of real models over long caches, and odd ones: bf16 and 8-bit caches, all columns seen.

Letters: N = B * G rows of S query tokens, H query heads, K key heads, C channels, P prompt, A own columns, X latents.
"""

import jax
import jax.numpy as jnp

from r1jax.kernels.case import Case
from r1jax.kernels.decode_attention.quantise import DTYPES, quantise

BF16, F32 = jnp.bfloat16, jnp.float32
MODELS = {                        # H, K, C
  "smollm2-135m": (9, 3, 64),
  "qwen3-0.6b": (16, 8, 128),
  "qwen2.5-7b": (28, 4, 128),
}
HEADS = [                         # model, B, G, S, P, A, queries' type, caches' type
  ("smollm2-135m", 4, 8, 1, 512, 4096, BF16, BF16),
  ("qwen3-0.6b", 4, 8, 1, 1024, 8192, BF16, BF16),
  ("qwen3-0.6b", 1, 16, 1, 2048, 32_768, BF16, BF16),
  ("qwen3-0.6b", 4, 8, 4, 1024, 8192, BF16, BF16),
  ("qwen3-0.6b", 4, 8, 1, 1024, 8192, BF16, jnp.int8),
  ("qwen3-0.6b", 4, 8, 1, 1024, 8192, BF16, jnp.float8_e4m3fn),
  ("qwen2.5-7b", 1, 16, 1, 2048, 32_768, BF16, BF16),
]
LATENTS = [                       # B, G, S, P, A, types; DeepSeek-V3: 128 heads of 576 channels, 512 of them the value
  (4, 8, 1, 2048, 8192, BF16, BF16),
  (1, 16, 1, 2048, 32_768, BF16, BF16),
  (4, 8, 2, 2048, 8192, BF16, BF16),
  (4, 8, 1, 2048, 8192, BF16, jnp.float8_e4m3fn),
]


def cases() -> list[Case]:
  """Of decode_attention."""
  real = [_heads(model, B, G, S, *MODELS[model], P, A, *types) for model, B, G, S, P, A, *types in HEADS]
  return real + [_heads("odd", 2, 3, 2, 6, 2, 20, 13, 37, F32, F32, small=True),
                 _heads("odd", 1, 3, 1, 7, 1, 64, 201, 129, F32, BF16, small=True)]


def latent_cases() -> list[Case]:
  """Of decode_latent_attention."""
  real = [_latents("deepseek-v3", B, G, S, 128, 576, 512, *rest) for B, G, S, *rest in LATENTS]
  return real + [_latents("odd", 2, 3, 2, 5, 24, 16, 13, 37, F32, F32, small=True)]


def _heads(model, B, G, S, H, K, C, P, A, query, kept, small=False) -> Case:
  N = B * G

  def make(key):
    draw = _draw(key)

    def part(rows, T):
      k, v = draw(rows, K, C, T), draw(rows, K, T, C)
      if kept not in DTYPES:
        return k.astype(kept), v.astype(kept)
      (k, k_scale), (v, v_scale) = quantise(k, kept, 2), quantise(v, kept, 3)
      return k, v, k_scale, v_scale
    return dict(q_NSHC=draw(N, S, H, C).astype(query), prompt=part(B, P), prompt_length_B=jnp.full(B, P, jnp.int32),
                own=part(N, A), sees_NSA=jnp.ones((N, S, A), bool))
  channels = 2 * jnp.dtype(kept).itemsize * C + (8 if kept in DTYPES else 0)       # of a token and key head
  return Case(_name(model, B, G, S, P, A, kept), make, flops=4.0 * N * S * H * C * (P + A), small=small,
              bytes=float(channels * K * (B * P + N * A) + 2 * jnp.dtype(query).itemsize * N * S * H * C))


def _latents(model, B, G, S, H, X, kv_rank, P, A, query, kept, small=False) -> Case:
  N = B * G

  def make(key):
    draw = _draw(key)
    part = lambda rows, T: quantise(draw(rows, T, X), kept, 2) if kept in DTYPES else draw(rows, T, X).astype(kept)
    return dict(q_NSHX=draw(N, S, H, X).astype(query), prompt_BPX=part(B, P), own_NAX=part(N, A), kv_rank=kv_rank,
                prompt_length_B=jnp.full(B, P, jnp.int32), sees_NSA=jnp.ones((N, S, A), bool))
  channels = jnp.dtype(kept).itemsize * X + (4 if kept in DTYPES else 0)           # of a token
  return Case(_name(model, B, G, S, P, A, kept), make, flops=2.0 * N * S * H * (X + kv_rank) * (P + A), small=small,
              bytes=float(channels * (B * P + N * A) + jnp.dtype(query).itemsize * N * S * H * (X + kv_rank)))


def _draw(key):
  """A function that draws arrays of given shapes, each from a key of its own."""
  count = iter(range(100))
  return lambda *shape: jax.random.normal(jax.random.fold_in(key, next(count)), shape, jnp.float32)


def _name(model, B, G, S, P, A, kept):
  return f"{model} {B} x {G} x {S} over {P} + {A} {jnp.dtype(kept).name}"

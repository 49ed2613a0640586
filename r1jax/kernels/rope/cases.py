"""Queries and keys of real models, 2 x 2,048 tokens, and odd ones. Letters: r1jax/types.py."""

import jax
import jax.numpy as jnp

from r1jax.kernels.case import Case

MODELS = {                                # heads of q and of k, C, interleaved
  "smollm2-135m": (9, 3, 64, False),
  "qwen2.5-1.5b": (12, 2, 128, False),
  "qwen2.5-7b": (28, 4, 128, False),
  "qwen3-8b": (32, 8, 128, False),
  "deepseek-v3": (128, 1, 64, True),
}
ODD = ((1, 1, 3, 1, 2, False), (2, 9, 3, 1, 12, False), (2, 17, 2, 2, 16, True))      # N, T, H, K, C, interleaved


def cases() -> list[Case]:
  real = [_case(name, 2, 2048, *sizes, jnp.bfloat16) for name, sizes in MODELS.items()]
  return real + [_case(" x ".join(map(str, sizes[:5])), *sizes, jnp.float32, True) for sizes in ODD]


def _case(name, N, T, H, K, C, interleaved, dtype, small=False) -> Case:
  def make(key):
    for_q, for_k, for_angle = jax.random.split(key, 3)
    q, k = jax.random.normal(for_q, (N, T, H, C), dtype), jax.random.normal(for_k, (N, T, K, C), dtype)
    angle = jax.random.uniform(for_angle, (N, T, 1, C // 2), maxval=2 * jnp.pi)
    return dict(q_NTHC=q, k_NTKC=k, cos=jnp.cos(angle), sin=jnp.sin(angle), interleaved=interleaved)
  turned = N * T * (H + K) * C
  return Case(name, make, flops=3.0 * turned, bytes=float(2 * jnp.dtype(dtype).itemsize * turned + 4 * N * T * C),
              small=small)

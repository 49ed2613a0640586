"""Shapes of real models' heads, 4,096 tokens of a micro-batch, and odd ones. Letters: M tokens; r1jax/types.py."""

import jax
import jax.numpy as jnp

from r1jax.kernels.case import Case

MODELS = {                     # D, V
  "smollm2-135m": (576, 49_152),
  "qwen2.5-1.5b": (1536, 151_936),
  "qwen2.5-7b": (3584, 152_064),
  "qwen3-0.6b": (1024, 151_936),
  "qwen3-8b": (4096, 151_936),
  "llama-3-8b": (4096, 128_256),
  "deepseek-v3": (7168, 129_280),
}
ODD = ((1, 64, 50_257), (13, 6, 11), (130, 96, 385))       # M, D, V


def cases() -> list[Case]:
  real = [_case(f"{name} 4096", 4096, D, V, jnp.bfloat16) for name, (D, V) in MODELS.items()]
  return real + [_case(f"{M} x {D} x {V}", M, D, V, jnp.float32, small=M * D * V < 1e7) for M, D, V in ODD]


def _case(name, M, D, V, dtype, small=False) -> Case:
  def make(key):
    keys = jax.random.split(key, 3)
    return dict(hidden_MD=jax.random.normal(keys[0], (M, D), dtype),
                head_DV=(jax.random.normal(keys[1], (D, V), jnp.float32) * 2 * D**-0.5).astype(dtype),
                target_M=jax.random.randint(keys[2], (M,), 0, V), temperature=0.8, chunk=2048)
  size = jnp.dtype(dtype).itemsize
  return Case(name, make, flops=2.0 * M * D * V, bytes=float(size * (M * D + D * V) + 12 * M), small=small)

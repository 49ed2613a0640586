"""Rows that real models norm, 4,096 tokens of a micro-batch, and odd ones. Letters: R rows, D columns."""

import jax
import jax.numpy as jnp

from r1jax.kernels.case import Case

MODELS = {                                # R, D, whether a residual is added
  "smollm2-135m": (4096, 576, True),
  "qwen2.5-1.5b": (4096, 1536, True),
  "qwen2.5-7b": (4096, 3584, True),
  "qwen3-8b": (4096, 4096, True),
  "qwen3-8b queries": (4096 * 32, 128, False),
  "deepseek-v3": (4096, 7168, True),
  "deepseek-v3 latents": (4096, 512, False),
}
ODD = ((1, 1, False), (5, 96, True), (37, 130, True))


def cases() -> list[Case]:
  real = [_case(name, *sizes, jnp.bfloat16) for name, sizes in MODELS.items()]
  return real + [_case(f"{R} x {D}", R, D, added, jnp.float32, True) for R, D, added in ODD]


def _case(name, R, D, added, dtype, small=False) -> Case:
  def make(key):
    x, residual, scale = (jax.random.normal(k, s, dtype) for k, s in zip(
      jax.random.split(key, 3), ((R, D), (R, D), (D,)), strict=True))
    return dict(x=x, scale=scale, eps=1e-6) | (dict(residual=residual) if added else {})
  arrays = 4 if added else 2
  return Case(name, make, flops=4.0 * R * D, bytes=float(jnp.dtype(dtype).itemsize * D * (arrays * R + 1)), small=small)

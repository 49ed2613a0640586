"""Shapes of fp8_matmul: the linear layers of DeepSeek-V3 that its report trains in FP8, and odd sizes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from r1jax.kernels.case import Case

# name, rows, input and output width, dtype, cheap
SHAPES = (
  ("deepseek-v3 dense gate, 4096 tokens", 4096, 7168, 18_432, "bfloat16", False),
  ("deepseek-v3 dense down, 4096 tokens", 4096, 18_432, 7168, "bfloat16", False),
  ("deepseek-v3 shared expert's gate, 4096 tokens", 4096, 7168, 2048, "bfloat16", False),
  ("deepseek-v3 attention's query up, 4096 tokens", 4096, 1536, 24_576, "bfloat16", False),
  ("deepseek-v3 attention's output, 4096 tokens", 4096, 16_384, 7168, "bfloat16", False),
  ("deepseek-v3 latent down, 4096 tokens", 4096, 7168, 576, "bfloat16", False),
  ("deepseek-v3 shared expert's gate, 32 tokens decoded", 32, 7168, 2048, "bfloat16", False),
  ("odd, bfloat16", 130, 300, 200, "bfloat16", True),
  ("odd, float32", 5, 129, 257, "float32", True),
  ("deepseek-v3 latent down, an eighth, float32", 256, 896, 576, "float32", True),
)


def make(key, M, D, F, dtype) -> dict:
  keys = jax.random.split(key)
  x_MD = jax.random.normal(keys[0], (M, D), dtype)
  return dict(x_MD=x_MD, w_DF=jax.random.normal(keys[1], (D, F), dtype) * jnp.asarray(D**-0.5, dtype))


def cases() -> list[Case]:
  out = []
  for name, M, D, F, dtype, small in SHAPES:
    moved = (M * D + D * F + M * F) * jnp.dtype(dtype).itemsize
    out.append(Case(name, functools.partial(make, M=M, D=D, F=F, dtype=dtype), flops=2.0 * M * D * F,
                    bytes=float(moved), tolerance=1e-2 if dtype == "bfloat16" else 1e-4, small=small))
  return out

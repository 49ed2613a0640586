"""Shapes of grouped_matmul: rows (tokens x experts a token), matrices of real mixtures of experts, and odd sizes.

The rows fall on the experts as a router without balance lets them: by a Dirichlet draw, some experts near empty. ref
computes every row with every expert, so M x E is kept to what fits a card beside the weights.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels.case import Case

# name, rows, experts, input and output width, dtype, rows that belong to no expert, cheap
SHAPES = (
  ("deepseek-v3 gate, 8 of 256 experts, 32768 rows", 32_768, 8, 7168, 2048, "bfloat16", 0, False),
  ("deepseek-v3 down, 8 of 256 experts, 32768 rows", 32_768, 8, 2048, 7168, "bfloat16", 0, False),
  ("deepseek-v3 gate, 32 of 256 experts, 8192 rows, 512 of them padding", 8192, 32, 7168, 2048, "bfloat16", 512, False),
  ("deepseek-v3 gate, 256 experts, 32 tokens decoded", 256, 256, 7168, 2048, "bfloat16", 0, False),
  ("qwen3-30b-a3b gate, 128 experts, 8192 rows", 8192, 128, 2048, 768, "bfloat16", 0, False),
  ("qwen3-30b-a3b down, 128 experts, 8192 rows", 8192, 128, 768, 2048, "bfloat16", 0, False),
  ("qwen3-30b-a3b gate, 128 experts, 64 tokens decoded", 512, 128, 2048, 768, "bfloat16", 0, False),
  ("odd, 5 experts, bfloat16", 517, 5, 200, 136, "bfloat16", 17, True),
  ("odd, 3 experts, float32", 150, 3, 65, 130, "float32", 7, True),
  ("qwen3-30b-a3b's expert, 4 experts, float32", 256, 4, 2048, 768, "float32", 0, True),
)


def counts(rows: int, experts: int, seed: int = 0) -> np.ndarray:
  """Rows of each expert, uneven."""
  rng = np.random.default_rng(seed)
  return rng.multinomial(rows, rng.dirichlet(np.ones(experts))).astype(np.int32)


def make(key, M, E, D, F, dtype, padding) -> dict:
  keys = jax.random.split(key)
  x_MD = jax.random.normal(keys[0], (M, D), dtype)
  w_EDF = jax.random.normal(keys[1], (E, D, F), dtype) * jnp.asarray(D**-0.5, dtype)
  return dict(x_MD=x_MD, w_EDF=w_EDF, count_E=jnp.asarray(counts(M - padding, E)))


def cases() -> list[Case]:
  out = []
  for name, M, E, D, F, dtype, padding, small in SHAPES:
    met = np.count_nonzero(counts(M - padding, E))      # matrices that any row needs
    moved = M * D + met * D * F + M * F
    out.append(Case(name, functools.partial(make, M=M, E=E, D=D, F=F, dtype=dtype, padding=padding),
                    flops=2.0 * (M - padding) * D * F, bytes=float(moved * jnp.dtype(dtype).itemsize),
                    tolerance=2e-2 if dtype == "bfloat16" else 1e-4, small=small))
  return out

"""Rows of real models, packed rows and shared prompts to check and time attention at, and two odd shapes.

Letters: r1jax/types.py and kernels/attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels.attention import shared_prompt_segments
from r1jax.kernels.case import Case


@dataclasses.dataclass(frozen=True)
class Heads:
  """Query heads, key heads, width of q and k, width of v."""
  H: int
  K: int
  C: int
  E: int


MODELS = {
  "smollm2-135m": Heads(9, 3, 64, 64),
  "qwen2.5-1.5b": Heads(12, 2, 128, 128),
  "qwen2.5-7b": Heads(28, 4, 128, 128),
  "qwen3-0.6b": Heads(16, 8, 128, 128),
  "qwen3-8b": Heads(32, 8, 128, 128),
  "llama-3-8b": Heads(32, 8, 128, 128),
  "deepseek-v3": Heads(128, 128, 192, 128),
}


def _case(name: str, heads: Heads, N: int, T: int, pairs: int, segment_T=None, dtype=jnp.bfloat16, **kwargs) -> Case:
  """pairs: (query, key) in a row that see each other. segment_T: of every row."""
  def make(key):
    a, b, c = jax.random.split(key, 3)
    draw = lambda key, *shape: jax.random.normal(key, shape, dtype)
    segment_NT = None if segment_T is None else jnp.tile(jnp.asarray(segment_T, jnp.int32), (N, 1))
    return dict(q_NTHC=draw(a, N, T, heads.H, heads.C), k_NKTC=draw(b, N, heads.K, T, heads.C),
                v_NKTE=draw(c, N, heads.K, T, heads.E), segment_NT=segment_NT)
  width = heads.C + heads.E
  return Case(name, make, flops=2.0 * N * heads.H * pairs * width,
              bytes=float(N * T * (heads.H + heads.K) * width * jnp.dtype(dtype).itemsize), **kwargs)


def _triangle(T: int) -> int:
  return T * (T + 1) // 2


def plain(name: str, heads: Heads, N: int, T: int, **kwargs) -> Case:
  return _case(f"{name} {N} x {T}", heads, N, T, _triangle(T), **kwargs)


def packed(name: str, heads: Heads, N: int, lengths: Sequence[int], padding: int, **kwargs) -> Case:
  """Samples of these lengths in each row."""
  segment_T = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, padding])
  pairs = sum(map(_triangle, (*lengths, padding)))
  return _case(f"{name} packed {N} x {len(segment_T)}", heads, N, len(segment_T), pairs, segment_T, **kwargs)


def shared(name: str, heads: Heads, N: int, P: int, valid: int, G: int, A: int, **kwargs) -> Case:
  segment_T = np.asarray(shared_prompt_segments(P, G, A, jnp.array([valid])))[0]
  pairs = _triangle(P) + G * (A * valid + _triangle(A))
  return _case(f"{name} {N} x ({P} + {G} x {A})", heads, N, P + G * A, pairs, segment_T, **kwargs)


def cases() -> list[Case]:
  return [
    *(plain(name, heads, 1, 4096) for name, heads in MODELS.items()),
    plain("qwen3-0.6b", MODELS["qwen3-0.6b"], 2, 16384),
    packed("qwen3-8b", MODELS["qwen3-8b"], 2, (1900, 1100, 700, 300), 96),
    shared("qwen3-0.6b", MODELS["qwen3-0.6b"], 1, 512, 400, 16, 256),
    shared("deepseek-v3", MODELS["deepseek-v3"], 1, 512, 500, 8, 512),
    plain("odd", Heads(4, 2, 40, 40), 2, 150, dtype=jnp.float32, tolerance=1e-5, small=True),
    shared("odd, as MLA", Heads(4, 2, 24, 16), 1, 70, 61, 3, 64, dtype=jnp.float32, tolerance=1e-5, small=True),
  ]

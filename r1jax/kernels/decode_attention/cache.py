"""A part of what decode steps look at, the prompt's or the answers' own, and whether its shapes are right."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.kernels.decode_attention.quantise import DTYPES

MASKED = -1e30   # not -inf: a row with nothing to see must stay finite


class Part(NamedTuple):
  """Keys [.., K, C, T] and values [.., K, T, E] with scales [.., K, T], or latents [.., T, X] with no v and [.., T]."""
  k: jax.Array
  v: jax.Array | None
  k_scale: jax.Array | None = None   # f32, of int8 and float8_e4m3fn
  v_scale: jax.Array | None = None


def parts(name: str, given) -> Part:
  """From the caller's (k, v) or (k, v, k_scale, v_scale)."""
  if not isinstance(given, tuple) or len(given) not in (2, 4):
    raise ValueError(f"{name} is a tuple (k, v) or (k, v, k_scale, v_scale), not {type(given).__name__}"
                     f"{f' of {len(given)}' if isinstance(given, tuple) else ''}")
  part = Part(*given)
  if part.k.dtype != part.v.dtype:
    raise ValueError(f"{name} k is {part.k.dtype.name} and v {part.v.dtype.name}")
  _check_scale(f"{name} k", part.k, part.k_scale, (*part.k.shape[:2], part.k.shape[3]))
  _check_scale(f"{name} v", part.v, part.v_scale, part.v.shape[:3])
  return part


def latents(name: str, given) -> Part:
  """From the caller's x or (x, scale)."""
  x, scale = given if isinstance(given, tuple) else (given, None)
  _check_scale(name, x, scale, x.shape[:2])
  return Part(x, None, scale)


def _check_scale(name, x, scale, shape):
  narrow = x.dtype in DTYPES
  if not narrow and not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"{name} is {x.dtype.name}: neither floating nor one of {[jnp.dtype(d).name for d in DTYPES]}")
  if narrow != (scale is not None):
    raise ValueError(f"{name} is {x.dtype.name}, {'with no' if narrow else 'and needs no'} scale")
  if narrow and (scale.shape != shape or scale.dtype != jnp.float32):
    raise ValueError(f"{name}'s scale is {scale.dtype.name} {scale.shape}, not float32 {shape}")


def check(q_NSHC, prompt: Part, prompt_length_B, own: Part, sees_NSA):
  """Keys and values [.., K, C, T] and [.., K, T, E]."""
  N, S, H, C = q_NSHC.shape
  B, K, _, P = prompt.k.shape
  A, E = own.v.shape[2:]
  for name, x, shape in (("prompt k", prompt.k, (B, K, C, P)), ("prompt v", prompt.v, (B, K, P, E)),
                         ("own k", own.k, (N, K, C, A)), ("own v", own.v, (N, K, A, E))):
    if x.shape != shape:
      raise ValueError(f"{name} is {x.shape}, not {shape}, beside queries {q_NSHC.shape}")
  if H % K:
    raise ValueError(f"{H} query heads are not a multiple of {K} key heads")
  _check_rows(N, S, A, B, prompt_length_B, sees_NSA)


def check_latents(q_NSHX, prompt: Part, prompt_length_B, own: Part, sees_NSA, kv_rank: int):
  N, S, _, X = q_NSHX.shape
  B, A = prompt.k.shape[0], own.k.shape[1]
  if prompt.k.ndim != 3 or prompt.k.shape[2] != X or own.k.shape != (N, A, X):
    raise ValueError(f"latents of the prompt {prompt.k.shape} and own {own.k.shape} beside queries {q_NSHX.shape}")
  if not 0 < kv_rank <= X:
    raise ValueError(f"kv_rank={kv_rank} must be within 1 and the latents' {X} channels")
  _check_rows(N, S, A, B, prompt_length_B, sees_NSA)


def _check_rows(N, S, A, B, prompt_length_B, sees_NSA):
  if N % B:
    raise ValueError(f"{N} rows are not a multiple of {B} prompts")
  if prompt_length_B.shape != (B,):
    raise ValueError(f"prompt_length_B is {prompt_length_B.shape}, not {(B,)}")
  if sees_NSA.shape != (N, S, A) or sees_NSA.dtype != bool:
    raise ValueError(f"sees_NSA is {sees_NSA.dtype.name} {sees_NSA.shape}, not bool {(N, S, A)}")

"""The parts that every decoder here shares: linear, RMSNorm, SwiGLU. Letters: r1jax/types.py."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.kernels.rms_norm import rms_norm
from r1jax.models.param import Param, normal, ones

__all__ = ["linear", "norm_params", "rms_norm", "swiglu", "swiglu_params"]


def linear(x, w, axes: int = 1):
  """Contracts the last `axes` axes of x with the first of w, as one two-dimensional matmul.

  The same numbers as an einsum; but its gradient for w contracts one axis, which CPU libraries do 1.5x faster than two.
  An einsum it is where rows and sequences are split: XLA cannot keep both splits in one flattened axis.
  """
  if sharding.ways("sequence") > 1:
    return jnp.tensordot(x, w, axes)
  inner = math.prod(w.shape[:axes])
  out = x.reshape(-1, inner) @ w.reshape(inner, -1)
  return out.reshape(*x.shape[:x.ndim - axes], *w.shape[axes:])


def norm_params(dim: int):
  return Param((dim,), (None,), ones)


def swiglu_params(dim: int, ffn: int, out_std: float):
  return dict(
    gate=Param((dim, ffn), ("embed", "ffn"), normal(dim**-0.5)),
    up=Param((dim, ffn), ("embed", "ffn"), normal(dim**-0.5)),
    down=Param((ffn, dim), ("ffn", "embed"), normal(out_std * ffn**-0.5)),
  )


def swiglu(p, x_NTD):
  """(silu(x gate) * (x up)) down (2002.05202)."""
  return linear(jax.nn.silu(linear(x_NTD, p["gate"])) * linear(x_NTD, p["up"]), p["down"])

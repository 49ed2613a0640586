"""What rms_norm computes (1910.07467)."""

import jax
import jax.numpy as jnp


def rms_norm(x, scale, eps: float):
  """x / rms(x) * scale over the last axis, in f32 whatever the input's type."""
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def add_rms_norm(x, residual, scale, eps: float):
  """(rms_norm(x + residual), x + residual)."""
  total = x + residual
  return rms_norm(total, scale, eps), total

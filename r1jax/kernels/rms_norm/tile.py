"""RMSNorm and its gradient on a kernel's block of whole rows. Letters: r rows, d columns of which the first D count.

What is beyond D is zero in x and in g.
"""

import jax
import jax.numpy as jnp


def _unit(x_rd, D: int, eps: float):
  """(x / rms, 1 / rms [r, 1]) in f32."""
  x_rd = x_rd.astype(jnp.float32)
  rate_r1 = jax.lax.rsqrt(jnp.sum(x_rd * x_rd, axis=1, keepdims=True) * (1 / D) + eps)
  return x_rd * rate_r1, rate_r1


def forward(x_rd, scale_1d, D: int, eps: float):
  return _unit(x_rd, D, eps)[0] * scale_1d.astype(jnp.float32)


def backward(x_rd, scale_1d, g_rd, D: int, eps: float):
  """(gradient of x, what each row adds to that of scale), f32."""
  unit_rd, rate_r1 = _unit(x_rd, D, eps)
  g_rd = g_rd.astype(jnp.float32)
  g_unit_rd = g_rd * scale_1d.astype(jnp.float32)
  along_r1 = jnp.sum(g_unit_rd * unit_rd, axis=1, keepdims=True) * (1 / D)
  return rate_r1 * (g_unit_rd - unit_rd * along_r1), g_rd * unit_rd

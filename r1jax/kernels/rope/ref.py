"""What turn computes (2104.09864). Letters: r1jax/types.py."""

import jax.numpy as jnp


def turn(x_NTHC, cos, sin, interleaved: bool = False):
  """Rotates x by its positions, in f32. Channel i is paired with i + C / 2, as in HF models.

  cos, sin: of each token's angles, [N, T, 1, C / 2]. interleaved: with its neighbour, as in DeepSeek's weights; what
  comes out is in the other order all the same, which changes no product of a query and a key.
  """
  x_NTHC32 = x_NTHC.astype(jnp.float32)
  a, b = (x_NTHC32[..., 0::2], x_NTHC32[..., 1::2]) if interleaved else jnp.split(x_NTHC32, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_NTHC.dtype)

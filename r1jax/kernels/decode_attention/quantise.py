"""Numbers of a cache in 8 bits: symmetric, one scale for each token and key head, over the channels.

x is about q * scale. int8 is off by half a scale at most; float8_e4m3fn by 1/16 of the number itself (three bits after
the leading one), or by scale / 1024 where the number is smaller than scale / 64.
"""

import jax.numpy as jnp

DTYPES = (jnp.int8, jnp.float8_e4m3fn)


def highest(dtype) -> float:
  """The largest number that is used of dtype; int8's -128 is not, so that signs are alike."""
  return 127.0 if dtype == jnp.int8 else float(jnp.finfo(dtype).max)


def quantise(x, dtype, axis: int):
  """(q, scale): x in dtype, and the f32 scales, x's shape without `axis`. Where all of x is zero, q is zero, scale 1.

  The keys of a cache [N, K, C, A] take axis 2, its values [N, K, A, E] axis 3, latents [N, A, X] axis 2.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype={jnp.dtype(dtype).name} is none of {[jnp.dtype(d).name for d in DTYPES]}")
  x = x.astype(jnp.float32)
  top = highest(dtype)
  scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / top
  scale = jnp.where(scale >= jnp.finfo(jnp.float32).tiny, scale, 1.0)      # what is smaller is zero
  q = jnp.clip(x / scale, -top, top)                                       # rounding must not pass the top
  q = jnp.round(q) if dtype == jnp.int8 else q
  return q.astype(dtype), jnp.squeeze(scale, axis)

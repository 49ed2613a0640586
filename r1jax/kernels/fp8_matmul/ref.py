"""What the product of two quantised matrices is: both dequantised to f32, and multiplied in f32."""

import jax
import jax.numpy as jnp

from r1jax.kernels.fp8_matmul.quantise import dequantise


def product(a_MK, scale_Mk, b_NK, scale_Nk, dtype):
  """[M, N] = a b^T, each given as E4M3 with a scale for every 128 values of a row."""
  a_MK, b_NK = dequantise(a_MK, scale_Mk), dequantise(b_NK, scale_Nk)
  return jnp.einsum("mk,nk->mn", a_MK, b_NK, precision=jax.lax.Precision.HIGHEST,
                    preferred_element_type=jnp.float32).astype(dtype)

"""What our kernels are measured beside: other libraries' functions, called with the arguments of ours."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp


def have(name: str) -> bool:
  """Whether a library's row can be made: tokamax is an extra, cuDNN comes with jax's CUDA packages."""
  return name != "tokamax" or importlib.util.find_spec("tokamax") is not None


def cudnn_attention(q_NTHC, k_NKTC, v_NKTE, segment_NT=None, implementation: str = "cudnn"):
  """jax.nn.dot_product_attention: causal, within segments."""
  keys_first = lambda x: x.swapaxes(1, 2)
  mask = None if segment_NT is None else (segment_NT[:, None, :, None] == segment_NT[:, None, None, :])
  return jax.nn.dot_product_attention(q_NTHC, keys_first(k_NKTC), keys_first(v_NKTE), mask=mask, is_causal=True,
                                      implementation=implementation)


def tokamax_attention(q_NTHC, k_NKTC, v_NKTE, segment_NT=None):
  import tokamax
  keys_first = lambda x: x.swapaxes(1, 2)
  mask = None if segment_NT is None else (segment_NT[:, None, :, None] == segment_NT[:, None, None, :])
  return tokamax.dot_product_attention(q_NTHC, keys_first(k_NKTC), keys_first(v_NKTE), mask=mask, is_causal=True)


def tokamax_grouped_matmul(x_MD, w_EDF, count_E):
  import tokamax
  out_MF = tokamax.ragged_dot(x_MD, w_EDF, count_E)
  return jnp.where((jnp.arange(len(out_MF)) < count_E.sum())[:, None], out_MF, 0)


def bf16_matmul(x_MD, w_DF):
  """What FP8 is to beat."""
  return jnp.matmul(x_MD.astype(jnp.bfloat16), w_DF.astype(jnp.bfloat16)).astype(x_MD.dtype)

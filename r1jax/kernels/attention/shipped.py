"""Plain causal attention by kernels that jax ships: splash attention (TPU) and Mosaic GPU's FlashAttention 3 (Hopper).

Neither knows SHARED tokens, so neither takes segments. Splash pads rows to its blocks; nothing looks at what is behind.
The Hopper kernel (jax 0.10 to 0.12) holds float16 in shared memory whatever it is given, so bfloat16 is refused; it has
no causal backward, so pallas_gpu.backward takes its logsumexp. It was lowered here, and not run on a card.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from r1jax.kernels.attention import pallas_gpu, pallas_tpu

HOPPER_ROWS = 128    # a program's two blocks of 64 queries


@functools.partial(jax.jit, static_argnames=("interpret",))      # so that a shape is traced once
def splash(q_NTHC, k_NKTC, v_NKTE, *, interpret: bool = False):
  """[N, T, H, E], with a gradient of its own. Divides the queries by sqrt(C) in their dtype."""
  _, T, H, C = q_NTHC.shape
  g = pallas_tpu.grid(T, C, v_NKTE.shape[3])
  mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((g.T, g.T))] * H)
  sizes = splash_attention_kernel.BlockSizes(*[g.size] * 8)
  kernel = splash_attention_kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1,
                                                   interpret=interpret)
  pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, g.T - T), (0, 0)))
  o_NHTE = jax.vmap(kernel)(pad(q_NTHC.swapaxes(1, 2) * g.scale), pad(k_NKTC), pad(v_NKTE))
  return o_NHTE[:, :, :T].swapaxes(1, 2)


def check_hopper(q_NTHC, v_NKTE, segment_NT):
  """NotImplementedError where Mosaic GPU's kernel cannot take these."""
  from jax.experimental.pallas.ops.gpu import attention_mgpu  # half a second that only this needs
  T, C, E = q_NTHC.shape[1], q_NTHC.shape[3], v_NKTE.shape[3]
  if segment_NT is not None or C != E or C not in (64, 128) or q_NTHC.dtype != jnp.float16 or T % HOPPER_ROWS:
    raise NotImplementedError(f"mosaic takes no segments, heads of 64 or 128, float16 and a multiple of {HOPPER_ROWS}"
                              f" tokens; not T={T}, C={C}, E={E}, {q_NTHC.dtype}, segments={segment_NT is not None}")
  if attention_mgpu.cuda_versions is None:
    raise NotImplementedError("mosaic needs jax's CUDA plugin")
  return attention_mgpu


def hopper_forward(q_NTHC, k_NKTC, v_NKTE, segment_NT=None):
  mgpu = check_hopper(q_NTHC, v_NKTE, segment_NT)
  config = mgpu.TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, causal=True)
  q_NTHC = (q_NTHC * q_NTHC.shape[3] ** -0.5).astype(q_NTHC.dtype)
  o_NTHE, (lse_NHT,) = mgpu.attention(q_NTHC, k_NKTC.swapaxes(1, 2), v_NKTE.swapaxes(1, 2), config, True)
  return o_NTHE, lse_NHT * math.log(2)


def hopper_backward(q_NTHC, k_NKTC, v_NKTE, segment_NT, o_NTHE, lse_NHT, do_NTHE):
  scale = q_NTHC.shape[3] ** -0.5
  scaled_NTHC = (q_NTHC * scale).astype(q_NTHC.dtype)      # as the forward rounded them
  dq, dk, dv = pallas_gpu.backward(scaled_NTHC, k_NKTC, v_NKTE, segment_NT, o_NTHE, lse_NHT, do_NTHE, scale=1.0)
  return (dq * scale).astype(q_NTHC.dtype), dk, dv

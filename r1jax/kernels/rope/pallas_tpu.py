"""Rotary turn for TPUs, Pallas's Mosaic lowering: all heads of q and k in one call, a block of tokens at a time.

Neighbours in the lanes cannot be paired cheaply, so interleaved channels are refused. Letters: M tokens, X heads x
channels; c of C / 2.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK = 2**18      # numbers of the widest array


def _kernel(cos_ref, sin_ref, *refs, C, back):
  cos, sin = cos_ref[...], -sin_ref[...] if back else sin_ref[...]
  for x_ref, out_ref in zip(refs[:len(refs) // 2], refs[len(refs) // 2:], strict=True):
    for start in range(0, x_ref.shape[1], C):
      a = x_ref[:, start:start + C // 2].astype(jnp.float32)
      b = x_ref[:, start + C // 2:start + C].astype(jnp.float32)
      turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)
      out_ref[:, start:start + C] = turned.astype(out_ref.dtype)


def turn(xs_MX, cos_Mc, sin_Mc, interleaved: bool, back: bool, interpret: bool = False):
  """Each of xs turned, or turned back."""
  if interleaved:
    raise NotImplementedError("impl='pallas_tpu' has no interleaved channels; impl='ref' has")
  M, widest = len(cos_Mc), max(x.shape[1] for x in xs_MX)
  m = min(max(16, BLOCK // widest // 16 * 16), pl.cdiv(M, 16) * 16)
  spec = lambda x: pl.BlockSpec((m, x.shape[1]), lambda i: (i, 0))
  return pl.pallas_call(
    functools.partial(_kernel, C=2 * cos_Mc.shape[1], back=back), grid=(pl.cdiv(M, m),),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs_MX],
    in_specs=[spec(x) for x in (cos_Mc, sin_Mc, *xs_MX)], out_specs=[spec(x) for x in xs_MX],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)), interpret=interpret, name="rope",
  )(cos_Mc, sin_Mc, *xs_MX)

"""Rotary turn for NVIDIA GPUs, Pallas's Triton lowering: all heads of q and k in one launch.

A program has TOKENS tokens, reads their cosines and sines once, and turns head after head. The gradient is the turn
back: the same kernel with the sines' sign changed, and, for interleaved channels, reading and writing orders exchanged.
Not run on a card yet: checked in the interpreter, and that it lowers.
Letters: M tokens, X heads x channels; c of C / 2.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

TOKENS = 16


def _kernel(cos_ref, sin_ref, *refs, C, pairs_in, pairs_out, back):
  half = C // 2
  c = max(16, pl.next_power_of_2(half))
  row = (pl.program_id(0) * TOKENS + jnp.arange(TOKENS))[:, None]
  channel = jnp.arange(c)[None, :]
  mask = (row < cos_ref.shape[0]) & (channel < half)
  at = lambda column: (row + jnp.zeros_like(column), column + jnp.zeros_like(row))
  cos, sin = (plgpu.load(ref.at[at(channel)], mask=mask, other=0) for ref in (cos_ref, sin_ref))
  if back:
    sin = -sin
  ends = lambda pairs: (2 * channel, 2 * channel + 1) if pairs else (channel, channel + half)
  for x_ref, out_ref in zip(refs[:len(refs) // 2], refs[len(refs) // 2:], strict=True):
    def head(h, _, x_ref=x_ref, out_ref=out_ref):
      a, b = (plgpu.load(x_ref.at[at(h * C + end)], mask=mask, other=0).astype(jnp.float32) for end in ends(pairs_in))
      for value, end in zip((a * cos - b * sin, b * cos + a * sin), ends(pairs_out), strict=True):
        plgpu.store(out_ref.at[at(h * C + end)], value.astype(out_ref.dtype), mask=mask)
      return 0
    jax.lax.fori_loop(0, x_ref.shape[1] // C, head, 0)


def turn(xs_MX, cos_Mc, sin_Mc, interleaved: bool, back: bool, interpret: bool = False):
  """Each of xs turned, or turned back."""
  C = 2 * cos_Mc.shape[1]
  kernel = functools.partial(_kernel, C=C, pairs_in=interleaved and not back, pairs_out=interleaved and back, back=back)
  return pl.pallas_call(
    kernel, out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs_MX], grid=(pl.cdiv(len(cos_Mc), TOKENS),),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1), interpret=interpret, name="rope",
  )(cos_Mc, sin_Mc, *xs_MX)

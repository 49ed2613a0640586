"""Blocks of rows of an array, in Triton kernels: read and written in parts of powers of two, as Triton asks.

What reaches beyond the array is masked, and nothing is where it cannot. T rows of `width` channels.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


def parts(width: int):
  """(start, size) of powers of two, at least 16, that cover it; what reaches beyond is masked."""
  out, at = [], 0
  while at < width:
    size = max(16, 1 << ((width - at).bit_length() - 1))
    out.append((at, size))
    at += size
  return out


def covered(width: int) -> int:
  at, size = parts(width)[-1]
  return at + size


def _mask(T: int, width: int, start, rows: int, at: int, size: int):
  """[rows, size], or None where the block from (start, at) lies inside [T, width] for certain."""
  inside = None
  if T % rows:
    inside = jnp.broadcast_to((start + jnp.arange(rows) < T)[:, None], (rows, size))
  if at + size > width:
    channel = jnp.broadcast_to((at + jnp.arange(size) < width)[None], (rows, size))
    inside = channel if inside is None else inside & channel
  return inside


def load(ref, T, width, start, rows, head=()):
  """Rows from `start` of [T, width], in parts. head: of an array with an axis of heads between the two."""
  out = []
  for at, size in parts(width):
    mask = _mask(T, width, start, rows, at, size)
    part = ref.at[(pl.ds(start, rows), *head, pl.ds(at, size))]
    out.append(plgpu.load(part) if mask is None else plgpu.load(part, mask=mask, other=0.0))
  return out


def store(ref, T, width, start, rows, values):
  for (at, size), value in zip(parts(width), values, strict=True):
    mask = _mask(T, width, start, rows, at, size)
    plgpu.store(ref.at[pl.ds(start, rows), pl.ds(at, size)], value.astype(ref.dtype), mask=mask)


def row(ref, T, start, rows, other, head=()):
  """Values of [T], from `start`."""
  mask = start + jnp.arange(rows) < T if T % rows else None
  part = ref.at[(*head, pl.ds(start, rows))]
  return plgpu.load(part) if mask is None else plgpu.load(part, mask=mask, other=other)


def dot(xs, ys):
  """Sum over the parts of x y^T."""
  return functools.reduce(jnp.add, [plgpu.dot(x, y.T) for x, y in zip(xs, ys, strict=True)])

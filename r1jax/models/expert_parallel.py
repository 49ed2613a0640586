"""Mixture of experts on a mesh: tokens split over rows and sequences, experts over the mesh axes of "expert".

Each device has its tokens and its experts; two ways bring them together, both with shapes that are known beforehand.
  dropless  all tokens of the expert axis are gathered, each device runs its experts on them, and the partial results
            are added up and divided again (reduce-scatter). Not an all_to_all: that no token may be lost means
            buffers for the case that all tokens want one device, and then (a token once a device, not once an expert)
            they are as large as what is gathered here. Its traffic is more by the devices of the axis over those
            that a token's experts lie on: nothing up to about top_k of them, 4 times with 32 and V3's top 8.
  capacity  all_to_all (GShard, 2006.16668): a device sends each expert capacity_group's fixed room and gets it back.
            Where a group's tokens do not lie on one device (no capacity_group: all tokens of a call are one; it
            must divide a device's tokens, or its part of a row), or rows do not divide over the expert axis, XLA
            divides the work as it sees fit.
Results are those of one device. The weights are gathered over the axes that split "embed", and their gradients
reduce-scattered; "ffn" is split by the tensor axis, whose devices' sums are added up.
Letters: n rows and t tokens of a device; those of moe.py.
"""

from __future__ import annotations

import functools
import math

import jax
from jax.sharding import PartitionSpec as P

from r1jax import sharding

WEIGHTS = ("gate", "up", "down")


def run(way, p, cfg, x_NTD, expert_NTk, weight_NTk):
  """(out [N, T, D], pairs that found no room). way(p, cfg, x_MD, expert_Mk, weight_Mk, ...): moe.dropless or
  moe.with_capacity, on tokens in one axis."""
  mesh = sharding.split_mesh()
  flat = lambda x: x.reshape(-1, x.shape[-1])

  def by_jit():
    out_MD, dropped = way(p, cfg, *map(flat, (x_NTD, expert_NTk, weight_NTk)))
    return out_MD.reshape(x_NTD.shape), dropped
  if mesh is None or cfg.dispatch == "dense":
    return by_jit()
  rows, part = sharding.spec(mesh, ("batch", "sequence"), x_NTD.shape[:2])
  over, embed, ffn = map(sharding.names, sharding.spec(mesh, ("expert", "embed", "ffn"), p["gate"].shape))
  by_weight = dict(gate=P(over, embed, ffn), up=P(over, embed, ffn), down=P(over, ffn, embed))
  token_axes = sharding.names(rows) + sharding.names(part)
  own = [axis for axis in over if axis in token_axes]        # along these both tokens and experts differ
  added = [axis for axis in over + ffn if axis not in own]   # and here the same tokens have other experts, or channels
  if cfg.dispatch == "capacity" and not (_alone(mesh, cfg, x_NTD.shape, rows, part) and len(own) == len(over)):
    return by_jit()

  def on_device(weights, x_ntD, expert_ntk, weight_ntk):
    weights = {name: _gathered(w, embed, 1 if name != "down" else 2) for name, w in weights.items()}
    tokens = tuple(map(flat, (x_ntD, expert_ntk, weight_ntk)))
    if cfg.dispatch == "capacity":
      out_MD, dropped = way(weights, cfg, *tokens, *(functools.partial(_exchange, own, back) for back in (False, True)))
    else:
      first = (jax.lax.axis_index(over) if over else 0) * weights["gate"].shape[0]
      x_MD, expert_Mk, weight_Mk = (_gathered(x, own, 0) for x in tokens)
      out_MD, dropped = way(weights, cfg, x_MD, expert_Mk - first, weight_Mk)
      if own:
        out_MD = jax.lax.psum_scatter(out_MD, tuple(own), scatter_dimension=0, tiled=True)
    if added:
      out_MD = jax.lax.psum(out_MD, tuple(added))
    return out_MD.reshape(x_ntD.shape), jax.lax.psum(dropped, token_axes) if token_axes else dropped

  by_token = P(rows, part)
  return jax.shard_map(on_device, mesh=mesh, in_specs=(by_weight, by_token, by_token, by_token),
                       out_specs=(by_token, P()), check_vma=False)(
                         {name: p[name] for name in WEIGHTS}, x_NTD, expert_NTk, weight_NTk)


def _gathered(x, axes, dimension: int):
  return jax.lax.all_gather(x, tuple(axes), axis=dimension, tiled=True) if axes else x


def _exchange(axes, back: bool, x):
  """Rows for all experts [E, c, D] -> those of all devices for this one's [E / W, W c, D], and back."""
  if not axes:
    return x
  split, joined = (1, 0) if back else (0, 1)
  return jax.lax.all_to_all(x, tuple(axes), split_axis=split, concat_axis=joined, tiled=True)


def _alone(mesh, cfg, shape, rows, part) -> bool:
  """Whether tokens that share capacity lie on one device, in the order that they have without a mesh."""
  ways = lambda axes: math.prod(mesh.shape[axis] for axis in sharding.names(axes))
  n, t = shape[0] // ways(rows), shape[1] // ways(part)
  return bool(cfg.capacity_group) and (n * t if part is None else t) % cfg.capacity_group == 0

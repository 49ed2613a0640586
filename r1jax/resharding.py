"""Parameters moved from one layout of the devices to another, or to other devices, a bounded part at a time.

Decode steps read every weight for a few tokens and want it split over channels; training wants parameters gathered
layer by layer. A run may have a mesh for each (config: mesh, rollout_mesh), of the same devices or of devices apart
(rollout_devices). The copy that sampling uses is made before a rollout and given up after it.
"""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from r1jax import sharding
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig

CHUNK = 2**30       # bytes, of all devices together, on their way at one time


def reshard(params, places, chunk: int = CHUNK):
  """The same values where `places`, a tree of shardings, says; what is there already is not copied.

  Beside the two copies no more than `chunk` bytes are in memory: arrays go in turns, and one that is larger by slices
  of an axis that neither layout splits, such as the layers'.
  """
  leaves, tree = jax.tree.flatten(params)
  out, size = [], 0
  for x, where in zip(leaves, tree.flatten_up_to(places), strict=True):
    if x.sharding.is_equivalent_to(where, x.ndim):
      out.append(x)
      continue
    if size + x.nbytes > chunk:
      jax.block_until_ready(out)
      size = 0
    axis = whole_axis(x, where) if x.nbytes > chunk else None
    out.append(jax.device_put(x, where, may_alias=False) if axis is None else by_slices(x, where, axis, chunk))
    size += x.nbytes
  return tree.unflatten(jax.block_until_ready(out))


def whole_axis(x, where) -> int | None:
  """The first axis of more than one entry that is split neither where x is nor where it goes."""
  if not all(isinstance(s, NamedSharding) for s in (x.sharding, where)):
    return None
  split = {a for s in (x.sharding, where) for a, part in enumerate(s.spec) if part is not None}
  return next((a for a, n in enumerate(x.shape) if n > 1 and a not in split), None)


def by_slices(x, where: NamedSharding, axis: int, chunk: int):
  rows = max(1, chunk * x.shape[axis] // x.nbytes)
  whole = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=where)(x.shape, x.dtype)     # filled in place
  for at in range(0, x.shape[axis], rows):
    with jax.set_mesh(x.sharding.mesh):
      part = _cut(x.sharding, min(rows, x.shape[axis] - at), axis)(x, at)
    whole = _put(where, axis)(whole, jax.device_put(part, where, may_alias=False), at)
    jax.block_until_ready(whole)
  return whole


@functools.cache
def _cut(where, rows: int, axis: int):
  return jax.jit(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, rows, axis), out_shardings=where)


@functools.cache
def _put(where, axis: int):
  put = lambda whole, part, at: jax.lax.dynamic_update_slice_in_dim(whole, part, at, axis)
  return jax.jit(put, donate_argnums=0, out_shardings=where)


@contextlib.contextmanager
def for_rollout(params, model: ModelConfig, chunk: int = CHUNK):
  """The parameters as sampling wants them, and its mesh, for as long as the block runs; its copy is gone afterwards.

  Where sampling has the trainer's mesh these are `params`, and nothing changes.
  """
  layout = sharding.rollout_layout()
  if layout is None:
    yield params
    return
  mesh, cfg = layout
  with sharding.entered(mesh, cfg):
    moved = reshard(params, sharding.shardings(mesh, transformer.params(model)), chunk)
    try:
      yield moved
    finally:
      for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        if new is not old:
          new.delete()         # whoever still holds them: an update needs the room

"""Declared parameters: each weight is written down once, all else is derived from that tree.

A model file says `dict(q=Param(shape, axes, init), ...)`. From the same tree come the initial values, the
abstract shapes (no memory), the shardings and the counts, so that none of them can disagree.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Initialiser = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]   # (key, shape, dtype) -> values


class Param(NamedTuple):
  """One weight: its shape, the logical name of each axis (None: never sharded), its initialiser."""
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Initialiser
  dtype: str | None = None       # None: the model's


def is_param(x) -> bool:
  return isinstance(x, Param)


def normal(std: float) -> Initialiser:
  return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


def ones(key, shape, dtype):
  del key
  return jnp.ones(shape, dtype)


def zeros(key, shape, dtype):
  del key
  return jnp.zeros(shape, dtype)


def stack(tree, layers: int):
  """Adds a leading axis of `layers`: layers of one kind live in one array and are scanned."""
  return jax.tree.map(lambda p: p._replace(shape=(layers, *p.shape), axes=("layers", *p.axes)), tree, is_leaf=is_param)


def init(tree, key: jax.Array, dtype=jnp.float32):
  """Values of all weights. A leaf's key is folded from its path: adding a weight leaves the others as they were."""
  def leaf(path, p):
    number = zlib.crc32(jax.tree_util.keystr(path).encode()) % 2**31
    return p.init(jax.random.fold_in(key, number), p.shape, p.dtype or dtype)
  return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=is_param)


def abstract(tree, dtype=jnp.float32):
  """Shapes and dtypes with no memory behind them: for lowering, checkpoints and plans."""
  return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype or dtype), tree, is_leaf=is_param)


def count(tree) -> int:
  """Number of values in all weights."""
  return sum(math.prod(p.shape) for p in jax.tree.leaves(tree, is_leaf=is_param))

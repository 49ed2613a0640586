"""A function with a case's arguments, ready to run and to time: forward, or forward and gradient in one program."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ENOUGH = 0.03             # seconds of calls to take a time from


def arrays_of(args: dict) -> dict:
  """The arguments that are arrays or trees of them; the others are static."""
  def is_array(tree):
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(isinstance(x, jax.Array | np.ndarray) for x in leaves)
  return {k: v for k, v in args.items() if is_array(v)}


def is_float(x) -> bool:
  return jnp.issubdtype(x.dtype, jnp.floating)


def prepare(function: Callable, args: dict, gradient: bool) -> Callable[[], Any]:
  """A jitted call of nothing: function(**args), or (that, the gradients of the float arrays, by their place)."""
  leaves, tree = jax.tree.flatten(arrays_of(args))
  still = {k: v for k, v in args.items() if k not in arrays_of(args)}
  floats = {i: x for i, x in enumerate(leaves) if is_float(x)}
  others = {i: x for i, x in enumerate(leaves) if i not in floats}

  def forward(floats, others):
    by_place = floats | others
    return function(**jax.tree.unflatten(tree, [by_place[i] for i in range(len(leaves))]), **still)
  if not gradient:
    return functools.partial(jax.jit(forward), floats, others)

  def both(floats, others, pull):
    out, back = jax.vjp(lambda floats: forward(floats, others), floats)
    return out, back(pull)[0]
  keys = iter(jax.random.split(jax.random.key(1), 16))
  pull = jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape, s.dtype) if is_float(s) else
                      np.zeros(s.shape, jax.dtypes.float0), jax.eval_shape(forward, floats, others))
  return functools.partial(jax.jit(both), floats, others, pull)


@jax.jit
def _error(found, wanted):
  found, wanted = found.astype(jnp.float32), wanted.astype(jnp.float32)
  largest = jnp.max(jnp.abs(wanted))
  return jnp.max(jnp.abs(found - wanted)) / jnp.where(largest > 0, largest, 1)


def error(found, wanted) -> float:
  """The largest difference over the largest value, of the worst leaf; NaN if there is one."""
  return float(np.max([_error(*pair) for pair in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)]))


def per_call(run: Callable[[], Any], repeats: int) -> float:
  """Seconds a call: the least of `repeats` rounds of so many calls that starting them is hidden behind running them."""
  def round_of(calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
      out = run()
    jax.block_until_ready(out)
    return (time.perf_counter() - began) / calls
  round_of(1)
  calls = min(50, max(1, int(ENOUGH / round_of(1))))
  return min(round_of(calls) for _ in range(repeats))

"""The columns of a sampler's state: a cache's tokens, moved as rows need room or leave holes.

`model` tells on which axis a cache's arrays have their tokens. State: sampler.SampleState. Letters: W columns; the rest
in r1jax/types.py.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from r1jax.drawing import SampleConfig, ends
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.placing import pinned


def of_cache(model: ModelConfig, change, layers: tuple) -> tuple:
  """change(array, axis of its tokens) on all arrays of a cache."""
  axes = transformer.cache_columns(model)
  return tuple(type(one)(*(None if x is None else change(x, axis) for x, axis in zip(one, axes, strict=True)))
               for one in layers)


def tokens(model: ModelConfig, prompts) -> int:
  return prompts.cache[0].k.shape[transformer.cache_columns(model).k]


def pad(x, length: int, axis: int):
  return jnp.pad(x, [(0, length - x.shape[axis] if a == axis else 0) for a in range(x.ndim)])


def most(cfg: SampleConfig) -> int:
  """Columns that answers which begin together can need at most: the last token is not run."""
  return max(cfg.max_tokens - 1, 1) * cfg.span


def bucket(need: int, most: int) -> int:
  """Room for `need` columns, in few sizes: 64, 256, 1024, ..., or all that can be needed."""
  size = 64
  while size < need:
    size *= 4
  return min(size, most)


@flax.struct.dataclass
class Answers:
  """Rows left-aligned; `before` tokens of an earlier rollout are not among them."""
  token_NA: jax.Array            # padded with the end token
  logp_NA: jax.Array             # 0 after the end
  length_N: jax.Array            # end token included
  ended_N: jax.Array             # else cut off by its budget
  prompt_expert_BPLk: jax.Array | None = None
  expert_NALk: jax.Array | None = None   # the last token's are zeros: it was not run
  kept_NAk: jax.Array | None = None
  count: dict | None = None              # sampler.COUNTS


@functools.partial(jax.jit, static_argnames=("model", "columns"))
def repack(state, *, model: ModelConfig, columns: int):
  """The same rows with their valid columns at the front, in `columns` of them: holes closed, room made or given up.

  What rows that are done have said is given up too: the host has it by then.
  """
  state = state.replace(valid_NW=state.valid_NW & ~state.done_N[:, None])
  order_NW = jnp.argsort(~state.valid_NW, axis=1, stable=True)
  order_NW = pad(order_NW[:, :columns], columns, 1)

  def move(x, axis):
    shape = [1] * x.ndim
    shape[0], shape[axis] = order_NW.shape
    return jnp.take_along_axis(x, order_NW.reshape(shape), axis=axis)
  of_columns = {name: move(x, 1) for name in ("token_NW", "logp_NW", "expert_NWLk", "kept_NWk")
                if (x := getattr(state, name)) is not None}
  count_N = state.valid_NW.sum(axis=1)
  return pinned(state.replace(
    cache=of_cache(model, move, state.cache), mtp=of_cache(model, move, state.mtp), column=count_N.max(),
    valid_NW=jnp.arange(columns) < count_N[:, None], **of_columns))


@functools.partial(jax.jit, static_argnames=("model", "columns"))
def widen(state, *, model: ModelConfig, columns: int):
  """The same rows with room for more: new columns behind the others."""
  grow = lambda x, axis: pad(x, columns, axis)
  of_columns = {name: grow(x, 1) for name in ("valid_NW", "token_NW", "logp_NW", "expert_NWLk", "kept_NWk")
                if (x := getattr(state, name)) is not None}
  return pinned(state.replace(cache=of_cache(model, grow, state.cache), mtp=of_cache(model, grow, state.mtp),
                              **of_columns))


@functools.partial(jax.jit, static_argnames=("width",))
def only(state, lane_b, *, width: int):
  """The state of these lanes alone, with their `width` rows each."""
  row_n = (lane_b[:, None] * width + jnp.arange(width)).reshape(-1)
  take = lambda tree, at: jax.tree.map(lambda x: x[at], tree)
  shared = dict(column=state.column, count=state.count)
  of_rows = state.replace(prompts=None, column=None, count=None)
  return pinned(take(of_rows, row_n).replace(prompts=take(state.prompts, lane_b), **shared))


@functools.partial(jax.jit, static_argnames=("length", "end_id"))
def answers(state, row_n=None, *, length: int, end_id) -> Answers:
  """What the rows (or these of them) have said, left-aligned in `length` columns."""
  if row_n is not None:
    state = jax.tree.map(lambda x: x[row_n], state.replace(prompts=None, column=None, count=None, cache=(), mtp=()))
  N, own_N = len(state.valid_NW), state.length_N - state.before_N
  order_NW = jnp.argsort(~state.valid_NW, axis=1, stable=True)
  order_NA = pad(order_NW[:, :length], length, 1)
  last_NA = jnp.arange(length) == own_N[:, None] - 1
  inside_NA = jnp.arange(length) < own_N[:, None] - 1

  def rows_of(x_NW, last_N, fill):
    more = [1] * (x_NW.ndim - 2)
    wide = lambda mask: mask.reshape(N, length, *more)
    moved = jnp.take_along_axis(x_NW, order_NA.reshape(N, length, *more), axis=1)
    return jnp.where(wide(last_NA), last_N[:, None], jnp.where(wide(inside_NA), moved, fill))
  more = {}
  if state.expert_NWLk is not None:
    more["expert_NALk"] = rows_of(state.expert_NWLk, jnp.zeros_like(state.expert_NWLk[:, 0]), 0)
  if state.kept_NWk is not None:
    more["kept_NAk"] = rows_of(state.kept_NWk, state.pending.kept_Nk, -1)
  return Answers(rows_of(state.token_NW, state.pending.token_N, ends(end_id)[0]),
                 rows_of(state.logp_NW, state.pending.logp_N, 0.0), own_N, state.ended_N, count=state.count, **more)

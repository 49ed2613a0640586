"""Layers in stages, each on devices of its own, through which parts of the rows go one behind the other (GPipe,
1811.06965).

A device of stage s has every s-th part of the stack. In each of M + S - 1 ticks it runs its layers on the part that the
stage before has done, and hands it on (ppermute); in S - 1 of them it has nothing to do but padding. The backward pass
is autodiff's: the same schedule, back to front. Results are those of one device.
Inside of a stage jit places what other axes split: no shard_map of theirs is entered, so experts and sequences are
split less well here. Stacks that do not divide over the stages, prefill and decode stay whole, layers gathered one by
one: sample in another layout (config: rollout_mesh).
Letters: S stages, M parts of n rows; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from r1jax import sharding


def divides(layers: int) -> bool:
  """Whether so many layers are split into stages."""
  return sharding.ways("layers") > 1 and layers % sharding.ways("layers") == 0


def parts_of(N: int) -> int:
  """Parts of N rows: as many as the config says or fewer, so that they are equal."""
  wanted = sharding.config().stage_parts or 4 * sharding.ways("layers")
  return next(M for M in range(min(wanted, N), 0, -1) if N % M == 0)


def run(layer, stack, x_NTD, turned, attend, replay_LNTk, mask_NT, segment_NT):
  """x through the layers of a stack, and their Routing, stacked (None of dense layers). layer: transformer.layer."""
  axis = sharding.axes_of("layers")[0]
  S, N = sharding.ways("layers"), x_NTD.shape[0]
  M = parts_of(N)
  # row n M + i is in part i: rows of a part are spread over the devices as all rows are
  cut = lambda x, at=0: jnp.moveaxis(x.reshape(*x.shape[:at], N // M, M, *x.shape[at + 1:]), at + 1, at)
  join = lambda x, at=0: jnp.moveaxis(x, at, at + 1).reshape(*x.shape[:at], N, *x.shape[at + 2:])
  turned = jax.tree.map(lambda x: jnp.broadcast_to(x, (N, *x.shape[1:])), turned)
  by_row = jax.tree.map(cut, (turned, mask_NT, segment_NT))
  replay = None if replay_LNTk is None else cut(replay_LNTk, 1)

  def on_stage(stack, replay, x_MnTD, by_row):
    stage = jax.lax.axis_index(axis)

    def group(x_nTD, i):
      turned, mask_nT, segment_nT = jax.tree.map(lambda x: x[i], by_row)
      see = attend if segment_nT is None else functools.partial(attend, segment_NT=segment_nT)

      def body(x_nTD, inputs):
        x_nTD, _, routing = layer(inputs[0], x_nTD, turned, see, None, inputs[1], mask_nT)
        return x_nTD, routing
      return jax.lax.scan(body, x_nTD, (stack, None if replay is None else replay[:, i]))

    x_MnTD = sharding.shard(x_MnTD, None, "batch", "sequence", "embed_act")

    def tick(given_nTD, t):
      i = jnp.clip(t - stage, 0, M - 1)
      y_nTD, routing = group(jnp.where(stage == 0, x_MnTD[i], given_nTD), i)
      return jax.lax.ppermute(y_nTD, axis, [(s, s + 1) for s in range(S - 1)]), (y_nTD, routing)
    _, (y, routing) = jax.lax.scan(tick, jnp.zeros_like(x_MnTD[0]), jnp.arange(M + S - 1))
    y_MnTD = jax.lax.psum(jnp.where(stage == S - 1, y[S - 1:], 0), axis)       # from the last stage to all
    own = lambda x: jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, stage, M), 0, 1)      # the ticks with work, behind L
    return y_MnTD, jax.tree.map(own, routing)

  y_MnTD, routing = jax.shard_map(
    on_stage, mesh=jax.sharding.get_abstract_mesh(), axis_names={axis}, in_specs=(P(axis), P(axis), P(), P()),
    out_specs=(P(), P(axis)), check_vma=False)(stack, replay, cut(x_NTD), by_row)
  if routing is not None:
    routing = type(routing)(join(routing.expert_NTk, 1), *(x.sum(1) for x in routing[1:]))
  return sharding.shard(join(y_MnTD), "batch", "sequence", "embed_act"), routing

"""Where a sampler's state lives on a mesh: rows and lanes over the axes of "batch", key heads over those of "kv_heads".

Unpinned, each program leaves its results where XLA finds best, and the next one is compiled anew for every such place.
"""

from __future__ import annotations

import dataclasses

import jax

from r1jax import sharding


def pinned(state):
  """A sampler.SampleState or prefill.Prompts on the mesh of `with jax.set_mesh(mesh)`; as it is outside of one."""
  if sharding.split_mesh() is None:
    return state
  rows = lambda x: sharding.shard(x, *("batch", *[None] * x.ndim)[:x.ndim])

  def layer(cached):       # models.attention.Cached; a latent one has no values, and no heads
    heads = None if cached.v is None else "kv_heads"
    return jax.tree.map(lambda x: sharding.shard(x, "batch", heads, *[None] * (x.ndim - 2)), cached)
  special = dict(cache=tuple(map(layer, state.cache)), mtp=tuple(map(layer, state.mtp)))
  others = {f.name for f in dataclasses.fields(state)} - special.keys()
  if "prompts" in others:
    special["prompts"] = pinned(state.prompts)
  plain = {name: jax.tree.map(rows, getattr(state, name)) for name in others - special.keys()}
  return state.replace(**plain, **special)

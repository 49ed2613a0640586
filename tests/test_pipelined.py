"""Stages of layers: the schedule by its program; that its numbers are those of one device is in test_sharding.py."""

import jax
import jax.numpy as jnp
import pytest
from mesh_cases import MODELS
from test_sharding import abstract

from r1jax import sharding
from r1jax.models import param, pipelined, transformer
from r1jax.sharding import MeshConfig


def primitives(jaxpr, found):
  """{name: [parameters]} of all equations, those of inner programs too."""
  for eqn in jaxpr.eqns:
    found.setdefault(eqn.primitive.name, []).append(eqn.params)
    for inner in jax.tree.leaves(list(eqn.params.values())):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        primitives(inner, found)
  return found


def forward(mesh, model, rows, keep=False):
  position_NT = jnp.broadcast_to(jnp.arange(8), (rows, 8))
  run = lambda p, token_NT: transformer.forward(p, model, token_NT, position_NT, keep=keep)[0]
  with jax.sharding.use_abstract_mesh(mesh):
    return primitives(jax.make_jaxpr(run)(param.abstract(transformer.params(model)),
                                          jax.ShapeDtypeStruct((rows, 8), jnp.int32)).jaxpr, {})


@pytest.mark.parametrize(("stages", "rows", "ticks"), [(2, 16, 9), (4, 6, 9), (8, 1, 8)])
def test_a_device_runs_its_layers_in_every_tick_and_hands_on_once(stages, rows, ticks):
  """Ticks = parts + stages - 1: 16 rows in 8 parts, 6 in 6, one in one."""
  found = forward(abstract(stage=stages), MODELS["dense8"], rows)
  assert [p["perm"] for p in found["ppermute"]] == [tuple((s, s + 1) for s in range(stages - 1))]
  assert {ticks, 8 // stages} <= {p["length"] for p in found["scan"]}


def test_layers_that_do_not_divide_and_a_prefill_go_through_no_stages():
  for found in (forward(abstract(stage=3), MODELS["dense8"], 4), forward(abstract(stage=2), MODELS["dense8"], 4, True)):
    assert "ppermute" not in found and 8 in [p["length"] for p in found["scan"]]


def test_parts_are_equal_and_no_more_than_the_config_says():
  assert not pipelined.divides(8)
  with sharding.entered(sharding.make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig(stage_parts=5)):
    assert [pipelined.parts_of(N) for N in (1, 4, 5, 6, 7, 20)] == [1, 4, 5, 3, 1, 5]

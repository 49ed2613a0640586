"""Every axis of the mesh, on eight simulated devices, gives what one does: loss, gradients, three steps, tokens."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec as P

from r1jax import sharding
from r1jax.sharding import MeshConfig

TESTS = Path(__file__).parent
# the last two halve the time of compiling
XLA_FLAGS = ("--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
             " --xla_llvm_disable_expensive_passes=true")


def abstract(**sizes):
  return jax.sharding.AbstractMesh(tuple(sizes.get(axis, 1) for axis in sharding.AXES), sharding.AXES,
                                   axis_types=(jax.sharding.AxisType.Auto,) * len(sharding.AXES))


def test_specs_by_hand():
  mesh = abstract(data=2, fsdp=2, expert=4, tensor=2)
  spec = lambda axes, *shape: sharding.spec(mesh, axes, shape)
  assert spec(("embed", "heads", None), 8, 4, 3) == P("fsdp", "tensor", None)
  assert spec(("expert", "embed", "ffn"), 16, 8, 6) == P("expert", "fsdp", "tensor")
  assert spec(("embed", "kv_heads"), 8, 1) == P("fsdp", None)                     # one key head stays whole
  assert spec(("batch", "sequence"), 16, 8) == P(("data", "fsdp", "expert"), None)
  assert spec(("batch",), 4) == P(("data", "fsdp")) and spec(("batch",), 2) == P("data")
  assert spec(("batch",), 3) == P(None)
  assert sharding.spec(abstract(data=2, context=4), ("batch", "sequence"), (2, 8)) == P("data", "context")
  assert sharding.spec(abstract(data=2, context=4), ("token",), (16,)) == P(("data", "context"))


def test_rules_of_a_config_override_and_an_axis_splits_once():
  mesh, cfg = abstract(fsdp=2, expert=4), MeshConfig(rules=dict(embed=["fsdp", "expert"], batch="data"))
  with sharding.entered(mesh_of_one(), cfg):
    assert sharding.spec(mesh, ("embed", None), (8, 3)) == P(("fsdp", "expert"), None)
    assert sharding.spec(mesh, ("expert", "embed"), (8, 8)) == P("expert", "fsdp")
    assert sharding.axes_of("token") == ("data", "context")
  assert sharding.spec(mesh, ("embed",), (8,)) == P("fsdp")


def mesh_of_one():
  return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


def test_jit_tells_rules_apart():
  seen = []

  @jax.jit
  def f(x):
    seen.append(sharding.axes_of("embed"))
    return x
  for rules in ({}, dict(embed="data"), {}):
    with sharding.entered(mesh_of_one(), MeshConfig(rules=rules)):
      f(1.0)
  assert seen == [("fsdp",), ("data",)]


@pytest.mark.parametrize(("wrong", "message"), [
  (dict(rules=dict(embd="fsdp")), "mesh.rules: 'embd' is none of batch, sequence"),
  (dict(rules=dict(embed="model")), "mesh.rules.embed: 'model' is none of stage, data, fsdp"),
  (dict(rules=dict(embed=("fsdp", "fsdp"))), "names an axis twice"),
  (dict(rules=dict(sequence="data")), "'data' cannot split both batch and sequence"),
  (dict(expert=0), "mesh.expert=0 must be at least 1"),
  (dict(data=-2), "mesh.data=-2 must be at least 1, or -1 for all that is left")])
def test_a_wrong_mesh_is_refused_where_it_is_built(wrong, message):
  with pytest.raises(ValueError, match=message):
    MeshConfig(**wrong)


def test_a_mesh_must_be_all_devices():
  with pytest.raises(ValueError, match="mesh data=1 x context=3 = 3 devices, but 2 are present"):
    sharding.make_mesh(MeshConfig(context=3), jax.devices() * 2)


def test_one_device_has_no_constraints_and_no_shard_maps():
  from mesh_cases import MODELS, program
  with sharding.use(MeshConfig(), devices=jax.devices()[:1]):
    inside = program(MODELS["small"])
  assert inside == program(MODELS["small"])
  words = "manual_computation", "all_gather", "sharding_constraint", "mesh"
  assert len(inside) > 300 and not any(word in line for line in inside for word in words)


def eight(*arguments, script="mesh_cases.py"):
  """tests/SCRIPT in a process with eight devices."""
  env = os.environ | dict(XLA_FLAGS=XLA_FLAGS, JAX_PLATFORMS="cpu", PYTHONPATH=str(TESTS.parent))
  done = subprocess.run([sys.executable, script, *arguments], cwd=TESTS, env=env, capture_output=True,
                        text=True, timeout=600, check=False)
  assert done.stdout.strip().endswith("SAME"), done.stdout[-3000:] + done.stderr[-3000:]


def test_experts_and_sequences_split_make_the_update_of_one():
  eight("train", "small", "padded", "expert=2,context=2,fsdp=2")


# Of mesh x model x layout, each mesh with two of the four: all of it takes ten minutes (python mesh_cases.py train
# deepseek padded data=8 fsdp=8 ... with the XLA_FLAGS below).
@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout", "meshes"), [
  ("deepseek", "padded", ("expert=8", "tensor=4,data=2", "data=2,expert=2,context=2")),
  ("deepseek", "packed", ("context=8", "fsdp=2,expert=2,tensor=2")),
  ("dense", "padded", ("context=4,tensor=2", "fsdp=8")),
  ("dense", "packed", ("data=8", "data=2,fsdp=2,tensor=2"))])
def test_axes_alone_and_together_make_the_updates_of_one(model, layout, meshes):
  eight("train", model, layout, *meshes)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout", "meshes"), [
  ("dense8", "padded", ("stage=8",)), ("deepseek5", "packed", ("stage=2,expert=2,fsdp=2",))])
def test_stages_make_the_updates_of_one(model, layout, meshes):
  eight("train", model, layout, *meshes)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "meshes"), [
  ("dense", ("data=8", "data=2,fsdp=2,tensor=2", "context=4,tensor=2")),
  ("deepseek", ("expert=8", "fsdp=8", "data=2,expert=2,context=2"))])
def test_axes_alone_and_together_sample_the_tokens_of_one(model, meshes):
  eight("sample", model, "", *meshes)


@pytest.mark.slow
def test_capacity_goes_by_all_to_all_and_is_that_of_one():
  eight("capacity", "small", "alone", "expert=4,data=2", "expert=2,context=2,tensor=2")

"""Bytes on a device by formulas, against XLA's count of the real programs on simulated CPU devices, and by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from r1jax import sharding
from r1jax.models import transformer
from r1jax.models.deepseek import PRESETS
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.plan import compare, compiled, layout, memory
from r1jax.plan.compiled import Case
from r1jax.plan.layout import Layout

DENSE = ModelConfig(vocab=2048, dim=256, layers=6, heads=8, kv_heads=2, ffn=768, remat="layer", logit_chunk=512)
DEEPSEEK = dataclasses.replace(PRESETS["deepseek-tiny"], remat="layer", mtp=0)
BIG = dict(prompts=8, group=4, prompt=64, answer=192)
SMALL = dict(prompts=2, group=4, prompt=32, answer=64)


def check(case):
  found, ours = compiled.measure(case), memory.total(compare.predicted(case))
  assert ours == pytest.approx(found["peak"], rel=0.1), (case, ours, found)


def test_a_decode_step_holds_what_xla_counts():
  check(Case("decode", DEEPSEEK, Layout(), **BIG))


@pytest.mark.slow
@pytest.mark.parametrize("case", [
  Case("update", DENSE, Layout(), **SMALL),
  Case("update", dataclasses.replace(DENSE, remat="elementwise"), Layout(), **BIG),
  Case("update", DENSE, Layout(), micro_batches=4, **BIG),
  Case("update", DENSE, Layout(data=2, fsdp=2, tensor=2), **BIG),
  Case("update", DEEPSEEK, Layout(), **BIG),
  Case("decode", DENSE, Layout(data=4), **BIG)], ids=lambda case: f"{case.what} {case.layout} {case.cfg.remat}")
def test_updates_and_decode_steps_on_several_devices_too(case):
  check(case)


@pytest.mark.parametrize("model", [DENSE, DEEPSEEK, PRESETS["deepseek-r1"]], ids=["dense", "deepseek", "r1"])
@pytest.mark.parametrize("at", [Layout(), Layout(fsdp=4), Layout(data=2, fsdp=8, tensor=4), Layout(fsdp=512)], ids=str)
def test_parameters_are_split_as_the_mesh_splits_them(model, at):
  mesh = AbstractMesh((at.data, at.fsdp, at.tensor), ("data", "fsdp", "tensor"))
  size = 0
  for p in jax.tree.leaves(transformer.params(model), is_leaf=lambda x: hasattr(x, "axes")):
    where = jax.sharding.NamedSharding(mesh, sharding.spec(mesh, p.axes, p.shape))
    size += np.prod(where.shard_shape(p.shape)) * np.dtype(p.dtype or model.dtype).itemsize
  assert layout.shard_bytes(model, at) == pytest.approx(size, rel=1e-9)


def test_the_parts_of_an_update_by_hand():
  """Vocabulary 10, width 4, two layers without experts, f32; 3 tokens; two moments as large as the parameters."""
  model = ModelConfig(vocab=10, dim=4, layers=2, heads=2, kv_heads=1, ffn=3, remat="layer")
  held = memory.training(model, Layout(), 3, OptimizerConfig(1e-3), reference=True)
  values = 184 + 4 + 40
  assert held["params"] == held["gradients"] == held["reference"] == 4 * values
  assert held["optimizer"] == pytest.approx(8 * values, abs=16)
  # q k v 8, out 4, gate up down 10; in between: turned q and k 6, attention's output 4, norms and sums 12, product 3
  layer = 8 + 4 + 10 + 6 + 4 + 12 + 3
  assert memory.widths(model, Layout())["layer"] == layer
  assert held["activations"] == 4 * 3 * (2 * 4 + 2 * layer)
  assert memory.training(model, Layout(), 3, OptimizerConfig(1e-3), False)["reference"] == 0


def test_caches_are_as_wide_as_the_sampler_makes_them():
  assert memory.columns([10] * 8, slots=0, most=1000) == 64
  assert memory.columns([10] * 6 + [900] * 2, slots=0, most=1000) == 250       # 2 of 8 rows go on, 1,000 columns wide
  assert memory.columns([10] * 7 + [900], slots=4, most=1000) == 1000


def test_a_layout_that_the_mesh_lacks_is_named():
  axes = {f.name for f in dataclasses.fields(sharding.MeshConfig)}
  if "stage" in axes:
    pytest.skip("the mesh has every axis")
  with pytest.raises(NotImplementedError, match="mesh has no stage axis"):
    compiled.measure(Case("update", DENSE, Layout(stage=2), **SMALL))


def test_a_refusing_compiler_is_quoted():
  with pytest.raises(RuntimeError, match=r"compiling update on 1: .*ValueError"):
    compiled.measure(Case("update", DENSE, Layout(), prompts=3, group=4, prompt=32, answer=64, micro_batches=2))

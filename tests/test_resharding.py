"""Parameters between layouts: the same bits, a bounded part on its way, and a run that samples in a layout of its own.

In a process with eight devices (tests/mesh_cases.py starts them): test_resharding.py WHAT.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from mesh_cases import MODELS, placed, same
from tiny import weights

from r1jax import resharding, sharding
from r1jax.drawing import SampleConfig
from r1jax.grpo import LossConfig
from r1jax.models import transformer
from r1jax.optimizer import OptimizerConfig
from r1jax.sharding import MeshConfig
from r1jax.stages import reasoning_rl
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.tasks import DataConfig, parity
from r1jax.types import Score

TRAIN, ROLLOUT = MeshConfig(data=1, fsdp=4, expert=2), MeshConfig(data=2, tensor=4)


def test_without_a_mesh_for_rollouts_the_parameters_are_themselves():
  params = weights(MODELS["dense"])
  with resharding.for_rollout(params, MODELS["dense"]) as policy:
    assert policy is params


def test_rollouts_of_other_devices_are_refused():
  with pytest.raises(ValueError, match="mesh data=1 x tensor=2 = 2 devices, but 1 are present"):
    with sharding.use(MeshConfig(), MeshConfig(data=1, tensor=2), jax.devices()[:1]):
      pass


@pytest.mark.parametrize("what", ["bits", pytest.param("run", marks=pytest.mark.slow)])
def test_on_eight_devices(what):
  from test_sharding import eight
  eight(what, script="test_resharding.py")


def bits():
  """Whole arrays and slices, with the bytes of every transfer noted."""
  model, sent = dataclasses.replace(MODELS["deepseek"], layers=3), []
  put = jax.device_put

  def noted(x, where, **options):
    sent.append(x.nbytes)
    return put(x, where, **options)
  with sharding.use(TRAIN, ROLLOUT) as mesh:
    params = placed(model, mesh)
    sizes = [x.nbytes for x in jax.tree.leaves(params)]
    jax.device_put = noted
    for chunk in (resharding.CHUNK, 50_000):
      sent.clear()
      with resharding.for_rollout(params, model, chunk) as policy:
        inner = sharding.rollout_layout()[0]
        want = sharding.shardings(inner, transformer.params(model))
        assert jax.sharding.get_abstract_mesh() == inner.abstract_mesh
        assert jax.tree.all(jax.tree.map(lambda x, w: x.sharding.is_equivalent_to(w, x.ndim), policy, want))
        jax.tree.map(np.testing.assert_array_equal, policy, weights(model, scale=1.0))
      moved = [x for x, old in zip(jax.tree.leaves(policy), jax.tree.leaves(params), strict=True) if x is not old]
      assert len(moved) > 8 and all(x.is_deleted() for x in moved)
      assert jax.sharding.get_abstract_mesh() == mesh.abstract_mesh
      jax.tree.map(np.testing.assert_array_equal, params, weights(model, scale=1.0))         # still there
      assert max(sizes) > 90_000 and (max(sent) <= 50_000) == (chunk == 50_000), sent


TASK = dataclasses.replace(parity.make(parity.Config(bits=6, held_out=8), DataConfig()),
                           rewards=dict(accuracy=lambda problem, text: Score(float(text.count("1") % 2), "")))
CFG = RLConfig(optimizer=OptimizerConfig(lr=1e-3), loss=LossConfig(kl_coef=0.0), sampling=SampleConfig(12),
               rewards=dict(accuracy=1.0), rollouts=2, questions_per_rollout=4, group_size=4,
               truncated="scored", eval_every=0)


def run():
  """Two rollouts of a stage: the tokens of one device, and its parameters."""
  model = dataclasses.replace(MODELS["small"], vocab=TASK.tokenizer.vocab)

  def stage(mesh_cfg, rollout, devices=None):
    with tempfile.TemporaryDirectory() as folder, sharding.use(mesh_cfg, rollout, devices) as mesh:
      params = reasoning_rl.run(CFG, TASK, Path(folder), placed(model, mesh), model=model, seed=0)
      tables = [pq.read_table(p).to_pydict() for p in sorted(Path(folder).glob("samples/*.parquet"))]
      return jax.device_get(params), [t["tokens"] for t in tables]
  alone, tokens = stage(MeshConfig(), None, jax.devices()[:1])
  assert len(tokens) == 2 and len({t for row in tokens[1] for t in row}) > 4, tokens
  params, own = stage(TRAIN, ROLLOUT)
  assert own == tokens
  same(params, alone)


if __name__ == "__main__":
  dict(bits=bits, run=run)[sys.argv[1]]()
  print("SAME")

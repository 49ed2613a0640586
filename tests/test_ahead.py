"""Rollouts drawn ahead: by the policy that is said, resumed or not, on one device or on devices apart, the same."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import Once, weights

from r1jax import ahead, collect, loop, metrics, sharding, update
from r1jax.checkpoint import Checkpoints
from r1jax.config import DataConfig
from r1jax.grpo import LossConfig
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.rl_config import RLConfig
from r1jax.sampler import SampleConfig
from r1jax.sharding import MeshConfig
from r1jax.slots import Stats
from r1jax.stages import reasoning_rl
from r1jax.tasks import parity
from r1jax.types import Score

TASK = dataclasses.replace(parity.make(parity.Config(bits=6, held_out=8), DataConfig()),
                           rewards=dict(accuracy=lambda problem, text: Score(float(text.count("1") % 2), "")))
MODEL = ModelConfig(vocab=TASK.tokenizer.vocab, dim=16, layers=1, heads=2, kv_heads=1, ffn=16)
CFG = RLConfig(optimizer=OptimizerConfig(lr=3e-2), loss=LossConfig(kl_coef=0.01),
               sampling=SampleConfig(24, slots=8, chunk=4), rewards=dict(accuracy=1.0), rollouts=4,
               questions_per_rollout=4, minibatches=2, reference_refresh=4, group_size=4, ahead=1, truncated="scored",
               eval_every=2, checkpoint=loop.SaveConfig(every=1))


def stage(folder, cfg=CFG, stop=None, params=None):
  """Parameters, tokens of each rollout, rows of metrics."""
  params = jax.tree.map(jnp.asarray, weights(MODEL)) if params is None else params
  params = reasoning_rl.run(cfg, TASK, Path(folder), params, model=MODEL, seed=0, stop=stop)
  return (jax.device_get(params),
          [pq.read_table(p).to_pydict()["tokens"] for p in sorted(Path(folder).glob("samples/*.parquet"))],
          metrics.read(Path(folder) / "metrics.jsonl"))


def drawn(cfg, params, unit):
  lesson = reasoning_rl.lesson(cfg, TASK, 0)
  return collect.draw(cfg, TASK, lesson, params, model=MODEL, seed=0, unit=unit).scored.rollouts.answers


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  return stage(tmp_path_factory.mktemp("one"))


def after(units, cfg, folder):
  """The policy that so many rollouts of a run have trained."""
  with pytest.raises(loop.Interrupted):
    stage(folder, cfg, Once(units - 1))
  template = jax.eval_shape(lambda: reasoning_rl.first_state(cfg, weights(MODEL), MODEL, 8))
  with Checkpoints(Path(folder) / "checkpoints", read_only=True) as checkpoints:
    return checkpoints.restore(template)[1]


def test_each_rollout_is_drawn_by_the_policy_of_one_rollout_before(one, tmp_path):
  _, tokens, rows = one
  first = weights(MODEL)
  assert tokens[0] == drawn(CFG, first, 0) and tokens[1] == drawn(CFG, first, 1)
  state = after(2, CFG, tmp_path / "two")
  assert tokens[2] == drawn(CFG, state.behind[0], 2) and tokens[2] != drawn(CFG, state.params, 2)
  assert tokens[3] == drawn(CFG, state.params, 3)
  assert [row["staleness"] for row in rows] == [0, 1, 1, 1]
  assert not any(name.startswith("mismatch/") for row in rows for name in row)      # the ratio is against who drew


def test_two_ahead(tmp_path):
  cfg = dataclasses.replace(CFG, ahead=2)
  _, tokens, rows = stage(tmp_path, cfg)
  first = weights(MODEL)
  assert [tokens[u] == drawn(CFG, first, u) for u in range(4)] == [True, True, True, False]
  assert [row["staleness"] for row in rows] == [0, 1, 2, 2]


@pytest.mark.parametrize("change", [dict(), dict(in_flight=8), dict(ahead=2, in_flight=4)])
def test_a_killed_run_draws_and_learns_the_same(change, one, tmp_path):
  cfg = dataclasses.replace(CFG, **change)
  whole = stage(tmp_path / "whole", cfg) if change else one
  for _ in range(2):
    with pytest.raises(loop.Interrupted):
      stage(tmp_path / "cut", cfg, Once(0))
  cut = stage(tmp_path / "cut", cfg)
  same(cut[0], whole[0])
  assert cut[1] == whole[1] and [r["loss"] for r in cut[2]] == [r["loss"] for r in whole[2]]
  assert not any(t.name == "rollouts" for t in threading.enumerate())


def test_in_flight_the_sampler_goes_on_with_the_next_policy(one, tmp_path):
  cfg = dataclasses.replace(CFG, in_flight=8)
  _, tokens, rows = stage(tmp_path, cfg)
  assert rows[0]["staleness"] == 0 and all(0 < row["staleness"] < 1 for row in rows[1:])
  # the first two answers to each question of rollout 1 begin as the old policy has them, and end as the new one does
  before, now = ([row for n, row in enumerate(rows) if n % 4 < 2] for rows in (one[1][1], tokens[1]))
  assert [row[:8] for row in before] == [row[:8] for row in now] and before != now


def test_a_later_policy_of_the_same_weights_changes_no_token(one):
  """Changing parameters in the middle of answers is no other sampling: the caches and rows stay."""
  params, renewed = weights(MODEL), []

  def renew(steps):
    renewed.append(steps)
    return jax.tree.map(lambda x: x + 0, params)
  lesson = reasoning_rl.lesson(CFG, TASK, 0)
  out = collect.draw(CFG, TASK, lesson, params, model=MODEL, seed=0, unit=1, renew=renew)
  assert out.scored.rollouts.answers == one[1][1] and len(renewed) > 3 and renewed == sorted(renewed)


def test_the_next_round_of_dynamic_sampling_goes_on_with_the_policy_that_is_renewed(monkeypatch):
  task = dataclasses.replace(TASK, rewards=dict(accuracy=lambda problem, text: Score(0.0, "")))      # all groups agree
  cfg = dataclasses.replace(CFG, in_flight=8, dynamic_sampling=3)
  params, later, begun = weights(MODEL), jax.tree.map(lambda x: x + 0, weights(MODEL)), []
  sample_parts = collect.rollout.sample_parts
  monkeypatch.setattr(collect.rollout, "sample_parts",
                      lambda params, *args, **more: begun.append(params) or sample_parts(params, *args, **more))
  renewals = iter([None, later])
  out = collect.draw(cfg, task, reasoning_rl.lesson(cfg, task, 0), params, model=MODEL, seed=0, unit=1,
                     renew=lambda steps: next(renewals, None))
  assert out.scored.rounds == 3 and begun[0] is params and begun[1] is later and begun[2] is later


def test_what_the_ratio_is_against():
  by = lambda **change: update.by_who_drew(dataclasses.replace(CFG, **change))
  corrected = dataclasses.replace(CFG.loss, correction="truncated")
  assert by() and not by(ahead=0) and not by(loss=corrected) and by(ahead=0, partial=2)


def test_with_a_correction_the_old_policy_is_that_of_the_updates_start(tmp_path):
  cfg = dataclasses.replace(CFG, rollouts=2, loss=dataclasses.replace(CFG.loss, correction="truncated"))
  _, _, rows = stage(tmp_path, cfg)
  assert rows[0]["correction/weight"] == pytest.approx(1, abs=1e-4)
  assert abs(rows[1]["correction/weight"] - 1) > 1e-3 and rows[1]["mismatch/max"] > 1e-2


def test_an_error_while_sampling_is_the_runs(tmp_path):
  def broken(problem, text):
    raise ValueError("this reward cannot judge")
  task = dataclasses.replace(TASK, rewards=dict(accuracy=broken))
  with pytest.raises(ValueError, match="this reward cannot judge"):
    reasoning_rl.run(CFG, task, tmp_path, jax.tree.map(jnp.asarray, weights(MODEL)), model=MODEL, seed=0)
  assert not any(t.name == "rollouts" for t in threading.enumerate())


def test_closing_does_not_wait_for_a_policy_that_will_not_come():
  rollouts = ahead.Rollouts(CFG, MODEL, lambda unit, params, renew: collect.Drawn(None, [], Stats(steps=1), 0.0))
  params = weights(MODEL)
  rollouts.begin(0, (params,), params)
  assert rollouts.take(0)[1] == 0 and rollouts.take(1)[1] == 1      # the third needs the policy after one rollout
  rollouts.close()
  assert not rollouts._thread.is_alive()


@pytest.mark.parametrize(("change", "message"), [
  (dict(ahead=-1), "ahead=-1 must not be negative"), (dict(partial=2), "goes without partial=2"),
  (dict(ahead=0, in_flight=4), "in_flight=4 needs ahead=0"),
  (dict(in_flight=4, sampling=SampleConfig(24)), "in_flight=4 needs ahead=1 and sampling.slots=0 above 0")])
def test_what_does_not_go_together_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)


def test_devices_apart_must_leave_some():
  with pytest.raises(ValueError, match="rollout_devices=1 leave none of 1 to train on"):
    with sharding.use(MeshConfig(), devices=jax.devices()[:1], rollout_devices=1):
      pass


@pytest.mark.slow
def test_devices_apart_give_what_one_device_gives():
  # the CPU client has a thread for each device, enough for one program at a time: two at once want more than six
  flags = dict(XLA_FLAGS="--xla_force_host_platform_device_count=24 --xla_backend_optimization_level=0"
                         " --xla_llvm_disable_expensive_passes=true", JAX_PLATFORMS="cpu")
  out = subprocess.run([sys.executable, __file__], env=os.environ | flags, capture_output=True, text=True, timeout=500)
  assert out.returncode == 0 and out.stdout.endswith("SAME\n"), out.stdout[-2000:] + out.stderr[-3000:]


def apart():
  """Of six devices four train, two sample; the same tokens as on one device, and parameters within rounding."""
  def on(cfg, mesh_cfg, **layout):
    with tempfile.TemporaryDirectory() as folder, sharding.use(mesh_cfg, **layout) as mesh:
      placed = lambda: jax.device_put(weights(MODEL), sharding.shardings(mesh, transformer.params(MODEL)))
      with pytest.raises(loop.Interrupted):
        stage(folder, cfg, Once(1), placed())
      return stage(folder, cfg, None, placed())
  six = jax.devices()[:6]
  for change in (dict(), dict(in_flight=8)):
    cfg = dataclasses.replace(CFG, optimizer=OptimizerConfig(lr=1e-3), rollouts=3, **change)
    alone = on(cfg, MeshConfig(), devices=jax.devices()[:1])
    split = on(cfg, MeshConfig(fsdp=2), rollout=MeshConfig(data=1, tensor=2), devices=six, rollout_devices=2)
    assert split[1] == alone[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split[0], alone[0])
  with sharding.use(MeshConfig(), devices=six):
    with pytest.raises(NotImplementedError, match="ahead=1 on the trainer's own 6 devices"):
      ahead.check(CFG)


if __name__ == "__main__":
  apart()
  print("SAME")

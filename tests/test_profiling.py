"""Traces of a stage's units: which, where, and under which names."""

import contextlib
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import weights

from r1jax import loop, optimizer, profiling, sampler, train, update
from r1jax.drawing import SampleConfig
from r1jax.grpo import LossConfig
from r1jax.models import transformer
from r1jax.models.moe import MoEConfig
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.prefill import prefill
from r1jax.profiling import Units
from r1jax.stages.reasoning_rl import RLConfig, policy_loss
from r1jax.types import Batch, TrainState

MODEL = ModelConfig(vocab=16, dim=8, layers=2, heads=2, kv_heads=1, ffn=12, dense_layers=1,
                    moe=MoEConfig(experts=2, top_k=1, ffn=8, bias=False))
CFG = RLConfig(optimizer=OptimizerConfig(1e-3), loss=LossConfig(), sampling=SampleConfig(4), rewards=dict(accuracy=1.0),
               rollouts=1, questions_per_rollout=2, group_size=2, reference="fused")


def test_units_are_a_number_of_them_or_a_range():
  assert profiling.parse("3") == Units(-1, 3) and list(profiling.parse("3").of(20)) == [21, 22, 23]
  assert profiling.parse("10:13") == Units(10, 13) and list(profiling.parse("10:13").of(20)) == [10, 11, 12]
  for wrong in ("0", "", "5:5", "5:4", "a", "-1", "1:2:3", "3 "):
    with pytest.raises(ValueError, match="--profile"):
      profiling.parse(wrong)


def run(folder, units, asked):
  """Ten units of one addition, in a scope with a name, beside host work with one."""
  @jax.jit
  @jax.named_scope("update/policy_loss")
  def add(x):
    return jnp.sin(x) @ x

  def advance(state, unit):
    with profiling.phase("rewards"):
      return state.replace(step=state.step + 1, params=add(state.params)), [(unit, {})], None
  state = TrainState(step=jnp.int32(0), params=jnp.ones((8, 8)), opt_state=())
  with profiling.asked(asked):
    return loop.run("pretrain", folder, state, advance, units=units, save=loop.SaveConfig())


@pytest.mark.parametrize(("asked", "steps"), [(Units(-1, 3), [1, 2, 3]), (Units(4, 6), [4, 5]), (Units(8, 20), [8, 9])])
def test_a_trace_holds_the_units_asked_for_and_names_of_host_and_device(tmp_path, asked, steps):
  run(tmp_path / "pretrain", 10, asked)
  (events,) = (tmp_path / "profile/pretrain").rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]
  named = lambda name: [e for e in events if e.get("name") == name]
  assert [int(e["args"]["step_num"]) for e in sorted(named("pretrain"), key=lambda e: e["ts"])] == steps
  assert len(named("rewards")) == len(steps)
  (trace,) = (tmp_path / "profile/pretrain").rglob("*.xplane.pb")
  assert b"update/policy_loss" in trace.read_bytes()


def test_nothing_is_traced_unless_asked_for(tmp_path):
  run(tmp_path / "pretrain", 2, None)
  run(tmp_path / "later", 2, Units(5, 6))
  assert not (tmp_path / "profile").exists()


def names(lowered) -> str:
  return lowered.as_text(debug_info=True)


def test_the_update_of_rl_reads_like_the_recipe():
  params = weights(MODEL)
  tx = optimizer.make(CFG.optimizer, 1)
  zero = lambda *shape, kind=np.float32: np.zeros(shape, kind)
  batch = Batch(zero(2, 8, kind=np.int32), np.ones(2, np.int32), zero(4, 8, kind=np.int32), zero(4, 8) + 1, zero(4),
                sampler_logp_NA=zero(4, 8))
  step = update.updater(CFG, MODEL, tx, lambda p, b: policy_loss(p, b, model=MODEL, cfg=CFG))
  text = names(step.__wrapped__.lower(train.init_state(params, tx, reference=True), batch))
  for name in ("update/reference", "policy_loss", "update/optimizer", "attention", "mlp", "moe", "head"):
    assert f"/{name}" in text or f"({name})" in text, name


def test_the_sampler_reads_like_the_recipe():
  params = weights(MODEL)
  static = dict(model=MODEL, cfg=CFG.sampling)
  text = names(prefill.lower(params, jnp.ones((2, 8), jnp.int32), jnp.ones(2, jnp.int32), **static))
  assert "rollout/prefill/" in text and "/attention/" in text and "/moe/" in text
  state = sampler.start(params, jnp.ones((2, 8), jnp.int32), [1, 1], jax.random.split(jax.random.key(0), 4), end_id=0,
                        **static)
  assert "rollout/decode/" in names(sampler.advance.lower(params, state, 1, end_id=0, **static))


def test_names_change_no_program(monkeypatch):
  params, token = weights(MODEL), np.ones((2, 8), np.int32)
  text = lambda: jax.jit(lambda p, t: transformer.forward(p, MODEL, t, t)[0]).lower(params, token).as_text()
  with_names = text()
  monkeypatch.setattr(jax, "named_scope", lambda name: contextlib.nullcontext())
  assert text() == with_names

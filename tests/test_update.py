"""Choices of the update that change time and memory only: the same state whatever they are, and no pass in vain."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import experiment
from tiny import weights

from r1jax import layout, loop, offload, pipeline, policies, train, update
from r1jax.grpo import LossConfig
from r1jax.metrics import read
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.sampler import SampleConfig
from r1jax.stages import reasoning_rl
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.types import Batch

MODEL = ModelConfig(vocab=12, dim=8, layers=1, heads=2, kv_heads=1, ffn=12)
OTHER = jax.tree.map(lambda x: x * 1.3, weights(MODEL, seed=1))                    # the reference
B, G, P, A = 4, 2, 8, 32
CFG = RLConfig(optimizer=OptimizerConfig(lr=1e-3), loss=LossConfig(0.2, 0.28, kl_coef=0.1, entropy_coef=0.01),
               sampling=SampleConfig(A), rewards=dict(accuracy=1.0), rollouts=1, questions_per_rollout=B, group_size=G)
LENGTHS = np.array([30, 2, 5, 7, 3, 3, 19, 1])


def rollout_batch(shared=True):
  """Eight answers of unequal lengths, one of them outside the loss, to four prompts."""
  rng = np.random.default_rng(0)
  tokens = lambda *shape: rng.integers(0, MODEL.vocab, shape).astype(np.int32)
  mask_NA = (np.arange(A) < LENGTHS[:, None]).astype(np.float32)
  mask_NA[3] = 0
  draw = lambda: rng.normal(-2.4, 0.5, (B * G, A)).astype(np.float32) * (mask_NA > 0)
  prompt_BP, length_B = tokens(B, P), np.array([2, 8, 1, 5], np.int32)
  if not shared:
    prompt_BP, length_B = (np.repeat(x, G, axis=0) for x in (prompt_BP, length_B))
  rng = np.random.default_rng(1)
  return Batch(prompt_BP, length_B, tokens(B * G, A), mask_NA, rng.normal(size=B * G).astype(np.float32),
               old_logp_NA=draw(), sampler_logp_NA=draw())


@functools.cache
def state_after(change: tuple = ()):
  """(parameters, metrics) after one update of plain gradient descent, with the config changed."""
  cfg = dataclasses.replace(CFG, **dict(change))
  batch, score = rollout_batch(cfg.shared_prompt), update.scorer(cfg, MODEL)
  state = train.init_state(jax.tree.map(jnp.asarray, weights(MODEL)), optax.sgd(1.0))
  state = state.replace(ref_params=jax.tree.map(jnp.asarray, OTHER))
  batch = update.with_logprobs(cfg, state, batch, score)
  assert (batch.ref_logp_NA is None) == (cfg.reference == "fused")
  one = update.updater(cfg, MODEL, optax.sgd(1.0),
                       lambda p, b: reasoning_rl.policy_loss(p, b, model=MODEL, cfg=cfg))
  state, metrics = one(state, batch)
  assert int(state.step) == 1
  return jax.device_get(state.params), {name: float(m.value()) for name, m in metrics.items()}


@pytest.mark.parametrize("change", [
  dict(reference="fused"), dict(sort_by_length=True, micro_batches=2),
  dict(shared_prompt=False, pack_tokens=40, micro_batches=2),
  pytest.param(dict(shared_prompt=False, pack_tokens=64, sort_by_length=True, reference="fused"),
               marks=pytest.mark.slow),
  pytest.param(dict(sort_by_length=True, micro_batches=4, reference="fused"), marks=pytest.mark.slow),
  pytest.param(dict(reference="fused", micro_batches=2), marks=pytest.mark.slow)])
def test_layout_and_the_reference_s_place_change_neither_loss_nor_gradients_nor_metrics(change):
  params, metrics = state_after()
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, weights(MODEL))
  assert min(jax.tree.leaves(moved)) > 1e-4 and metrics["kl"] > 0.01
  other, other_metrics = state_after(tuple(change.items()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other, params)
  assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


# --- layouts

def test_sorted_micro_batches_have_like_lengths_and_their_own_padding():
  parts = layout.micro_batches(rollout_batch(), 2, sort=True)
  # the longest answers of the prompts: 30, 5 (7 is outside the loss), 3, 19
  assert [rows.tolist() for rows, _ in parts] == [[0, 1, 6, 7], [2, 3, 4, 5]]
  assert [part.answer_NA.shape for _, part in parts] == [(4, 32), (4, 8)]
  assert [part.prompt_length_B.tolist() for _, part in parts] == [[2, 5], [8, 1]]
  for rows, part in parts:
    np.testing.assert_array_equal(part.advantage_N, rollout_batch().advantage_N[rows])
    np.testing.assert_array_equal(part.old_logp_NA, rollout_batch().old_logp_NA[rows, :part.answer_NA.shape[1]])


def test_without_sorting_rows_stay_in_order_and_all_rows_are_there_once():
  for sort in (False, True):
    parts = layout.micro_batches(rollout_batch(), 4, sort)
    rows = [n for rows, _ in parts for n in rows]
    assert sorted(rows) == list(range(8)) and (sort or rows == list(range(8)))


def test_packed_rows_hold_each_sample_in_the_loss_whole_and_say_where():
  batch = rollout_batch(shared=False)
  packed = layout.pack(batch, 40)
  assert packed.token_RT.shape == (3, 40)            # 32 + 3 and 4, 24 + 13 and 1, 6 and 11 tokens: 3 rows
  assert int((packed.segment_RT > 0).sum()) == (LENGTHS + np.repeat([2, 8, 1, 5], 2)).sum() - 15      # not answer 3
  inside = packed.to_M < 8 * A
  assert inside.sum() == batch.mask_NA.sum() and len(inside) == train.bucket(int(inside.sum()))
  token, position = packed.token_RT.reshape(-1), packed.position_RT.reshape(-1)
  for source, target in zip(packed.from_M[inside], packed.to_M[inside], strict=True):
    n, a = divmod(int(target), A)
    assert token[source + 1] == batch.answer_NA[n, a] and batch.mask_NA[n, a] == 1
    assert position[source] == batch.prompt_length_B[n] + a - 1
    if a == 0:
      assert token[source] == batch.prompt_BP[n, batch.prompt_length_B[n] - 1]


def test_packing_refuses_what_does_not_fit_and_takes_a_batch_with_nothing_in_the_loss():
  with pytest.raises(ValueError, match=r"reasoning_rl.pack_tokens=31: a prompt and its answer are 32 tokens"):
    layout.pack(rollout_batch(shared=False), 31)
  with pytest.raises(ValueError, match="4 prompts for 8 answers"):
    layout.pack(rollout_batch(), 64)
  nothing = layout.pack(rollout_batch(shared=False).replace(mask_NA=np.zeros((8, A), np.float32)), 8)
  assert nothing.token_RT.shape == (1, 8) and (nothing.to_M == 8 * A).all()


# --- passes that are not needed

@pytest.mark.parametrize(("change", "calls"), [
  (dict(), ["reference"]),
  (dict(loss=LossConfig(kl_coef=0.0)), []),
  (dict(reference="fused"), []),
  (dict(minibatches=2, reference_refresh=2), ["reference", "policy again"]),
  (dict(minibatches=2, loss=LossConfig(kl_coef=0.0)), ["policy again"]),
  (dict(partial=2, minibatches=2, loss=LossConfig(kl_coef=0.0), sampling=SampleConfig(A, slots=4)), [])])
def test_the_reference_and_the_old_policy_are_asked_only_where_the_loss_needs_them(change, calls):
  seen = []

  def score(params, batch, again=False):
    seen.append(params + " again" * again)
    return np.zeros((8, A))
  state = train.TrainState(step=0, params="policy", opt_state=None, ref_params="reference")
  batch = update.with_logprobs(dataclasses.replace(CFG, **change), state, rollout_batch(), score)
  assert seen == calls
  assert (batch.ref_logp_NA is None) == ("reference" not in calls)


# --- offloading

def test_what_rests_on_the_host_comes_back_the_same():
  state = train.init_state(dict(w=jnp.arange(6.0).reshape(2, 3)), optax.adam(0.1), reference=True)
  kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}
  for what, on_host in (("none", (0, 0)), ("optimizer", (1, 0)), ("reference", (0, 1)), ("both", (1, 1))):
    asleep = offload.rest(state, what)
    assert (offload.HOST in kinds(asleep.opt_state), offload.HOST in kinds(asleep.ref_params)) == on_host
    assert kinds(asleep.params) == kinds(state.params)
    awake = offload.awake(asleep, what)
    assert kinds(awake) == kinds(state)
    jax.tree.map(np.testing.assert_array_equal, awake, state)
  assert kinds(offload.awake(offload.rest(state, "both"), "both", "reference").opt_state) == {offload.HOST}


def test_a_backend_without_pinned_memory_is_refused_by_name(monkeypatch):
  device = type("Device", (), dict(platform="toaster", addressable_memories=lambda self: []))()
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  with pytest.raises(NotImplementedError, match=r"reasoning_rl.offload=both: the toaster backend has no pinned_host"):
    offload.check("reasoning_rl.offload=both")


@pytest.mark.parametrize(("change", "message"), [
  (dict(pack_tokens=64), "pack_tokens=64 needs shared_prompt=False"),
  (dict(pack_tokens=32, shared_prompt=False), "pack_tokens=32 holds no answer of sampling.max_tokens=32"),
  (dict(reference="after"), "'after'"),
  (dict(reference="fused", loss=LossConfig(kl_in="reward", advantage="group_centred")), "too late"),
  (dict(offload="all"), "'all'")])
def test_config_errors_name_the_values(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)


@pytest.mark.slow
def test_a_run_with_all_of_it_stopped_after_each_rollout_leaves_the_same_bits(tmp_path):
  c = experiment("r1_zero_parity")
  c.stages = ("reasoning_rl",)
  c.reasoning_rl.rollouts, c.eval.problems = 2, 8
  c.reasoning_rl.update(offload="both", sort_by_length=True, micro_batches=2, reference_refresh=0)
  c.reasoning_rl.loss.update(kl_coef=0.01)
  c.reasoning_rl.optimizer.update(state_dtype="bfloat16")
  pipeline.run(c, tmp_path / "whole")
  stop = loop.Stop()
  stop.asked = True
  with pytest.raises(loop.Interrupted):
    pipeline.run(c, tmp_path / "parts", stop=stop)
  pipeline.run(c, tmp_path / "parts", stop=stop)
  whole, parts = (policies.load_policy(tmp_path / folder)[0] for folder in ("whole", "parts"))
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  rows = [read(tmp_path / folder / "reasoning_rl" / "metrics.jsonl") for folder in ("whole", "parts")]
  assert [row["kl"] for row in rows[0]] == [row["kl"] for row in rows[1]] and len(rows[0]) == 2

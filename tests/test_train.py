"""The step: the same whatever the micro-batches, padding, order of rows or mesh; and plain optax by hand."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import weights

from r1jax import grpo, losses, train
from r1jax.grpo import LossConfig
from r1jax.losses import Mean
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig, make, schedule
from r1jax.types import Batch

MODEL = ModelConfig(vocab=16, dim=16, layers=2, heads=4, kv_heads=2, ffn=24, logit_chunk=16)
WEIGHTS = weights(MODEL, scale=1.0)
TABLE = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
AGGREGATIONS = (("sequence_mean_token_mean", 0.0), ("token_mean", 0.0), ("constant_divisor", 6.0))


def some_batch(B=8, G=1, P=5, A=10, seed=0):
  """Unequal lengths of prompts and answers, two answers outside the loss."""
  rng = np.random.default_rng(seed)
  N = B * G
  mask_NA = np.zeros((N, A), np.float32)
  length_N = rng.integers(1, A + 1, N)
  for n in range(N):
    mask_NA[n, :length_N[n]] = n not in (1, 6)
  tokens = lambda *shape: rng.integers(0, MODEL.vocab, shape).astype(np.int32)
  # near the weights' own log-probs: ratios of e^10 would leave rounding only to compare
  draw = lambda: rng.normal(-2.8, 0.7, (N, A)).astype(np.float32)
  return Batch(tokens(B, P), rng.integers(1, P + 1, B).astype(np.int32), tokens(N, A), mask_NA,
               rng.normal(size=N).astype(np.float32), draw(), draw(), draw())


def logprobs(params, b, temperature=1.0):
  return train.token_logprobs(params, MODEL, b.prompt_BP, b.prompt_length_B, b.answer_NA, temperature)


def plain_logprobs(params, batch, temperature=1.0):
  """Each answer behind a prompt of its own, one row after the other, all logits at once."""
  N, A = batch.answer_NA.shape
  rows = []
  for n in range(N):
    b = n // (N // len(batch.prompt_BP))
    L = int(batch.prompt_length_B[b])
    token_T = np.concatenate([batch.prompt_BP[b, :L], batch.answer_NA[n], np.zeros(batch.prompt_BP.shape[1] - L, int)])
    rows.append((L, token_T))
  token_NT = np.array([t for _, t in rows])
  hidden_NTD, _ = transformer.forward(params, MODEL, token_NT, np.broadcast_to(np.arange(token_NT.shape[1]),
                                                                              token_NT.shape))
  logp_NTV = jax.nn.log_softmax(hidden_NTD @ transformer.head(params) / temperature)
  at_NA = np.array([np.arange(L - 1, L - 1 + A) for L, _ in rows])
  logp_NAV = jnp.take_along_axis(logp_NTV, at_NA[:, :, None], axis=1)
  return (jnp.take_along_axis(logp_NAV, batch.answer_NA[:, :, None], axis=2)[..., 0],
          -jnp.sum(jnp.exp(logp_NAV) * logp_NAV, axis=2))


@functools.cache    # one function for one objective: jit compiles it once
def policy_loss(aggregation="sequence_mean_token_mean", divisor=0.0):
  cfg = LossConfig(0.2, 0.28, kl_coef=0.05, aggregation=aggregation, divisor=divisor)

  def loss_fn(params, batch):
    logp_NT, entropy_NT = logprobs(params, batch, 0.9)
    return grpo.loss(logp_NT, entropy_NT, batch, cfg)
  return loss_fn


gradients = jax.jit(train.gradients, static_argnums=(2, 3))


def run(loss_fn, batch, micro_batches=1, params=WEIGHTS):
  """(gradients, loss, metrics) as numbers."""
  grads, loss, metrics = gradients(params, batch, loss_fn, micro_batches)
  return grads, loss.value(), {k: m.value() for k, m in metrics.items()}


def same(a, b):
  """Within 1e-5 of the largest value of each array."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1, np.abs(y).max())), a, b)


@pytest.mark.parametrize("shape", [
  pytest.param(dict(B=4, G=3), marks=pytest.mark.slow), dict(B=1, G=8, A=1),
  pytest.param(dict(B=8, G=1, P=1), marks=pytest.mark.slow)])
def test_a_shared_prompt_gives_the_log_probs_and_gradients_of_separate_sequences(shape):
  batch = some_batch(**shape)

  def mix(function):
    weight_NA = np.random.default_rng(1).normal(size=(2, *batch.answer_NA.shape))
    def value(params):
      outs = function(params, batch, 0.7)
      return sum(jnp.sum(o * w) for o, w in zip(outs, weight_NA, strict=True)), outs
    return jax.jit(jax.grad(value, has_aux=True))(WEIGHTS)
  same(mix(logprobs), mix(plain_logprobs))


def test_answers_of_one_group_do_not_see_each_other():
  batch = some_batch(B=1, G=3)
  other_NA = batch.answer_NA.copy()
  other_NA[1] = (other_NA[1] + 1) % MODEL.vocab
  score = lambda answer_NA: np.asarray(train.score(WEIGHTS, batch.prompt_BP, batch.prompt_length_B, answer_NA,
                                                   model=MODEL))
  before, after = score(batch.answer_NA), score(other_NA)
  np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
  assert (before[1] != after[1]).all()


@pytest.mark.parametrize(("aggregation", "divisor"), AGGREGATIONS)
def test_micro_batches_change_neither_loss_nor_gradients_nor_metrics(aggregation, divisor):
  cfg, batch = LossConfig(0.2, 0.28, kl_coef=0.05, aggregation=aggregation, divisor=divisor), some_batch(B=4, G=2)

  def loss_fn(table_VV, b):        # a token follows from the one before it alone: quick to compile
    logp_NAV = jax.nn.log_softmax(table_VV[jnp.pad(b.answer_NA[:, :-1], ((0, 0), (1, 0)))])
    return grpo.loss(jnp.take_along_axis(logp_NAV, b.answer_NA[..., None], 2)[..., 0], -logp_NAV[..., 0], b, cfg)

  whole, *others = (run(loss_fn, batch, parts, params=TABLE) for parts in (1, 2, 4))
  assert np.abs(whole[0]).max() > 0.02
  for other in others:
    same(other, whole)


@pytest.mark.slow
def test_micro_batches_of_whole_groups_change_nothing_for_the_model():
  loss_fn, batch = policy_loss("token_mean", 0.0), some_batch(B=4, G=2)
  whole = run(loss_fn, batch)
  assert max(np.abs(g).max() for g in jax.tree.leaves(whole[0])) > 0.05
  same(run(loss_fn, batch, 4), whole)


@pytest.mark.slow
def test_a_part_with_nothing_in_the_mask_adds_nothing():
  loss_fn, batch = policy_loss("token_mean", 0.0), some_batch()
  mask_NT = batch.mask_NA.copy()
  mask_NT[4:] = 0
  twice = jax.tree.map(lambda x: np.concatenate([x[:4], x[:4]]), batch)       # the same mean
  whole = run(loss_fn, twice, 2)
  same(run(loss_fn, batch.replace(mask_NA=mask_NT), 2), whole)
  same(run(loss_fn, jax.tree.map(lambda x: x[::-1], batch.replace(mask_NA=mask_NT)), 2), whole)
  nothing = run(loss_fn, batch.replace(mask_NA=np.zeros_like(mask_NT)), 2)
  assert all(np.isfinite(x).all() and not np.asarray(x).any() for x in jax.tree.leaves(nothing[0]))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_token_mean_is_not_a_mean_of_means(micro_batches):
  # loss w x: one row with one token at 10, one with nine at 0. Mean over tokens 1; mean of the rows' means 5.
  batch = Batch(np.zeros((2, 1), np.int32), np.array([1, 1]), np.zeros((2, 9), np.int32),
                np.array([[1.0] + [0] * 8, [1.0] * 9], np.float32),
                sampler_logp_NA=np.array([[10.0] * 9, [0.0] * 9], np.float32))
  loss_fn = lambda w, b: (losses.masked_mean(w * b.sampler_logp_NA, b.mask_NA), {})
  grad, loss, _ = train.gradients(jnp.float32(1), batch, loss_fn, micro_batches)
  assert (float(grad), float(loss.value())) == (1.0, 1.0)


@pytest.mark.slow
def test_row_order_and_padding_change_nothing():
  loss_fn, batch = policy_loss("token_mean", 0.0), some_batch()
  whole = run(loss_fn, batch)
  order = np.random.default_rng(0).permutation(8)
  same(run(loss_fn, jax.tree.map(lambda x: x[order], batch)), whole)
  longer = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 6)]) if x.ndim == 2 else x, batch)
  longer.answer_NA[:, 10:] = 7
  longer.prompt_BP[:, 5:] = 3
  same(run(loss_fn, longer), whole)
  spoilt_NA = np.where(batch.mask_NA > 0, batch.answer_NA, 5)     # what padding holds
  spoilt_BP = np.where(np.arange(5) < batch.prompt_length_B[:, None], batch.prompt_BP, 5)
  assert (spoilt_NA != batch.answer_NA).any() and (spoilt_BP != batch.prompt_BP).any()
  same(run(loss_fn, batch.replace(answer_NA=spoilt_NA, prompt_BP=spoilt_BP)), whole)


@pytest.mark.slow
def test_one_update_is_plain_optax_by_hand():
  batch, tx = some_batch(), make(OptimizerConfig(0.01, weight_decay=0.1, clip_norm=0.5), 10)
  state = train.init_state(jax.tree.map(jnp.asarray, WEIGHTS), tx)

  def plain(p):
    return -jnp.sum(plain_logprobs(p, batch)[0] * batch.mask_NA) / batch.mask_NA.sum()

  value, grads = jax.jit(jax.value_and_grad(plain))(WEIGHTS)
  norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
  assert norm > 0.5                                                      # the clip acts
  # Adam's first step, bias-corrected: g / (|g| + eps), then decay on matrices
  vector = lambda path, p: p.ndim - ("layers" in jax.tree_util.keystr(path)) == 1         # norms' scales
  decay = jax.tree_util.tree_map_with_path(lambda path, p: 0.0 if vector(path, p) else 0.1, WEIGHTS)
  by_hand = jax.tree.map(lambda p, g, d: p - 0.01 * (g * 0.5 / norm / (np.abs(g * 0.5 / norm) + 1e-8) + d * p),
                         WEIGHTS, grads, decay)
  loss_fn = lambda p, b: (losses.cross_entropy(logprobs(p, b)[0], b.mask_NA), {})
  state, metrics = train.compiled_step(loss_fn, tx)(state, batch)
  assert int(state.step) == 1
  assert float(metrics["loss"].value()) == pytest.approx(float(value), rel=1e-5)
  assert float(metrics["grad_norm"].value()) == pytest.approx(norm, rel=1e-4)      # before the clip

  def near(got, want, grad):   # where the gradient is rounding only, Adam's sign is chance
    sure = np.abs(grad) > 1e-4 * np.abs(grad).max()
    np.testing.assert_allclose(np.asarray(got)[sure], np.asarray(want)[sure], rtol=1e-4, atol=1e-5)
  jax.tree.map(near, state.params, by_hand, grads)


@pytest.mark.slow
def test_a_step_keeps_the_reference_and_lowers_the_loss():
  batch, tx = some_batch(), optax.adam(0.01)
  state = train.init_state(jax.tree.map(jnp.asarray, WEIGHTS), tx, reference=True)
  loss_fn = lambda p, b: (losses.cross_entropy(logprobs(p, b)[0], b.mask_NA), {})
  step, seen = train.compiled_step(loss_fn, tx, 2), []
  for _ in range(20):
    state, metrics = step(state, batch)
    seen.append(float(metrics["loss"].value()))
  assert seen[-1] < 0.5 * seen[0] and int(state.step) == 20
  jax.tree.map(np.testing.assert_array_equal, state.ref_params, WEIGHTS)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_scores_do_not_depend_on_micro_batches(micro_batches):
  b = some_batch(B=4, G=2)
  score = functools.partial(train.score, WEIGHTS, b.prompt_BP, b.prompt_length_B, b.answer_NA, model=MODEL)
  np.testing.assert_allclose(score(micro_batches=micro_batches), score(), atol=1e-5)


def test_gradients_divide_by_the_weight_once():
  loss_fn = lambda w, b: (Mean(w * b.advantage_N.sum(), jnp.float32(len(b.advantage_N))), {})
  batch = Batch(None, None, None, None, np.arange(4, dtype=np.float32))
  for micro_batches in (1, 2, 4):
    assert float(train.gradients(jnp.float32(3), batch, loss_fn, micro_batches)[0]) == 1.5


# --- the optimizer's schedule, lengths and rows

def test_schedules_by_hand():
  rates = lambda cfg, steps: [float(schedule(cfg, steps)(i)) for i in range(steps)]
  assert rates(OptimizerConfig(2.0), 3) == [2.0, 2.0, 2.0]
  np.testing.assert_allclose(rates(OptimizerConfig(1.0, warmup=4), 6), [0.25, 0.5, 0.75, 1, 1, 1])
  np.testing.assert_allclose(rates(OptimizerConfig(1.0, warmup=1), 3), [1, 1, 1])
  np.testing.assert_allclose(rates(OptimizerConfig(1.0, schedule="linear", final=0.0), 4), [1, 0.75, 0.5, 0.25])
  cosine = rates(OptimizerConfig(1.0, warmup=2, schedule="cosine", final=0.1), 12)
  np.testing.assert_allclose([cosine[0], cosine[1], cosine[2], cosine[7]], [0.5, 1, 1, 0.55], rtol=1e-5)


def test_buckets_hold_the_length_are_few_and_waste_little():
  sizes = [train.bucket(n) for n in range(1, 5000)]
  assert all(n <= size for n, size in enumerate(sizes, 1)) and sizes == sorted(sizes)
  assert len(set(sizes)) < 50
  assert all(size <= max(n + 7, 1.25 * n) for n, size in enumerate(sizes, 1))
  assert [train.bucket(n) for n in (1, 8, 9, 64, 65, 128, 129)] == [8, 8, 16, 64, 80, 128, 160]


def test_rows_are_padded_on_the_right_and_never_cut():
  np.testing.assert_array_equal(train.pad_rows([[1, 2], [], [3]], 3, 9), [[1, 2, 9], [9, 9, 9], [3, 9, 9]])
  assert train.pad_rows([[1]], 2, 0).dtype == np.int32 and train.pad_rows([[1]], 2, 0.0).dtype == np.float32
  with pytest.raises(ValueError, match="row 1 has 3 values, more than length=2"):
    train.pad_rows([[1], [1, 2, 3]], 2, 0)


# --- many devices

SHARDED = """
import jax, numpy as np, optax
from r1jax import sharding, train
from r1jax.models import transformer
import test_train as t

assert jax.device_count() == 8
batch, tx = t.some_batch(), optax.sgd(0.1)
loss_fn = t.policy_loss("token_mean", 0.0)
state = lambda params: train.init_state(params, tx)
alone, metrics = train.compiled_step(loss_fn, tx, 2)(state(jax.device_put(t.WEIGHTS, jax.devices()[0])), batch)
moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone.params, t.WEIGHTS)
assert min(jax.tree.leaves(moved)) > 1e-5, moved
for sizes in ((2, 2, 2), (1, 8, 1), (4, 1, 2)):
  mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
  with jax.set_mesh(mesh):
    placed = jax.device_put(t.WEIGHTS, sharding.shardings(mesh, transformer.params(t.MODEL)))
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    if sizes == (2, 2, 2):
      q = placed["layers"]["attention"]["q"]                  # [L, D, H, C]
      assert q.addressable_shards[0].data.shape == (2, 8, 2, 4), q.sharding
      assert rows.answer_NA.addressable_shards[0].data.shape == (2, 10), rows.answer_NA.sharding
    many, many_metrics = train.compiled_step(loss_fn, tx, 2 if sizes == (2, 2, 2) else 1)(state(placed), rows)
  t.same(jax.device_get(many.params), jax.device_get(alone.params))
  numbers = lambda metrics: {k: m.value() for k, m in jax.device_get(metrics).items()}
  t.same(numbers(many_metrics), numbers(metrics))
print("SAME")
"""


@pytest.mark.slow
def test_eight_devices_make_the_update_of_one():
  env = os.environ | dict(XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
  done = subprocess.run([sys.executable, "-c", SHARDED], cwd=Path(__file__).parent, env=env, capture_output=True,
                        text=True, timeout=300, check=False)
  assert done.stdout.strip().endswith("SAME"), done.stdout + done.stderr

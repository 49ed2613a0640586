"""Packed rows: what goes where, and that a packed batch has the loss and gradients of a padded one."""

import dataclasses

import jax
import numpy as np
import pytest
from test_moe import with_moe
from tiny import weights

from r1jax import packing, train
from r1jax.models.transformer import ModelConfig
from r1jax.stages import sft

MODEL = ModelConfig(vocab=30, dim=16, layers=2, heads=4, kv_heads=2, ffn=24)


def samples(seed=0, count=7):
  rng = np.random.default_rng(seed)
  draw = lambda low, high: [rng.integers(1, 30, n).tolist() for n in rng.integers(low, high, count)]
  return draw(1, 6), draw(1, 8)


def one_a_row(prompts, answers, length):
  """One sample to a row: what packing is compared with."""
  parts = [packing.pack([p], [a], length) for p, a in zip(prompts, answers, strict=True)]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def test_best_fit_by_hand():
  # longest first: 7 | 5 | 4 goes with 5? 9 <= 10 and not with 7 | 3 with 7, the tighter fit | 1 with 5 + 4
  assert packing.best_fit([3, 7, 1, 5, 4], 10) == [[1, 0], [3, 4, 2]]
  assert packing.best_fit([10, 10], 10) == [[0], [1]] and packing.best_fit([], 10) == []
  with pytest.raises(ValueError, match="sample 1 has 11 tokens, more than a row of 10"):
    packing.best_fit([3, 11], 10)


def test_best_fit_puts_each_sample_in_one_row_and_wastes_little():
  rng = np.random.default_rng(0)
  lengths = np.minimum(rng.geometric(1 / 100, 500), 1000).tolist()
  rows = packing.best_fit(lengths, 1000)
  assert sorted(i for row in rows for i in row) == list(range(500))
  used = [sum(lengths[i] for i in row) for row in rows]
  assert max(used) <= 1000 and sum(used) / (1000 * len(rows)) > 0.95


def test_a_packed_row_by_hand():
  packed = packing.pack([[1, 2], [5]], [[3, 4], [6, 7]], 8, multiple=2)
  np.testing.assert_array_equal(packed.token_NT, [[1, 2, 3, 4, 5, 6, 7, 0], [0] * 8])
  np.testing.assert_array_equal(packed.segment_NT, [[1, 1, 1, 1, 2, 2, 2, 0], [0] * 8])
  np.testing.assert_array_equal(packed.position_NT, [[0, 1, 2, 3, 0, 1, 2, 0], [0] * 8])
  np.testing.assert_array_equal(packed.mask_NT, [[0, 0, 1, 1, 0, 1, 1, 0], [0] * 8])


@pytest.mark.parametrize("model", [MODEL, dataclasses.replace(with_moe(dispatch="dense"), remat="layer")],
                         ids=["dense", "mla-moe"])
def test_packed_is_padded_in_loss_and_gradient(model):
  prompts, answers = samples()
  step = jax.jit(lambda p, batch: train.gradients(p, batch, lambda p, b: sft.loss(p, b, model=model), 1)[:2])
  packed = step(weights(model), packing.pack(prompts, answers, 24))
  padded = step(weights(model), one_a_row(prompts, answers, 16))
  assert len(packing.pack(prompts, answers, 24).token_NT) < 7
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), packed, padded)
  assert float(packed[1].weight) == sum(map(len, answers))


def test_packed_log_probs_are_those_of_prompts_and_answers_apart():
  prompts, answers = samples(1)
  packed = packing.pack(prompts, answers, 32)
  logp_NT = np.asarray(jax.jit(lambda p, b: train.packed_logprobs(p, MODEL, b))(weights(MODEL), packed))
  A, P = max(map(len, answers)), max(map(len, prompts))
  apart_NA = np.asarray(train.score(weights(MODEL), train.pad_rows(prompts, P, 0),
                                    np.array([len(p) for p in prompts]), train.pad_rows(answers, A, 0), model=MODEL))
  rows = packing.best_fit([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], 32)
  for n, row in enumerate(rows):
    got = logp_NT[n][np.asarray(packed.mask_NT[n]) > 0]
    np.testing.assert_allclose(got, np.concatenate([apart_NA[i, :len(answers[i])] for i in row]), atol=1e-5)


def test_micro_batches_of_packed_rows_change_nothing():
  prompts, answers = samples(2)
  batch = packing.pack(prompts, answers, 16, multiple=4)
  run = lambda parts: jax.jit(lambda p, b: train.gradients(p, b, lambda p, b: sft.loss(p, b, model=MODEL), parts)[:2])(
    weights(MODEL), batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), run(1), run(4))

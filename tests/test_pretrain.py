"""The pre-training loss: one number whatever the layout, and what MoE and multi-token prediction add to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_moe import MODEL, with_moe
from tiny import weights

from r1jax import losses, optimizer, train
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.stages import pretrain
from r1jax.stages.pretrain import PretrainConfig
from r1jax.types import Batch

CFG = PretrainConfig(optimizer=OptimizerConfig(lr=1e-3), steps=1, batch=3)


def batch():
  rng = np.random.default_rng(0)
  lengths, said = np.array([3, 5, 2], np.int32), [4, 2, 3]
  prompt_BP, answer_NA = rng.integers(0, 200, (3, 8)).astype(np.int32), rng.integers(0, 200, (3, 4)).astype(np.int32)
  mask_NA = np.array([[1.0] * n + [0.0] * (4 - n) for n in said], np.float32)
  return Batch(prompt_BP=prompt_BP, prompt_length_B=lengths, answer_NA=answer_NA, mask_NA=mask_NA)


def test_whole_sequences_put_each_answer_behind_its_prompt():
  b = batch()
  token_NT, mask_NT = pretrain.whole_sequences(b)
  for n, (length, said) in enumerate(((3, 4), (5, 2), (2, 3))):
    want = [*b.prompt_BP[n, :length], *b.answer_NA[n, :said]]
    assert token_NT[n, :length + said].tolist() == want
    assert mask_NT[n].tolist() == [0] * length + [1] * said + [0] * (12 - length - said)


def test_both_layouts_give_the_same_loss():
  """A model with experts takes whole sequences, others take prompts and answers apart: compared on the same weights."""
  model = dataclasses.replace(with_moe(dispatch="dense"), remat="none")
  apart, _ = jax.jit(lambda p, b: train.token_logprobs(p, model, b.prompt_BP, b.prompt_length_B, b.answer_NA))(
    weights(model), batch())
  want = losses.cross_entropy(apart, batch().mask_NA)
  got, metrics = jax.jit(lambda p, b: pretrain.loss(p, b, model=model, cfg=CFG))(weights(model), batch())
  assert float(got.weight) == float(want.weight) == 9
  np.testing.assert_allclose(got.total, want.total, rtol=1e-5)
  assert float(metrics["router_busiest"].value()) >= 1


def test_second_losses_are_added_by_their_weights():
  model = dataclasses.replace(with_moe(dispatch="dense"), mtp=1)
  cfg = dataclasses.replace(CFG, mtp_weight=0.3, balance_weight=0.5)
  total, m = jax.jit(lambda p, b: pretrain.loss(p, b, model=model, cfg=cfg))(weights(model), batch())
  ce, second, balance = (float(m[k].value()) for k in ("cross_entropy", "mtp", "router_balance"))
  assert second > 1 and balance > 1
  # the second loss is summed over the same answers' tokens, and divided by the same weight
  want = ce + 0.3 * float(m["mtp"].total) / float(total.weight) + 0.5 * balance
  assert float(total.value()) == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
def test_micro_batches_and_the_bias_rule():
  """One step: the bias moves by its speed against the loads, the same way whatever the micro-batches."""
  model = with_moe(dispatch="dense")
  tx = optimizer.make(CFG.optimizer, 1)
  after = {}
  for parts in (1, 3):
    step = train.compiled_step(lambda p, b: pretrain.loss(p, b, model=model, cfg=CFG), tx, parts, bias_speed=0.01)
    state, metrics = step(train.init_state(jax.tree.map(jnp.array, weights(model)), tx), batch())
    assert "router_load" not in metrics and all(np.isfinite(float(m.value())) for m in metrics.values())
    after[parts] = state.params["moe_layers"]["moe"]["selection_bias"]
  moved = np.asarray(after[1]) - weights(model)["moe_layers"]["moe"]["selection_bias"]
  np.testing.assert_allclose(np.abs(moved[np.abs(moved) > 1e-4]), 0.01, rtol=1e-3)
  assert (moved > 0).any() and (moved < 0).any()
  np.testing.assert_array_equal(after[1], after[3])


def test_dense_models_take_the_short_way_and_wrong_weights_are_refused():
  model = ModelConfig(vocab=200, dim=16, layers=1, heads=2, kv_heads=1, ffn=24)
  _, metrics = jax.jit(lambda p, b: pretrain.loss(p, b, model=model, cfg=CFG))(weights(model), batch())
  assert metrics == {} and MODEL.moe
  with pytest.raises(ValueError, match=r"mtp_weight=-0\.1"):
    dataclasses.replace(CFG, mtp_weight=-0.1)

"""Formulas of what a model's work costs, against XLA's own count, the published sizes, and numbers by hand.

XLA computes both halves of a causal mask: it is given what its program computes, T tokens seen by each of T.
It counts a scanned body once: layers are one of a kind here, or unrolled.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import costs, train
from r1jax.bench import grpo
from r1jax.models import attention, mtp, param, transformer
from r1jax.models.deepseek import PRESETS
from r1jax.models.mla import MLAConfig
from r1jax.models.moe import MoEConfig
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig

DENSE = ModelConfig(vocab=512, dim=128, layers=1, heads=8, kv_heads=2, head_dim=32, ffn=256, remat="none")
# experts in a fixed room of exactly what top_k needs, so that XLA's count is that of the chosen ones
DEEPSEEK = ModelConfig(
  vocab=512, dim=128, layers=1, heads=8, kv_heads=8, ffn=384, mtp=1, tied_head=False, remat="none",
  mla=MLAConfig(q_rank=64, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32),
  moe=MoEConfig(experts=16, top_k=4, ffn=128, shared=1, groups=4, top_groups=2, dispatch="capacity", capacity_factor=1))
TINY = ModelConfig(vocab=10, dim=4, layers=2, heads=2, kv_heads=1, ffn=3)      # head_dim 2
R1 = PRESETS["deepseek-r1"]
B, G, P, A = 2, 4, 32, 64


def count(f, model, *shapes):
  ints = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
  params = param.abstract(transformer.params(model), model.dtype)
  return jax.jit(f).lower(params, *ints).compile().cost_analysis()["flops"]


def whole_rows(model):
  """score's FLOPs of B prompts with G answers, as XLA computes them: all of each row's pairs, no last token."""
  pairs = B * P * P + B * G * (A - 1) * (P + A - 1)
  return (2 * costs.layer_values(model) * (B * P + B * G * (A - 1)) + costs.attention_flops(model, pairs)
          + costs.head_flops(model, B * G * A))


@pytest.mark.parametrize("model", [DENSE, DEEPSEEK], ids=["dense", "deepseek"])
def test_log_probs_and_their_gradient_cost_what_xla_counts(model):
  logp = lambda p, *batch: train.token_logprobs(p, model, *batch)[0]
  shapes = (B, P), (B,), (B * G, A)
  forward = count(logp, model, *shapes)
  assert forward == pytest.approx(whole_rows(model), rel=0.05)
  assert count(jax.grad(lambda p, *batch: logp(p, *batch).sum()), model, *shapes) == pytest.approx(
    3 * whole_rows(model), rel=0.05)
  ours = costs.score(model, [P] * B, [A] * (B * G)).flops
  assert costs.update(model, [P] * B, [A] * (B * G)).flops == 3 * ours
  less = costs.attention_flops(model, B * P * (P - 1) / 2 + B * G * A * (A - 1) / 2)      # the masks' other halves
  assert ours + less == pytest.approx(whole_rows(model), rel=0.05) and ours < forward


@pytest.mark.parametrize("model", [
  dataclasses.replace(DENSE, layers=3), dataclasses.replace(DEEPSEEK, layers=3, dense_layers=1, mtp=0)],
  ids=["dense", "deepseek"])
def test_an_unrolled_decode_step_costs_what_xla_counts(model):
  caches = tuple(map(attention.DecodeCache, transformer.empty_cache(model, B, P, model.dtype),
                     transformer.empty_cache(model, B * G, A, model.dtype)))

  def step(p, token_N1, length_B):
    attend = transformer.decode_attention(model, length_B, A - 1, jnp.ones((B * G, 1, A), bool))
    hidden_N1D, kept = transformer.forward(p, model, token_N1, jnp.full((B * G, 1), P + A - 1), attend, caches)
    return hidden_N1D @ transformer.head(p), kept.kv
  one = costs.decode(model, [P] * B, [A] * (B * G)).flops - costs.decode(model, [P] * B, [A - 1] * (B * G)).flops
  assert count(step, model, (B * G, 1), (B,)) == pytest.approx(one, rel=0.05)


def test_the_mtp_module_costs_what_xla_counts():
  N, T = 4, 64
  position_NT = np.broadcast_to(np.arange(T), (N, T))
  hidden_NTD = jnp.ones((N, T, DEEPSEEK.dim))
  f = lambda p, token_NT: mtp.loss(p, DEEPSEEK, hidden_NTD, token_NT, jnp.ones((N, T)), position_NT).total
  unseen = costs.attention_flops(DEEPSEEK, N * (T - 2) * (T - 3) / 2, layers=1)
  assert count(f, DEEPSEEK, (N, T)) == pytest.approx(costs.mtp_flops(DEEPSEEK, [T] * N) + unseen, rel=0.05)


def test_deepseek_r1_has_its_published_sizes():
  assert costs.parameters(R1, mtp=False) == 671_026_419_200
  assert costs.parameters(R1) - costs.parameters(R1, mtp=False) == 11_610_068_224
  assert costs.active(R1) == pytest.approx(37e9, rel=0.02)
  assert costs.cache_bytes(R1) == 61 * 576 * 2
  assert costs.cache_bytes(R1, drafter=True) == 62 * 576 * 2
  assert costs.cache_bytes(R1, "int8") == 61 * (576 + 4)             # and a scale


def test_a_small_model_by_hand():
  layer = 4 * 4 + 2 * (4 * 2) + 4 * 4 + 3 * (4 * 3) + 2 * 4           # q, k and v, out, feed-forward, norms
  assert costs.layer_values(TINY) == 2 * layer == 184
  assert costs.parameters(TINY) == costs.active(TINY) == 184 + 4 + 40
  # three tokens see 1 + 2 + 3; scores and values of two layers, two heads of two channels
  assert costs.layer_flops(TINY, 0, 3) == 2 * 184 * 3 + (2 * 2 * 2 * 2) * 2 * 6
  assert costs.layer_flops(TINY, 3, 5) == 2 * 184 * 2 + 32 * (4 + 5)
  assert costs.prefill(TINY, [3, 5]).flops == costs.layer_flops(TINY, 0, 3) + costs.layer_flops(TINY, 0, 5)
  # answers of 2 and 1 tokens behind a prompt of 3
  said = costs.decode(TINY, [3], [2, 1])
  assert said.flops == 2 * 184 * 3 + 32 * (4 + 5 + 4) + 3 * 2 * 4 * 10
  token = 2 * 2 * 1 * 2 * 4                                           # k and v of a token, two layers, one head, f32
  assert costs.cache_bytes(TINY) == token
  assert said.bytes == 2 * (184 + 4 + 40) * 4 + token * (3 * 2 + (1 + 2) + 1)     # two steps; the prompt once in each


def test_a_shared_prompt_is_computed_once():
  shared, apart = (costs.score(TINY, [3], [2, 2, 2], shared).flops for shared in (True, False))
  assert apart - shared == 2 * costs.layer_flops(TINY, 0, 3)
  with pytest.raises(ValueError, match="3 answers are not a whole number for each of 2 prompts"):
    costs.score(TINY, [3, 3], [1, 1, 1])


def test_work_on_a_sequence_in_two_parts_is_that_of_the_whole():
  for model in (DENSE, R1):
    parts = costs.layer_flops(model, 0, 7) + costs.layer_flops(model, 7, 30)
    assert parts == pytest.approx(costs.layer_flops(model, 0, 30), rel=1e-12)


def test_experts_are_read_when_they_are_chosen():
  one, all_ = (costs.weight_bytes(DEEPSEEK, tokens) for tokens in (1, 10**6))
  expert = 3 * 128 * 128 * 4
  assert all_ - one == pytest.approx(12 * expert)                     # 4 of 16 for one token
  assert costs.weight_bytes(DEEPSEEK, [0, 1]).tolist() == [0, one]
  assert one == pytest.approx(4 * costs.active(DEEPSEEK))


@pytest.mark.parametrize(("dtype", "bytes_"), [("", 2), ("float32", 4), ("bfloat16", 2)])
def test_the_optimizers_state_has_its_own_type(dtype, bytes_):
  model = dataclasses.replace(TINY, dtype="bfloat16")
  out = costs.state_bytes(model, OptimizerConfig(lr=1.0, state_dtype=dtype), reference=True)
  assert out["params"] == out["gradients"] == out["reference"] == 2 * 228
  assert out["optimizer"] == pytest.approx(2 * bytes_ * 228, abs=16)  # and counters
  assert costs.state_bytes(model)["optimizer"] == costs.state_bytes(model)["gradients"] == 0


def test_the_benchmarks_step_is_what_it_was_by_hand():
  """Rollout, reference and three forwards: five of all, prompts once each."""
  s = grpo.Shape(TINY, prompts=2, group=3, prompt=4, answer=5)
  seen = 2 * (1 + 2 + 3 + 4) + 6 * (5 + 6 + 7 + 8 + 9)
  assert grpo.step_flops(s) == 5 * (2 * 184 * (2 * 4 + 6 * 5) + 32 * seen + 2 * 4 * 10 * 30)

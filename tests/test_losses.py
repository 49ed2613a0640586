"""Chunked token log-probs against the plain ones, in values, gradients and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import grpo, losses, train
from r1jax.grpo import LossConfig
from r1jax.losses import Max, Mean
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.types import Batch


def naive(hidden_MD, head_DV, target_M, temperature):
  logp_MV = jax.nn.log_softmax((hidden_MD.astype(jnp.float32) @ head_DV.astype(jnp.float32)) / temperature)
  return logp_MV[jnp.arange(len(target_M)), target_M], -jnp.sum(jnp.exp(logp_MV) * logp_MV, axis=1)


def inputs(M=13, D=6, V=11, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  return draw(M, D), draw(D, V), jnp.asarray(rng.integers(0, V, M)), (draw(M), draw(M))


def pull(function, hidden_MD, head_DV, weights):
  """Outputs and the gradients of a random mix of them."""
  mix = lambda h, w: sum(jnp.vdot(o, g) for o, g in zip(function(h, w), weights, strict=True))
  return jax.jit(lambda h, w: (function(h, w), jax.grad(mix, argnums=(0, 1))(h, w)))(hidden_MD, head_DV)


@pytest.mark.parametrize("chunk", [1, 7, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("through", ["logp", "entropy", "both"])
def test_values_and_gradients_are_those_of_the_plain_log_softmax(chunk, temperature, through):
  hidden_MD, head_DV, target_M, weights = inputs()
  weights = tuple(w * (through in (name, "both")) for name, w in zip(("logp", "entropy"), weights, strict=True))
  got = pull(lambda h, w: losses.token_logprobs(h, w, target_M, temperature, chunk), hidden_MD, head_DV, weights)
  want = pull(lambda h, w: naive(h, w, target_M, temperature), hidden_MD, head_DV, weights)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("chunk", [4, 100])
def test_over_kept_tokens_alone_the_others_have_probability_and_gradient_zero(chunk):
  hidden_MD, head_DV, _, weights = inputs()
  rng = np.random.default_rng(1)
  kept_Mk = np.stack([rng.permutation(11)[:4] for _ in range(13)])
  kept_Mk[::3, 2:] = -1                                    # some were cut down further
  target_M = jnp.asarray(kept_Mk[:, 0])
  out_MV = np.ones((13, 11), bool)
  for m, row in enumerate(kept_Mk):
    out_MV[m, row[row >= 0]] = False

  def plain(h, w):
    logp_MV = jax.nn.log_softmax(jnp.where(out_MV, -jnp.inf, h @ w / 0.7))
    p_MV = jnp.exp(logp_MV)
    return logp_MV[jnp.arange(13), target_M], -jnp.sum(jnp.where(out_MV, 0, p_MV * jnp.where(out_MV, 0, logp_MV)), 1)

  got = pull(lambda h, w: losses.token_logprobs(h, w, target_M, 0.7, chunk, jnp.asarray(kept_Mk)), hidden_MD, head_DV,
             weights)
  want = pull(plain, hidden_MD, head_DV, weights)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_by_hand():
  # logits log 1, log 2, log 5 -> 1/8, 2/8, 5/8
  logp, entropy = losses.token_logprobs(jnp.ones((1, 1)), jnp.log(jnp.array([[1.0, 2, 5]])), jnp.array([2]), 1.0, 4)
  np.testing.assert_allclose(logp, np.log(5 / 8), rtol=1e-6)
  np.testing.assert_allclose(entropy, -sum(p * np.log(p) for p in (1 / 8, 2 / 8, 5 / 8)), rtol=1e-6)


def test_bf16_inputs_give_f32_log_probs_and_bf16_gradients_near_the_f32_ones():
  hidden_MD, head_DV, target_M, weights = inputs(M=64, D=32, V=50, dtype=jnp.bfloat16)
  head_DV, weights = head_DV * 0.3, tuple(w.astype(jnp.float32) for w in weights)
  wide = (hidden_MD.astype(jnp.float32), head_DV.astype(jnp.float32))
  outs, grads = pull(lambda h, w: losses.token_logprobs(h, w, target_M, 0.7, 10), hidden_MD, head_DV, weights)
  want_outs, want_grads = pull(lambda h, w: naive(h, w, target_M, 0.7), *wide, weights)
  assert {o.dtype for o in outs} == {jnp.dtype("float32")} and {g.dtype for g in grads} == {jnp.dtype("bfloat16")}
  for got, want in zip(outs, want_outs, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4)     # products of bf16 are exact in f32
  for got, want in zip(grads, want_grads, strict=True):
    assert np.abs(got.astype(np.float32) - want).max() < 0.02 * np.abs(want).max()


def test_large_logits_stay_finite():
  hidden_MD, head_DV, target_M, weights = inputs()
  out = pull(lambda h, w: losses.token_logprobs(h, w, target_M, 1.0, 4), hidden_MD * 1e3, head_DV, weights)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))


def temporary_bytes(function, *args):
  return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_no_array_of_all_tokens_times_all_vocabulary_exists():
  M, V, D, chunk = 4096, 4096, 16, 128
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
  args = shape(M, D), shape(D, V), shape(M, dtype=jnp.int32)
  total = lambda function: lambda h, w, t: sum(jnp.sum(o) for o in function(h, w, t))
  memory = lambda function: temporary_bytes(jax.value_and_grad(total(function), argnums=(0, 1)), *args)
  assert memory(lambda h, w, t: naive(h, w, t, 1.0)) >= M * V * 4          # the measure sees it where it is
  assert memory(lambda h, w, t: losses.token_logprobs(h, w, t, 1.0, chunk)) < M * V * 4 / 4


@pytest.mark.slow
def test_the_whole_compiled_policy_update_stays_below_n_times_t_times_v():
  model = ModelConfig(vocab=8192, dim=16, layers=2, heads=2, kv_heads=1, ffn=32, logit_chunk=64)
  N, T = 16, 64

  def loss_fn(params, batch):
    logp_NT, entropy_NT = train.token_logprobs(params, model, batch.prompt_BP, batch.prompt_length_B,
                                               batch.answer_NA, 0.9)
    return grpo.loss(logp_NT, entropy_NT, batch, LossConfig())

  def plain_loss_fn(params, batch):
    position_NT = jnp.broadcast_to(jnp.arange(T), (N, T))
    hidden_NTD, _ = transformer.forward(params, model, batch.answer_NA, position_NT)
    logp_NT, entropy_NT = (x.reshape(N, T) for x in naive(
      hidden_NTD.reshape(N * T, -1), transformer.head(params), batch.answer_NA.reshape(-1), 0.9))
    return grpo.loss(logp_NT, entropy_NT, batch, LossConfig())

  tx = optax.adam(1e-3)
  state = jax.eval_shape(lambda: train.init_state(transformer.init(model, jax.random.key(0)), tx, reference=True))
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
  batch = Batch(shape(N, 4, dtype=jnp.int32), shape(N, dtype=jnp.int32), shape(N, T, dtype=jnp.int32), shape(N, T),
                shape(N), shape(N, T), shape(N, T), shape(N, T))
  memory = lambda f: train.compiled_step(f, tx).lower(state, batch).compile().memory_analysis().temp_size_in_bytes
  assert memory(plain_loss_fn) >= N * T * model.vocab * 4
  assert memory(loss_fn) < N * T * model.vocab * 4 / 2


def test_means_add_as_totals_over_weights_and_maxima_as_the_largest():
  both = Mean(jnp.float32(2), jnp.float32(1)) + Mean(jnp.float32(4), jnp.float32(4))
  assert float(both.value()) == pytest.approx(6 / 5)                    # not (2 + 1) / 2
  assert float((Max(jnp.float32(-3)) + Max(jnp.float32(-5))).value()) == -3
  assert float(Mean(jnp.float32(0), jnp.float32(0)).value()) == 0       # nothing to average: 0, not nan


def test_cross_entropy_is_the_token_mean_of_minus_log_p_within_the_mask():
  mean = losses.cross_entropy(jnp.array([[-9.0, -1, -2], [-9, -6, -9]]), jnp.array([[0.0, 1, 1], [0, 1, 0]]))
  assert (float(mean.value()), float(mean.weight)) == (3.0, 3.0)

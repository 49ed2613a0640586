"""Objectives beside R1's: each against an oracle of its own, written as its paper prints it, and that one's numerical
gradient; advantages and corrections by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_grpo import some_batch, value_and_grad

from r1jax import algorithms, config, credit, grpo, variants
from r1jax.grpo import LossConfig
from r1jax.types import Batch

f32 = lambda x: jnp.asarray(x, jnp.float32)


# --- advantages

def test_leave_one_out_by_hand():
  np.testing.assert_allclose(variants.leave_one_out(f32([1, 0, 0.5]), jnp.ones(3)), [0.75, -0.75, 0])
  np.testing.assert_allclose(variants.leave_one_out(f32([1, 0, 9, 0]), f32([1, 1, 0, 1])), [1, -0.5, 0, -0.5])


def test_leave_one_out_is_the_centred_reward_scaled():
  reward_G = f32(np.random.default_rng(0).normal(size=8))
  np.testing.assert_allclose(variants.leave_one_out(reward_G, jnp.ones(8)),
                             8 / 7 * grpo.group_centred(reward_G, jnp.ones(8)), rtol=1e-5)


def test_batch_normalised_by_hand():
  reward_BG = f32([[1, 1], [0, 0]])
  np.testing.assert_allclose(variants.batch_normalised(reward_BG, jnp.ones((2, 2))), [[1, 1], [-1, -1]])
  np.testing.assert_allclose(variants.batch_normalised(f32([[1, 7], [0, 0]]), f32([[1, 0], [1, 0]])), [[1, 0], [-1, 0]])


def test_group_centred_batch_normalised_by_hand():
  reward_BG = f32([[1, 0], [5, 2], [3, 3]])     # centred: .5 -.5, 1.5 -1.5, 0 0; mean square (0.5 + 4.5) / 6
  got = variants.group_centred_batch_normalised(reward_BG, jnp.ones((3, 2)))
  np.testing.assert_allclose(got, np.array([[.5, -.5], [1.5, -1.5], [0, 0]]) / math.sqrt(5 / 6), rtol=1e-6)


@pytest.mark.parametrize("name", grpo.WHOLE_BATCH)
def test_what_is_for_a_whole_batch_sees_the_whole_batch(name):
  reward_BG = f32(np.random.default_rng(0).normal(size=(4, 8)))
  got = grpo.advantages(reward_BG, jnp.ones((4, 8)), LossConfig(advantage=name), None)
  np.testing.assert_allclose(got.std(), 1, rtol=1e-5)
  assert np.ptp(np.asarray(got).std(1)) > 0.01                  # not each group alone


def test_gae_agrees_with_the_sums_of_its_definition():
  rng = np.random.default_rng(0)
  T, length, gamma, lam = 9, 6, 0.9, 0.7
  reward, value = rng.normal(size=(2, T))
  mask = (np.arange(T) < length).astype(float)
  delta = [reward[t] + gamma * (value[t + 1] if t + 1 < length else 0) - value[t] for t in range(length)]
  expected = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)] + [0] * 3
  advantage, target = variants.gae(f32(reward), f32(value), f32(mask), gamma, lam)
  np.testing.assert_allclose(advantage, expected, atol=1e-5)
  np.testing.assert_allclose(target, expected + value * mask, atol=1e-5)


@pytest.mark.parametrize(("lam", "expected"), [(1.0, [0.8, 0.5, 0.3]), (0.0, [0.3, 0.2, 0.3])])
def test_gae_by_hand_one_reward_at_the_end(lam, expected):
  advantage, _ = variants.gae(f32([0, 0, 1]), f32([0.2, 0.5, 0.7]), jnp.ones(3), 1.0, lam)
  np.testing.assert_allclose(advantage, expected, rtol=1e-5)


# --- objectives: loss(logp, frozen, batch, n) of row n's tokens ts, `frozen` what the gradient does not see

def rows(batch):
  return [(n, np.flatnonzero(batch.mask_NA[n])) for n in range(len(batch.mask_NA)) if batch.mask_NA[n].any()]


def clip(x, low, high):
  return min(max(x, low), high)


def k3(x):
  return math.exp(x) - x - 1


def dr_grpo(logp, frozen, b, old, A):
  return -np.mean([sum(min((r := math.exp(logp[n, t] - old[n, t])) * A[n], clip(r, 0.8, 1.2) * A[n]) for t in ts) / 50
                   for n, ts in rows(b)])


def token_terms(logp, b, old, A, low, high):
  return [min((r := math.exp(logp[n, t] - old[n, t])) * A[n], clip(r, low, high) * A[n])
          for n, ts in rows(b) for t in ts]


def dapo(logp, frozen, b, old, A):
  return -np.mean(token_terms(logp, b, old, A, 0.8, 1.28))


def deepseekmath(logp, frozen, b, old, A):
  per_row = []
  for n, ts in rows(b):
    per_row.append(np.mean([min((r := math.exp(logp[n, t] - old[n, t])) * A[n], clip(r, 0.8, 1.2) * A[n])
                            - 0.04 * k3(b.ref_logp_NA[n, t] - logp[n, t]) for t in ts]))
  return -np.mean(per_row)


def gspo(logp, frozen, b, old, A):
  out = []
  for n, ts in rows(b):
    s = math.exp(np.mean(logp[n, ts] - old[n, ts]))
    out.append(min(s * A[n], clip(s, 1 - 3e-4, 1 + 4e-4) * A[n]))
  return -np.mean(out)


def gspo_token(logp, frozen, b, old, A):
  out = []
  for n, ts in rows(b):
    s = math.exp(np.mean(frozen[n, ts] - old[n, ts]))
    tokens = [s * math.exp(logp[n, t] - frozen[n, t]) for t in ts]
    out.append(np.mean([min(x * A[n], clip(x, 1 - 3e-4, 1 + 4e-4) * A[n]) for x in tokens]))
  return -np.mean(out)


def cispo(logp, frozen, b, old, A):
  terms = [min(math.exp(frozen[n, t] - old[n, t]), 5.0) * A[n] * logp[n, t] for n, ts in rows(b) for t in ts]
  return -sum(terms) / len(terms)


def rloo(logp, frozen, b, old, A):
  return -np.mean([A[n] * sum(logp[n, ts]) / 50 for n, ts in rows(b)])


def reinforce_pp(logp, frozen, b, old, A):
  return -np.mean(token_terms(logp, b, old, A, 0.8, 1.2))


def r1(logp, frozen, b, old, A):
  return -np.mean([np.mean([min((r := math.exp(logp[n, t] - old[n, t])) * A[n], clip(r, -9, 11) * A[n])
                            - 0.001 * k3(b.ref_logp_NA[n, t] - logp[n, t]) for t in ts]) for n, ts in rows(b)])


ORACLES = dict(grpo=r1, grpo_deepseekmath=deepseekmath, dr_grpo=dr_grpo, dapo=dapo, gspo=gspo, gspo_token=gspo_token,
               cispo=cispo, rloo=rloo, reinforce_pp=reinforce_pp, ppo=reinforce_pp)


def numerical_gradient(f, logp, frozen):
  grad = np.zeros_like(logp)
  for i in np.ndindex(logp.shape):
    step = np.zeros_like(logp)
    step[i] = 1e-6
    grad[i] = (f(logp + step, frozen) - f(logp - step, frozen)) / 2e-6
  return grad


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_each_algorithm_is_what_its_paper_prints_in_value_and_gradient(name):
  cfg = LossConfig(**algorithms.section(name, 50)["loss"])
  for seed in range(3):
    logp_NT, entropy_NT, batch = some_batch(seed)
    if not (cfg.kl_coef and cfg.kl_in == "loss"):
      batch = dataclasses.replace(batch, ref_logp_NA=None)
    if name.startswith("gspo"):       # near the old policy, or all sequences would be clipped
      logp_NT = (batch.old_logp_NA + (logp_NT - batch.old_logp_NA) * [[1e-3]] * (np.arange(6) % 2)[:, None]
                 ).astype(np.float32)
    logp, old, A = (np.asarray(x, np.float64) for x in (logp_NT, batch.old_logp_NA, batch.advantage_N))
    oracle = lambda x, frozen, b=batch, old=old, A=A: ORACLES[name](x, frozen, b, old, A)
    value, grad_NT, _ = value_and_grad(logp_NT, entropy_NT, batch, cfg)
    np.testing.assert_allclose(value, oracle(logp, logp), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad_NT, numerical_gradient(oracle, logp, logp), rtol=1e-3, atol=1e-5)
    assert np.abs(grad_NT).max() > 1e-5


def test_every_algorithm_is_a_valid_section_and_unknown_names_are_told():
  for name in algorithms.ALGORITHMS:
    section = dict(optimizer=dict(lr=1e-6), sampling=dict(max_tokens=64), rewards=dict(accuracy=1.0), rollouts=1,
                   questions_per_rollout=2, group_size=2) | algorithms.section(name, 64)
    cfg = config.build(config.RLConfig, section, "reasoning_rl")
    assert (cfg.critic is not None) == (name == "ppo")
  with pytest.raises(ValueError, match="'grop' is none of grpo, grpo_deepseekmath"):
    algorithms.section("grop", 64)


# --- single terms

def gradient_of(cfg, **changes):
  logp_NT, entropy_NT, batch = some_batch(0)
  return value_and_grad(logp_NT, entropy_NT, dataclasses.replace(batch, **changes), cfg), logp_NT, entropy_NT, batch


def test_clip_share_counts_what_the_surrogate_clips():
  logp_NT, entropy_NT, batch = some_batch(0)
  share = lambda **more: {k: v for k, v in value_and_grad(logp_NT, entropy_NT, batch, LossConfig(0.2, 0.28, **more))[
    2].items() if k.startswith("clip_share")}
  ratio_T = np.exp(logp_NT - batch.old_logp_NA)[batch.mask_NA > 0]
  low, high = (ratio_T < 0.8).mean(), (ratio_T > 1.28).mean()
  assert share(surrogate="truncated_reinforce") == pytest.approx(
    {"clip_share": low + high, "clip_share/low": low, "clip_share/high": high})
  assert 0 < share()["clip_share"] < low + high and share(surrogate="reinforce") == {}


def test_dual_clip_bounds_what_a_far_likelier_bad_token_costs():
  old, logp = -3.0, -3.0 + math.log(8.0)
  value = lambda x, A: variants.dual_clip(grpo.clipped_surrogate(jnp.exp(x - old), A, 0.2, 0.2), A, 3.0)
  got, slope = jax.value_and_grad(value)(logp, -2.0)
  np.testing.assert_allclose((got, slope), (-6.0, 0.0))              # -16 without
  np.testing.assert_allclose(value(old + math.log(2.0), -2.0), -4.0, rtol=1e-6)
  np.testing.assert_allclose(value(logp, 2.0), 2.4, rtol=1e-6)       # good tokens: as before
  with pytest.raises(ValueError, match=r"dual_clip=1\.1"):
    LossConfig(0.2, 0.2, dual_clip=1.1)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators_as_values(name):
  p, q = f32([0.5, 0.3, 0.2]), f32([0.45, 0.35, 0.2])
  mean = float(jnp.sum(p * grpo.KLS[name](jnp.log(p), jnp.log(q))))
  np.testing.assert_allclose(mean, float(jnp.sum(p * jnp.log(p / q))), rtol=0.2 if name == "k2" else 1e-3)


@pytest.mark.parametrize(("name", "right"), [("k1", False), ("k2", True), ("k3", False), ("k3_corrected", True)])
def test_whose_gradient_as_a_loss_is_that_of_the_kl(name, right):
  """On-policy, in expectation over tokens: PITFALLS of k3, and what V3.2 corrected."""
  theta, q = f32([0.3, -0.5, 0.9]), jax.nn.log_softmax(f32([-0.4, 0.8, 0.1]))
  logp_V = jax.nn.log_softmax(theta)
  cfg = LossConfig(kl=name, kl_coef=1.0, aggregation="constant_divisor", divisor=1.0)

  def loss(theta, token):     # one answer of one token, advantage 0: nothing but the KL term
    x = jax.nn.log_softmax(theta)[token].reshape(1, 1)
    batch = Batch(None, None, None, jnp.ones((1, 1)), advantage_N=jnp.zeros(1), ref_logp_NA=q[token].reshape(1, 1))
    return grpo.loss(x, x, batch, cfg)[0].total

  expected = jax.grad(lambda t: jnp.sum(jax.nn.softmax(t) * (jax.nn.log_softmax(t) - q)))(theta)
  mean = sum(jnp.exp(logp_V[v]) * jax.grad(loss)(theta, v) for v in range(3))
  assert np.allclose(mean, expected, atol=1e-5) == right


def test_entropy_bonus_is_added_to_the_objective():
  plain, _, entropy_NT, batch = gradient_of(LossConfig(aggregation="token_mean"))
  bonus = gradient_of(LossConfig(aggregation="token_mean", entropy_coef=0.5))[0]
  mean = (entropy_NT * batch.mask_NA).sum() / batch.mask_NA.sum()
  np.testing.assert_allclose(bonus[0], plain[0] - 0.5 * mean, rtol=1e-5)


@pytest.mark.parametrize("name", ["truncated", "masked"])
def test_corrections_multiply_the_policys_term_only(name):
  cfg = LossConfig(kl_coef=0.3, correction=name, correction_low=0.9, correction_high=1.1)
  (_, grad_NT, metrics), *_, batch = gradient_of(cfg)
  kl_only = gradient_of(LossConfig(kl_coef=0.3), advantage_N=np.zeros(6, np.float32))[0][1]
  plain = gradient_of(LossConfig(kl_coef=0.3))[0][1]
  w_NT = np.exp(batch.old_logp_NA - batch.sampler_logp_NA)
  w_NT = np.minimum(w_NT, 1.1) if name == "truncated" else np.where((w_NT >= 0.9) & (w_NT <= 1.1), w_NT, 0)
  inside = batch.mask_NA > 0
  np.testing.assert_allclose(grad_NT, np.where(inside, kl_only + w_NT * (plain - kl_only), 0), rtol=1e-4, atol=1e-6)
  assert (w_NT[inside] == (1.1 if name == "truncated" else 0)).any()
  np.testing.assert_allclose(metrics["correction/weight"], w_NT[inside].mean(), rtol=1e-5)


def test_sequence_mask_takes_out_bad_answers_that_the_policy_has_left():
  logp_NT, entropy_NT, batch = some_batch(0)
  gone_N = np.array([(batch.sampler_logp_NA - logp_NT)[n][batch.mask_NA[n] > 0].mean() if batch.mask_NA[n].any() else 0
                     for n in range(6)])
  delta = float(np.median(np.abs(gone_N[gone_N != 0])))
  out_N = (batch.advantage_N < 0) & (gone_N > delta)
  assert out_N.any() and ((batch.advantage_N > 0) & (gone_N > delta)).any() | ((batch.advantage_N < 0) & ~out_N).any()
  _, grad_NT, metrics = value_and_grad(logp_NT, entropy_NT, batch, LossConfig(kl_coef=0.0, sequence_mask=delta))
  plain = value_and_grad(logp_NT, entropy_NT, batch, LossConfig(kl_coef=0.0))[1]
  np.testing.assert_allclose(grad_NT, np.where(out_N[:, None], 0, plain), rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(metrics["correction/masked_sequences"], out_N.sum() / 5)


def test_corrections_without_the_samplers_log_probs_are_an_error():
  logp_NT, entropy_NT, batch = some_batch(0)
  with pytest.raises(ValueError, match="correction=truncated"):
    grpo.loss(logp_NT, entropy_NT, dataclasses.replace(batch, sampler_logp_NA=None), LossConfig(correction="truncated"))


def test_token_advantages_take_the_place_of_the_answers():
  logp_NT, entropy_NT, batch = some_batch(0)
  cfg = LossConfig(0.2, 0.28)
  same = dataclasses.replace(batch, token_advantage_NA=np.repeat(batch.advantage_N[:, None], 9, 1), advantage_N=None)
  np.testing.assert_allclose(value_and_grad(logp_NT, entropy_NT, same, cfg)[1],
                             value_and_grad(logp_NT, entropy_NT, batch, cfg)[1], rtol=1e-6)
  twice = dataclasses.replace(same, token_advantage_NA=same.token_advantage_NA * [1] * 8 + [2])
  assert (value_and_grad(logp_NT, entropy_NT, twice, cfg)[1] != value_and_grad(logp_NT, entropy_NT, same, cfg)[1]).any()


# --- from rewards to advantages

def two_answers():
  mask_NA = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
  logp_NA = np.array([[-1, -1, -1, 99], [-2, -2, 99, 99]], np.float32)
  ref_NA = np.array([[-1.5, -1, -1, 0], [-1, -2, 0, 0]], np.float32)
  return Batch(None, None, None, mask_NA=mask_NA, sampler_logp_NA=logp_NA, ref_logp_NA=ref_NA)


def test_kl_in_the_reward_lowers_it_by_beta_times_the_tokens_log_ratio():
  with pytest.raises(ValueError, match="advantage=group_normalised"):
    LossConfig(kl="k1", kl_in="reward")
  cfg = LossConfig(advantage="group_centred", kl="k1", kl_in="reward", kl_coef=0.1)
  np.testing.assert_allclose(credit.kl_penalty(two_answers(), cfg), [[0.05, 0, 0, 0], [-0.1, 0, 0, 0]], atol=1e-7)
  got = credit.of_groups(cfg, np.array([1.0, 0.0]), two_answers(), np.ones((1, 2)), None)
  np.testing.assert_allclose(got, [0.425, -0.425], rtol=1e-5)         # rewards 0.95 and 0.1
  loss = dataclasses.replace(cfg, kl_in="loss")
  np.testing.assert_allclose(credit.of_groups(loss, np.array([1.0, 0.0]), two_answers(), np.ones((1, 2)), None),
                             [0.5, -0.5])


def test_a_critics_advantages_by_hand_reward_at_the_last_token_kl_at_each():
  cfg = LossConfig(advantage="gae", kl="k1", kl_in="reward", kl_coef=0.1, whiten=False)
  value_NA = np.array([[0.5, 0.5, 0.5, 7], [0.25, 0.0, 7, 7]], np.float32)
  advantage_NA, return_NA = credit.of_critic(cfg, np.array([1.0, 0.0]), two_answers(), value_NA)
  np.testing.assert_allclose(return_NA, [[0.95, 1, 1, 0], [0.1, 0, 0, 0]], atol=1e-6)
  np.testing.assert_allclose(advantage_NA, [[0.45, 0.5, 0.5, 0], [-0.15, 0, 0, 0]], atol=1e-6)


def test_whitened_advantages_have_mean_0_and_std_1_over_tokens():
  cfg = LossConfig(advantage="gae", kl_coef=0.0)
  value_NA = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
  batch = two_answers()
  advantage_NA, _ = credit.of_critic(cfg, np.array([1.0, 0.0]), batch, value_NA)
  inside = advantage_NA[batch.mask_NA > 0]
  np.testing.assert_allclose((inside.mean(), inside.std()), (0, 1), atol=1e-6)
  assert not advantage_NA[batch.mask_NA == 0].any()

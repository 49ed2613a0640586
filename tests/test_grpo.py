"""The objective: numbers by hand, an oracle of plain loops, and what must not change it."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import grpo
from r1jax.grpo import LossConfig
from r1jax.types import Batch

AGGREGATIONS = (("sequence_mean_token_mean", 0.0), ("token_mean", 0.0), ("constant_divisor", 7.0))


def normalised(rewards, valid=None):
  valid = np.ones(len(rewards)) if valid is None else valid
  return np.asarray(grpo.group_normalised(jnp.asarray(rewards, jnp.float32), jnp.asarray(valid, jnp.float32)))


def some_batch(seed, N=6, T=9):
  """(logp, entropy, batch): unequal lengths, one row out of the loss, ratios on both sides of the clip."""
  rng = np.random.default_rng(seed)
  mask_NT = np.zeros((N, T), np.float32)
  length_N = rng.integers(3, T + 1, N)
  for n in range(N - 1):
    mask_NT[n, rng.integers(1, length_N[n]):length_N[n]] = 1
  old_NT = -rng.exponential(1.0, (N, T)).astype(np.float32)
  near = lambda std: old_NT + rng.normal(0, std, (N, T)).astype(np.float32)
  return near(0.5), rng.exponential(1.0, (N, T)).astype(np.float32), Batch(
    None, None, None, mask_NA=mask_NT,
    advantage_N=rng.normal(0, 1, N).astype(np.float32), old_logp_NA=old_NT, ref_logp_NA=near(0.7),
    sampler_logp_NA=near(0.1))


@functools.partial(jax.jit, static_argnames="cfg")
def traced(logp_NT, entropy_NT, batch, cfg):
  def value(logp_NT):
    mean, metrics = grpo.loss(logp_NT, entropy_NT, batch, cfg)
    return mean.value(), {k: m.value() for k, m in metrics.items()}
  return jax.value_and_grad(value, has_aux=True)(logp_NT)


def value_and_grad(logp_NT, entropy_NT, batch, cfg):
  (value, metrics), grad_NT = traced(logp_NT, entropy_NT, batch, cfg)
  return float(value), np.asarray(grad_NT), {k: float(m) for k, m in metrics.items()}


def same(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **dict(rtol=1e-5, atol=1e-6) | tolerance), a, b)


# --- advantages

@pytest.mark.parametrize(("right", "of", "high", "low"), [
  (1, 16, 3.8729833, -0.2581989), (4, 16, 1.7320508, -0.5773503), (8, 16, 1.0, -1.0), (15, 16, 0.2581989, -3.8729833)])
def test_group_normalised_by_hand(right, of, high, low):
  np.testing.assert_allclose(normalised([1.0] * right + [0.0] * (of - right)),
                             [high] * right + [low] * (of - right), rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1 + 0.2, 1 / 3, -0.7, 1e-8, 123456.789])
@pytest.mark.parametrize("G", [2, 3, 7, 16])
@pytest.mark.parametrize("function", grpo.ADVANTAGES.values())
def test_a_group_that_agrees_has_advantage_exactly_zero(reward, G, function):
  assert not np.asarray(function(jnp.full(G, reward), jnp.ones(G))).any()


def test_groups_are_normalised_each_alone_whatever_the_scale_of_rewards():
  rng = np.random.default_rng(0)
  reward_BG = rng.normal(3, 5, (4, 8)) * [[1e-3], [1], [10], [1000]]
  adv_BG = np.asarray(grpo.advantages(jnp.asarray(reward_BG, jnp.float32), jnp.ones((4, 8)), LossConfig(), None))
  np.testing.assert_allclose(adv_BG.mean(1), 0, atol=1e-5)
  np.testing.assert_allclose(adv_BG.std(1), 1, rtol=1e-4)
  np.testing.assert_allclose(adv_BG[1], (reward_BG[1] - reward_BG[1].mean()) / reward_BG[1].std(), rtol=1e-3)


@pytest.mark.parametrize("name", grpo.ADVANTAGES)
def test_rows_that_are_not_valid_do_not_shift_the_baseline_and_get_zero(name):
  function = grpo.ADVANTAGES[name]
  one = lambda r, v: np.asarray(function(jnp.asarray(r, jnp.float32), jnp.asarray(v, jnp.float32)))
  valid = one([1, 0, 0, 1, 0], np.ones(5))
  np.testing.assert_allclose(one([1, 50, 0, 0, 1, -9, 0], [1, 0, 1, 1, 1, 0, 1]),
                             [valid[0], 0, *valid[1:4], 0, valid[4]], rtol=1e-6)
  assert not one([1, 0, 1, 1], [1, 0, 1, 1]).any()         # those that count agree
  assert not one([1, 0, 2], [0, 0, 0]).any()               # nobody counts
  assert not one([1, 0, 2], [0, 1, 0]).any()               # one alone


def test_group_centred_by_hand():
  np.testing.assert_allclose(grpo.group_centred(jnp.array([1.0, 0, 0, 0]), jnp.ones(4)), [0.75, -0.25, -0.25, -0.25])


def test_flipped_advantages_are_the_negative():
  reward_BG = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 8)), jnp.float32)
  plain, flipped = (grpo.advantages(reward_BG, jnp.ones((3, 8)), LossConfig(negative_control=c), jax.random.key(0))
                    for c in ("none", "flipped_advantages"))
  assert plain.any()
  np.testing.assert_array_equal(flipped, -plain)


def test_shuffled_groups_keep_the_values_but_hand_them_to_others_across_groups():
  reward_BG = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
  shuffled = [np.asarray(grpo.advantages(reward_BG, jnp.ones((4, 8)), LossConfig(negative_control="shuffled_groups"),
                                         jax.random.key(k))) for k in (0, 0, 1)]
  plain = np.asarray(grpo.advantages(reward_BG, jnp.ones((4, 8)), LossConfig(), None))
  np.testing.assert_array_equal(np.sort(shuffled[0], None), np.sort(plain, None))
  np.testing.assert_array_equal(shuffled[0], shuffled[1])
  assert (shuffled[0] != shuffled[2]).any()
  assert (shuffled[0] != plain).mean() > 0.8
  assert any(set(plain[b]) != set(shuffled[0][b]) for b in range(4))


# --- one token

@pytest.mark.parametrize(("ratio", "advantage", "low", "high", "value", "slope"), [
  # slope: d value / d log ratio; 0 where the clip took the gradient away
  (1.0, 2.0, 0.2, 0.28, 2.0, 2.0), (1.0, -2.0, 0.2, 0.28, -2.0, -2.0),
  (1.25, 2.0, 0.2, 0.28, 2.5, 2.5), (1.5, 2.0, 0.2, 0.28, 2.56, 0.0), (1.5, -2.0, 0.2, 0.28, -3.0, -3.0),
  (0.5, 2.0, 0.2, 0.28, 1.0, 1.0), (0.5, -2.0, 0.2, 0.28, -1.6, 0.0), (0.9, -2.0, 0.2, 0.28, -1.8, -1.8),
  (10.0, 1.0, 10.0, 10.0, 10.0, 10.0), (12.0, 1.0, 10.0, 10.0, 11.0, 0.0), (12.0, -1.0, 10.0, 10.0, -12.0, -12.0),
  (0.01, -1.0, 10.0, 10.0, -0.01, -0.01), (3.0, 0.0, 0.2, 0.2, 0.0, 0.0)])
def test_clipped_surrogate_by_hand(ratio, advantage, low, high, value, slope):
  old = -1.5
  f = lambda logp: grpo.clipped_surrogate(jnp.exp(logp - old), advantage, low, high)
  got, grad = jax.value_and_grad(f)(old + math.log(ratio))
  np.testing.assert_allclose((got, grad), (value, slope), rtol=1e-5)


def test_kl_k3_by_hand_never_negative_zero_and_flat_where_equal():
  np.testing.assert_allclose(grpo.kl_k3(jnp.log(0.5), jnp.log(0.25)), 0.5 + math.log(2) - 1, rtol=1e-5)
  np.testing.assert_allclose(grpo.kl_k3(jnp.log(0.25), jnp.log(0.5)), 2 - math.log(2) - 1, rtol=1e-5)
  logp, ref = -np.random.default_rng(0).exponential(2, (2, 1000)).astype(np.float32)
  assert (np.asarray(grpo.kl_k3(logp, ref)) >= 0).all()
  assert not np.asarray(grpo.kl_k3(logp, logp)).any()
  assert not np.asarray(jax.vmap(jax.grad(grpo.kl_k3))(logp, logp)).any()


def test_kl_k3_is_the_kl_divergence_in_expectation():
  p, q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.2, 0.6])
  np.testing.assert_allclose(jnp.sum(p * grpo.kl_k3(jnp.log(p), jnp.log(q))), jnp.sum(p * jnp.log(p / q)), rtol=1e-5)


# --- the loss

def test_aggregations_by_hand():
  x_NT = jnp.array([[9.0, 2.0, 4.0, 9.0], [9.0, 1.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
  mask_NT = jnp.array([[0.0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
  value = lambda name, divisor: grpo.AGGREGATIONS[name](x_NT, mask_NT, divisor).value()
  np.testing.assert_allclose(value("sequence_mean_token_mean", 0), (3 + 1) / 2)
  np.testing.assert_allclose(value("token_mean", 0), 7 / 3, rtol=1e-6)
  np.testing.assert_allclose(value("constant_divisor", 10.0), (6 + 1) / 10 / 2)


def oracle(logp, entropy, b, cfg):
  """The loss and metrics in Python loops over tokens, f64."""
  N, T = logp.shape
  old = logp if b.old_logp_NA is None else b.old_logp_NA
  per_row, kls, entropies, lows, highs, ratios, k3s, gaps = [], [], [], [], [], [], [], []
  for n in range(N):
    terms = []
    for t in range(T):
      if not b.mask_NA[n, t]:
        continue
      A, ratio = float(b.advantage_N[n]), math.exp(float(logp[n, t]) - float(old[n, t]))
      clipped = max(1 - cfg.clip_low, min(1 + cfg.clip_high, ratio))
      objective = min(ratio * A, clipped * A)
      if b.ref_logp_NA is not None:
        x = float(b.ref_logp_NA[n, t]) - float(logp[n, t])
        kls.append(math.exp(x) - x - 1)
        objective -= cfg.kl_coef * kls[-1]
      d = float(old[n, t]) - float(b.sampler_logp_NA[n, t])
      k3s.append(math.exp(d) - d - 1)
      gaps.append(abs(d))
      ratios.append(ratio)
      lows.append(A < 0 and ratio < 1 - cfg.clip_low)
      highs.append(A > 0 and ratio > 1 + cfg.clip_high)
      entropies.append(float(entropy[n, t]))
      terms.append(-objective)
    if terms:
      per_row.append(terms)
  value = dict(sequence_mean_token_mean=lambda: np.mean([np.mean(row) for row in per_row]),
               token_mean=lambda: np.mean(np.concatenate(per_row)),
               constant_divisor=lambda: np.mean([sum(row) / cfg.divisor for row in per_row]))[cfg.aggregation]()
  metrics = {"entropy": np.mean(entropies), "clip_share/low": np.mean(lows), "clip_share/high": np.mean(highs),
             "clip_share": np.mean(lows) + np.mean(highs), "ratio/max": max(ratios), "mismatch/k3": np.mean(k3s),
             "mismatch/max": max(gaps)}
  return value, metrics | ({"kl": np.mean(kls)} if kls else {})


@pytest.mark.parametrize(("aggregation", "divisor"), AGGREGATIONS)
@pytest.mark.parametrize("clip", [(0.2, 0.28), (0.2, 0.2), (10.0, 10.0)])
@pytest.mark.parametrize("left_out", [{}, {"old_logp_NA": None}, {"ref_logp_NA": None}])
def test_loss_and_metrics_agree_with_the_oracle(aggregation, divisor, clip, left_out):
  cfg = LossConfig(*clip, kl_coef=0.3, aggregation=aggregation, divisor=divisor)
  clipped = np.zeros(2)
  for seed in range(3):
    logp_NT, entropy_NT, batch = some_batch(seed)
    batch = dataclasses.replace(batch, **left_out)
    value, _, metrics = value_and_grad(logp_NT, entropy_NT, batch, cfg)
    same((value, metrics), oracle(logp_NT, entropy_NT, batch, cfg))
    clipped += np.array([metrics["clip_share/low"], metrics["clip_share/high"]])
  if clip == (0.2, 0.28) and not left_out:
    assert (clipped > 0).all()                              # the case is not an empty one


def test_gradient_at_ratio_one_is_minus_advantage_times_the_gradient_of_log_p():
  rng = np.random.default_rng(0)
  N, T, V = 3, 5, 7
  logit_NTV = jnp.asarray(rng.normal(size=(N, T, V)), jnp.float32)
  token_NT, adv_N = rng.integers(0, V, (N, T)), np.array([1.5, -0.5, 2.0], np.float32)
  mask_NT = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]], np.float32)
  cfg = LossConfig(0.2, 0.28, kl_coef=0.0, aggregation="constant_divisor", divisor=1.0)

  def total(logit_NTV):
    logp_NT = jnp.take_along_axis(jax.nn.log_softmax(logit_NTV), token_NT[..., None], 2)[..., 0]
    return grpo.loss(logp_NT, logp_NT, Batch(None, None, None, mask_NT, adv_N), cfg)[0].total

  p_NTV = np.exp(np.asarray(logit_NTV))
  p_NTV /= p_NTV.sum(-1, keepdims=True)
  expected = -(adv_N[:, None] * mask_NT)[..., None] * (np.eye(V)[token_NT] - p_NTV)
  np.testing.assert_allclose(jax.grad(total)(logit_NTV), expected, atol=1e-5)


@pytest.mark.parametrize(("aggregation", "divisor"), AGGREGATIONS)
def test_on_policy_without_old_logp_is_old_logp_equal_to_logp(aggregation, divisor):
  cfg = LossConfig(0.2, 0.28, kl_coef=0.1, aggregation=aggregation, divisor=divisor)
  logp_NT, entropy_NT, batch = some_batch(0)
  without = value_and_grad(logp_NT, entropy_NT, dataclasses.replace(batch, old_logp_NA=None), cfg)
  given = value_and_grad(logp_NT, entropy_NT, dataclasses.replace(batch, old_logp_NA=logp_NT), cfg)
  same(without, given)
  assert np.abs(without[1]).max() > 1e-3
  assert without[2]["ratio/max"] == 1


def test_a_group_that_agrees_has_no_policy_gradient_only_that_of_the_kl():
  logp_NT, entropy_NT, batch = some_batch(0)
  adv_BG = grpo.advantages(jnp.full((1, 6), 0.1 + 0.2), jnp.ones((1, 6)), LossConfig(), None)
  batch = dataclasses.replace(batch, advantage_N=adv_BG.reshape(-1))
  gradient = lambda kl_coef: value_and_grad(logp_NT, entropy_NT, batch, LossConfig(kl_coef=kl_coef))[1]
  assert not gradient(0.0).any()
  assert np.abs(gradient(0.1)).max() > 1e-3
  np.testing.assert_allclose(gradient(0.2), 2 * gradient(0.1), rtol=1e-5)


def test_kl_pulls_towards_the_reference():
  logp_NT, entropy_NT, batch = some_batch(0)
  batch = dataclasses.replace(batch, advantage_N=np.zeros(6, np.float32))
  grad_NT = value_and_grad(logp_NT, entropy_NT, batch, LossConfig(kl_coef=0.1))[1]
  inside = batch.mask_NA > 0
  assert (np.sign(grad_NT) == np.sign(logp_NT - batch.ref_logp_NA))[inside].all()


@pytest.mark.parametrize(("aggregation", "divisor"), AGGREGATIONS)
@pytest.mark.parametrize("garbage", [1e4, -1e4])
def test_what_stands_outside_the_mask_changes_nothing(aggregation, divisor, garbage):
  cfg = LossConfig(0.2, 0.28, kl_coef=0.1, aggregation=aggregation, divisor=divisor)
  logp_NT, entropy_NT, batch = some_batch(1)
  rng = np.random.default_rng(0)
  spoil = lambda x: np.where(batch.mask_NA > 0, x, garbage * rng.random(x.shape)).astype(np.float32)
  spoilt = dataclasses.replace(batch, **{k: spoil(getattr(batch, k))
                                         for k in ("old_logp_NA", "ref_logp_NA", "sampler_logp_NA")})
  clean = value_and_grad(logp_NT, entropy_NT, batch, cfg)
  assert not clean[1][batch.mask_NA == 0].any()
  same(value_and_grad(spoil(logp_NT), spoil(entropy_NT), spoilt, cfg), clean)


@pytest.mark.parametrize(("aggregation", "divisor"), AGGREGATIONS)
def test_row_order_and_padding_length_change_nothing(aggregation, divisor):
  cfg = LossConfig(0.2, 0.28, kl_coef=0.1, aggregation=aggregation, divisor=divisor)
  logp_NT, entropy_NT, batch = some_batch(2)
  value, grad_NT, metrics = value_and_grad(logp_NT, entropy_NT, batch, cfg)
  order = np.random.default_rng(0).permutation(6)
  change = lambda f: (f(logp_NT), f(entropy_NT), jax.tree.map(f, batch), cfg)
  same(value_and_grad(*change(lambda x: x[order])), (value, grad_NT[order], metrics))
  longer = lambda x: np.pad(x, [(0, 0), (0, 5)]) if x.ndim == 2 else x
  same(value_and_grad(*change(longer)), (value, longer(grad_NT), metrics))


@pytest.mark.parametrize(("wrong", "named"), [
  (dict(clip_low=0.0), "clip_low=0.0"), (dict(clip_high=-1.0), "clip_high=-1.0"), (dict(kl_coef=-0.1), "kl_coef=-0.1"),
  (dict(advantage="best"), "'best' is none of group_normalised, group_centred"),
  (dict(aggregation="mean"), "'mean' is none of sequence_mean_token_mean, token_mean, constant_divisor"),
  (dict(aggregation="constant_divisor"), "divisor=0.0"), (dict(divisor=5.0), "divisor=5.0"),
  (dict(negative_control="yes"), "'yes' is none of")])
def test_config_errors_name_the_numbers(wrong, named):
  with pytest.raises(ValueError) as error:
    LossConfig(**wrong)
  assert named in str(error.value)


def test_every_combination_of_names_is_a_config():
  for (aggregation, divisor), advantage, control in itertools.product(AGGREGATIONS, grpo.ADVANTAGES, grpo.CONTROLS):
    LossConfig(aggregation=aggregation, divisor=divisor, advantage=advantage, negative_control=control)

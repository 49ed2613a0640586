"""Group relative policy optimisation: DeepSeek-R1's objective (Nature 2025, Methods, eq. 1-3; arXiv 2501.12948 v2).

  J = E (1/G) sum_i [ min(rho_i A_i, clip(rho_i, 1 - eps, 1 + eps) A_i) - beta D_KL ]
  D_KL = pi_ref / pi - log(pi_ref / pi) - 1,      A_i = (r_i - mean(r)) / std(r)

The paper prints sequence ratios and no 1/|o_i|, but speaks of the clipped gradients of tokens; as DeepSeekMath
(2402.03300) prints it, ratio and KL here are per token and the aggregation over tokens is chosen by name. Left open by
the paper and decided here: std is the population's, with no epsilon added; a group whose rewards agree has
advantage 0, so that only the KL acts. Functions are written for one sequence or one group; vmap batches them.
Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.losses import Max, Mean, masked_mean


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective's choices. The ratio is kept within [1 - clip_low, 1 + clip_high]."""
  clip_low: float = 10.0               # R1, RL stage 1: eps = 10 (Methods). DAPO 0.2. Not stated for R1-Zero.
  clip_high: float = 10.0              # R1: 10. DAPO: 0.28
  kl_coef: float = 0.001               # beta; R1: 0.001. 0 drops the reference pass
  advantage: str = "group_normalised"
  aggregation: str = "sequence_mean_token_mean"
  divisor: float = 0.0                 # constant_divisor only: what each sequence's token sum is divided by
  negative_control: str = "none"       # a learning test must fail with shuffled_groups or flipped_advantages

  def __post_init__(self):
    if self.clip_low <= 0 or self.clip_high <= 0:
      raise ValueError(f"clip_low={self.clip_low} and clip_high={self.clip_high} must be above 0")
    if self.kl_coef < 0:
      raise ValueError(f"kl_coef={self.kl_coef} must not be negative")
    pick(ADVANTAGES, "advantage", self.advantage)
    pick(AGGREGATIONS, "aggregation", self.aggregation)
    if (self.aggregation == "constant_divisor") != (self.divisor > 0):
      raise ValueError(f"divisor={self.divisor} goes with aggregation=constant_divisor,"
                       f" here aggregation={self.aggregation}")
    if self.negative_control not in CONTROLS:
      raise ValueError(f"negative_control={self.negative_control!r} is none of {CONTROLS}")


def pick(table: dict, what: str, name: str):
  """The entry of a visible table of functions, or an error that lists its names."""
  if name not in table:
    raise ValueError(f"{what}={name!r} is none of {', '.join(table)}")
  return table[name]


# --- advantages: one group

def group_normalised(reward_G, valid_G):
  """(r - mean) / std over the group's valid answers (eq. 3); zeros where they all agree, and where not valid."""
  n = jnp.maximum(valid_G.sum(), 1.0)
  centred_G = jnp.where(valid_G > 0, reward_G - jnp.sum(reward_G * valid_G) / n, 0.0)
  std = jnp.sqrt(jnp.sum(centred_G**2) / n)
  return jnp.where(agree(reward_G, valid_G), 0.0, centred_G / jnp.maximum(std, 1e-30))


def group_centred(reward_G, valid_G):
  """r - mean, without the division that over-weights questions that are nearly solved or hopeless (2503.20783)."""
  n = jnp.maximum(valid_G.sum(), 1.0)
  centred_G = jnp.where(valid_G > 0, reward_G - jnp.sum(reward_G * valid_G) / n, 0.0)
  return jnp.where(agree(reward_G, valid_G), 0.0, centred_G)


def agree(reward_G, valid_G):
  """Whether all valid rewards are the same number. Compared, not by std == 0: rounding leaves a tiny std."""
  high = jnp.max(jnp.where(valid_G > 0, reward_G, -jnp.inf))
  low = jnp.min(jnp.where(valid_G > 0, reward_G, jnp.inf))
  return high <= low


ADVANTAGES = dict(group_normalised=group_normalised, group_centred=group_centred)
CONTROLS = ("none", "shuffled_groups", "flipped_advantages")


def advantages(reward_BG, valid_BG, cfg: LossConfig, key):
  """Advantages [B, G] of a whole rollout, before it is split into minibatches.

  valid_BG: 0 on answers that take no part (truncated ones, if they are masked out). key: for the negative control.
  """
  adv_BG = jax.vmap(pick(ADVANTAGES, "advantage", cfg.advantage))(reward_BG, valid_BG)
  if cfg.negative_control == "flipped_advantages":
    return -adv_BG
  if cfg.negative_control == "shuffled_groups":    # each answer is told another answer's advantage
    return jax.random.permutation(key, adv_BG.reshape(-1)).reshape(adv_BG.shape)
  return adv_BG


# --- the objective: one sequence

def clipped_surrogate(logp_T, old_logp_T, advantage, clip_low, clip_high):
  """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = pi / pi_old (eq. 1)."""
  ratio_T = jnp.exp(logp_T - old_logp_T)
  clipped_T = jnp.clip(ratio_T, 1 - clip_low, 1 + clip_high)
  return jnp.minimum(ratio_T * advantage, clipped_T * advantage)


def kl_k3(logp_T, ref_logp_T):
  """pi_ref / pi - log(pi_ref / pi) - 1 (eq. 2), Schulman's k3: never negative, zero where the two agree.

  An unbiased estimate of KL(pi || pi_ref) as a value. As a loss its gradient is biased; R1 uses it as a loss.
  """
  log_ratio_T = ref_logp_T - logp_T
  return jnp.exp(log_ratio_T) - log_ratio_T - 1


# --- aggregation: tokens [N, T] and their mask -> Mean, by name

def sequence_mean_token_mean(x_NT, mask_NT, divisor):
  """(1/G) sum_i (1/|o_i|) sum_t: DeepSeekMath (2402.03300), the usual reading of R1. Long answers are not louder."""
  del divisor
  tokens_N = mask_NT.sum(1)
  per_sequence_N = (x_NT * mask_NT).sum(1) / jnp.maximum(tokens_N, 1)
  return Mean(per_sequence_N.sum(), (tokens_N > 0).sum().astype(jnp.float32))


def token_mean(x_NT, mask_NT, divisor):
  """1 / sum_i |o_i| sum_i sum_t: DAPO (2503.14476). All tokens of the batch count alike."""
  del divisor
  return masked_mean(x_NT, mask_NT)


def constant_divisor(x_NT, mask_NT, divisor):
  """(1/G) sum_i (1/divisor) sum_t: Dr. GRPO (2503.20783), divisor = the longest answer allowed, say."""
  return Mean((x_NT * mask_NT).sum() / divisor, (mask_NT.sum(1) > 0).sum().astype(jnp.float32))


AGGREGATIONS = dict(sequence_mean_token_mean=sequence_mean_token_mean, token_mean=token_mean,
                    constant_divisor=constant_divisor)


def loss(logp_NT, entropy_NT, batch, cfg: LossConfig):
  """-J of a minibatch as a Mean, and metrics (each a Mean or Max) about it.

  logp_NT, entropy_NT: of the answers' tokens, under the policy that learns. In `batch`,
  old_logp None says that the policy has not moved since it sampled: rho = 1.
  """
  mask_NT = batch.mask_NA
  old_logp_NT = jax.lax.stop_gradient(logp_NT) if batch.old_logp_NA is None else batch.old_logp_NA
  # tokens outside the mask may hold anything (padding): take them out before exp can overflow
  logp_NT, old_logp_NT = (jnp.where(mask_NT > 0, x, 0.0) for x in (logp_NT, old_logp_NT))
  aggregate = pick(AGGREGATIONS, "aggregation", cfg.aggregation)
  surrogate = jax.vmap(clipped_surrogate, in_axes=(0, 0, 0, None, None))
  objective_NT = surrogate(logp_NT, old_logp_NT, batch.advantage_N, cfg.clip_low, cfg.clip_high)
  metrics = {}
  if batch.ref_logp_NA is not None:
    kl_NT = jax.vmap(kl_k3)(logp_NT, jnp.where(mask_NT > 0, batch.ref_logp_NA, 0.0))
    objective_NT -= cfg.kl_coef * kl_NT
    metrics["kl"] = masked_mean(kl_NT, mask_NT)
  metrics |= diagnostics(logp_NT, old_logp_NT, entropy_NT, batch, cfg)
  return aggregate(-objective_NT, mask_NT, cfg.divisor), metrics


def diagnostics(logp_NT, old_logp_NT, entropy_NT, batch, cfg: LossConfig):
  """Token means: entropy, how far the policy moved, and where the clip took the gradient away."""
  mask_NT, adv_N1 = batch.mask_NA, batch.advantage_N[:, None]
  ratio_NT = jnp.exp(logp_NT - old_logp_NT)
  low = (ratio_NT < 1 - cfg.clip_low) & (adv_N1 < 0)
  high = (ratio_NT > 1 + cfg.clip_high) & (adv_N1 > 0)
  metrics = {
    "entropy": masked_mean(entropy_NT, mask_NT),
    "clip_share": masked_mean(low | high, mask_NT),
    "clip_share/low": masked_mean(low, mask_NT),
    "clip_share/high": masked_mean(high, mask_NT),
    "ratio/max": Max(jnp.max(jnp.where(mask_NT > 0, ratio_NT, 0.0))),
  }
  if batch.sampler_logp_NA is not None:   # against the policy that sampled: old, not the one that moved on
    difference_NT = jnp.where(mask_NT > 0, old_logp_NT - batch.sampler_logp_NA, 0.0)
    metrics["mismatch/k3"] = masked_mean(kl_k3(0.0, difference_NT), mask_NT)
    metrics["mismatch/max"] = Max(jnp.max(jnp.abs(difference_NT)))
  return jax.lax.stop_gradient(metrics)

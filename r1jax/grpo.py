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

from r1jax import variants
from r1jax.losses import Max, Mean, masked_mean
from r1jax.variants import agree


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective's choices; the defaults are R1's. r1jax/algorithms.py has those of other papers by name."""
  clip_low: float = 10.0               # R1, RL stage 1: eps = 10 (Methods). DAPO 0.2. Not stated for R1-Zero.
  clip_high: float = 10.0              # R1: 10. DAPO: 0.28. The ratio is kept within [1 - clip_low, 1 + clip_high]
  dual_clip: float = 0.0               # variants.dual_clip; 0: off
  ratio: str = "token"                 # of RATIOS: token, sequence (GSPO), sequence_token
  surrogate: str = "clipped"           # of SURROGATES: clipped, truncated_reinforce (CISPO), reinforce (RLOO)
  advantage: str = "group_normalised"  # of ADVANTAGES, or gae: from a critic
  gae_lambda: float = 1.0              # gae only; the paper's PPO: 1.0 and 0.95
  gamma: float = 1.0                   # gae only: discount
  whiten: bool = True                  # gae only: token advantages of a rollout get mean 0 and std 1
  kl_coef: float = 0.001               # beta; R1: 0.001. 0 drops the reference pass
  kl: str = "k3"                       # of KLS: k1, k2, k3, k3_corrected (V3.2)
  kl_in: str = "loss"                  # loss (R1), or reward: per token, which also pays for short answers (v2 A.3)
  entropy_coef: float = 0.0            # of a bonus for entropy
  correction: str = "none"             # of variants.CORRECTIONS: a factor pi_old / mu, mu the policy that sampled
  correction_low: float = 0.5          # masked only
  correction_high: float = 2.0         # TIS: C = 2
  sequence_mask: float = 0.0           # delta of variants.keeps_sequence; 0: off
  aggregation: str = "sequence_mean_token_mean"
  divisor: float = 0.0                 # constant_divisor only: what each sequence's token sum is divided by
  negative_control: str = "none"       # a learning test must fail with shuffled_groups or flipped_advantages

  def __post_init__(self):
    if self.clip_low <= 0 or self.clip_high <= 0:
      raise ValueError(f"clip_low={self.clip_low} and clip_high={self.clip_high} must be above 0")
    if self.kl_coef < 0:
      raise ValueError(f"kl_coef={self.kl_coef} must not be negative")
    if self.advantage != "gae":
      pick(ADVANTAGES, "advantage", self.advantage, "gae")
    pick(AGGREGATIONS, "aggregation", self.aggregation)
    pick(variants.RATIOS, "ratio", self.ratio)
    pick(SURROGATES, "surrogate", self.surrogate)
    pick(KLS, "kl", self.kl)
    pick(variants.CORRECTIONS | dict(none=None), "correction", self.correction)
    if self.kl_in not in ("loss", "reward"):
      raise ValueError(f"kl_in={self.kl_in!r} is neither loss nor reward")
    if self.kl_in == "reward" and self.kl == "k3_corrected":
      raise ValueError("kl=k3_corrected is a loss: kl_in=reward takes k1, k2 or k3")
    if self.kl_in == "reward" and self.advantage == "group_normalised":
      raise ValueError("kl_in=reward with advantage=group_normalised: where a group's rewards agree, its std is that of"
                       " the KL, which would become the whole advantage; take group_centred or leave_one_out")
    if self.dual_clip and self.dual_clip <= 1 + self.clip_high:
      raise ValueError(f"dual_clip={self.dual_clip} must be above 1 + clip_high={1 + self.clip_high}, or 0")
    if self.dual_clip and self.surrogate != "clipped":
      raise ValueError(f"dual_clip={self.dual_clip} goes with surrogate=clipped, here {self.surrogate}")
    if self.ratio != "token" and self.surrogate == "reinforce":
      raise ValueError(f"surrogate=reinforce has no ratio: ratio={self.ratio!r} would not be used")
    if not 0 <= self.gae_lambda <= 1 or not 0 < self.gamma <= 1:
      raise ValueError(f"gae_lambda={self.gae_lambda} must be within [0, 1], gamma={self.gamma} within (0, 1]")
    if not 0 < self.correction_low < 1 < self.correction_high:
      raise ValueError(f"correction_low={self.correction_low} must be within 0 and 1,"
                       f" correction_high={self.correction_high} above 1")
    if self.sequence_mask < 0:
      raise ValueError(f"sequence_mask={self.sequence_mask} must not be negative")
    if (self.aggregation == "constant_divisor") != (self.divisor > 0):
      raise ValueError(f"divisor={self.divisor} goes with aggregation=constant_divisor,"
                       f" here aggregation={self.aggregation}")
    if self.negative_control not in CONTROLS:
      raise ValueError(f"negative_control={self.negative_control!r} is none of {CONTROLS}")


def pick(table: dict, what: str, name: str, *more: str):
  """The entry of a visible table of functions, or an error that lists its names."""
  if name not in table:
    raise ValueError(f"{what}={name!r} is none of {', '.join([*table, *more])}")
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


ADVANTAGES = dict(group_normalised=group_normalised, group_centred=group_centred,
                  leave_one_out=variants.leave_one_out, batch_normalised=variants.batch_normalised,
                  group_centred_batch_normalised=variants.group_centred_batch_normalised)
WHOLE_BATCH = ("batch_normalised", "group_centred_batch_normalised")   # the others are for one group
CONTROLS = ("none", "shuffled_groups", "flipped_advantages")


def advantages(reward_BG, valid_BG, cfg: LossConfig, key):
  """Advantages [B, G] of a whole rollout, before it is split into minibatches.

  valid_BG: 0 on answers that take no part (truncated ones, if they are masked out). key: for the negative control.
  """
  advantage = pick(ADVANTAGES, "advantage", cfg.advantage)
  adv_BG = (advantage if cfg.advantage in WHOLE_BATCH else jax.vmap(advantage))(reward_BG, valid_BG)
  if cfg.negative_control == "flipped_advantages":
    return -adv_BG
  if cfg.negative_control == "shuffled_groups":    # each answer is told another answer's advantage
    return jax.random.permutation(key, adv_BG.reshape(-1)).reshape(adv_BG.shape)
  return adv_BG


# --- the objective: one sequence

def clipped_surrogate(ratio_T, advantage, clip_low, clip_high):
  """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = pi / pi_old (eq. 1)."""
  clipped_T = jnp.clip(ratio_T, 1 - clip_low, 1 + clip_high)
  return jnp.minimum(ratio_T * advantage, clipped_T * advantage)


SURROGATES = dict(
  clipped=lambda logp_T, ratio_T, advantage, low, high: clipped_surrogate(ratio_T, advantage, low, high),
  truncated_reinforce=variants.truncated_reinforce,
  reinforce=lambda logp_T, ratio_T, advantage, low, high: variants.reinforce(logp_T, advantage))


def kl_k3(logp_T, ref_logp_T):
  """pi_ref / pi - log(pi_ref / pi) - 1 (eq. 2), Schulman's k3: never negative, zero where the two agree.

  An unbiased estimate of KL(pi || pi_ref) as a value. As a loss its gradient is biased; R1 uses it as a loss.
  """
  log_ratio_T = ref_logp_T - logp_T
  return jnp.exp(log_ratio_T) - log_ratio_T - 1


# k3_corrected is k3 times pi / pi_old (V3.2, 2512.02556, eq. 7): unbiased in the gradient too, also off-policy
KLS = dict(k1=variants.kl_k1, k2=variants.kl_k2, k3=kl_k3, k3_corrected=kl_k3)


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
  inside = lambda x_NT: jnp.where(mask_NT > 0, x_NT, 0.0)
  logp_NT, old_logp_NT = inside(logp_NT), inside(old_logp_NT)
  advantage_NT = (jnp.broadcast_to(batch.advantage_N[:, None], mask_NT.shape) if batch.token_advantage_NA is None
                  else inside(batch.token_advantage_NA))
  ratio_NT = jax.vmap(pick(variants.RATIOS, "ratio", cfg.ratio))(logp_NT, old_logp_NT, mask_NT)
  objective_NT = pick(SURROGATES, "surrogate", cfg.surrogate)(logp_NT, ratio_NT, advantage_NT, cfg.clip_low,
                                                              cfg.clip_high)
  if cfg.dual_clip:
    objective_NT = variants.dual_clip(objective_NT, advantage_NT, cfg.dual_clip)
  metrics = diagnostics(ratio_NT, advantage_NT, old_logp_NT, entropy_NT, batch, cfg)
  objective_NT, more = off_policy(objective_NT, logp_NT, old_logp_NT, advantage_NT, batch, cfg)
  metrics |= more
  if batch.ref_logp_NA is not None:
    kl_NT = pick(KLS, "kl", cfg.kl)(logp_NT, inside(batch.ref_logp_NA))
    if cfg.kl == "k3_corrected":
      kl_NT *= variants.token_ratio(logp_NT, old_logp_NT, mask_NT)
    if cfg.kl_in == "loss":
      objective_NT -= cfg.kl_coef * kl_NT
    metrics["kl"] = masked_mean(kl_NT, mask_NT)
  if cfg.entropy_coef:
    objective_NT += cfg.entropy_coef * inside(entropy_NT)
  return pick(AGGREGATIONS, "aggregation", cfg.aggregation)(-objective_NT, mask_NT, cfg.divisor), metrics


def off_policy(objective_NT, logp_NT, old_logp_NT, advantage_NT, batch, cfg: LossConfig):
  """The policy's term times what the corrections leave of it, and how much they took, by the sampler's log-probs."""
  if cfg.correction == "none" and not cfg.sequence_mask:
    return objective_NT, {}
  if batch.sampler_logp_NA is None:
    raise ValueError(f"correction={cfg.correction}, sequence_mask={cfg.sequence_mask} need the sampler's log-probs")
  mask_NT = batch.mask_NA
  mu_logp_NT = jnp.where(mask_NT > 0, batch.sampler_logp_NA, 0.0)
  metrics = {}
  if cfg.correction != "none":
    weight_NT = pick(variants.CORRECTIONS, "correction", cfg.correction)(
      old_logp_NT, mu_logp_NT, cfg.correction_low, cfg.correction_high)
    objective_NT *= weight_NT
    metrics["correction/weight"] = masked_mean(weight_NT, mask_NT)
  if cfg.sequence_mask:
    keeps = jax.vmap(variants.keeps_sequence, in_axes=(0, 0, 0, 0, None))
    keep_N1 = keeps(logp_NT, mu_logp_NT, advantage_NT, mask_NT, cfg.sequence_mask)[:, None]
    objective_NT *= keep_N1
    metrics["correction/masked_sequences"] = masked_mean(1 - keep_N1, mask_NT.max(1, keepdims=True))
  return objective_NT, metrics


def diagnostics(ratio_NT, advantage_NT, old_logp_NT, entropy_NT, batch, cfg: LossConfig):
  """Token means: entropy, how far the policy moved, and where the clip acted (it takes the gradient; CISPO: weight)."""
  mask_NT = batch.mask_NA
  metrics = {
    "entropy": masked_mean(entropy_NT, mask_NT),
    "ratio/max": Max(jnp.max(jnp.where(mask_NT > 0, ratio_NT, 0.0))),
  }
  if cfg.surrogate != "reinforce":        # which has no clip
    low, high = ratio_NT < 1 - cfg.clip_low, ratio_NT > 1 + cfg.clip_high
    if cfg.surrogate == "clipped":        # the minimum: on the side that the advantage pushes to
      low, high = low & (advantage_NT < 0), high & (advantage_NT > 0)
    metrics |= {"clip_share": masked_mean(low | high, mask_NT), "clip_share/low": masked_mean(low, mask_NT),
                "clip_share/high": masked_mean(high, mask_NT)}
  if batch.sampler_logp_NA is not None:   # against the policy that sampled: old, not the one that moved on
    difference_NT = jnp.where(mask_NT > 0, old_logp_NT - batch.sampler_logp_NA, 0.0)
    metrics["mismatch/k3"] = masked_mean(kl_k3(0.0, difference_NT), mask_NT)
    metrics["mismatch/max"] = Max(jnp.max(jnp.abs(difference_NT)))
  return jax.lax.stop_gradient(metrics)

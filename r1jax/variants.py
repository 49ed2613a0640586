"""Objectives beside R1's: the terms of those that came before and after, each a few lines, chosen by name in grpo.py.

Advantages are for one group [G] or, where said, a whole batch [..., G]; the rest is for one sequence [T] and is
vmapped. `mask_T` is 1 on the tokens where the loss lives. Letters: r1jax/types.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

sg = jax.lax.stop_gradient


# --- advantages

def agree(reward_G, valid_G):
  """Whether all valid rewards of a group are the same number. Compared, not by std == 0: rounding leaves a tiny std."""
  high = jnp.max(jnp.where(valid_G > 0, reward_G, -jnp.inf), axis=-1)
  low = jnp.min(jnp.where(valid_G > 0, reward_G, jnp.inf), axis=-1)
  return high <= low


def leave_one_out(reward_G, valid_G):
  """r_i - mean of the others: RLOO (2402.14740). It is G / (G - 1) times group_centred."""
  others = jnp.maximum(valid_G.sum() - 1, 1.0)
  adv_G = reward_G - (jnp.sum(reward_G * valid_G) - reward_G) / others
  return jnp.where((valid_G > 0) & ~agree(reward_G, valid_G), adv_G, 0.0)


def batch_normalised(reward_BG, valid_BG):
  """(r - mean) / std over all valid answers of the batch: REINFORCE++ (2501.03262).

  A group that agrees still learns: from the other groups' rewards.
  """
  mean = jnp.sum(reward_BG * valid_BG) / jnp.maximum(valid_BG.sum(), 1.0)
  return _over_std(reward_BG - mean, valid_BG, agree(reward_BG.reshape(-1), valid_BG.reshape(-1)))


def group_centred_batch_normalised(reward_BG, valid_BG):
  """r - the group's mean, over the batch's std: REINFORCE++-baseline (2501.03262), Magistral (2506.10910)."""
  n_B1 = jnp.maximum(valid_BG.sum(-1, keepdims=True), 1.0)
  mean_B1 = jnp.sum(reward_BG * valid_BG, -1, keepdims=True) / n_B1
  return _over_std(reward_BG - mean_B1, valid_BG, agree(reward_BG, valid_BG)[..., None])


def _over_std(centred_BG, valid_BG, agrees):
  """centred / its root mean square over all; 0 where not valid, or where the rewards agree."""
  centred_BG = jnp.where((valid_BG > 0) & ~agrees, centred_BG, 0.0)
  std = jnp.sqrt(jnp.sum(centred_BG**2) / jnp.maximum(valid_BG.sum(), 1.0))
  return centred_BG / jnp.maximum(std, 1e-30)


def gae(reward_T, value_T, mask_T, gamma: float, lam: float):
  """Generalised advantage estimation (1506.02438) of one answer: (advantage_T, return_T = advantage + value).

  delta_t = r_t + gamma V_t+1 - V_t;  A_t = delta_t + gamma lam A_t+1. value_T[t] is that of the state that chooses
  token t; behind the last token it is 0, for truncated answers too. lam = gamma = 1: A_t = all reward to come - V_t.
  The paper's PPO: lam 1.0 against 0.95 (arXiv 2501.12948 v2, A.3).
  """
  value_T, reward_T = value_T * mask_T, reward_T * mask_T
  next_T = jnp.append(value_T[1:], 0.0)
  delta_T = reward_T + gamma * next_T - value_T
  def back(later, inputs):
    delta, mask = inputs
    now = (delta + gamma * lam * later) * mask
    return now, now
  _, advantage_T = jax.lax.scan(back, jnp.float32(0), (delta_T, mask_T), reverse=True)
  return advantage_T, advantage_T + value_T


# --- ratios pi / pi_old [T]

def token_ratio(logp_T, old_logp_T, mask_T):
  """Per token: GRPO, DAPO, PPO."""
  del mask_T
  return jnp.exp(logp_T - old_logp_T)


def sequence_ratio(logp_T, old_logp_T, mask_T):
  """(pi(y) / pi_old(y))^(1/|y|), on every token: GSPO (2507.18071, eq. 7). Its gradient is a token mean."""
  mean = jnp.sum((logp_T - old_logp_T) * mask_T) / jnp.maximum(mask_T.sum(), 1.0)
  return jnp.broadcast_to(jnp.exp(mean), logp_T.shape)


def sequence_token_ratio(logp_T, old_logp_T, mask_T):
  """The sequence's ratio as a value, the token's gradient: GSPO-token (2507.18071, eq. 14)."""
  return sg(sequence_ratio(logp_T, old_logp_T, mask_T)) * jnp.exp(logp_T - sg(logp_T))


RATIOS = dict(token=token_ratio, sequence=sequence_ratio, sequence_token=sequence_token_ratio)


# --- surrogates: what is maximised, [T]

def dual_clip(objective_T, advantage, bound: float):
  """At least bound * A where A < 0 (1912.09729; bound 3): a token that became far likelier does not tear alone."""
  return jnp.where(advantage < 0, jnp.maximum(objective_T, bound * advantage), objective_T)


def truncated_reinforce(logp_T, ratio_T, advantage, clip_low: float, clip_high: float):
  """sg(clip(ratio)) A log pi: CISPO (MiniMax-M1, 2506.13585, eq. 4). The clip bounds the weight; no token loses its
  gradient."""
  return sg(jnp.clip(ratio_T, 1 - clip_low, 1 + clip_high)) * advantage * logp_T


def reinforce(logp_T, advantage):
  """A log pi, with no ratio (Williams 1992): RLOO."""
  return advantage * logp_T


# --- KL(pi || pi_ref) of a sampled token, [T] (joschu.net/blog/kl-approx)

def kl_k1(logp_T, ref_logp_T):
  """log pi - log pi_ref: unbiased, may be negative. As a loss its gradient is 0 in the mean: use it in the reward."""
  return logp_T - ref_logp_T


def kl_k2(logp_T, ref_logp_T):
  """(log pi - log pi_ref)^2 / 2: biased as a value; as a loss its gradient is the KL's, on-policy (2510.01555)."""
  return 0.5 * (logp_T - ref_logp_T) ** 2


# --- when sampler and trainer disagree, or the sampler's policy is old: factors of the policy's term, [T]

def truncated_weight(old_logp_T, sampler_logp_T, low: float, high: float):
  """min(pi_old / mu, high), mu the policy that sampled: truncated importance sampling (TIS). low is not used."""
  del low
  return sg(jnp.minimum(jnp.exp(old_logp_T - sampler_logp_T), high))


def masked_weight(old_logp_T, sampler_logp_T, low: float, high: float):
  """pi_old / mu where it lies within [low, high], else 0: IcePop. The token count of the mean does not change."""
  weight_T = sg(jnp.exp(old_logp_T - sampler_logp_T))
  return jnp.where((weight_T >= low) & (weight_T <= high), weight_T, 0.0)


def keeps_sequence(logp_T, mu_logp_T, advantage, mask_T, delta: float):
  """0 for a whole answer with A < 0 that the policy has left: mean log(mu / pi) > delta, else 1 (V3.2, 2512.02556)."""
  tokens = jnp.maximum(mask_T.sum(), 1.0)
  gone = jnp.sum((mu_logp_T - sg(logp_T)) * mask_T) / tokens
  bad = jnp.sum(advantage * mask_T) < 0
  return jnp.where(bad & (gone > delta), 0.0, 1.0)


CORRECTIONS = dict(truncated=truncated_weight, masked=masked_weight)

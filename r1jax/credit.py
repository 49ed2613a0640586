"""From rewards to what each answer or token is told: KL in the reward, the group's baseline or a critic's.

Host-side glue around grpo.advantages and variants.gae, of a whole rollout, before it is split into minibatches.
Letters: r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import grpo, variants
from r1jax.grpo import LossConfig

_advantages = jax.jit(grpo.advantages, static_argnames="cfg")     # traced anew at every call, vmap takes 30 ms


def kl_penalty(batch, cfg: LossConfig):
  """beta KL of each token [N, A] where the KL is part of the reward, else zeros. The policy's log-probs are those it
  sampled with."""
  mask_NA = np.asarray(batch.mask_NA)
  if cfg.kl_in != "reward" or batch.ref_logp_NA is None:
    return np.zeros_like(mask_NA)
  inside = lambda x_NA: np.where(mask_NA > 0, x_NA, 0.0)
  kl = grpo.pick(grpo.KLS, "kl", cfg.kl)
  return cfg.kl_coef * np.asarray(kl(inside(batch.sampler_logp_NA), inside(batch.ref_logp_NA)))


def of_groups(cfg: LossConfig, reward_N, batch, valid_BG, key):
  """Advantages [N] by the answers of a prompt: of their rewards, less the KL of their tokens if it counts there."""
  total_N = np.asarray(reward_N) - kl_penalty(batch, cfg).sum(1)
  total_BG = jnp.asarray(total_N.reshape(valid_BG.shape), jnp.float32)
  return np.asarray(_advantages(total_BG, jnp.asarray(valid_BG, jnp.float32), cfg, key)).reshape(-1)


def of_critic(cfg: LossConfig, reward_N, batch, value_NA):
  """(advantage, return), each [N, A]: GAE over each answer's tokens. The reward falls on the last token, KL on each."""
  mask_NA = np.asarray(batch.mask_NA)
  reward_NA = -kl_penalty(batch, cfg)
  length_N = mask_NA.sum(1).astype(int)
  some = length_N > 0
  reward_NA[np.flatnonzero(some), length_N[some] - 1] += np.asarray(reward_N)[some]
  advantage_NA, return_NA = map(np.asarray, _gae(cfg.gamma, cfg.gae_lambda)(reward_NA, value_NA, mask_NA))
  if cfg.negative_control == "flipped_advantages":
    advantage_NA = -advantage_NA
  if cfg.whiten:
    n = max(mask_NA.sum(), 1.0)
    centred_NA = (advantage_NA - (advantage_NA * mask_NA).sum() / n) * mask_NA
    advantage_NA = centred_NA / max(np.sqrt((centred_NA**2).sum() / n), 1e-8)
  return advantage_NA.astype(np.float32), return_NA


@functools.lru_cache
def _gae(gamma: float, lam: float):
  return jax.jit(jax.vmap(functools.partial(variants.gae, gamma=gamma, lam=lam)))


def credited(cfg, batch, reward_N, truncated_N, same_N, seed: int, unit: int):
  """(batch with advantages and the loss' mask, advantage_N for the records): groups' or, with a critic, tokens'."""
  masked_N = truncated_N & (cfg.truncated == "masked")
  valid_N = np.where(masked_N | (same_N & (cfg.zero_variance == "drop")), 0.0, 1.0).astype(np.float32)
  if cfg.critic:
    batch = batch.replace(mask_NA=batch.mask_NA * valid_N[:, None])
    token_adv_NA, return_NA = of_critic(cfg.loss, reward_N, batch, batch.old_value_NA)
    tokens_N = np.maximum(batch.mask_NA.sum(1), 1)
    adv_N = (token_adv_NA * batch.mask_NA).sum(1) / tokens_N
    return batch.replace(token_advantage_NA=token_adv_NA, return_NA=return_NA, advantage_N=adv_N), adv_N
  valid_BG = np.where(masked_N, 0.0, 1.0).reshape(-1, cfg.group_size)
  key = jax.random.fold_in(jax.random.key(seed), unit)
  adv_N = of_groups(cfg.loss, reward_N, batch, valid_BG, key)
  return batch.replace(advantage_N=adv_N, mask_NA=batch.mask_NA * valid_N[:, None]), adv_N

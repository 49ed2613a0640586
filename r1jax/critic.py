"""A scalar head on a decoder: PPO's critic, one value for each token, and the reward models, one for an answer.

Its parameters are {trunk: those of the decoder, head: [D]}; the head starts at zero. The critic is a TrainState of its
own, updated by the same train step as the policy. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from r1jax import train
from r1jax.losses import Mean, masked_mean
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """PPO's critic. It starts from the policy's weights."""
  optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(lr=1e-5))
  clip: float = 0.2              # how far a value may move from that of the rollout before its loss is flat; 0: no clip
  warmup: int = 0                # rollouts in which only the critic learns

  def __post_init__(self):
    if self.clip < 0 or self.warmup < 0:
      raise ValueError(f"critic.clip={self.clip} and warmup={self.warmup} must not be negative")


def init(trunk, model: ModelConfig):
  """A scalar model that starts from the policy's parameters, which it copies."""
  return dict(trunk=jax.tree.map(jnp.copy, trunk), head=jnp.zeros(model.dim))


def token_values(params, model: ModelConfig, prompt_BP, prompt_length_B, answer_NA):
  """V of the states that choose each answer token [N, A], f32."""
  hidden_NAD, _ = train.answer_states(params["trunk"], model, prompt_BP, prompt_length_B, answer_NA)
  return hidden_NAD.astype(jnp.float32) @ params["head"]


def answer_scores(params, model: ModelConfig, prompt_BP, prompt_length_B, answer_NA, length_N):
  """One score for each whole answer [N], f32: the head on the state behind its last token; length_N: its tokens."""
  longer_NA = jnp.pad(answer_NA, ((0, 0), (0, 1)))       # the state behind token A - 1 would choose token A
  value_NA = token_values(params, model, prompt_BP, prompt_length_B, longer_NA)
  return jnp.take_along_axis(value_NA, length_N[:, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames=("model", "micro_batches"))
def values(params, prompt_BP, prompt_length_B, answer_NA, *, model: ModelConfig, micro_batches: int = 1):
  """token_values, jitted, in parts."""
  parts = train.split((prompt_BP, prompt_length_B, answer_NA), micro_batches)
  return jax.lax.map(lambda part: token_values(params, model, *part), parts).reshape(answer_NA.shape)


def value_loss(value_NA, old_value_NA, return_NA, mask_NA, clip: float):
  """max of the squared errors of V and of V kept within old V +- clip, over 2, token mean (PPO2 of baselines)."""
  error_NA = (value_NA - return_NA) ** 2
  if clip:
    near_NA = old_value_NA + jnp.clip(value_NA - old_value_NA, -clip, clip)
    error_NA = jnp.maximum(error_NA, (near_NA - return_NA) ** 2)
  return masked_mean(0.5 * error_NA, mask_NA)


def loss(params, batch, *, model: ModelConfig, cfg: CriticConfig):
  """The critic's loss on a minibatch, and how much of the returns' variance it explains, as sums."""
  value_NA = token_values(params, model, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA)
  mask_NA = batch.mask_NA
  error = masked_mean((value_NA - batch.return_NA) ** 2, mask_NA)
  metrics = {"critic/error": error, "critic/value": masked_mean(value_NA, mask_NA),
             "critic/return": masked_mean(batch.return_NA, mask_NA)}
  metrics = jax.tree.map(jax.lax.stop_gradient, metrics, is_leaf=lambda x: isinstance(x, Mean))
  return value_loss(value_NA, batch.old_value_NA, batch.return_NA, mask_NA, cfg.clip), metrics

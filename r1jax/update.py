"""What stands between a scored rollout and its updates: reference and old log-probs, micro-batches, offloading.

Choices of RLConfig that change time and memory, never loss or gradients: micro_batches, sort_by_length, pack_tokens,
reference (in a pass of its own before the updates, or in their program), offload. `cfg` is that config.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from r1jax import hosts, layout, offload, profiling, train
from r1jax.models.transformer import ModelConfig

REFERENCE = ("before", "fused")


def logprobs(params, batch, *, model: ModelConfig, cfg, experts=None):
  """(log-probs [N, A], entropies [N, A], Routing) of a batch's answers, in the layout that it has."""
  if batch.packed is not None:
    return train.packed_answer_logprobs(params, model, batch.packed, batch.answer_NA, cfg.sampling.scale,
                                        batch.kept_NAk)
  return train.logprobs_and_routing(params, model, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA,
                                    cfg.sampling.scale, experts, batch.mask_NA, batch.kept_NAk)


def by_layout(cfg) -> bool:
  """Whether micro-batches are made on the host, each with its own shape."""
  return bool(cfg.sort_by_length or cfg.pack_tokens)


def scorer(cfg, model: ModelConfig) -> Callable:
  """score(params, batch, again=False) -> log-probs [N, A] of a whole rollout. again: the sampler's experts."""
  parts = cfg.minibatches * cfg.micro_batches

  def one(params, batch, again, micro_batches):
    batch = hosts.place(batch)
    experts = (batch.prompt_expert_BPLk, batch.expert_NALk) if again and batch.expert_NALk is not None else None
    return hosts.fetch(train.score(params, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA, experts,
                                  batch.kept_NAk, batch.packed, model=model, temperature=cfg.sampling.scale,
                                  micro_batches=micro_batches))

  def score(params, batch, again=False):
    if not by_layout(cfg):
      return one(params, batch, again, parts)
    out = np.zeros(batch.answer_NA.shape, np.float32)
    for rows, part in layout.micro_batches(batch, parts, cfg.sort_by_length, cfg.pack_tokens):
      logp_NA = one(params, part, again, 1)
      out[rows, :logp_NA.shape[1]] = logp_NA
    return out
  return score


def with_logprobs(cfg, state, batch, score: Callable):
  """The batch with what the loss needs of other policies, and no pass that it does not need."""
  if cfg.loss.kl_coef and cfg.reference == "before":
    with profiling.phase("reference"):
      batch = batch.replace(ref_logp_NA=score(offload.awake(state, cfg.offload, "reference").ref_params, batch))
  if by_who_drew(cfg):
    return batch.replace(old_logp_NA=batch.sampler_logp_NA)
  if cfg.minibatches > 1:      # with one update the policy is that of its start: its ratio is 1
    with profiling.phase("old policy"):
      batch = batch.replace(old_logp_NA=score(state.params, batch, again=True))
  return batch


def by_who_drew(cfg) -> bool:
  """Whether each token's ratio is against the policy that drew it, not against that at the start of the updates."""
  return bool(cfg.partial or (cfg.ahead and cfg.loss.correction == "none"))


def updater(cfg, model: ModelConfig, tx, loss_fn: Callable) -> Callable:
  """update(state, minibatch) -> (state, metrics)."""
  @jax.named_scope("reference")
  def reference(ref_params, part):
    logp_NA = logprobs(ref_params, part, model=model, cfg=cfg)[0]
    return part.replace(ref_logp_NA=jax.lax.stop_gradient(logp_NA))
  prepare = reference if cfg.loss.kl_coef and cfg.reference == "fused" else None
  if not by_layout(cfg):
    return profiling.named(train.compiled_step(loss_fn, tx, cfg.micro_batches, prepare=prepare), name="update")
  of_parts = train.compiled_parts(loss_fn, tx, prepare=prepare)
  cut = functools.partial(layout.micro_batches, count=cfg.micro_batches, sort=cfg.sort_by_length,
                          pack_tokens=cfg.pack_tokens)
  return profiling.named(lambda state, batch: of_parts(state, [part for _, part in cut(batch)]), name="update")

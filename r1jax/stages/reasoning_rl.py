"""Reasoning RL as in DeepSeek-R1-Zero (Nature 2025, Methods, "Training details of DeepSeek-R1-Zero").

One rollout: Q questions x G answers, rewards, advantages; then the questions, with their whole groups, are split at
random into M minibatches, one update each, one inner epoch. R1-Zero: Q 512, G 16, M 16 (32 questions an update), the KL
reference replaced by the policy every 400 updates.
Left open by the paper and decided here: "randomly split" is by question; advantages are taken before the split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import ahead as ahead_
from r1jax import collect, credit, critic, data, grpo, hosts, ledger, loop, offload, optimizer, partial, rollout, train
from r1jax import update as update_
from r1jax.evals import evaluate
from r1jax.ledger import Rates
from r1jax.models import moe
from r1jax.models.transformer import ModelConfig
from r1jax.resharding import for_rollout
from r1jax.rl_config import RLConfig
from r1jax.types import Problem, Task


@jax.named_scope("policy_loss")
def policy_loss(params, batch, *, model: ModelConfig, cfg: RLConfig):
  """-J of a minibatch: log-probs of the answers under `params`, then grpo.loss."""
  logp_NA, entropy_NA, routing = update_.logprobs(params, batch, model=model, cfg=cfg, experts=replay(batch))
  loss, metrics = grpo.loss(logp_NA, entropy_NA, batch, cfg.loss)
  if update_.by_who_drew(cfg):       # the old log-probs are the sampler's own
    metrics = {name: metric for name, metric in metrics.items() if not name.startswith("mismatch/")}
  return loss, metrics | moe.metrics(routing)


def replay(batch):
  """The sampler's experts, for the trainer to use again (R3, 2510.11370); None for dense models or when it is off."""
  return None if batch.expert_NALk is None else (batch.prompt_expert_BPLk, batch.expert_NALk)


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What a stage asks and what it pays for."""
  problems: Callable[[int, int], list[Problem]]     # (unit, count) -> the unit's questions, of `count` each
  terms: Callable[[int], dict]                      # unit -> {name: (weight, reward)}


def refuse(cfg: RLConfig, task: Task, model: ModelConfig) -> None:
  """Refuses what does not go together. A run asks before its first stage: hours may lie between."""
  if unknown := sorted(set(cfg.rewards) - set(task.rewards)):
    raise ValueError(f"reasoning_rl.rewards: task {task.name} has no {', '.join(unknown)}; it has"
                     f" {', '.join(task.rewards)}")
  if cfg.dynamic_sampling and task.size is not None and cfg.questions_per_rollout * cfg.dynamic_sampling > task.size:
    raise ValueError(f"reasoning_rl: questions_per_rollout={cfg.questions_per_rollout} x dynamic_sampling="
                     f"{cfg.dynamic_sampling} are more than the task's {task.size} questions")
  if cfg.pack_tokens and model.moe and cfg.routing_replay:
    raise ValueError(f"reasoning_rl.pack_tokens={cfg.pack_tokens} has no routing_replay for the model's experts: set it"
                     " to False, or train with shared_prompt")
  if cfg.partial and model.moe:
    raise NotImplementedError(f"reasoning_rl.partial={cfg.partial}: the experts of answers under way are not kept")
  if cfg.partial and hosts.count() > 1:
    raise NotImplementedError(f"reasoning_rl.partial={cfg.partial} in {hosts.count()} processes: which answers go on"
                              " would depend on how fast each process is")


def lesson(cfg: RLConfig, task: Task, seed: int) -> Lesson:
  """The task's own questions, in order, for the rewards of the config."""
  terms = {name: (weight, task.rewards[name]) for name, weight in cfg.rewards.items()}
  return Lesson(lambda unit, count: [task.problem(i) for i in data.positions(unit, count, task.size, seed)],
                lambda unit: terms)


def run(cfg: RLConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None, console=None,
        files=None, pool=None, rates: Rates | None = None, asked: Lesson | None = None):
  """Improves the policy `params` by its own scored answers and returns the new one. asked: None for lesson(...)."""
  refuse(cfg, task, model)
  asking = asked or lesson(cfg, task, seed)
  if cfg.ahead:
    ahead_.check(cfg)
  if cfg.offload != "none":
    offload.check(f"reasoning_rl.offload={cfg.offload}")
  updates = (cfg.rollouts - (cfg.critic.warmup if cfg.critic else 0)) * cfg.minibatches
  tx = optimizer.make(cfg.optimizer, updates)
  rate = optimizer.schedule(cfg.optimizer, updates)
  update = update_.updater(cfg, model, tx, lambda params, batch: policy_loss(params, batch, model=model, cfg=cfg))
  score = update_.scorer(cfg, model)

  value_update = cfg.critic and train.compiled_step(
    lambda params, batch: critic.loss(params, batch, model=model, cfg=cfg.critic),
    optimizer.make(cfg.critic.optimizer, cfg.rollouts * cfg.minibatches), cfg.micro_batches)

  draw = lambda unit, params, renew=None: collect.draw(cfg, task, asking, params, model=model, seed=seed, unit=unit,
                                                       pool=pool, renew=renew)

  def advance(state, unit):
    began = time.monotonic()
    carry, behind, said = state.carry, state.behind, {}
    state = offload.rest(state.replace(carry=None, behind=None), cfg.offload)     # an update does not need them
    if cfg.ahead:
      if not thread.begun:
        thread.begin(unit, behind, state.params)
      drawn, said["staleness"] = thread.take(unit)
    else:
      with for_rollout(state.params, model) as policy:
        if cfg.partial:
          drawn, carry, said["stale_token_share"] = partial.draw(cfg, task, asking, policy, carry, model=model,
                                                                 seed=seed, unit=unit, pool=pool)
        else:
          drawn = draw(unit, policy)
    scored = drawn.scored
    rollouts, parts, same_N = scored.rollouts, scored.parts, scored.same_N
    reward_N = scored.reward_N + collect.overlong(cfg, rollouts)
    if cfg.overlong_cushion:   # dynamic sampling looks at the rewards proper, what is learnt from at all
      same_N = collect.agreeing(cfg, reward_N, rollouts.truncated_N)
    rewarded = time.monotonic()

    batch = rollout.to_batch(rollouts, shared_prompt=cfg.shared_prompt)
    if not cfg.routing_replay:
      batch = batch.replace(prompt_expert_BPLk=None, expert_NALk=None)
    batch = update_.with_logprobs(cfg, state, batch, score)
    if cfg.critic:
      batch = batch.replace(old_value_NA=hosts.fetch(critic.values(
        state.critic.params, *hosts.place((batch.prompt_BP, batch.prompt_length_B, batch.answer_NA)), model=model,
        micro_batches=cfg.minibatches * cfg.micro_batches)))
    batch, adv_N = credit.credited(cfg, batch, reward_N, rollouts.truncated_N, same_N, seed, unit)

    first_step, learnt, total = unit * cfg.minibatches, int(state.step), {}
    reference = state.ref_params
    if cfg.reference == "before":              # all that is needed of it is in the batch
      state = state.replace(ref_params=None)
    state = offload.awake(state, cfg.offload)
    for questions in minibatches(cfg, seed, unit):
      part = rollout.take(batch, questions, cfg.group_size)
      if cfg.critic:
        value_state, metrics = value_update(state.critic, part)
        metrics |= {f"critic/{name}": metrics.pop(name) for name in ("loss", "grad_norm")}
        state = state.replace(critic=value_state)
        total = {k: total[k] + m if k in total else m for k, m in metrics.items()}
      if not cfg.critic or unit >= cfg.critic.warmup:
        state, metrics = update(state, part)
        total |= {k: total[k] + m if k in total else m for k, m in metrics.items()}
    if cfg.reference == "before":
      state = state.replace(ref_params=reference)
    if cfg.loss.kl_coef and cfg.reference_refresh and (first_step + cfg.minibatches) % cfg.reference_refresh == 0:
      state = state.replace(ref_params=jax.tree.map(jnp.copy, state.params))

    if cfg.ahead:
      behind = thread.learnt(unit + 1, state.params)
    state = offload.rest(state.replace(carry=carry, behind=behind), cfg.offload)
    row = collect.summary(rollouts, reward_N, parts, same_N) | {k: float(m.value()) for k, m in total.items()}
    ended = time.monotonic()
    row |= {"lr": float(rate(learnt)), "tokens_per_s": sum(map(len, rollouts.answers)) / (ended - began),
            "seconds/rollout": drawn.seconds, "seconds/reward": scored.seconds, "seconds/update": ended - rewarded}
    row |= said
    sampling = sum(hosts.gather(ledger.sampled(model, drawn.sampled)), ledger.Spent(drawn.seconds))
    learning = ledger.learnt(cfg, model, rollouts, row["seconds/update"], not cfg.critic or unit >= cfg.critic.warmup)
    spent = dict(rollout=sampling, reward=ledger.Spent(scored.seconds), update=learning)
    if cfg.ahead:
      row["seconds/waited"] = rewarded - began
      spent = dict(rollout_and_update=dataclasses.replace(sampling + learning, seconds=ended - began))
    row |= {f"sampler/{name}": value for name, value in drawn.stats.row().items()}
    if pool:      # since the process began
      row |= {f"verifier/{name}": count for name, count in pool.counts().items()}
    if cfg.dynamic_sampling:
      row |= {"zero_variance_share": scored.agreed_share, "sampled_rounds": scored.rounds}
    if (cfg.eval_every and (unit + 1) % cfg.eval_every == 0) or unit + 1 == cfg.rollouts:
      tested = []
      # sampled ahead, the next rollout has the sampler's devices
      with contextlib.nullcontext(state.params) if cfg.ahead else for_rollout(state.params, model) as policy:
        row |= {f"eval/{k}": v for k, v in evaluate.greedy(
          policy, task, model=model, sampling=cfg.sampling, pool=pool, drawn_into=tested,
          prompts_at_once=(cfg.prompts_at_once or cfg.questions_per_rollout) * cfg.group_size).items()}
      spent |= dict(eval=ledger.sampled(model, tested, time.monotonic() - ended))
    if rates:
      row |= ledger.row(rates, **spent)
    table = rollout.table(rollouts, reward_N, parts, adv_N, stage=folder.name, step=first_step)
    return state, [(first_step, row)], (first_step, table)

  state = first_state(cfg, params, model, updates)
  with contextlib.closing(ahead_.Rollouts(cfg, model, draw)) as thread:
    return loop.run(folder.name, folder, state, advance, units=cfg.rollouts, save=cfg.checkpoint, stop=stop,
                    console=console, first_step=lambda unit: unit * cfg.minibatches).params


def first_state(cfg: RLConfig, params, model: ModelConfig, updates: int = 1):
  """Update 0 of the policy, with its reference and its critic if it has them."""
  state = train.init_state(params, optimizer.make(cfg.optimizer, updates), reference=cfg.loss.kl_coef > 0)
  if cfg.partial:
    state = state.replace(carry=partial.empty(cfg))
  if cfg.ahead:
    state = state.replace(behind=tuple(jax.tree.map(jnp.copy, params) for _ in range(cfg.ahead)))
  if cfg.critic:
    value_params = critic.init(params, model)
    state = state.replace(critic=train.init_state(value_params, optimizer.make(cfg.critic.optimizer, updates)))
  return state


def minibatches(cfg: RLConfig, seed: int, unit: int):
  """The questions of each minibatch, split at random."""
  order = np.random.default_rng([seed, unit, 1]).permutation(cfg.questions_per_rollout)
  return [np.sort(questions) for questions in np.split(order, cfg.minibatches)]

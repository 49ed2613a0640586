"""Reasoning RL as in DeepSeek-R1-Zero (Nature 2025, Methods, "Training details of DeepSeek-R1-Zero").

One rollout: Q questions x G answers, rewards, advantages; then the questions, with their whole groups, are split at
random into M minibatches, one update each, one inner epoch. R1-Zero: Q 512, G 16, M 16 (32 questions an update), the KL
reference replaced by the policy every 400 updates.
Left open by the paper and decided here: "randomly split" is by question; advantages are taken before the split.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import collect, credit, critic, data, grpo, hosts, ledger, loop, offload, optimizer, partial, rollout, train
from r1jax import update as update_
from r1jax.critic import CriticConfig
from r1jax.drawing import SampleConfig
from r1jax.evals import evaluate
from r1jax.grpo import LossConfig
from r1jax.ledger import Rates
from r1jax.loop import SaveConfig
from r1jax.models import moe
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.resharding import for_rollout
from r1jax.slots import Stats
from r1jax.types import Problem, Task


@dataclasses.dataclass(frozen=True)
class RLConfig:
  optimizer: OptimizerConfig
  loss: LossConfig
  sampling: SampleConfig
  rewards: dict[str, float]              # weight of each; R1-Zero: accuracy + format, the same
  rollouts: int                          # updates = rollouts * minibatches; R1-Zero: 650 * 16
  questions_per_rollout: int             # R1-Zero: 512
  group_size: int                        # answers to a question; R1-Zero: 16
  minibatches: int = 1                   # updates per rollout; R1-Zero: 16
  micro_batches: int = 1                 # parts of a minibatch, gradients added up; changes memory, not results
  shared_prompt: bool = True             # a group's prompt is computed once in training; changes time, not results
  sort_by_length: bool = False           # a micro-batch has answers of like length and no longer padding than these
                                         # need; changes time, not results (layout.py)
  pack_tokens: int = 0                   # instead of a shared prompt: whole samples packed into rows of so many tokens;
                                         # 0: off. Changes time, not results (layout.py)
  reference: str = "before"              # of update.REFERENCE: the reference's log-probs are computed in a pass before
                                         # the updates, or "fused" into their program. Changes time, not results
  offload: str = "none"                  # of offload.WHAT: what waits in the host's memory between its uses
  routing_replay: bool = True            # MoE: the trainer uses the experts that the sampler chose; V3.2 "Keep Routing"
  prompts_at_once: int = 0               # questions sampled together; 0: all. Changes memory, not results
  reference_refresh: int = 400           # updates, then the reference becomes the policy; 0: never. R1: 400
  truncated: str = "wrong"               # rollout.score
  overlong_cushion: int = 0              # rewards.length.soft_overlong, within so many tokens of max_tokens; 0: none
  zero_variance: str = "keep"            # groups whose rewards agree: keep (KL acts on them) or drop from the loss
  dynamic_sampling: int = 0              # up to so many times the questions are sampled, until enough groups do not
                                         # agree (DAPO); 0: off
  partial: int = 0                       # questions under way beyond those of an update; their unfinished answers go
                                         # on in the next rollout (partial.py); 0: off. Needs sampling.slots
  critic: CriticConfig | None = None     # loss.advantage=gae only
  eval_every: int = 10                   # rollouts between greedy evaluations on held-out problems; 0: only at the ends
  checkpoint: SaveConfig = dataclasses.field(default_factory=SaveConfig)

  def __post_init__(self):
    for name in ("rollouts", "questions_per_rollout", "minibatches", "micro_batches"):
      if getattr(self, name) < 1:
        raise ValueError(f"reasoning_rl.{name}={getattr(self, name)} must be at least 1")
    if self.group_size < 2:
      raise ValueError(f"reasoning_rl.group_size={self.group_size}: a group of one has no advantage, give at least 2")
    if self.questions_per_rollout % self.minibatches:
      raise ValueError(f"reasoning_rl.questions_per_rollout={self.questions_per_rollout} must be a multiple of"
                       f" minibatches={self.minibatches}")
    rows = self.questions_per_rollout // self.minibatches * (1 if self.shared_prompt else self.group_size)
    if rows % self.micro_batches:
      what = "questions" if self.shared_prompt else "answers"
      raise ValueError(f"reasoning_rl: {rows} {what} of a minibatch are not a multiple of"
                       f" micro_batches={self.micro_batches}")
    if self.reference_refresh % self.minibatches:
      raise ValueError(f"reasoning_rl.reference_refresh={self.reference_refresh} must be a multiple of minibatches="
                       f"{self.minibatches}: the reference does not change within a rollout")
    if self.pack_tokens < 0 or (self.pack_tokens and self.shared_prompt):
      raise ValueError(f"reasoning_rl.pack_tokens={self.pack_tokens} needs shared_prompt=False: a packed sample has its"
                       " own prompt")
    if self.reference not in update_.REFERENCE:
      raise ValueError(f"reasoning_rl.reference={self.reference!r} is none of {update_.REFERENCE}")
    if self.reference == "fused" and self.loss.kl_in == "reward":
      raise ValueError("reasoning_rl.reference=fused comes too late for loss.kl_in=reward: rewards are before updates")
    if self.offload not in offload.WHAT:
      raise ValueError(f"reasoning_rl.offload={self.offload!r} is none of {offload.WHAT}")
    if self.truncated not in rollout.TRUNCATED:
      raise ValueError(f"reasoning_rl.truncated={self.truncated!r} is none of {rollout.TRUNCATED}")
    if self.zero_variance not in ("keep", "drop"):
      raise ValueError(f"reasoning_rl.zero_variance={self.zero_variance!r} is neither keep nor drop")
    if self.sampling.temperature == 0:
      raise ValueError("reasoning_rl.sampling.temperature=0: greedy answers of a group are all the same")
    if not self.rewards:
      raise ValueError("reasoning_rl.rewards is empty")
    if self.partial < 0 or (self.partial and (not self.sampling.slots or self.dynamic_sampling)):
      raise ValueError(f"reasoning_rl.partial={self.partial} needs sampling.slots={self.sampling.slots} above 0 and"
                       f" dynamic_sampling={self.dynamic_sampling} off")
    if self.partial and (self.sampling.keep_mask or self.critic or self.loss.correction != "none"):
      raise ValueError(f"reasoning_rl.partial={self.partial}: neither sampling.keep_mask, nor a critic, nor"
                       f" loss.correction={self.loss.correction} go with it: the ratio is against who sampled")
    if self.dynamic_sampling < 0 or self.dynamic_sampling == 1:
      raise ValueError(f"reasoning_rl.dynamic_sampling={self.dynamic_sampling} must be 0 (off) or at least 2")
    if not 0 <= self.overlong_cushion <= self.sampling.max_tokens:
      raise ValueError(f"reasoning_rl.overlong_cushion={self.overlong_cushion} must be within 0 and"
                       f" sampling.max_tokens={self.sampling.max_tokens}")
    if (self.loss.advantage == "gae") != (self.critic is not None):
      raise ValueError(f"reasoning_rl: loss.advantage=gae and a critic go together, here {self.loss.advantage} and"
                       f" {'a' if self.critic else 'no'} critic")
    if self.loss.advantage == "gae" and self.loss.negative_control == "shuffled_groups":
      raise ValueError("reasoning_rl: negative_control=shuffled_groups has no meaning for gae: flipped_advantages has")
    if self.critic and self.critic.warmup >= self.rollouts:
      raise ValueError(f"reasoning_rl.critic.warmup={self.critic.warmup} leaves none of rollouts={self.rollouts}")
    if self.zero_variance == "drop" and (self.loss.advantage in ("gae", "batch_normalised")
                                         or self.loss.kl_in == "reward"):
      raise ValueError("reasoning_rl.zero_variance=drop takes out groups that teach something here: loss.advantage="
                       f"{self.loss.advantage}, kl_in={self.loss.kl_in}")
    if self.loss.kl_in == "reward" and not self.loss.kl_coef:
      raise ValueError("reasoning_rl: loss.kl_in=reward with kl_coef=0")


@jax.named_scope("policy_loss")
def policy_loss(params, batch, *, model: ModelConfig, cfg: RLConfig):
  """-J of a minibatch: log-probs of the answers under `params`, then grpo.loss."""
  logp_NA, entropy_NA, routing = update_.logprobs(params, batch, model=model, cfg=cfg, experts=replay(batch))
  loss, metrics = grpo.loss(logp_NA, entropy_NA, batch, cfg.loss)
  return loss, metrics | moe.metrics(routing)


def replay(batch):
  """The sampler's experts, for the trainer to use again (R3, 2510.11370); None for dense models or when it is off."""
  return None if batch.expert_NALk is None else (batch.prompt_expert_BPLk, batch.expert_NALk)


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What a stage asks and what it pays for."""
  problems: Callable[[int, int], list[Problem]]     # (unit, count) -> the unit's questions, of `count` each
  terms: Callable[[int], dict]                      # unit -> {name: (weight, reward)}


def lesson(cfg: RLConfig, task: Task, seed: int) -> Lesson:
  """The task's own questions, in order, for the rewards of the config."""
  unknown = sorted(set(cfg.rewards) - set(task.rewards))
  if unknown:
    raise ValueError(f"reasoning_rl.rewards: task {task.name} has no {', '.join(unknown)}; it has"
                     f" {', '.join(task.rewards)}")
  terms = {name: (weight, task.rewards[name]) for name, weight in cfg.rewards.items()}
  return Lesson(lambda unit, count: [task.problem(i) for i in data.positions(unit, count, task.size, seed)],
                lambda unit: terms)


def run(cfg: RLConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None, console=None,
        files=None, pool=None, rates: Rates | None = None, asked: Lesson | None = None):
  """Improves the policy `params` by its own scored answers and returns the new one. asked: None for lesson(...)."""
  asking = asked or lesson(cfg, task, seed)
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

  def advance(state, unit):
    began = time.monotonic()
    stats, carry, stale = Stats(), state.carry, 0.0
    state = offload.rest(state.replace(carry=None), cfg.offload)      # an update has nothing to do with the carry
    drawn = []

    def judge(part):
      drawn.append(part)
      return rollout.judge(part, terms, cfg.truncated, pool)
    terms = asking.terms(unit)
    if cfg.partial:
      problem_at = lambda place: asking.problems(place, 1)[0]
      with for_rollout(state.params, model) as policy:
        scored, carry, stale = partial.collect(cfg, task, problem_at, policy, carry, judge, model=model, seed=seed,
                                               unit=unit, stats=stats)
    else:
      problems = asking.problems(unit, cfg.questions_per_rollout * max(cfg.dynamic_sampling, 1))
      asked = Counter()
      with for_rollout(state.params, model) as policy, hosts.own_devices(policy) as params:
        sample = lambda problems: rollout.sample_parts(
          params, problems, cfg.group_size, model=model, tokenizer=task.tokenizer, cfg=cfg.sampling, seed=seed,
          step=unit, prompts_at_once=cfg.prompts_at_once, encode=task.encode, asked=asked, stats=stats, share=True)
        scored = collect.collect(cfg, problems, sample, judge)
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

    state = offload.rest(state.replace(carry=carry), cfg.offload)
    row = collect.summary(rollouts, reward_N, parts, same_N) | {k: float(m.value()) for k, m in total.items()}
    ended = time.monotonic()
    row |= {"lr": float(rate(learnt)), "tokens_per_s": sum(map(len, rollouts.answers)) / (ended - began),
            "seconds/rollout": rewarded - began - scored.seconds, "seconds/reward": scored.seconds,
            "seconds/update": ended - rewarded}
    spent = dict(rollout=sum(hosts.gather(ledger.sampled(model, drawn)), ledger.Spent(row["seconds/rollout"])),
                 reward=ledger.Spent(row["seconds/reward"]),
                 update=ledger.learnt(cfg, model, rollouts, row["seconds/update"],
                                      not cfg.critic or unit >= cfg.critic.warmup))
    row |= {f"sampler/{name}": value for name, value in stats.row().items()}
    if cfg.partial:
      row["stale_token_share"] = stale
    if pool:      # since the process began
      row |= {f"verifier/{name}": count for name, count in pool.counts().items()}
    if cfg.dynamic_sampling:
      row |= {"zero_variance_share": scored.agreed_share, "sampled_rounds": scored.rounds}
    if (cfg.eval_every and (unit + 1) % cfg.eval_every == 0) or unit + 1 == cfg.rollouts:
      tested = []
      with for_rollout(state.params, model) as policy:
        row |= {f"eval/{k}": v for k, v in evaluate.greedy(
          policy, task, model=model, sampling=cfg.sampling, pool=pool, drawn_into=tested,
          prompts_at_once=(cfg.prompts_at_once or cfg.questions_per_rollout) * cfg.group_size).items()}
      spent |= dict(eval=ledger.sampled(model, tested, time.monotonic() - ended))
    if rates:
      row |= ledger.row(rates, **spent)
    table = rollout.table(rollouts, reward_N, parts, adv_N, stage=folder.name, step=first_step)
    return state, [(first_step, row)], (first_step, table)

  state = first_state(cfg, params, model, updates)
  return loop.run(folder.name, folder, state, advance, units=cfg.rollouts, save=cfg.checkpoint, stop=stop,
                  console=console, first_step=lambda unit: unit * cfg.minibatches).params


def first_state(cfg: RLConfig, params, model: ModelConfig, updates: int = 1):
  """Update 0 of the policy, with its reference and its critic if it has them."""
  state = train.init_state(params, optimizer.make(cfg.optimizer, updates), reference=cfg.loss.kl_coef > 0)
  if cfg.partial:
    state = state.replace(carry=partial.empty(cfg))
  if cfg.critic:
    value_params = critic.init(params, model)
    state = state.replace(critic=train.init_state(value_params, optimizer.make(cfg.critic.optimizer, updates)))
  return state


def minibatches(cfg: RLConfig, seed: int, unit: int):
  """The questions of each minibatch, split at random."""
  order = np.random.default_rng([seed, unit, 1]).permutation(cfg.questions_per_rollout)
  return [np.sort(questions) for questions in np.split(order, cfg.minibatches)]

"""What stages do, in the numbers that decide memory, time and money; from an experiment's config (paper.py: R1's own).

Lengths come from assumptions where no run has measured them: give --mean-length and --prompt-length where one has.
Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses

from r1jax.optimizer import OptimizerConfig
from r1jax.plan.assumptions import Assumptions
from r1jax.update import by_who_drew


@dataclasses.dataclass(frozen=True)
class Part:
  """So many rollouts with answers of one mean length."""
  rollouts: int
  mean: float
  most: int                      # longest answer that is allowed


@dataclasses.dataclass(frozen=True)
class RL:
  """A stage of reinforcement learning."""
  name: str
  parts: tuple[Part, ...]
  questions: int                 # of a rollout
  group: int                     # answers to each
  minibatches: int               # updates of a rollout
  prompt: float                  # mean tokens
  reference: bool = True         # KL to a reference: its log-probs are computed
  old: bool = True               # log-probs of the policy before the updates are computed
  passes: float = 0.0            # forward passes of reward models over the answers, mean over rollouts
  optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(3e-6, state_dtype="bfloat16"))

  @property
  def answers(self) -> int:
    return self.questions * self.group

  @property
  def most(self) -> int:
    return max(part.most for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Supervised:
  """A stage that learns from given samples."""
  name: str
  samples: float                 # in all, epochs counted
  length: float                  # mean tokens of prompt and answer
  batch: int
  most: int                      # tokens of a row
  optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(5e-5, state_dtype="bfloat16"))


@dataclasses.dataclass(frozen=True)
class Sampling:
  """A stage that only samples, without updates in between: data for another stage."""
  name: str
  answers: float
  mean: float
  most: int
  prompt: float
  group: int


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How rollouts and updates share the devices. Fields change time and memory; `ahead` and `partial` also staleness."""
  continuous: bool = True        # rows that have ended cost nothing more; False: a step costs what it did at first,
                                 # and where not all answers run at one time, the next ones wait for the whole part
  width: int = 1                 # rows of one prompt side by side
  slots: int = 0                 # rows that run at one time, on all devices; 0: all answers
  drafts: int = 0                # tokens guessed by the MTP module
  partial: float = 0.0           # questions under way beyond those of a rollout, as a share of it
  ahead: bool = False            # the next rollout is sampled while this one is learnt from, on devices of its own
  fp8_rollout: bool = False      # weights and products of sampling in FP8
  fp8_train: bool = False        # products of scoring and updates in FP8
  shared_prompt: bool = False    # a group's prompt is run once, in prefill and in training
  prefill_once: bool = False     # it is in prefill, whatever training does
  cache: str = ""                # type of the keys and values kept in sampling; "": the model's
  paged: bool = False            # caches have room for the tokens that there are, and weights lie once, as in vLLM
  offload: bool = True           # what a phase does not need waits on the host: phases cost a switch


def of_config(cfg, numbers: Assumptions, mean: float = 0.0, prompt: float = 0.0) -> tuple[list, list[str]]:
  """[(stage, its Schedule)] of a RunConfig's stages, in order, and what was left out.

  mean, prompt: lengths of answers and prompts, where they are known.
  """
  stages, left_out = [], []
  for name in cfg.stages:
    section = cfg.sections[name]
    c = section.cfg
    rl = getattr(c, "rl", c)
    if hasattr(rl, "questions_per_rollout"):
      passes = len(getattr(c, "preference", ())) * getattr(c, "preference_rollouts", 0) / rl.rollouts
      stages.append((_rl(name, rl, numbers, mean, prompt, passes), _schedule(rl)))
    elif section.stage == "rejection":
      most = c.sampling.max_tokens
      stages.append((Sampling(name, c.problems * c.samples, mean or max(numbers.spread * most, 1.0), most,
                              prompt or numbers.prompt, c.samples),
                     Schedule(offload=False, shared_prompt=True, cache=_cache(c.sampling))))
    elif samples := _samples(cfg, section):
      most = getattr(c, "length", 0) or longest(cfg)
      length = min((prompt or numbers.prompt) + (mean or numbers.spread * most), most)
      stages.append((Supervised(name, samples, length, c.batch, most, c.optimizer), Schedule()))
    else:
      left_out.append(f"{name}: how many samples it has is in its data alone; give it steps")
  return stages, left_out


def _samples(cfg, section) -> float:
  """Samples that a supervised stage learns from, epochs counted; 0 where only its data knows."""
  c = section.cfg
  if getattr(c, "steps", 0):
    return float(c.steps * c.batch)
  source = cfg.sections.get(section.data or "")
  if source is None or source.stage != "rejection":
    return 0.0
  kept = min(source.cfg.keep or source.cfg.samples, source.cfg.samples) * source.cfg.problems + source.cfg.other
  return c.epochs * kept


def _schedule(rl) -> Schedule:
  """As rollout.sample_parts samples: without slots a group is a lane."""
  sampling = rl.sampling
  return Schedule(
    continuous=bool(sampling.slots), width=sampling.width if sampling.slots else rl.group_size,
    slots=sampling.slots or rl.prompts_at_once * rl.group_size, prefill_once=True, cache=_cache(sampling),
    drafts=sampling.drafts if sampling.draft == "mtp" else 0, partial=rl.partial / rl.questions_per_rollout,
    shared_prompt=rl.shared_prompt, offload=rl.offload != "none", ahead=rl.ahead > 0)


def _cache(sampling) -> str:
  return "" if sampling.cache == "model" else sampling.cache


def _rl(name: str, rl, numbers: Assumptions, mean: float, prompt: float, passes: float) -> RL:
  most = rl.sampling.max_tokens
  return RL(name, (Part(rl.rollouts, min(mean or max(numbers.spread * most, 1.0), max(0.95 * most, 1.0)), most),),
            rl.questions_per_rollout, rl.group_size, rl.minibatches, prompt or numbers.prompt,
            reference=rl.loss.kl_coef > 0, old=rl.minibatches > 1 and not by_who_drew(rl), passes=passes,
            optimizer=rl.optimizer)


def longest(cfg) -> int:
  """The longest answer of an experiment's RL, for supervised stages that name no length."""
  found = [getattr(section.cfg, "rl", section.cfg) for section in cfg.sections.values()]
  return max((rl.sampling.max_tokens for rl in found if hasattr(rl, "rollouts")), default=1024)

"""RL for all scenarios, R1's last stage (Nature 2025, Methods; arXiv 2501.12948 v2, eq. 8-10).

Reward = R_reasoning + R_general + R_language: rules for reasoning; for other prompts a reward model and the format.
1,700 updates at T 0.7; prompts beside reasoning and preference rewards only in the last 400, since more of them are
hacked (B.5). The paper does not say how a reward model's score becomes a reward: here by a sigmoid.
Everything else is reasoning RL (stages/reasoning_rl.py), whose config is this one's `rl`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from r1jax import data
from r1jax.models.transformer import ModelConfig
from r1jax.stages import reasoning_rl
from r1jax.stages.reasoning_rl import Lesson, RLConfig
from r1jax.types import REASONING, Reward, Task


@dataclasses.dataclass(frozen=True)
class AllScenariosConfig:
  rl: RLConfig                           # R1: T 0.7
  preference_rollouts: int               # the last so many rollouts; R1: 25 (400 updates)
  shares: dict[str, float]               # of their prompts, by scenario; before, all are reasoning
  preference: dict[str, float]           # weight of each reward model, by the name of the stage that trained it
  scale: str = "sigmoid"                 # what a score becomes, of rewards.preference.SCALES; not published

  def __post_init__(self):
    if not 0 <= self.preference_rollouts <= self.rl.rollouts:
      raise ValueError(f"all_scenarios_rl.preference_rollouts={self.preference_rollouts} must be within 0 and"
                       f" rl.rollouts={self.rl.rollouts}")
    if not self.shares or min(self.shares.values()) < 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
      raise ValueError(f"all_scenarios_rl.shares={self.shares} are shares of one whole")
    if self.scale != "sigmoid":
      raise ValueError(f"all_scenarios_rl.scale={self.scale!r} must be sigmoid: scores of a model trained on pairs have"
                       " no zero of their own, and an answer without a summary, worth 0, would beat those below")


def refuse(cfg: AllScenariosConfig, task: Task, model: ModelConfig) -> None:
  """As reasoning_rl.refuse."""
  reasoning_rl.refuse(cfg.rl, task, model)
  if unknown := [name for name in sorted(cfg.shares) if name != REASONING and name not in task.scenarios]:
    raise ValueError(f"all_scenarios_rl.shares: task {task.name} has no scenario {unknown[0]}; it has"
                     f" {', '.join([REASONING, *task.scenarios])}")
  if cfg.rl.partial:
    raise NotImplementedError(f"all_scenarios_rl.rl.partial={cfg.rl.partial}: an answer under way would be paid by the"
                              " rewards of another part")


def lesson(cfg: AllScenariosConfig, task: Task, seed: int, judges: dict[str, Reward]) -> Lesson:
  """Reasoning first; then the mixture, with the reward models `judges`, by name."""
  plain = reasoning_rl.lesson(cfg.rl, task, seed)
  names = sorted(cfg.shares)
  if missing := sorted(set(cfg.preference) - set(judges)):
    raise ValueError(f"all_scenarios_rl.preference: no reward model named {missing[0]}; there are"
                     f" {', '.join(judges) or 'none'}")
  first = cfg.rl.rollouts - cfg.preference_rollouts
  paid = plain.terms(0) | {name: (weight, judges[name]) for name, weight in cfg.preference.items()}

  def problem_at(place: int):
    rng = np.random.default_rng([seed, place, 3])
    name = names[int(rng.choice(len(names), p=[cfg.shares[n] for n in names]))]
    if name != REASONING:
      return task.scenarios[name](place)
    return task.problem(data.positions(place, 1, task.size, seed)[0])

  def problems(unit: int, count: int):
    if unit < first:
      return plain.problems(unit, count)
    return [problem_at(place) for place in range(unit * count, (unit + 1) * count)]
  return Lesson(problems, lambda unit: paid if unit >= first else plain.terms(unit))


def first_state(cfg: AllScenariosConfig, params, model: ModelConfig, updates: int = 1):
  return reasoning_rl.first_state(cfg.rl, params, model, updates)


def run(cfg: AllScenariosConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int,
        judges: dict[str, Reward], **common):
  """Improves the policy `params` on all scenarios. judges: rewards by reward models; common: as reasoning_rl.run."""
  refuse(cfg, task, model)
  return reasoning_rl.run(cfg.rl, task, folder, params, model=model, seed=seed,
                          asked=lesson(cfg, task, seed, judges), **common)

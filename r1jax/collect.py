"""Scored answers to a rollout's questions: rewards overlap with sampling; dynamic sampling; the overlong term.

`cfg` is the stage's RLConfig. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import numpy as np

from r1jax import grpo, hosts, profiling, rollout
from r1jax.problem import NOT_ASKED
from r1jax.rewards.length import soft_overlong
from r1jax.slots import Stats


@dataclasses.dataclass(frozen=True)
class Scored:
  """Sampled answers with their rewards. same_N: whether the rewards of the answer's group agree."""
  rollouts: rollout.Rollouts
  reward_N: np.ndarray
  parts: list[dict]
  same_N: np.ndarray
  rounds: int                    # how often `questions_per_rollout` questions were sampled
  agreed_share: float            # of all groups that were sampled, kept or not
  seconds: float                 # waited for rewards, when all was sampled


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A rollout, scored, and what it took."""
  scored: Scored
  sampled: list                  # of Rollouts: all that this process drew, used or not
  stats: Stats
  seconds: float                 # of sampling; the wait for rewards is scored.seconds


def draw(cfg, task, lesson, params, *, model, seed: int, unit: int, pool=None, renew=None) -> Drawn:
  """Scored answers to the questions of rollout `unit`. params: as sampling wants them (resharding.for_rollout).
  lesson: what is asked and paid for, a reasoning_rl.Lesson. renew: as in slots.run."""
  began, stats, sampled, asked = time.monotonic(), Stats(), [], Counter()
  terms = lesson.terms(unit)
  problems = lesson.problems(unit, cfg.questions_per_rollout * max(cfg.dynamic_sampling, 1))

  def judge(part):
    sampled.append(part)
    return rollout.judge(part, terms, cfg.truncated, pool)
  with hosts.own_devices(params) as now:
    def newer(steps: int):
      nonlocal now
      new = renew(steps)
      now = now if new is None else new      # the next round begins with it
      return new
    sample = lambda problems: rollout.sample_parts(
      now, problems, cfg.group_size, model=model, tokenizer=task.tokenizer, cfg=cfg.sampling, seed=seed, step=unit,
      prompts_at_once=cfg.prompts_at_once, encode=task.encode, asked=asked, stats=stats, renew=renew and newer,
      share=True)
    scored = collect(cfg, problems, sample, judge)
  return Drawn(scored, sampled, stats, time.monotonic() - began - scored.seconds)


def collect(cfg, problems, sample, judge) -> Scored:
  """Answers to questions_per_rollout questions. With dynamic sampling (DAPO, 2503.14476, 3.2) groups whose rewards
  agree are put aside and further questions sampled, until there are enough, or else the first that agree fill up.

  problems: all that may be needed. What a unit may ask is fixed, so a killed run asks the same again; a question that
  was not reached is passed over. sample(problems) yields Rollouts; judge(rollouts) begins to score and returns what
  waits for it: rewards of the first part are computed while the next is sampled. Of several hosts each samples and
  judges its share; what comes back is all of it.
  """
  Q, G = cfg.questions_per_rollout, cfg.group_size
  found: list[tuple] = []            # (rollouts, reward_N, parts, same_N) of each round
  useful, seconds = 0, 0.0
  for first in range(0, len(problems), Q):
    with profiling.phase("rollout"):
      sampled = [(part, judge(part)) for part in sample(problems[first:first + Q])]
    began = time.monotonic()
    with profiling.phase("rewards"):
      judged = hosts.gather([(part, *wait()) for part, wait in sampled])
    seconds += time.monotonic() - began
    each, reward_N, parts = zip(*hosts.flat(judged), strict=True)
    rollouts, reward_N, parts = rollout.join(each), np.concatenate(reward_N), hosts.flat(parts)
    same_N = agreeing(cfg, reward_N, rollouts.truncated_N)
    found.append((rollouts, reward_N, parts, same_N))
    useful += int((~same_N).sum()) // G
    if useful >= Q:
      break
  rollouts = rollout.join([f[0] for f in found])
  reward_N, same_N = (np.concatenate([f[i] for f in found]) for i in (1, 3))
  parts = [part for f in found for part in f[2]]
  agreed = float(same_N.mean())
  if cfg.dynamic_sampling:
    groups = np.argsort(same_N[::G], kind="stable")[:Q]
    rows = (groups[:, None] * G + np.arange(G)).reshape(-1)
    rollouts, parts = rollout.select(rollouts, groups), [parts[n] for n in rows]
    reward_N, same_N = reward_N[rows], same_N[rows]
  return Scored(rollouts, reward_N, parts, same_N, len(found), agreed, seconds)


def agreeing(cfg, reward_N, truncated_N) -> np.ndarray:
  """Whether the rewards of each answer's group agree [N]; masked answers have no say."""
  shape = (-1, cfg.group_size)
  valid_N = np.where(truncated_N & (cfg.truncated == "masked"), 0.0, 1.0)
  return np.repeat(np.asarray(grpo.agree(reward_N.reshape(shape), valid_N.reshape(shape))), cfg.group_size)


def overlong(cfg, rollouts) -> np.ndarray:
  """DAPO's soft overlong punishment of each answer [N], the full one for those cut off; zeros where it is off."""
  length_N = np.asarray([len(a) for a in rollouts.answers], np.float32)
  if not cfg.overlong_cushion:
    return np.zeros_like(length_N)
  over_N = soft_overlong(length_N, cfg.sampling.max_tokens, cfg.overlong_cushion)
  return np.where(rollouts.truncated_N, -1.0, over_N).astype(np.float32)


def summary(rollouts, reward_N, parts, same_N) -> dict[str, float]:
  """What the rollout looked like, as means over its answers; of a reward, over those that it was asked about."""
  length_N = np.asarray([len(a) for a in rollouts.answers], np.float32)
  out = {"reward": reward_N.mean(), "length": length_N.mean(), "truncated_share": rollouts.truncated_N.mean(),
         "zero_variance_share": same_N.mean()}
  for name in parts[0]:
    values = [p[name].value for p in parts if p[name].verdict != NOT_ASKED]
    if values:
      out[f"reward/{name}"] = np.mean(values)
  if "accuracy" in parts[0]:
    verdicts = np.asarray([p["accuracy"].verdict for p in parts])
    asked = verdicts != NOT_ASKED
    out |= {f"verdict/{v}": (verdicts[asked] == v).mean() for v in np.unique(verdicts[asked])}
    if asked.any():
      out["accuracy"] = (verdicts[asked] == "correct").mean()
    for name, rows in (("correct", verdicts == "correct"), ("wrong", asked & (verdicts != "correct"))):
      if rows.any():
        out[f"length/{name}"] = length_N[rows].mean()
  return {k: float(v) for k, v in out.items()}

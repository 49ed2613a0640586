"""Samples a policy on held-out problems and scores it. R1 samples k answers at T 0.6, top-p 0.95; greedy is for
small tasks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from r1jax import profiling, rollout
from r1jax.evals.metrics import consensus, pass_at_k
from r1jax.evals.parts import Parts
from r1jax.models.transformer import ModelConfig
from r1jax.rewards.accuracy import final_answer
from r1jax.sampler import SampleConfig
from r1jax.types import Problem, Suite, Task

# no training unit has this number: evaluation draws its own random numbers
EVAL_STEP = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """The evaluation at the ends of a run."""
  samples: int = 8               # answers per problem; 0: greedy only
  temperature: float = 0.6       # R1's evaluation
  top_p: float = 0.95
  problems: int = 0              # of the held-out ones; 0: all
  prompts_at_once: int = 128
  each: bool = False             # the policy of each stage; else where RL begins and the last one

  def __post_init__(self):
    if self.samples < 0 or self.problems < 0 or self.prompts_at_once < 1:
      raise ValueError(f"eval samples={self.samples}, problems={self.problems} must not be negative,"
                       f" prompts_at_once={self.prompts_at_once} at least 1")
    SampleConfig(1, self.temperature, self.top_p)


@functools.partial(profiling.named, name="eval")
def evaluate(params, task: Task, problems: Sequence[Problem], samples: int, *, model: ModelConfig, cfg: SampleConfig,
             seed: int = 0, prompts_at_once: int = 128, pool=None, drawn_into: list | None = None):
  """`samples` answers to each problem -> (summary, table of all answers).

  pool: worker processes for the rewards, or None. drawn_into: a list that is given the Rollouts, for a ledger.
  """
  table = answered(params, task, problems, samples, model=model, cfg=cfg, seed=seed,
                   prompts_at_once=min(prompts_at_once, len(problems)), pool=pool, drawn_into=drawn_into)
  return summary(table, task, samples), table


def evaluate_in_parts(parts: Parts, params, task: Task, problems: Sequence[Problem], samples: int, *,
                      model: ModelConfig, cfg: SampleConfig, seed: int = 0, prompts_at_once: int = 128, pool=None,
                      done=lambda problems: None):
  """As `evaluate`, `prompts_at_once` problems a part; parts that are finished are not sampled again.

  done(n): is told when n problems are, and once before the first.
  """
  at_once = min(prompts_at_once, len(problems))
  firsts = range(0, len(problems), at_once)
  done(sum(len(problems[first:first + at_once]) for first in firsts if parts.done(first)))
  for first in firsts:
    if not parts.done(first):
      parts.write(first, answered(
        params, task, problems[first:first + at_once], samples, model=model, cfg=cfg, seed=seed,
        prompts_at_once=at_once, pool=pool))
      done(sum(len(problems[first:first + at_once]) for first in firsts if parts.done(first)))
  table = parts.table(firsts)
  return summary(table, task, samples), table


def answered(params, task: Task, problems: Sequence[Problem], samples: int, *, model: ModelConfig, cfg: SampleConfig,
             seed: int, prompts_at_once: int, pool=None, drawn_into: list | None = None) -> dict[str, list]:
  """The table of all answers, scored."""
  rollouts = rollout.sample(params, problems, samples, model=model, tokenizer=task.tokenizer, cfg=cfg, seed=seed,
                            step=EVAL_STEP, prompts_at_once=prompts_at_once, encode=task.encode)
  if drawn_into is not None:
    drawn_into.append(rollouts)
  terms = {name: (1.0, reward) for name, reward in task.rewards.items()}
  reward_N, scores = rollout.score(rollouts, terms, pool=pool)
  lenient = task.lenient or task.rewards["accuracy"]
  lenient_N, _ = rollout.score(rollouts, dict(lenient=(1.0, lenient)), truncated="scored", pool=pool)
  table = rollout.table(rollouts, reward_N, scores)
  table["lenient"] = lenient_N.tolist()
  table["final_answer"] = [final_answer(text) for text in rollouts.texts]
  return table


def summary(table: dict[str, list], task: Task, samples: int) -> dict[str, float]:
  """pass@1 (the mean), pass@k for k = 1, 2, 4 .. samples, cons@samples, lenient (mean accuracy by the task's lenient
  matcher), format, length, truncated_share, of `samples` rows a problem."""
  correct_BG = (np.asarray(table["reward/accuracy"]) == 1).reshape(-1, samples)
  finals = table["final_answer"]
  ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
  out = {f"pass@{k}": np.mean([pass_at_k(samples, int(c.sum()), k) for c in correct_BG]) for k in ks}
  out[f"cons@{samples}"] = np.mean([consensus(finals[b * samples:(b + 1) * samples], correct_BG[b])
                                    for b in range(len(correct_BG))])
  out["lenient"] = np.mean(table["lenient"])
  out |= {name: np.mean(table[f"reward/{name}"]) for name in task.rewards if name != "accuracy"}
  out |= {"length": np.mean(table["length"]), "truncated_share": np.mean(table["truncated"])}
  return {k: float(v) for k, v in out.items()}


def suite(params, task: Task, suite: Suite, samples: int, *, model: ModelConfig, cfg: SampleConfig,
          seed: int = 0, prompts_at_once: int = 128, pool=None, drawn_into: list | None = None):
  """(means of a suite's measures over `samples` answers to each of its prompts, table of the answers)."""
  rollouts = rollout.sample(params, suite.problems, samples, model=model, tokenizer=task.tokenizer, cfg=cfg, seed=seed,
                            step=EVAL_STEP, prompts_at_once=min(prompts_at_once, len(suite.problems)),
                            encode=task.encode)
  if drawn_into is not None:
    drawn_into.append(rollouts)
  reward_N, parts = rollout.score(rollouts, {name: (1.0, m) for name, m in suite.measures.items()}, pool=pool)
  means = {name: float(np.mean([p[name].value for p in parts])) for name in suite.measures}
  means["length"] = float(np.mean([len(a) for a in rollouts.answers]))
  return means, rollout.table(rollouts, reward_N, parts)


def drawn(cfg: SampleConfig, temperature: float, top_p: float = 1.0) -> SampleConfig:
  """Answers as `cfg` has them, of its length and ended by its stop texts, but drawn so."""
  return dataclasses.replace(cfg, temperature=temperature, top_p=top_p, top_k=0, min_p=0.0, keep_mask=False)


def greedy(params, task: Task, *, model: ModelConfig, sampling: SampleConfig, problems: int = 0,
           prompts_at_once: int = 128, pool=None, drawn_into: list | None = None):
  """Greedy accuracy on the held-out problems (the first `problems` of them; 0: all), lenient accuracy, length."""
  chosen = task.held_out[:problems or None]
  out, _ = evaluate(params, task, chosen, 1, model=model, cfg=drawn(sampling, 0.0), prompts_at_once=prompts_at_once,
                    pool=pool, drawn_into=drawn_into)
  return {"greedy_accuracy": out["pass@1"], "greedy_lenient": out["lenient"], "greedy_length": out["length"]}

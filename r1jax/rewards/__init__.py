"""Rewards are plain Python functions, (problem, text) -> Score; a stage names its own in a dict of terms.

A reward model is a closure of the same type, so nothing here imports a model. R1-Zero adds accuracy and
format with the same weight (R1 report, Methods).
"""

from __future__ import annotations

from collections.abc import Sequence

from r1jax.problem import Problem, Reward, Score


def reads(reward: Reward, problem: Problem) -> bool:
  """Whether a reward reads prompts of this scenario: of those that its attribute `scenarios` names, or else of all."""
  scenarios = getattr(getattr(reward, "func", reward), "scenarios", None)      # of a functools.partial: its function's
  return scenarios is None or problem.scenario in scenarios


def total_reward(
    terms: dict[str, tuple[float, Reward]], problem: Problem, text: str
) -> tuple[float, dict[str, Score]]:
  """Sum of weight * value over the terms {name: (weight, reward)}, and each term's own score, unweighted."""
  return weigh(terms, {name: reward(problem, text) for name, (_, reward) in terms.items()})


def weigh(terms: dict[str, tuple[float, Reward]], scores: dict[str, Score]) -> tuple[float, dict[str, Score]]:
  """The weighted sum of one answer's scores, and the scores in the order of the terms."""
  return sum(weight * scores[name].value for name, (weight, _) in terms.items()), {name: scores[name] for name in terms}


def apply(reward: Reward, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
  """One reward on many answers; all at once where it has a `batch` (problems, texts) -> Scores, as models do."""
  if batch := getattr(reward, "batch", None):
    return batch(problems, texts)
  return [reward(problem, text) for problem, text in zip(problems, texts, strict=True)]


def total_rewards(terms: dict[str, tuple[float, Reward]], problems: Sequence[Problem],
                  texts: Sequence[str]) -> list[tuple[float, dict[str, Score]]]:
  """total_reward of each answer, in order."""
  scores = {name: apply(reward, problems, texts) for name, (_, reward) in terms.items()}
  return [weigh(terms, {name: scores[name][i] for name in terms}) for i in range(len(texts))]

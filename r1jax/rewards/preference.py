"""Preference rewards: a reward model's scores, or the verdicts of a language model that judges.

R1, the last 400 steps of its second RL stage (Methods): a helpfulness model reads the final
summary only, a safety model the whole response, reasoning included. The paper does not say how their scores become
rewards beside 0 / 1 ones: SCALES names the choices. It found that long training on them is hacked: keep it short, and
watch an accuracy that they do not see.

Models are handed in as functions and run in batches, so these make batch rewards, (problems, texts) -> Scores;
`single` turns one into a Reward. Judging by prompt: judge.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from r1jax.problem import NOT_ASKED, Problem, Reward, Score
from r1jax.rewards import judge as judging
from r1jax.rewards.sending import in_parent

BatchReward = Callable[[Sequence[Problem], Sequence[str]], list[Score]]
Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]    # (prompts, responses) -> raw scores


def final_summary(text: str, *, opened: bool = False) -> str:
  """What the user is shown: the text after the last </think>, without the <answer> tags around it.

  No </think>: a response that never thought is all summary, one that is still thinking has none. opened: the prompt
  ended in <think>, as R1's chat template has it, so that a text without </think> is still thinking.
  """
  _, closed, rest = text.rpartition("</think>")
  if not closed and (opened or "<think>" in text):
    return ""
  return rest.replace("<answer>", "").replace("</answer>", "").strip()


PARTS = ("summary", "whole")      # R1: the helpfulness model reads the one, the safety model the other


def _cut(texts: Sequence[str], part: str, opened: bool) -> list[str]:
  return [final_summary(text, opened=opened) if part == "summary" else text for text in texts]


def raw(score: float, mean: float, std: float) -> float:
  """As it comes: of any size, so its weight has to fit it."""
  return score


def sigmoid(score: float, mean: float, std: float) -> float:
  """Within 0 and 1, like the rules' rewards. Of a Bradley-Terry model: the chance to beat an answer that scores 0."""
  return 1.0 / (1.0 + math.exp(-score)) if score >= 0 else math.exp(score) / (1.0 + math.exp(score))


def standardised(score: float, mean: float, std: float) -> float:
  """(score - mean) / std, of scores measured before training, say on the reward model's own held-out responses."""
  return (score - mean) / std


SCALES = dict(raw=raw, sigmoid=sigmoid, standardised=standardised)


def from_scores(score_fn: Scorer, *, part: str = "summary", scale: str = "raw", mean: float = 0.0, std: float = 1.0,
                opened: bool = False, empty: float | None = None) -> BatchReward:
  """A reward model as a batch reward; verdicts stay "" (nothing here is right or wrong).

  score_fn: (prompts, responses) -> one raw score each. part: "summary" or "whole". opened: final_summary's.
  empty: the reward of an answer of which no part is left, which the model is then not asked about; None: it is asked.
  """
  if part not in PARTS:
    raise ValueError(f"part={part!r} is none of {', '.join(PARTS)}")
  if scale not in SCALES:
    raise ValueError(f"scale={scale!r} is none of {', '.join(SCALES)}")
  if not std > 0 or not math.isfinite(mean):
    raise ValueError(f"mean={mean} must be finite and std={std} above 0")
  if scale != "standardised" and (mean, std) != (0.0, 1.0):
    raise ValueError(f"mean={mean} and std={std} go with scale=standardised, here scale={scale}")

  def reward(problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
    parts = _cut(texts, part, opened)
    asked = [n for n, text in enumerate(parts) if text.strip() or empty is None]
    scores = list(score_fn([problems[n].prompt for n in asked], [parts[n] for n in asked])) if asked else []
    if len(scores) != len(asked):
      raise ValueError(f"the reward model gave {len(scores)} scores for {len(asked)} responses")
    values = [Score(0.0 if empty is None else empty, "no_answer")] * len(texts)
    for n, score in zip(asked, map(float, scores), strict=True):
      if not math.isfinite(score):
        raise ValueError(f"the reward model's score of problem id={problems[n].id} is {score}")
      values[n] = Score(SCALES[scale](score, mean, std))
    return values
  return reward


def judged(judge: judging.Judge, *, part: str = "whole", opened: bool = False) -> BatchReward:
  """1 where the judge, who sees question, reference and answer, says "correct"; else 0.

  Verdicts: correct, wrong, no_answer (nothing to judge), unparseable (the judge's text is no verdict).
  """
  if part not in PARTS:
    raise ValueError(f"part={part!r} is none of {', '.join(PARTS)}")

  def reward(problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
    parts = _cut(texts, part, opened)
    asked = [n for n, text in enumerate(parts) if text.strip()]
    said = judging.ask(judge, [judging.correctness_prompt(problems[n], parts[n]) for n in asked])
    values = [Score(0.0, "no_answer")] * len(texts)
    for n, text in zip(asked, said, strict=True):
      verdict = judging.parse_correctness(text)
      values[n] = Score(float(verdict is True), {True: "correct", False: "wrong", None: "unparseable"}[verdict])
    return values
  return reward


def of_scenarios(batch_reward: BatchReward, scenarios: Sequence[str]) -> BatchReward:
  """The reward on prompts of these scenarios; answers to others are not asked about."""
  def reward(problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
    asked = [n for n, problem in enumerate(problems) if problem.scenario in scenarios]
    scores = iter(batch_reward([problems[n] for n in asked], [texts[n] for n in asked]) if asked else ())
    return [next(scores) if problem.scenario in scenarios else Score(0.0, NOT_ASKED) for problem in problems]
  reward.scenarios = tuple(scenarios)
  return reward


def single(batch_reward: BatchReward) -> Reward:
  """A batch reward as a Reward. A run asks it about many answers at once, in its own process (workers.py)."""
  def reward(problem: Problem, text: str) -> Score:
    return batch_reward([problem], [text])[0]
  reward.batch, reward.scenarios = batch_reward, getattr(batch_reward, "scenarios", None)
  return in_parent(reward)

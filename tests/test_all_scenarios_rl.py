"""The last RL stage: what it asks when, and what it pays for."""

import collections

import numpy as np
import pytest

from r1jax import collect, rollout
from r1jax.drawing import SampleConfig
from r1jax.grpo import LossConfig
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.problem import NOT_ASKED, Score
from r1jax.rewards import preference, total_reward
from r1jax.rollout import Rollouts
from r1jax.stages import all_scenarios_rl
from r1jax.stages.all_scenarios_rl import AllScenariosConfig
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.tasks import DataConfig, world

TASK = world.make(world.Config(bits=6, held_out=4), DataConfig())
RL = RLConfig(OptimizerConfig(1e-3), LossConfig(), SampleConfig(8, 0.7), dict(accuracy=1.0, format=0.5), rollouts=6,
              questions_per_rollout=8, group_size=2)
SHARES = dict(reasoning=0.5, general=0.25, unsafe=0.25)


def judge(value, scenario):
  of = lambda problems, texts: [Score(value)] * len(texts)
  return preference.single(preference.of_scenarios(of, (scenario,)))


JUDGES = dict(helpful=judge(0.8, "general"), harmless=judge(0.3, "unsafe"))


def config(**more):
  plain = dict(rl=RL, preference_rollouts=2, shares=SHARES, preference=dict(helpful=2.0, harmless=1.0))
  return AllScenariosConfig(**plain | more)


def test_general_prompts_and_preference_rewards_come_in_the_last_rollouts_only():
  lesson = all_scenarios_rl.lesson(config(), TASK, 5, JUDGES)
  for unit in range(4):
    assert {p.scenario for p in lesson.problems(unit, 8)} == {"reasoning"}
    assert set(lesson.terms(unit)) == {"accuracy", "format"}
  asked = [p for unit in (4, 5) for p in lesson.problems(unit, 400)]
  shares = collections.Counter(p.scenario for p in asked)
  for name, share in SHARES.items():
    assert shares[name] / 800 == pytest.approx(share, abs=0.05)
  assert set(lesson.terms(4)) == {"accuracy", "format", "helpful", "harmless"}
  assert lesson.problems(4, 8) == lesson.problems(4, 8)      # resumes to the same


def test_a_prompt_is_paid_by_the_rewards_of_its_scenario():
  terms = all_scenarios_rl.lesson(config(), TASK, 0, JUDGES).terms(5)
  right = world.tagged("", "1")
  paid = lambda problem: total_reward(terms, problem, right)
  total, parts = paid(world.question(0, "010000", "en"))
  assert total == 1.5 and parts["helpful"].verdict == NOT_ASKED == parts["harmless"].verdict
  total, parts = paid(TASK.scenarios["general"](0))
  assert total == pytest.approx(0.5 + 2 * 0.8) and parts["accuracy"].verdict == NOT_ASKED
  assert paid(TASK.scenarios["unsafe"](0))[0] == pytest.approx(0.5 + 0.3)


def test_an_answer_cut_off_counts_only_for_the_rewards_of_its_scenario():
  terms = all_scenarios_rl.lesson(config(), TASK, 0, JUDGES).terms(5)
  problems = [world.question(0, "010000", "en"), TASK.scenarios["general"](0)]
  cut = Rollouts(problems, [[1]] * 2, [[2]] * 4, [np.zeros(1)] * 4, [world.tagged("", "1")] * 4,
                 np.array([False, True, True, True]))
  reward_N, parts = rollout.score(cut, terms)
  assert reward_N.tolist() == [1.5, 0, 0, 0]
  verdicts = [{name: score.verdict for name, score in part.items()} for part in parts]
  assert verdicts[1] == dict(accuracy="truncated", format="truncated", helpful=NOT_ASKED, harmless=NOT_ASKED)
  assert verdicts[2] == verdicts[3] == dict(accuracy=NOT_ASKED, format="truncated", helpful="truncated",
                                            harmless=NOT_ASKED)
  row = collect.summary(cut, reward_N, parts, np.zeros(4, bool))
  assert row["accuracy"] == row["verdict/truncated"] == 0.5 and row["reward/helpful"] == 0


def test_wrong_configs():
  model = ModelConfig(vocab=TASK.tokenizer.vocab, dim=8, layers=1, heads=2, kv_heads=1, ffn=8)
  for more, message in ((dict(preference_rollouts=7), "preference_rollouts=7"),
                        (dict(shares=dict(general=0.5)), "shares"),
                        (dict(scale="standardised"), "scale='standardised'"),
                        (dict(scale="raw"), "scale='raw' must be sigmoid: .* no zero of their own")):
    with pytest.raises(ValueError, match=message):
      config(**more)
  with pytest.raises(ValueError, match="no scenario poetry; it has reasoning, general, unsafe"):
    all_scenarios_rl.refuse(config(shares=dict(reasoning=0.5, poetry=0.5)), TASK, model)
  with pytest.raises(ValueError, match="no reward model named harmless; there are helpful"):
    all_scenarios_rl.lesson(config(), TASK, 0, dict(helpful=JUDGES["helpful"]))

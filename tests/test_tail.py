"""The simulation of a rollout beside real sampling through slots, and by hand."""

import jax
import numpy as np
import pytest
from tiny import weights

from r1jax import slots
from r1jax.models.transformer import ModelConfig
from r1jax.plan import tail
from r1jax.queue import Job
from r1jax.sampler import SampleConfig

MODEL = ModelConfig(vocab=64, dim=16, layers=1, heads=2, kv_heads=1, ffn=16)


def budgets(count, mean=12, most=60, seed=0):
  return np.minimum(np.random.default_rng(seed).geometric(1 / mean, count), most)


def sampled(budget_N, lanes, width, group, chunk):
  """slots.Stats of answers that end at their budgets: no end token can be drawn."""
  stats = slots.Stats()
  keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), len(budget_N))))
  jobs = [Job((1 + n // group, 2, 3), keys[n], int(b)) for n, b in enumerate(budget_N)]
  cfg = SampleConfig(int(max(budget_N)), slots=lanes * width, width=width, chunk=chunk)
  said = list(slots.run(weights(MODEL), jobs, model=MODEL, cfg=cfg, end_id=64, lanes=lanes, width=width, stats=stats))
  assert sorted(len(s.tokens) for _, s in said) == sorted(budget_N)
  return stats


@pytest.mark.parametrize(("lanes", "width", "group", "chunk"), [
  (8, 1, 1, 4), pytest.param(8, 1, 4, 4, marks=pytest.mark.slow), pytest.param(4, 4, 4, 8, marks=pytest.mark.slow),
  pytest.param(32, 1, 1, 4, marks=pytest.mark.slow)])
def test_the_simulation_has_the_steps_and_the_occupancy_of_real_sampling(lanes, width, group, chunk):
  """Geometric budgets; the first token of an answer is drawn without a step. Lanes given up at the end are not told
  apart from idle ones: Stats counts the rows that there were at first."""
  budget_N = budgets(32)
  stats = sampled(budget_N, lanes, width, group, chunk)
  ours = tail.simulate(budget_N - 1, 3, lanes=lanes, width=width, group=group, tick=chunk)
  assert (ours.steps, ours.work, ours.room) == pytest.approx((stats.steps, stats.work, stats.room))
  assert ours.occupancy == pytest.approx(stats.row()["occupancy"])
  # seconds of few rows: measured by the clock there, by steps here
  assert ours.work == budget_N.sum() - len(budget_N)


def test_three_rows_by_hand():
  """Lengths 6, 2 and 2 in two rows, looked at every 2 steps: the third takes the place of the second."""
  out = tail.simulate([6, 2, 2], 0, lanes=2, tick=2.0)
  assert (out.steps, out.work, out.room) == (6, 10, 12)
  np.testing.assert_array_equal(out.end_N, [6, 2, 4])
  assert out.few_seconds == 0 and out.seconds == 6           # one of two is half
  assert tail.simulate([6, 2, 2], 0, lanes=3, tick=2.0).few_seconds == 4


def test_a_lane_takes_another_prompt_when_all_its_rows_are_idle():
  """Two lanes of two rows. The third prompt waits for the first lane's long answer, though a row is free before."""
  out = tail.simulate([4, 1, 6, 1, 1, 1], 0, lanes=2, width=2, group=2)
  np.testing.assert_array_equal(out.end_N, [4, 1, 6, 1, 5, 5])
  assert tail.simulate([4, 1, 6, 1, 1, 1], 0, lanes=4, group=2).end_N.tolist() == [4, 1, 6, 2, 1, 2]


def test_a_step_costs_what_its_rows_cost_and_static_rows_cost_all():
  cost = lambda rows_R, context_R: 1.0 + rows_R
  loose = tail.simulate([4, 2], 10, lanes=2, seconds=cost, tick=0.5)
  assert loose.seconds == pytest.approx(2 * 3 + 2 * 2)
  assert tail.simulate([4, 2], 10, lanes=2, seconds=cost, tick=0.5, static=True).seconds == pytest.approx(4 * 3)


def test_replicas_share_the_queue_and_the_longest_answer_decides():
  length_N = np.array([9, 1, 1, 1, 1, 1])
  one, two = (tail.simulate(length_N, 0, lanes=1, replicas=r) for r in (1, 2))
  assert (one.seconds, two.seconds) == (14, 9) and one.occupancy == 1 and two.occupancy == pytest.approx(14 / 18)


def test_tokens_of_a_step_shorten_it_and_enough_groups_end_it():
  assert tail.simulate([8, 8], 0, lanes=2, rate=2.0).seconds == 4
  out = tail.simulate([1, 1, 9, 1], 0, lanes=4, group=2, enough=1)
  assert out.seconds == 1 and out.left_N.tolist() == [0, 0, 8, 0] and np.isinf(out.end_N[2])


def test_finer_ticks_converge():
  length_N = budgets(200, 50, 400)
  cost = lambda rows_R, context_R: 1 + 0.01 * rows_R
  coarse, fine = (tail.simulate(length_N, 0, lanes=200, seconds=cost, tick=t).seconds for t in (8.0, 0.5))
  assert coarse == pytest.approx(fine, rel=0.03)

"""Partial rollouts: every question is asked once, answers keep the log-probs they were drawn with, runs resume."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Once, weights

from r1jax import loop, partial, rollout
from r1jax.grpo import LossConfig
from r1jax.metrics import read
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.sampler import SampleConfig
from r1jax.stages import reasoning_rl
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.tasks import DataConfig, parity
from r1jax.types import Score

TASK = dataclasses.replace(parity.make(parity.Config(bits=6, held_out=8), DataConfig()),
                           rewards=dict(accuracy=lambda problem, text: Score(float(text.count("1") % 2), "")))
MODEL = ModelConfig(vocab=TASK.tokenizer.vocab, dim=16, layers=1, heads=2, kv_heads=1, ffn=16)
CFG = RLConfig(optimizer=OptimizerConfig(lr=1e-2), loss=LossConfig(kl_coef=0.0),
               sampling=SampleConfig(24, slots=8, chunk=4), rewards=dict(accuracy=1.0), rollouts=4,
               questions_per_rollout=2, group_size=4, partial=3, truncated="scored", eval_every=0)


def lesson(ask=TASK.problem):
  return reasoning_rl.Lesson(lambda place, count: [ask(place)],
                             lambda unit: dict(accuracy=(1.0, lambda problem, text: Score(float(len(text) % 2), ""))))


def rounds(count, change=lambda unit: weights(MODEL)):
  """(Scored, stale share) of each rollout, and the carry after it, with the policy that change(unit) gives."""
  carry, out = partial.empty(CFG), []
  for unit in range(count):
    drawn, carry, stale = partial.draw(CFG, TASK, lesson(), change(unit), carry, model=MODEL, seed=0, unit=unit)
    out.append((drawn.scored, stale, carry))
  return out


def test_every_question_is_asked_once_and_what_is_not_used_is_carried():
  done = []
  for unit, (scored, stale, carry) in enumerate(rounds(4)):
    done += [p.id for p in scored.rollouts.problems]
    assert len(scored.rollouts.answers) == 8 and carry.token_XA.shape == (12, 24)
    under_way = [TASK.problem(int(p)).id for p in carry.place_Q]
    asked = [TASK.problem(i).id for i in range(3 + 2 * (unit + 1))]
    assert sorted(done + under_way) == sorted(asked) and (stale > 0) == (unit > 0)
  assert not carry.finished_X.all() and carry.length_X.max() > 0


def test_with_one_policy_the_answers_are_those_of_whole_rollouts():
  whole = {}
  for unit in range(4):
    problems = [TASK.problem(i) for i in partial.new_places(CFG, unit)]
    out = rollout.sample(weights(MODEL), problems, 4, model=MODEL, tokenizer=TASK.tokenizer,
                         cfg=dataclasses.replace(CFG.sampling, slots=0), seed=0, step=unit)
    whole |= {(p.id, g): out.answers[4 * b + g] for b, p in enumerate(problems) for g in range(4)}
  for scored, _, _ in rounds(4):
    r = scored.rollouts
    assert r.answers == [whole[p.id, g] for p in r.problems for g in range(4)]


def test_tokens_keep_the_log_probs_of_the_policy_that_drew_them():
  others = [jax.tree.map(lambda w, u=u: w * (1 + 0.1 * u), weights(MODEL)) for u in range(3)]
  done = rounds(3, lambda unit: others[unit])
  carried = {(int(p), g): partial.said(carry)[4 * q + g] for _, _, carry in done[:1]
             for q, p in enumerate(carry.place_Q) for g in range(4)}
  places = {TASK.problem(i).id: i for i in range(9)}
  found = 0
  for scored, _, _ in done[1:]:
    r = scored.rollouts
    for n, (answer, logps) in enumerate(zip(r.answers, r.logps, strict=True)):
      before = carried.get((places[r.problems[n // 4].id], n % 4))
      if before and before.tokens:
        k = len(before.tokens)
        assert answer[:k] == before.tokens and len(logps) == len(answer)
        np.testing.assert_array_equal(logps[:k], before.logps)
        found += len(answer) > k
  assert found


def test_a_question_that_a_rollout_asks_twice_keeps_its_own_random_numbers():
  """A task of two questions: what goes on is what a whole rollout would have said."""
  twice = dataclasses.replace(TASK, size=2)
  ask = lambda place: TASK.problem(place % 2)
  whole = {}
  for unit in range(3):
    out = rollout.sample(weights(MODEL), [ask(p) for p in partial.new_places(CFG, unit)], 4, model=MODEL,
                         tokenizer=TASK.tokenizer, cfg=dataclasses.replace(CFG.sampling, slots=0), seed=0, step=unit)
    whole |= {tuple(map(tuple, out.answers[i:i + 4])): unit for i in range(0, len(out.answers), 4)}
  carry = partial.empty(CFG)
  for unit in range(3):
    drawn, carry, _ = partial.draw(CFG, twice, lesson(ask), weights(MODEL), carry, model=MODEL, seed=0, unit=unit)
    answers = drawn.scored.rollouts.answers
    assert all(tuple(map(tuple, answers[i:i + 4])) in whole for i in range(0, len(answers), 4))


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits_and_learns_against_the_old_log_probs(tmp_path):
  fresh = lambda: jax.tree.map(jnp.array, weights(MODEL))
  run = lambda folder, stop=None: reasoning_rl.run(CFG, TASK, tmp_path / folder, fresh(), model=MODEL, seed=0,
                                                   stop=stop)
  whole = run("whole")
  with pytest.raises(loop.Interrupted):
    run("cut", Once(1))
  again = run("cut")
  jax.tree.map(np.testing.assert_array_equal, whole, again)
  rows = read(tmp_path / "whole" / "metrics.jsonl")
  assert [row["stale_token_share"] > 0 for row in rows] == [False, True, True, True]
  assert rows[0]["ratio/max"] == pytest.approx(1, abs=1e-4) and rows[2]["ratio/max"] > 1.001
  assert all(0 < row["sampler/occupancy"] <= 1 for row in rows)


@pytest.mark.parametrize(("change", "message"), [
  (dict(sampling=SampleConfig(8)), r"partial=3 needs sampling.slots=0"), (dict(partial=-1), "partial=-1"),
  (dict(dynamic_sampling=2), "dynamic_sampling=2"),
  (dict(sampling=SampleConfig(8, slots=8, top_k=2, keep_mask=True)), "keep_mask"),
  (dict(loss=LossConfig(kl_coef=0.0, correction="masked")), "loss.correction=masked")])
def test_settings_that_do_not_go_together_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)

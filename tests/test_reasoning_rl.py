"""The stage of R1-Zero: dynamic sampling, overlong punishment, what the loss is told, PPO's critic."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import experiment
from tiny import weights

from r1jax import algorithms, credit, critic, loop, pipeline, policies, rollout, train
from r1jax import collect as collecting
from r1jax.critic import CriticConfig
from r1jax.grpo import LossConfig
from r1jax.metrics import read
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.rewards.workers import Workers
from r1jax.rollout import Rollouts, to_batch
from r1jax.sampler import SampleConfig
from r1jax.stages import reasoning_rl
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.types import Problem, Score

MODEL = ModelConfig(vocab=12, dim=16, layers=2, heads=4, kv_heads=2, ffn=24)
CFG = RLConfig(optimizer=OptimizerConfig(lr=1e-3), loss=LossConfig(kl_coef=0.0), sampling=SampleConfig(8),
               rewards=dict(accuracy=1.0), rollouts=1, questions_per_rollout=4, group_size=2)


def answered(ids, length=3):
  """Rollouts of two answers to each problem; the text says which."""
  n = 2 * len(ids)
  return Rollouts([Problem(i, "", "") for i in ids], [[i % 12] * 2 for i in ids], [[1] * length] * n,
                  [np.full(length, -1.0, np.float32)] * n,
                  [f"{i}/{g}" for i in ids for g in range(2)], np.zeros(n, bool))


def by_rule(rule):
  """A judge: rule(problem, sample) -> reward."""
  def judge(rollouts):
    values = [rule(*map(int, text.split("/"))) for text in rollouts.texts]
    return lambda: (np.asarray(values, np.float32), [dict(accuracy=Score(v, "")) for v in values])
  return judge


def collect(rule, rounds, cfg=CFG):
  """(Scored, the ids asked in each round) over 4 * rounds problems."""
  asked = []
  def sample(problems):
    asked.append([p.id for p in problems])
    for i in range(0, 4, 3):                 # in two parts
      yield answered(asked[-1][i:i + 3])
  cfg = dataclasses.replace(cfg, dynamic_sampling=rounds)
  problems = [Problem(i, "", "") for i in range(4 * max(rounds, 1))]
  return collecting.collect(cfg, problems, sample, by_rule(rule)), asked


def test_without_dynamic_sampling_all_questions_stay():
  scored, asked = collect(lambda i, g: 0.0, 0)
  assert asked == [[0, 1, 2, 3]] and scored.same_N.all() and scored.rounds == 1
  assert [p.id for p in scored.rollouts.problems] == [0, 1, 2, 3]


def test_dynamic_sampling_asks_on_until_enough_groups_differ():
  # problems 1, 4, 5, 6, 8, ... have one right answer of two
  scored, asked = collect(lambda i, g: float(g == 1 and i in (1, 4, 5, 6, 8)), 4)
  assert asked == [[0, 1, 2, 3], [4, 5, 6, 7]] and scored.rounds == 2
  assert [p.id for p in scored.rollouts.problems] == [1, 4, 5, 6] and not scored.same_N.any()
  assert scored.rollouts.texts == ["1/0", "1/1", "4/0", "4/1", "5/0", "5/1", "6/0", "6/1"]
  np.testing.assert_array_equal(scored.reward_N, [0, 1] * 4)
  assert [p["accuracy"].value for p in scored.parts] == [0, 1] * 4
  assert scored.agreed_share == 0.5


def test_dynamic_sampling_that_runs_out_fills_up_with_groups_that_agree():
  scored, asked = collect(lambda i, g: float(g == 1 and i == 6), 2)
  assert len(asked) == 2
  assert [p.id for p in scored.rollouts.problems] == [6, 0, 1, 2]
  np.testing.assert_array_equal(scored.same_N, [0, 0] + [1] * 6)


@pytest.mark.parametrize(("length", "truncated", "expected"), [
  (1, False, 0), (4, False, 0), (5, False, -0.25), (6, False, -0.5), (8, False, -1), (8, True, -1), (3, True, -1)])
def test_soft_overlong_punishment_by_hand(length, truncated, expected):
  rollouts = dataclasses.replace(answered([0], length), truncated_N=np.array([truncated, truncated]))
  cfg = dataclasses.replace(CFG, overlong_cushion=4)
  np.testing.assert_allclose(collecting.overlong(cfg, rollouts), [expected] * 2)
  assert not collecting.overlong(CFG, rollouts).any()


def test_dropped_and_masked_answers_leave_the_loss_and_masked_ones_the_baseline():
  reward_N, truncated_N = np.array([1, 0, 1, 1, 0, 1, 1, 0], np.float32), np.array([0, 0, 0, 0, 0, 1, 0, 0], bool)
  batch = to_batch(answered(range(4)))
  same_N = np.array([0, 0, 1, 1, 1, 1, 0, 0], bool)
  cfg = dataclasses.replace(CFG, truncated="masked", zero_variance="drop")
  out, adv_N = credit.credited(cfg, batch, reward_N, truncated_N, same_N, 0, 0)
  np.testing.assert_allclose(adv_N, [1, -1, 0, 0, 0, 0, 1, -1])
  np.testing.assert_array_equal(out.mask_NA[:, 0], [1, 1, 0, 0, 0, 0, 1, 1])
  kept, _ = credit.credited(CFG, batch, reward_N, truncated_N, same_N, 0, 0)
  assert kept.mask_NA[:, 0].all()


@pytest.mark.parametrize(("change", "message"), [
  (dict(dynamic_sampling=1), "dynamic_sampling=1"), (dict(overlong_cushion=9), "overlong_cushion=9"),
  (dict(critic=CriticConfig()), "group_normalised and a critic"),
  (dict(loss=LossConfig(advantage="gae")), "gae and no"),
  (dict(loss=LossConfig(kl_coef=0.0, kl_in="reward", advantage="group_centred")), "kl_in=reward"),
  (dict(loss=LossConfig(advantage="batch_normalised"), zero_variance="drop"), "zero_variance=drop"),
  (dict(sampling=SampleConfig(8, top_k=3), critic=None, minibatches=3), "minibatches=3")])
def test_config_errors_name_the_numbers(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)


# --- the critic

def some_answers():
  rng = np.random.default_rng(0)
  return rng.integers(0, 12, (2, 5)), jnp.array([5, 3]), rng.integers(0, 12, (4, 6))


def test_values_see_the_prompt_and_the_tokens_before_and_scores_all_tokens():
  params = dict(trunk=weights(MODEL), head=jnp.asarray(np.random.default_rng(1).normal(size=16), "f4"))
  prompt, length, answer = some_answers()
  values = jax.jit(functools.partial(critic.token_values, model=MODEL))
  before = np.asarray(values(params, prompt_BP=prompt, prompt_length_B=length, answer_NA=answer))
  changed = answer.copy()
  changed[:, 3] = (changed[:, 3] + 1) % 12
  after = np.asarray(values(params, prompt_BP=prompt, prompt_length_B=length, answer_NA=changed))
  np.testing.assert_allclose(after[:, :4], before[:, :4], atol=1e-6)
  assert (np.abs(after - before)[:, 4:] > 1e-4).all()
  scores = critic.answer_scores(params, MODEL, prompt, length, answer, jnp.array([6, 3, 6, 1]))
  longer = np.asarray(values(params, prompt_BP=prompt, prompt_length_B=length,
                             answer_NA=np.pad(answer, ((0, 0), (0, 2)))))
  np.testing.assert_allclose(scores, longer[np.arange(4), [6, 3, 6, 1]], rtol=1e-5)
  parts = critic.values(params, prompt, length, answer, model=MODEL, micro_batches=2)
  np.testing.assert_allclose(parts, before, atol=1e-5)


def test_value_loss_by_hand_flat_where_a_clipped_value_is_worse():
  at = lambda v, clip: critic.value_loss(*(jnp.array([[x]]) for x in (v, 0.0, 1.0, 1.0)), clip).total
  one = lambda v: at(v, 0.2)
  np.testing.assert_allclose((one(0.1), one(0.5)), (0.5 * 0.81, 0.5 * 0.64), rtol=1e-6)
  assert jax.grad(one)(0.5) == 0 and jax.grad(one)(0.1) < 0 and jax.grad(one)(-0.5) < 0
  np.testing.assert_allclose(at(0.5, 0.0), 0.125)


@pytest.mark.slow      # learns: how far depends on rounding
def test_the_critic_learns_the_returns_of_a_batch():
  cfg = dataclasses.replace(CFG, loss=LossConfig(advantage="gae", kl_coef=0.0), critic=CriticConfig(
    OptimizerConfig(lr=3e-2), clip=0.0))
  prompt, length, answer = some_answers()
  state = reasoning_rl.first_state(cfg, weights(MODEL), MODEL, 60).critic
  mask_NA = np.ones((4, 6), np.float32)
  batch = train.Batch(prompt, length, answer, mask_NA, old_value_NA=0 * mask_NA,
                      return_NA=np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32))
  step = train.compiled_step(lambda p, b: critic.loss(p, b, model=MODEL, cfg=cfg.critic),
                             reasoning_rl.optimizer.make(cfg.critic.optimizer, 60))
  errors = []
  for _ in range(60):
    state, metrics = step(state, batch)
    errors.append(float(metrics["critic/error"].value()))
  assert errors[0] > 0.3 and errors[-1] < 0.05 * errors[0]


@pytest.mark.slow
def test_ppo_with_dapos_sampling_is_one_line_and_stopped_after_each_rollout_leaves_the_same_bits(tmp_path):
  c = experiment("r1_zero_parity")
  c.stages = ("reasoning_rl",)
  c.reasoning_rl.rollouts, c.eval.problems = 3, 8
  for name in ("dapo", "ppo"):
    c.reasoning_rl.update(algorithms.section(name, c.reasoning_rl.sampling.max_tokens))
  c.reasoning_rl.loss.update(kl_in="loss", kl_coef=0.0)       # no reference, so none to refresh
  c.reasoning_rl.update(minibatches=2, reference_refresh=2, critic=dict(warmup=1))
  pipeline.run(c, tmp_path / "whole")
  stop, stops = loop.Stop(), 0
  stop.asked = True
  while True:
    try:
      pipeline.run(c, tmp_path / "parts", stop=stop)
      break
    except loop.Interrupted:
      stops += 1
  assert stops == 2
  of = lambda folder: [{k: v for k, v in row.items() if not k.startswith(
    ("seconds", "tokens_per_s", "sampler/", "ledger/device_seconds", "ledger/mfu"))}
                       for row in read(tmp_path / folder / "reasoning_rl" / "metrics.jsonl")]
  rows = of("whole")
  assert rows == of("parts") and [row["step"] for row in rows] == [0, 2, 4]
  assert "grad_norm" not in rows[0] and rows[0]["critic/grad_norm"] > 0 and np.isfinite(rows[2]["loss"])
  assert abs(rows[0]["critic/value"]) < 1e-2      # its head starts at zero, and has learned once
  assert all(1 <= row["sampled_rounds"] <= 4 for row in rows)
  whole, parts = (policies.load_policy(tmp_path / folder)[0] for folder in ("whole", "parts"))
  assert "trunk" not in whole
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


# --- rewards in other processes

def slow_rule(problem, text):
  """Right where the text says so; hangs on one problem."""
  while problem.id == 2:
    time.sleep(0.01)
  return Score(float(text.endswith("1")), "correct" if text.endswith("1") else "wrong")


def test_rewards_begin_while_later_questions_are_sampled_and_a_hang_costs_one_answer_only():
  events = []
  with Workers(2, timeout=2.0) as pool:
    def judge(part):
      events.append(f"judge {part.problems[0].id}")
      return rollout.judge(part, dict(accuracy=(1.0, slow_rule)), "wrong", pool)
    def sample(problems):
      for i in (0, 2):
        events.append(f"sample {i}")
        yield answered([p.id for p in problems[i:i + 2]])
    scored = collecting.collect(CFG, [Problem(i, "", "") for i in range(4)], sample, judge)
    counts = pool.counts()
  assert events == ["sample 0", "judge 0", "sample 2", "judge 2"]
  np.testing.assert_array_equal(scored.reward_N, [0, 1, 0, 1, 0, 0, 0, 1])
  assert [p["accuracy"].verdict for p in scored.parts][4:6] == ["timeout", "timeout"]
  assert counts["timeouts"] == 2 and counts["checks"] == 8 and scored.seconds > 0


def test_with_and_without_a_pool_rewards_are_the_same_and_truncated_answers_are_not_judged():
  rollouts = dataclasses.replace(answered([0, 1]), truncated_N=np.array([0, 1, 0, 0], bool))
  terms = dict(accuracy=(2.0, slow_rule))
  plain = rollout.score(rollouts, terms)
  with Workers(1) as pool:
    assert all(map(np.array_equal, rollout.score(rollouts, terms, "wrong", pool), plain))
    everything = rollout.score(rollouts, terms, "scored", pool)
  np.testing.assert_array_equal(plain[0], [0, 0, 0, 2])
  np.testing.assert_array_equal(everything[0], [0, 2, 0, 2])
  assert plain[1][1]["accuracy"].verdict == "truncated"

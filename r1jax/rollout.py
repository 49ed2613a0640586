"""G scored answers to each of B prompts: sample on the device, decode and score on the host.

Everything here is numpy and Python between two jitted calls. Letters: r1jax/types.py; rows are prompt-major.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from r1jax import sampler, train
from r1jax.models.transformer import ModelConfig
from r1jax.rewards import total_reward
from r1jax.sampler import SampleConfig
from r1jax.tokenizer import Tokenizer
from r1jax.types import Batch, Problem, Reward, Score

TRUNCATED = ("wrong", "masked", "scored")


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """B problems, G answers to each, N = B * G rows."""
  problems: list[Problem]
  prompts: list[list[int]]       # B token lists
  answers: list[list[int]]       # N token lists, end token included where there is one
  logps: list[np.ndarray]        # N, one log-prob per answer token, at the sampling temperature
  texts: list[str]               # N, without the end token
  truncated_N: np.ndarray        # bool: hit max_tokens before its end token

  @property
  def group_size(self) -> int:
    return len(self.answers) // len(self.problems)


def sample(params, problems: Sequence[Problem], group_size: int, *, model: ModelConfig, tokenizer: Tokenizer,
           cfg: SampleConfig, seed: int, step: int, prompts_at_once: int = 0) -> Rollouts:
  """`group_size` answers to each problem. prompts_at_once bounds memory; what is sampled does not depend on it."""
  prompts = tokenizer.encode_batch([p.prompt for p in problems])
  at_once = prompts_at_once or len(problems)
  answers, logps, truncated = [], [], []
  for i in range(0, len(problems), at_once):
    part, ids = prompts[i:i + at_once], [p.id for p in problems[i:i + at_once]]
    count = len(part)
    short = min(at_once, len(problems)) - count         # the last part is filled up: one shape, one compilation
    part, ids = part + [part[-1]] * short, ids + [ids[-1]] * short
    prompt_BP = train.pad_rows(part, train.bucket(max(map(len, part))), tokenizer.end_id)
    keys_N = sampler.sample_keys(seed, step, jnp.asarray(ids, jnp.int32), jnp.arange(group_size))
    state = sampler.sample(params, prompt_BP, jnp.asarray([len(p) for p in part], jnp.int32), keys_N, model=model,
                           cfg=cfg, end_id=tokenizer.end_id)
    token_NA, logp_NA, length_N, done_N = map(np.asarray, (state.token_NA, state.logp_NA, state.length_N, state.done_N))
    for n in range(count * group_size):
      answers.append(token_NA[n, :length_N[n]].tolist())
      logps.append(logp_NA[n, :length_N[n]].copy())
      truncated.append(not done_N[n])
  return Rollouts(list(problems), prompts, answers, logps, [tokenizer.decode(a) for a in answers],
                  np.asarray(truncated))


def score(rollouts: Rollouts, terms: dict[str, tuple[float, Reward]], truncated: str = "wrong"):
  """(reward_N, parts): total rewards as f32, and for each answer its parts {name: Score}.

  truncated: an answer without an end is wrong whatever it says (reward and parts 0, verdict "truncated"): the
  default; "masked": wrong too, and the caller keeps it out of the loss; "scored": judged like any other.
  """
  if truncated not in TRUNCATED:
    raise ValueError(f"truncated={truncated!r} is none of {TRUNCATED}")
  rewards, parts = [], []
  for n, text in enumerate(rollouts.texts):
    if rollouts.truncated_N[n] and truncated != "scored":
      total, part = 0.0, {name: Score(0.0, "truncated") for name in terms}
    else:
      total, part = total_reward(terms, rollouts.problems[n // rollouts.group_size], text)
    rewards.append(total)
    parts.append(part)
  return np.asarray(rewards, np.float32), parts


def to_batch(rollouts: Rollouts, advantage_N, valid_N=None, rows=None) -> Batch:
  """The rows to learn from (all by default): prompt and answer right-padded, loss on the answer's tokens.

  valid_N: 0 for rows that take no part in the loss.
  """
  rows = range(len(rollouts.answers)) if rows is None else rows
  prompts = [rollouts.prompts[n // rollouts.group_size] for n in rows]
  answers = [rollouts.answers[n] for n in rows]
  sequences = [p + a for p, a in zip(prompts, answers, strict=True)]
  T = train.bucket(max(map(len, sequences)))
  valid = [1.0 if valid_N is None else float(valid_N[n]) for n in rows]
  return Batch(
    tokens_NT=train.pad_rows(sequences, T, 0),
    length_N=np.asarray([len(s) for s in sequences], np.int32),
    mask_NT=train.pad_rows([[0.0] * len(p) + [v] * len(a) for p, a, v in zip(prompts, answers, valid, strict=True)],
                           T, 0.0),
    advantage_N=np.asarray(advantage_N, np.float32)[list(rows)],
    sampler_logp_NT=train.pad_rows([[0.0] * len(p) + list(rollouts.logps[n])
                                    for p, n in zip(prompts, rows, strict=True)], T, 0.0))


def table(rollouts: Rollouts, reward_N, parts: list[dict[str, Score]], advantage_N=None, **columns) -> dict[str, list]:
  """One row per answer, for the sample files: what was asked, said, paid and learnt. `columns` repeat on each row."""
  G, N = rollouts.group_size, len(rollouts.answers)
  problems = [rollouts.problems[n // G] for n in range(N)]
  rows = {k: [v] * N for k, v in columns.items()} | dict(
    problem=[p.id for p in problems], sample=[n % G for n in range(N)], prompt=[p.prompt for p in problems],
    gold=[p.answer for p in problems], text=rollouts.texts, tokens=rollouts.answers,
    length=[len(a) for a in rollouts.answers], truncated=rollouts.truncated_N.tolist(),
    verdict=[part["accuracy"].verdict if "accuracy" in part else "" for part in parts], reward=reward_N.tolist(),
    logp_mean=[float(np.mean(x)) for x in rollouts.logps], logp_min=[float(np.min(x)) for x in rollouts.logps])
  for name in parts[0]:
    rows[f"reward/{name}"] = [part[name].value for part in parts]
  if advantage_N is not None:
    rows["advantage"] = np.asarray(advantage_N).tolist()
  return rows

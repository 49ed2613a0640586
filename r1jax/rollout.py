"""G scored answers to each of B prompts: sample on the device, decode and score on the host.

Everything here is numpy and Python between two jitted calls. Letters: r1jax/types.py; rows are prompt-major.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import hosts, sampler, slots, train
from r1jax.drawing import SampleConfig
from r1jax.models.transformer import ModelConfig
from r1jax.queue import Job, Said
from r1jax.rewards import reads, total_rewards
from r1jax.tokenizer import Tokenizer
from r1jax.types import NOT_ASKED, Batch, Problem, Reward, Score

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
  prompt_experts: list[np.ndarray] | None = None   # B, [P, L, k]: MoE layers' experts of each token, else None
  experts: list[np.ndarray] | None = None          # N, [answer tokens, L, k]
  kept: list[np.ndarray] | None = None             # N, [answer tokens, top_k]: with sampling.keep_mask

  @property
  def group_size(self) -> int:
    return len(self.answers) // len(self.problems)


def sample(params, problems: Sequence[Problem], group_size: int, **options) -> Rollouts:
  """`group_size` answers to each problem; options as those of sample_parts. Each host draws its share."""
  with hosts.own_devices(params) as own:
    return join(hosts.flat(hosts.gather(list(sample_parts(own, problems, group_size, share=True, **options)))))


def sample_parts(params, problems: Sequence[Problem], group_size: int, *, model: ModelConfig, tokenizer: Tokenizer,
                 cfg: SampleConfig, seed: int, step: int, prompts_at_once: int = 0, encode=None, budget_N=None,
                 asked: Counter | None = None, stats: slots.Stats | None = None, renew=None,
                 share: bool = False) -> Iterator[Rollouts]:
  """The answers to the first problems, then to the next, in order, for rewards to begin with the first.

  With cfg.slots the problems' answers wait for free slots; else those of `prompts_at_once` problems run in step (0: of
  all). Both bound memory; what is sampled depends on neither. encode: prompts' texts -> token lists, such as
  a chat template; None: the tokenizer's plain encoding. budget_N: tokens of each answer, at most and by default
  cfg.max_tokens. asked: as in jobs_of, where this is not the first call of the step. stats, renew: as in slots.run.
  share: of the problems, only those that are this host's (hosts.share).
  """
  jobs = jobs_of(problems, group_size, tokenizer=tokenizer, cfg=cfg, seed=seed, step=step, encode=encode,
                 budget_N=budget_N, asked=asked)
  if share:
    mine = hosts.share(len(problems))
    problems, jobs = problems[mine.start:mine.stop], jobs[mine.start * group_size:mine.stop * group_size]
    if not problems:
      return
  at_once = len(problems) if cfg.slots else min(prompts_at_once or len(problems), len(problems))
  for first in range(0, len(problems), at_once):
    part = jobs[first * group_size:(first + at_once) * group_size]
    lanes, width = (cfg.slots // cfg.width, cfg.width) if cfg.slots else (at_once, group_size)
    said: dict[int, Said] = {}
    given = 0
    for i, answer in slots.run(params, part, model=model, cfg=cfg, end_id=tokenizer.end_ids, lanes=lanes, width=width,
                               stop=stop_at(tokenizer, cfg.stop), renew=renew, stats=stats):
      said[i] = answer
      ready = given                    # whole groups, in the order of their problems
      while all(ready * group_size + g in said for g in range(group_size)):
        ready += 1
      # rewards are worth beginning with, a loop over a few groups is not
      if ready > given and (len(said) == len(part) or (ready - given) * 4 * group_size >= len(part)):
        rows = range(given * group_size, ready * group_size)
        yield rollouts_of(problems[first + given:first + ready], [part[n].prompt for n in rows[::group_size]],
                          [said[n] for n in rows], tokenizer)
        given = ready


def jobs_of(problems: Sequence[Problem], group_size: int, *, tokenizer: Tokenizer, cfg: SampleConfig, seed: int,
            step: int, encode=None, budget_N=None, asked: Counter | None = None) -> list[Job]:
  """What is to be drawn: group_size answers to each problem. asked: how often each id was asked before in this step."""
  prompts = encoded(problems, tokenizer, encode)
  asked = Counter() if asked is None else asked
  again_B = np.asarray([asked.update([p.id]) or asked[p.id] - 1 for p in problems], np.int32)
  # a question that is asked again gets other answers
  keys_N = sampler.sample_keys(seed, step, jnp.asarray([p.id for p in problems], jnp.int32),
                               jnp.asarray(again_B)[:, None] * group_size + jnp.arange(group_size))
  data_N = np.asarray(jax.random.key_data(keys_N))
  budgets = np.full(len(data_N), cfg.max_tokens) if budget_N is None else np.asarray(budget_N)
  if budgets.shape != (len(data_N),) or budgets.min() < 1 or budgets.max() > cfg.max_tokens:
    raise ValueError(f"budgets {budgets.shape} from {budgets.min()} to {budgets.max()} must be {len(data_N)} numbers"
                     f" within 1 and sampling.max_tokens={cfg.max_tokens}")
  return [Job(prompts[n // group_size], data_N[n], int(budgets[n])) for n in range(len(data_N))]


def encoded(problems, tokenizer: Tokenizer, encode=None) -> list[tuple[int, ...]]:
  """The prompts' tokens. ValueError for one that has none."""
  prompts = [tuple(p) for p in (encode or tokenizer.encode_batch)([p.prompt for p in problems])]
  for problem, prompt in zip(problems, prompts, strict=True):
    if not prompt:
      raise ValueError(f"problem {problem.id}: the prompt {problem.prompt!r} has no tokens")
  return prompts


def stop_at(tokenizer: Tokenizer, texts: tuple[str, ...]):
  """() -> a function that is given an answer's tokens, one by one, and says True where the first text is complete.

  A text counts when its characters are certain (Tokenizer.stream). None where there are no texts.
  """
  if not texts:
    return None
  longest = max(map(len, texts))

  def begin():
    stream, tail = tokenizer.stream(), ""

    def push(token: int) -> bool:
      nonlocal tail
      tail += stream.push(token)
      found = any(text in tail for text in texts)
      tail = tail[-longest:]
      return found
    return push
  return begin


def rollouts_of(problems, prompts, said: Sequence[Said], tokenizer: Tokenizer) -> Rollouts:
  """Answers that have come out of the sampler, prompt-major."""
  G = len(said) // len(problems)
  column = lambda name: None if getattr(said[0], name) is None else [getattr(s, name) for s in said]
  prompt_experts = column("prompt_experts")
  return Rollouts(list(problems), [list(p) for p in prompts], [s.tokens for s in said], [s.logps for s in said],
                  [tokenizer.decode(s.tokens) for s in said], np.asarray([not s.ended for s in said]),
                  prompt_experts and prompt_experts[::G], column("experts"), column("kept"))


def score(rollouts: Rollouts, terms: dict[str, tuple[float, Reward]], truncated: str = "wrong", pool=None):
  """(reward_N, parts): total rewards as f32, and for each answer its parts {name: Score}. As judge, and waits.
  Each host judges its share of the problems."""
  mine = hosts.share(len(rollouts.problems))
  found = [judge(select(rollouts, mine), terms, truncated, pool)()] if mine else []
  reward_N, parts = zip(*hosts.flat(hosts.gather(found)), strict=True)
  return np.concatenate(reward_N), hosts.flat(parts)


def judge(rollouts: Rollouts, terms: dict[str, tuple[float, Reward]], truncated: str = "wrong", pool=None):
  """Begins to score the answers in the worker processes of `pool` (rewards/workers.py) and returns a function that
  waits for (reward_N, parts). Without a pool that function does the work, in this process.

  truncated: an answer without an end is wrong whatever it says (reward and parts 0, verdict "truncated", or
  "not_asked" of a reward that does not read such prompts): the default; "masked": wrong too, and the caller keeps it
  out of the loss; "scored": judged like any other.
  """
  if truncated not in TRUNCATED:
    raise ValueError(f"truncated={truncated!r} is none of {TRUNCATED}")
  judged = [n for n in range(len(rollouts.texts)) if truncated == "scored" or not rollouts.truncated_N[n]]
  problems, texts = [rollouts.problems[n // rollouts.group_size] for n in judged], [rollouts.texts[n] for n in judged]
  future = pool.submit(terms, problems, texts) if pool else None

  def wait():
    done = future.result() if future else total_rewards(terms, problems, texts)
    results = dict(zip(judged, done, strict=True))
    totals, parts = zip(*(results.get(n) or cut(terms, rollouts.problems[n // rollouts.group_size])
                          for n in range(len(rollouts.texts))), strict=True)
    return np.asarray(totals, np.float32), list(parts)
  return wait


def cut(terms: dict[str, tuple[float, Reward]], problem: Problem) -> tuple[float, dict[str, Score]]:
  """What an answer without an end earns."""
  return 0.0, {name: Score(0.0, "truncated" if reads(reward, problem) else NOT_ASKED)
               for name, (_, reward) in terms.items()}


def join(parts: Sequence[Rollouts]) -> Rollouts:
  """Rollouts of the same group size, one after the other."""
  if len(parts) == 1:
    return parts[0]
  lists = {f.name: [x for part in parts for x in getattr(part, f.name) or []] for f in dataclasses.fields(Rollouts)
           if f.name != "truncated_N"}
  for name in ("prompt_experts", "experts", "kept"):
    lists[name] = lists[name] or None
  return Rollouts(**lists, truncated_N=np.concatenate([part.truncated_N for part in parts]))


def select(rollouts: Rollouts, groups) -> Rollouts:
  """The problems with these indices and all answers to them, in this order."""
  G = rollouts.group_size
  rows = [b * G + g for b in groups for g in range(G)]
  pick = lambda values, chosen: None if values is None else [values[i] for i in chosen]
  return Rollouts(
    **{name: pick(getattr(rollouts, name), groups) for name in ("problems", "prompts", "prompt_experts")},
    **{name: pick(getattr(rollouts, name), rows) for name in ("answers", "logps", "texts", "experts", "kept")},
    truncated_N=rollouts.truncated_N[rows])


def to_batch(rollouts: Rollouts, advantage_N=None, valid_N=None, shared_prompt: bool = True) -> Batch:
  """All answers as a batch to learn from. valid_N: 0 for answers that take no part in the loss.

  shared_prompt: each prompt stands once for its G answers; else once for each: the same loss, more work, but then
  micro-batches may divide a group.
  """
  G, N = rollouts.group_size, len(rollouts.answers)
  prompts = rollouts.prompts if shared_prompt else [p for p in rollouts.prompts for _ in range(G)]
  A, P = train.bucket(max(map(len, rollouts.answers))), train.bucket(max(map(len, prompts)))
  more = {}
  if rollouts.experts is not None:
    of_prompts = rollouts.prompt_experts if shared_prompt else [e for e in rollouts.prompt_experts for _ in range(G)]
    more = dict(prompt_expert_BPLk=_pad_tokens(of_prompts, P), expert_NALk=_pad_tokens(rollouts.experts, A))
  if rollouts.kept is not None:
    more["kept_NAk"] = _pad_tokens(rollouts.kept, A, -1)
  valid = np.ones(N) if valid_N is None else valid_N
  return Batch(
    prompt_BP=train.pad_rows(prompts, P, 0),
    prompt_length_B=np.asarray([len(p) for p in prompts], np.int32),
    answer_NA=train.pad_rows(rollouts.answers, A, 0),
    mask_NA=train.pad_rows([[float(v)] * len(a) for a, v in zip(rollouts.answers, valid, strict=True)], A, 0.0),
    advantage_N=None if advantage_N is None else np.asarray(advantage_N, np.float32),
    sampler_logp_NA=train.pad_rows(rollouts.logps, A, 0.0), **more)


def _pad_tokens(rows: list[np.ndarray], length: int, fill: int = 0) -> np.ndarray:
  return np.stack([np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=fill) for x in rows])


def take(batch: Batch, questions, group_size: int) -> Batch:
  """The prompts `questions` with their whole groups. batch: as to_batch makes it."""
  rows = (np.asarray(questions)[:, None] * group_size + np.arange(group_size)).reshape(-1)
  prompts = questions if len(batch.prompt_BP) * group_size == len(batch.answer_NA) else rows
  of_prompt = lambda name: name.startswith("prompt")
  return batch.replace(**{f.name: value[prompts if of_prompt(f.name) else rows] for f in dataclasses.fields(batch)
                          if (value := getattr(batch, f.name)) is not None})


def table(rollouts: Rollouts, reward_N, parts: list[dict[str, Score]], advantage_N=None, **columns) -> dict[str, list]:
  """One row per answer, for the sample files: what was asked, said, paid and learnt. `columns` repeat on each row."""
  G, N = rollouts.group_size, len(rollouts.answers)
  problems = [rollouts.problems[n // G] for n in range(N)]
  rows = {k: [v] * N for k, v in columns.items()} | dict(
    problem=[p.id for p in problems], scenario=[p.scenario for p in problems], sample=[n % G for n in range(N)],
    prompt=[p.prompt for p in problems],
    gold=[p.answer for p in problems], text=rollouts.texts, tokens=rollouts.answers,
    length=[len(a) for a in rollouts.answers], truncated=rollouts.truncated_N.tolist(),
    verdict=[part["accuracy"].verdict if "accuracy" in part else "" for part in parts], reward=reward_N.tolist(),
    logp_mean=[float(np.mean(x)) for x in rollouts.logps], logp_min=[float(np.min(x)) for x in rollouts.logps])
  for name in parts[0]:
    rows[f"reward/{name}"] = [part[name].value for part in parts]
  if advantage_N is not None:
    rows["advantage"] = np.asarray(advantage_N).tolist()
  return rows

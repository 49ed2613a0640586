"""Partial rollouts: an update does not wait for the longest answers; what is not finished goes on in the next rollout.

`partial` more questions than an update needs are under way. As soon as enough groups are complete, sampling stops; the
unfinished answers keep their tokens and the log-probs of the policies that drew these, and are continued by the next
policy (Kimi k1.5, 2501.12599, section 2.6.2). An answer's tokens may then come from several policies: the ratio of the
loss is against the log-prob each token was drawn with.
What is carried is part of the state that a run saves, of fixed shape: X = partial * group_size answers.
Letters: r1jax/types.py.
"""

from __future__ import annotations

import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from r1jax import rollout, slots
from r1jax.collect import Drawn, Scored, agreeing
from r1jax.queue import Job, Said


@flax.struct.dataclass
class Carry:
  """The groups under way between two rollouts. place_Q: their questions' places in the task's order, -1 for none."""
  place_Q: jax.Array
  unit_Q: jax.Array              # in which rollout they were asked: their random numbers are of that one
  token_XA: jax.Array
  logp_XA: jax.Array
  length_X: jax.Array
  ended_X: jax.Array
  finished_X: jax.Array


def empty(cfg) -> Carry:
  """Before the first rollout. cfg: the stage's RLConfig."""
  X, A = cfg.partial * cfg.group_size, cfg.sampling.max_tokens
  no = jnp.zeros(X, bool)
  return Carry(jnp.full(cfg.partial, -1, jnp.int32), jnp.zeros(cfg.partial, jnp.int32), jnp.zeros((X, A), jnp.int32),
               jnp.zeros((X, A), jnp.float32), jnp.zeros(X, jnp.int32), no, no)


def said(carry: Carry) -> list[Said]:
  """The answers in it."""
  token_XA, logp_XA, length_X, ended_X, finished_X = jax.device_get(
    (carry.token_XA, carry.logp_XA, carry.length_X, carry.ended_X, carry.finished_X))
  return [Said(token_XA[x, :n].tolist(), logp_XA[x, :n].copy(), bool(ended_X[x]), bool(finished_X[x]))
          for x, n in enumerate(length_X)]


def carry_of(cfg, places, units, answers) -> Carry:
  """The groups that go on."""
  A = cfg.sampling.max_tokens
  wide = lambda rows, kind: jnp.asarray(np.stack([np.pad(np.asarray(r, kind), (0, A - len(r))) for r in rows]))
  return Carry(jnp.asarray(places, jnp.int32), jnp.asarray(units, jnp.int32),
               wide([s.tokens for s in answers], np.int32), wide([s.logps for s in answers], np.float32),
               jnp.asarray([len(s.tokens) for s in answers], jnp.int32),
               jnp.asarray([s.ended for s in answers]), jnp.asarray([s.finished for s in answers]))


def new_places(cfg, unit: int) -> range:
  """Places of the questions that rollout `unit` asks for the first time: as many as an update uses up."""
  Q, more = cfg.questions_per_rollout, cfg.partial
  return range(0, Q + more) if unit == 0 else range(more + unit * Q, more + (unit + 1) * Q)


def draw(cfg, task, lesson, params, carry: Carry, *, model, seed: int, unit: int,
         pool=None) -> tuple[Drawn, Carry, float]:
  """Scored answers to questions_per_rollout questions, those under way first, what goes on, and the share of tokens
  that earlier policies drew. Otherwise as collect.draw."""
  started, stats = time.monotonic(), slots.Stats()
  Q, G = cfg.questions_per_rollout, cfg.group_size
  problem_at = lambda place: lesson.problems(place, 1)[0]
  places, units = np.asarray(carry.place_Q), np.asarray(carry.unit_Q)
  answers = dict(enumerate(said(carry))) if unit else {}
  old = [(int(p), int(u)) for p, u in zip(places, units, strict=True)] if unit else []
  groups = old + [(place, unit) for place in new_places(cfg, unit)]

  jobs, of_job, problems, prompts = [], [], {}, {}
  for asked_in in sorted({u for _, u in groups}):
    asked = new_places(cfg, asked_in)         # all of that rollout: a question in it twice has its own random numbers
    questions = [problem_at(place) for place in asked]
    made = rollout.jobs_of(questions, G, tokenizer=task.tokenizer, cfg=cfg.sampling,
                           seed=seed, step=asked_in, encode=task.encode)
    for b in (b for b, (_, u) in enumerate(groups) if u == asked_in):
      q = asked.index(groups[b][0])
      problems[b], prompts[b] = questions[q], made[q * G].prompt
      for g in range(G):
        job, before = made[q * G + g], answers.get(b * G + g)
        if before is None or not before.finished:
          jobs.append(Job(job.prompt, job.key, job.budget, before if before and before.tokens else None))
          of_job.append(b * G + g)
  earlier = {n: len(s.tokens) for n, s in answers.items()}
  whole = lambda: [b for b in range(len(groups))
                   if all(b * G + g in answers and answers[b * G + g].finished for g in range(G))]
  lanes = cfg.sampling.slots // cfg.sampling.width
  for i, answer in slots.run(params, jobs, model=model, cfg=cfg.sampling, end_id=task.tokenizer.end_ids, lanes=lanes,
                             width=cfg.sampling.width, stop=rollout.stop_at(task.tokenizer, cfg.sampling.stop),
                             enough=lambda: len(whole()) >= Q, stats=stats):
    answers[of_job[i]] = answer

  use = whole()[:Q]
  rest = [b for b in range(len(groups)) if b not in use]
  rows = [b * G + g for b in use for g in range(G)]
  rollouts = rollout.rollouts_of([problems[b] for b in use], [prompts[b] for b in use], [answers[n] for n in rows],
                                 task.tokenizer)
  began = time.monotonic()
  reward_N, parts = rollout.judge(rollouts, lesson.terms(unit), cfg.truncated, pool)()
  same_N = agreeing(cfg, reward_N, rollouts.truncated_N)
  stale = sum(earlier.get(n, 0) for n in rows) / max(sum(len(answers[n].tokens) for n in rows), 1)
  scored = Scored(rollouts, reward_N, parts, same_N, 1, float(same_N.mean()), time.monotonic() - began)
  drawn = Drawn(scored, [rollouts], stats, time.monotonic() - started - scored.seconds)
  carried = [answers[b * G + g] for b in rest for g in range(G)]
  return drawn, carry_of(cfg, [groups[b][0] for b in rest], [groups[b][1] for b in rest], carried), stale

"""Continuous batching: answers wait in a queue, and a row that has ended is given the next one.

The device runs `chunk` steps on its own (sampler.advance); then the host takes what has ended, loads new prompts into
free lanes, and makes room in the caches. Shapes are few: columns and lanes change by factors of four, new prompts come
in powers of two. What is drawn depends on none of it. A lane is one prompt's cache and its rows. Letters:
r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import prefill, room, sampler, train
from r1jax.drawing import SampleConfig
from r1jax.models.transformer import ModelConfig
from r1jax.queue import Job, Queue, Said


@dataclasses.dataclass
class Stats:
  """What a rollout cost, added up over calls of run."""
  seconds: float = 0.0
  tail_seconds: float = 0.0      # in which fewer than half of the rows were at work
  steps: int = 0
  room: int = 0                  # steps x rows
  work: int = 0                  # of these, rows that were at work
  tokens: int = 0
  guessed: int = 0
  right: int = 0

  def row(self) -> dict[str, float]:
    """Names and numbers for a run's metrics."""
    out = {"decode_tokens_per_s": self.tokens / max(self.seconds, 1e-9), "occupancy": self.work / max(self.room, 1),
           "tail_share": self.tail_seconds / max(self.seconds, 1e-9)}
    return out | ({"acceptance": self.right / self.guessed} if self.guessed else {})


def run(params, jobs: Sequence[Job], *, model: ModelConfig, cfg: SampleConfig, end_id, lanes: int, width: int,
        stop: Callable | None = None, enough: Callable | None = None, renew: Callable | None = None,
        stats: Stats | None = None) -> Iterator[tuple[int, Said]]:
  """(index of the job, its answer) as answers end.

  lanes, width: rows that run at one time, `width` of one prompt in a lane. stop() -> a function of an answer's tokens,
  one after the other, that says True where a stop text is complete. enough(): looked at between chunks; once true, what
  is not finished is given as it is, and nothing more is drawn. renew(steps of stats) -> other parameters to go on with
  from the next chunk, or None. stats: added to.
  """
  stats = Stats() if stats is None else stats
  if not jobs:
    return
  model = sampler.served(model, cfg)
  static = dict(model=model, cfg=cfg, end_id=end_id)
  queue = Queue(jobs, lanes, width, stop)
  looks = bool(cfg.slots or stop or enough or renew)          # else nothing happens before all have ended
  state, columns, began, counted = None, 0, time.monotonic(), dict.fromkeys(sampler.COUNTS, 0)
  while queue.fill():
    params = params if renew is None or (newer := renew(stats.steps)) is None else newer
    state, columns = _load(params, state, columns, queue, static)
    columns, state = _room(state, columns, queue, cfg, model)
    t = time.monotonic()
    state = sampler.advance(params, state, cfg.chunk if looks else columns, **static)
    done_N, queue.length_N, count = jax.device_get((state.done_N, state.length_N, state.count))
    _count(stats, counted, count, time.monotonic() - t)
    if count["steps"] == counted["steps"] and not any(done_N[n] for n in queue.active):
      raise RuntimeError(f"no step was made at column {int(state.column)} of {columns}")     # not for ever
    counted = count
    for i, said in _finished(state, queue, done_N, columns, end_id):
      stats.seconds, began = stats.seconds + time.monotonic() - began, time.monotonic()
      yield i, said
      began = time.monotonic()                        # the caller's time is not ours
    if enough and enough():
      yield from _unfinished(state, queue, columns, end_id)
      break
    if queue.halted.any():
      state = state.replace(budget_N=jnp.where(queue.halted, 0, state.budget_N))
      queue.halted[:] = False
    state = _fewer(state, queue)
  stats.seconds += time.monotonic() - began


def _count(stats: Stats, before: dict, after: dict, seconds: float) -> None:
  new = {k: int(after[k] - before[k]) for k in after}
  stats.room += new["steps"] * int(after["rows"])
  stats.tail_seconds += seconds * new["few"] / max(new["steps"], 1)
  for name in ("steps", "work", "tokens", "guessed", "right"):
    setattr(stats, name, getattr(stats, name) + new[name])


def _load(params, state, columns: int, queue: Queue, static: dict):
  """Runs the prompts of new lanes, and draws the first token of fresh rows."""
  model, cfg = static["model"], static["cfg"]
  jobs, N, lanes = queue.jobs, len(queue.row), len(queue.lane)
  prompts = None if state is None else state.prompts
  P = train.bucket(max(map(len, queue.prompts))) if not cfg.slots else room.bucket(max(map(len, queue.prompts)), 2**30)
  by_size: dict[int, list[int]] = {}
  for lane in queue.new:
    by_size.setdefault(min(train.bucket(len(queue.prompts[queue.lane[lane]])), P), []).append(lane)
  for size, new in sorted(by_size.items()):
    chosen = list(dict.fromkeys(queue.lane[lane] for lane in new))       # a prompt in several lanes is run once
    whole = prompts is None and not cfg.slots and len(chosen) == len(new) == len(queue.new) and size == P
    count = lanes if whole else min(lanes, _power(len(chosen)))
    filled = [queue.prompts[i] for i in chosen + chosen[-1:] * (count - len(chosen))]     # few shapes
    run = prefill.prefill(params, train.pad_rows(filled, size, 0), jnp.asarray([len(p) for p in filled], jnp.int32),
                          model=model, cfg=cfg)
    if model.moe:
      for i, experts in zip(chosen, np.asarray(run.expert_BPLk), strict=False):
        queue.prompt_experts[i] = experts[:len(queue.prompts[i])].copy()
    if whole:
      prompts = run
      continue
    at = new + [lanes] * (min(lanes, _power(len(new))) - len(new))
    source = [chosen.index(queue.lane[lane]) if lane < lanes else 0 for lane in at]
    prompts = prefill.empty(model=model, cfg=cfg, B=lanes, P=P) if prompts is None else prompts
    prompts = prefill.load(prompts, run, jnp.asarray(source), jnp.asarray(at), model=model)
  if state is None:
    key_N = jax.random.wrap_key_data(jnp.zeros((N, *jobs[0].key.shape), jobs[0].key.dtype))
    columns = room.bucket(1, most_columns(cfg))
    state = sampler.rows(params, prompts, key_N, columns=columns, **static)
  elif queue.new:
    state = state.replace(prompts=prompts)
  if queue.fresh:
    key_N, budget_N, before_N = np.zeros((N, *jobs[0].key.shape), jobs[0].key.dtype), np.zeros(N, np.int32), np.zeros(
      N, np.int32)
    fresh_N = np.zeros(N, bool)
    for n in queue.fresh:
      job = jobs[queue.row[n]]
      key_N[n], budget_N[n], before_N[n], fresh_N[n] = job.key, job.budget, job.done, True
    queue.length_N = np.where(fresh_N, before_N + 1, queue.length_N)
    state = sampler.begin(params, state, fresh_N, jax.random.wrap_key_data(jnp.asarray(key_N)), budget_N, before_N,
                          **static)
  return state, columns


def _power(n: int) -> int:
  return 1 << (n - 1).bit_length()


def most_columns(cfg: SampleConfig) -> int:
  """Columns beyond which a cache need not grow: a whole answer, and four chunks before holes are closed again."""
  return room.most(cfg) + (4 * cfg.chunk * cfg.span if cfg.slots else 0)


def _room(state, columns: int, queue: Queue, cfg: SampleConfig, model: ModelConfig):
  """Columns for the next chunk: holes are closed, or the caches grow; they shrink again when answers are short."""
  column, steps = int(state.column), cfg.chunk * cfg.span
  if column + (steps if cfg.slots else cfg.span) <= columns:
    return columns, state
  live = max(int(queue.length_N[n]) - queue.jobs[queue.row[n]].done for n in queue.active)
  size = room.bucket(live + 2 * steps if cfg.slots else columns + 1, most_columns(cfg))
  if columns // 4 < size <= columns:        # a little too many is no reason for another shape
    size = columns
  if column <= live + steps and size > columns:
    return size, room.widen(state, model=model, columns=size)
  return size, room.repack(state, model=model, columns=size)


def _said(answers: room.Answers, at: int, job: Job, prompt_experts, finished: bool, keep: int | None = None) -> Said:
  """The answer in row `at` of `answers`, behind what an earlier rollout drew. keep: tokens, up to a stop text."""
  own = int(answers.length_N[at])
  tokens, logps = answers.token_NA[at, :own].tolist(), answers.logp_NA[at, :own]
  kept = None if answers.kept_NAk is None else answers.kept_NAk[at, :own]
  experts = None if answers.expert_NALk is None else answers.expert_NALk[at, :own]
  if job.before:
    tokens, logps = job.before.tokens + tokens, np.concatenate([job.before.logps, logps])
    kept = None if kept is None else np.concatenate([job.before.kept, kept])
    if experts is not None:    # the last token of then was run only now
      experts = np.concatenate([job.before.experts[:-1], prompt_experts[-1:], experts])
      prompt_experts = job.before.prompt_experts
  cut = slice(keep)
  copy = lambda x: None if x is None else x[cut].copy()      # not a view that keeps all rows alive
  return Said(tokens[cut], copy(logps), bool(answers.ended_N[at]) or keep is not None, finished, prompt_experts,
              copy(experts), copy(kept))


def _answers(state, chosen: list[int], columns: int, end_id) -> room.Answers:
  """What these rows have said, on the host."""
  filled = chosen + chosen[-1:] * (min(len(state.key_N), _power(len(chosen))) - len(chosen))      # few shapes
  return jax.device_get(room.answers(state, np.asarray(filled), length=columns + 1, end_id=end_id))


def _finished(state, queue: Queue, done_N, columns: int, end_id) -> Iterator[tuple[int, Said]]:
  """The answers that have ended; their rows are free."""
  keep: dict[int, int] = {}
  if queue.stop:
    tokens_NA = np.asarray(room.answers(state, length=columns + 1, end_id=end_id).token_NA)
    for n in queue.active:
      said = queue.stops[n]
      for token in tokens_NA[n, said.looked:queue.length_N[n] - queue.jobs[queue.row[n]].done]:
        said.looked += 1
        if said.push(int(token)):
          keep[n] = queue.jobs[queue.row[n]].done + said.looked
          break
  over = [n for n in queue.active if done_N[n] or n in keep]
  if not over:
    return
  answers = _answers(state, over, columns, end_id)
  for at, n in enumerate(over):
    i, queue.row[n] = queue.row[n], None
    queue.halted[n] = not done_N[n]
    yield i, _said(answers, at, queue.jobs[i], queue.prompt_experts.get(queue.of_job[i]), True, keep.get(n))


def _unfinished(state, queue: Queue, columns: int, end_id) -> Iterator[tuple[int, Said]]:
  """What there is of the others: of those under way, and of those that wait."""
  if rows := queue.active:
    answers = _answers(state, rows, columns, end_id)
    for at, n in enumerate(rows):
      i = queue.row[n]
      yield i, _said(answers, at, queue.jobs[i], queue.prompt_experts.get(queue.of_job[i]), False)
  for i in (i for waiting in queue.waiting for i in waiting):
    yield i, queue.jobs[i].before or Said([], np.zeros(0, np.float32), False, False)


def _fewer(state, queue: Queue):
  """When nothing waits and a quarter of the lanes or fewer are at work, these alone go on."""
  lanes = sorted({n // queue.width for n in queue.active})
  if not lanes or any(queue.waiting):
    return state
  size = len(queue.lane)
  while len(lanes) <= size // 4:
    size //= 4
  if size == len(queue.lane):
    return state
  idle = [lane for lane in range(len(queue.lane)) if lane not in lanes]
  queue.only(lanes := lanes + idle[:size - len(lanes)])
  return room.only(state, jnp.asarray(lanes), width=queue.width)

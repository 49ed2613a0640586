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


@dataclasses.dataclass(frozen=True)
class Said:
  """An answer, or what there is of it."""
  tokens: list[int]
  logps: np.ndarray              # of the policies that drew them
  ended: bool                    # by an end token or a stop text
  finished: bool                 # ended, or at its budget; else it goes on in a later rollout (Job.before)
  prompt_experts: np.ndarray | None = None   # MoE: [P, L, k]
  experts: np.ndarray | None = None          # [tokens, L, k]
  kept: np.ndarray | None = None             # keep_mask: [tokens, top_k]


@dataclasses.dataclass(frozen=True)
class Job:
  """One answer to draw. Jobs with the same prompt share its cache when they run side by side."""
  prompt: tuple[int, ...]
  key: np.ndarray                # as jax.random.key_data gives it
  budget: int                    # tokens, those of `before` included
  before: Said | None = None     # what an earlier rollout drew of it

  @property
  def prefix(self) -> tuple[int, ...]:
    """What the prefill runs."""
    return self.prompt + tuple(self.before.tokens) if self.before else self.prompt


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
        stop: Callable | None = None, enough: Callable | None = None,
        stats: Stats | None = None) -> Iterator[tuple[int, Said]]:
  """(index of the job, its answer) as answers end.

  lanes, width: rows that run at one time, `width` of one prompt in a lane. stop(tokens) -> how many of them to keep
  where a stop text ends them, or None. enough(): looked at between chunks; once true, what is not finished is given as
  it is, and nothing more is drawn. stats: added to.
  """
  stats = Stats() if stats is None else stats
  if not jobs:
    return
  static = dict(model=model, cfg=cfg, end_id=end_id)
  queue = _Queue(jobs, lanes, width)
  looks = bool(cfg.slots or stop or enough)          # else nothing happens before all have ended
  state, columns, began, counted = None, 0, time.monotonic(), dict.fromkeys(sampler.COUNTS, 0)
  while queue.fill():
    state, columns = _load(params, state, columns, queue, static)
    columns, state = _room(state, columns, queue, cfg, model)
    t = time.monotonic()
    state = sampler.advance(params, state, cfg.chunk if looks else columns, **static)
    done_N, length_N, count = jax.device_get((state.done_N, state.length_N, state.count))
    queue.length_N = length_N
    _count(stats, counted, count, time.monotonic() - t)
    counted = count
    for i, said in _finished(state, queue, done_N, columns, end_id, stop):
      stats.seconds, began = stats.seconds + time.monotonic() - began, time.monotonic()
      yield i, said
      began = time.monotonic()                        # the caller's time is not ours
    if enough and enough():
      yield from _unfinished(state, queue, columns, end_id)
      break
    if stop and queue.halted:
      state = state.replace(budget_N=state.budget_N.at[np.asarray(queue.halted)].set(0))
      queue.halted.clear()
    state = _fewer(state, queue)
  stats.seconds += time.monotonic() - began


def _count(stats: Stats, before: dict, after: dict, seconds: float) -> None:
  new = {k: int(after[k] - before[k]) for k in after}
  stats.room += new["steps"] * int(after["rows"])
  stats.tail_seconds += seconds * new["few"] / max(new["steps"], 1)
  for name in ("steps", "work", "guessed", "right"):
    setattr(stats, name, getattr(stats, name) + new[name])
  stats.tokens += new["tokens"]


class _Queue:
  """Which job is in which row, and who is next. The host's side of the state."""

  def __init__(self, jobs: Sequence[Job], lanes: int, width: int):
    self.jobs, self.width = jobs, width
    self.waiting: dict[tuple, list[int]] = {}           # by prefix, in order
    for i, job in enumerate(jobs):
      self.waiting.setdefault(job.prefix, []).append(i)
    self.prefix: list[tuple | None] = [None] * lanes    # of each lane
    self.row: list[int | None] = [None] * (lanes * width)
    self.fresh: list[int] = []                          # rows to begin
    self.new: list[int] = []                            # lanes to load
    self.halted: list[int] = []                         # rows that a stop text has ended
    self.prompt_experts: dict[tuple, np.ndarray] = {}
    self.length_N = np.zeros(lanes * width, np.int32)

  def fill(self) -> bool:
    """Gives waiting jobs to free rows; whether any row has work."""
    self.fresh, self.new = [], []
    for lane in range(len(self.prefix)):
      free = [n for n in range(lane * self.width, (lane + 1) * self.width) if self.row[n] is None]
      if len(free) == self.width and not self.waiting.get(self.prefix[lane]):
        self.prefix[lane] = self._next()
        if self.prefix[lane] is not None:
          self.new.append(lane)
      jobs = self.waiting.get(self.prefix[lane], [])
      for n in free[:len(jobs)]:
        self.row[n] = jobs.pop(0)
        self.fresh.append(n)
    return any(i is not None for i in self.row)

  def _next(self):
    """The first prompt that waits and has no lane yet; else the one with the most answers to draw."""
    waiting = [prefix for prefix, jobs in self.waiting.items() if jobs]
    alone = [prefix for prefix in waiting if prefix not in self.prefix]
    return alone[0] if alone else max(waiting, key=lambda prefix: len(self.waiting[prefix]), default=None)

  @property
  def active(self) -> list[int]:
    return [n for n, i in enumerate(self.row) if i is not None]


def _load(params, state, columns: int, queue: _Queue, static: dict):
  """Runs the prompts of new lanes, and draws the first token of fresh rows."""
  model, cfg, end_id = static["model"], static["cfg"], static["end_id"]
  jobs, N = queue.jobs, len(queue.row)
  if queue.new:
    lanes = queue.new
    count = len(queue.prefix) if state is None else min(len(queue.prefix), 1 << (len(lanes) - 1).bit_length())
    prefixes = [queue.prefix[lane] for lane in lanes]
    longest = max(map(len, prefixes)) if state is not None else max(len(job.prefix) for job in jobs)
    filled = prefixes + [prefixes[-1]] * (count - len(prefixes))         # few shapes: what is too many goes nowhere
    prompts = prefill.prefill(params, train.pad_rows(filled, train.bucket(longest), 0),
                              jnp.asarray([len(p) for p in filled], jnp.int32), model=model, cfg=cfg)
    if model.moe:
      for prefix, experts in zip(prefixes, np.asarray(prompts.expert_BPLk), strict=False):
        queue.prompt_experts[prefix] = experts[:len(prefix)].copy()
    if state is None:
      key_N = jax.random.wrap_key_data(jnp.zeros((N, *jobs[0].key.shape), jobs[0].key.dtype))
      columns = room.bucket(1, most_columns(cfg))
      state = sampler.rows(params, prompts, key_N, columns=columns, **static)
    else:
      at = lanes + [len(queue.prefix)] * (count - len(lanes))
      state = state.replace(prompts=prefill.load(state.prompts, prompts, jnp.asarray(at), model=model))
  if queue.fresh:
    at = queue.fresh
    chosen = [jobs[queue.row[n]] for n in at]
    put = lambda values, like: np.zeros((N, *np.shape(values[0])), like)
    key_N, budget_N, before_N = (put([job.key for job in chosen], jobs[0].key.dtype), np.zeros(N, np.int32),
                                 np.zeros(N, np.int32))
    key_N[at], budget_N[at] = [job.key for job in chosen], [job.budget for job in chosen]
    before_N[at] = [len(job.before.tokens) if job.before else 0 for job in chosen]
    fresh_N = np.zeros(N, bool)
    fresh_N[at] = True
    queue.length_N = np.where(fresh_N, before_N + 1, queue.length_N)
    state = sampler.begin(params, state, fresh_N, jax.random.wrap_key_data(jnp.asarray(key_N)), budget_N, before_N,
                          model=model, cfg=cfg, end_id=end_id)
  return state, columns


def most_columns(cfg: SampleConfig) -> int:
  """Columns beyond which a cache need not grow: a whole answer, and four chunks before holes are closed again."""
  return room.most(cfg) + (4 * cfg.chunk * cfg.span if cfg.slots else 0)


def _room(state, columns: int, queue: _Queue, cfg: SampleConfig, model: ModelConfig):
  """Columns for the next chunk: holes are closed, or the caches grow; they shrink again when answers are short."""
  column, steps = int(state.column), cfg.chunk * cfg.span
  if column + (steps if cfg.slots else cfg.span) <= columns:
    return columns, state
  before = {n: len(job.before.tokens) if (job := queue.jobs[queue.row[n]]).before else 0 for n in queue.active}
  live = max(queue.length_N[n] - b for n, b in before.items())
  size = room.bucket(live + 2 * steps if cfg.slots else columns + 1, most_columns(cfg))
  if columns // 4 < size <= columns:        # a little too many is no reason for another shape
    size = columns
  if column <= live + steps and size > columns:
    return size, room.widen(state, model=model, columns=size)
  return size, room.repack(state, model=model, columns=size)


def _said(answers: room.Answers, n: int, job: Job, queue: _Queue, finished: bool, keep: int | None = None) -> Said:
  """Row n's answer, behind what an earlier rollout drew. keep: tokens of the whole, up to a stop text."""
  own = int(answers.length_N[n])
  tokens, logps = answers.token_NA[n, :own].tolist(), answers.logp_NA[n, :own]
  kept = None if answers.kept_NAk is None else answers.kept_NAk[n, :own]
  experts = None if answers.expert_NALk is None else answers.expert_NALk[n, :own]
  prompt_experts = queue.prompt_experts.get(job.prefix)
  if job.before:
    tokens, logps = job.before.tokens + tokens, np.concatenate([job.before.logps, logps])
    kept = None if kept is None else np.concatenate([job.before.kept, kept])
    if experts is not None:    # the last token of then was run only now
      experts = np.concatenate([job.before.experts[:-1], prompt_experts[-1:], experts])
      prompt_experts = job.before.prompt_experts
  cut = slice(keep)
  copy = lambda x: None if x is None else x[cut].copy()      # not a view that keeps all rows alive
  return Said(tokens[cut], copy(logps), bool(answers.ended_N[n]) or keep is not None, finished, prompt_experts,
              copy(experts), copy(kept))


def _finished(state, queue: _Queue, done_N, columns: int, end_id, stop) -> Iterator[tuple[int, Said]]:
  """The answers that have ended; their rows are free."""
  look = [n for n in queue.active if done_N[n] or stop]
  if not look:
    return
  answers = jax.device_get(room.answers(state, length=columns + 1, end_id=end_id))
  for n in look:
    said = _said(answers, n, queue.jobs[queue.row[n]], queue, True)
    keep = stop(said.tokens) if stop else None
    if keep is not None:
      said = _said(answers, n, queue.jobs[queue.row[n]], queue, True, keep)
      if not done_N[n]:
        queue.halted.append(n)
    if done_N[n] or keep is not None:
      i, queue.row[n] = queue.row[n], None
      yield i, said


def _unfinished(state, queue: _Queue, columns: int, end_id) -> Iterator[tuple[int, Said]]:
  """What there is of the others: of those under way, and of those that wait."""
  answers = jax.device_get(room.answers(state, length=columns + 1, end_id=end_id))
  for n in queue.active:
    yield queue.row[n], _said(answers, n, queue.jobs[queue.row[n]], queue, False)
  for i in (i for jobs in queue.waiting.values() for i in jobs):
    yield i, queue.jobs[i].before or Said([], np.zeros(0, np.float32), False, False)


def _fewer(state, queue: _Queue):
  """When nothing waits and a quarter of the lanes or fewer are at work, these alone go on."""
  lanes = sorted({n // queue.width for n in queue.active})
  if not lanes or any(queue.waiting.values()):
    return state
  size = len(queue.prefix)
  while len(lanes) <= size // 4:
    size //= 4
  if size == len(queue.prefix):
    return state
  idle = [lane for lane in range(len(queue.prefix)) if lane not in lanes]
  lanes += idle[:size - len(lanes)]
  rows = [lane * queue.width + g for lane in lanes for g in range(queue.width)]
  queue.prefix, queue.row = [queue.prefix[lane] for lane in lanes], [queue.row[n] for n in rows]
  queue.length_N = queue.length_N[rows]
  return room.only(state, jnp.asarray(lanes), width=queue.width)

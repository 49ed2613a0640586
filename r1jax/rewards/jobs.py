"""What the threads of a worker pool (workers.py) do: a chunk of checks in a process or, in this one, the rest.

A check is one reward on one text. A process gets a chunk of texts at once and answers check by check; the clock starts
anew with each answer. After a check that ended its process, a new one goes on behind it.
"""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import Future

from r1jax.problem import Reward, Score
from r1jax.rewards import weigh
from r1jax.rewards.sending import receive, send

START_SECONDS = 120.0    # for a new process to import what the rewards need; not part of a check's time
MAX_ANSWER = 100_000     # bytes of one answer of a process
CLOSED = "the worker processes were closed before the rewards were there"

Result = tuple[float, dict[str, Score]]


class Batch:
  """One submit: the scores that are there, and how many parts of the work are still missing."""

  def __init__(self, terms, problems, texts):
    self.terms, self.problems, self.texts = terms, problems, texts
    self.scores: list[dict[str, Score]] = [{} for _ in texts]
    self.parts_left = 0
    self.lock = threading.Lock()
    self.future: Future[list[Result]] = Future()
    self.future.set_running_or_notify_cancel()

  def part_done(self) -> None:
    with self.lock:
      self.parts_left -= 1
      last = self.parts_left == 0 and not self.future.done()
    if last:
      self.finish()

  def finish(self) -> None:
    self.future.set_result([weigh(self.terms, scores) for scores in self.scores])

  def fail(self, error: Exception) -> None:
    with self.lock:
      if not self.future.done():
        self.future.set_exception(error)


class Local:
  """The rewards of a batch that need this process."""

  def __init__(self, batch: Batch, rewards: dict[str, Reward]):
    self.batch, self.rewards = batch, rewards

  def run(self, pool, slot) -> None:
    each = {name: reward for name, reward in self.rewards.items() if not hasattr(reward, "batch")}
    for name, reward in self.rewards.items():
      if name not in each:
        self._at_once(name, reward.batch)
    for i, (problem, text) in enumerate(zip(self.batch.problems, self.batch.texts, strict=True)):
      for name, reward in each.items():
        if pool.closed:
          raise RuntimeError(CLOSED)
        try:
          self.batch.scores[i][name] = reward(problem, text)
        except Exception as error:
          error.add_note(f"reward {name!r}, problem id={problem.id}")
          raise


  def _at_once(self, name: str, batch_reward) -> None:
    try:
      scores = batch_reward(self.batch.problems, self.batch.texts)
    except Exception as error:
      error.add_note(f"reward {name!r}, {len(self.batch.texts)} answers at once")
      raise
    for known, score in zip(self.batch.scores, scores, strict=True):
      known[name] = score


class Chunk:
  """Texts begin .. end of a batch, for one process; `at` of its checks are done, all rewards of a text in turn."""

  def __init__(self, batch: Batch, names: list[str], blob: bytes, begin: int, end: int):
    self.batch, self.names, self.blob, self.begin, self.end = batch, names, blob, begin, end
    self.at, self.size = 0, (end - begin) * len(names)

  def run(self, pool, slot) -> None:
    """Does the checks that are left, in as many processes as it takes."""
    deaths, died_at = 0, None      # how often in a row, and in which check; None: while loading
    problems, texts = self.batch.problems[self.begin:self.end], self.batch.texts[self.begin:self.end]
    while self.at < self.size and not self.batch.future.done():
      child, loaded = pool.fill(slot), False
      try:
        send(child.socket, pickle.dumps((self.blob, problems, texts, self.at)), START_SECONDS)
        self._loaded(_answer(child, START_SECONDS))
        loaded = True
        while self.at < self.size:
          self._take(_answer(child, pool.timeout))
          pool.add(checks=1)
      except TimeoutError:
        pool.end(slot)
        if not loaded:
          raise RuntimeError(f"a worker process took longer than {START_SECONDS} s to import {self.what}") from None
        self._put(Score(0.0, "timeout"))
        pool.add(checks=1, timeouts=1, replaced=1)
      except (EOFError, OSError, MemoryError) as error:
        status, where = pool.end(slot), self.at if loaded else None
        pool.add(replaced=1)
        deaths, died_at = (deaths + 1 if where == died_at else 1), where
        if loaded and (deaths == 2 or isinstance(error, MemoryError)):
          self._put(Score(0.0, "crashed"))
          pool.add(checks=1, crashes=1)
        elif deaths == 2:
          raise RuntimeError(f"worker processes die while they import {self.what} (exit status {status});"
                             f" memory={pool.memory} bytes may be too little") from None

  @property
  def what(self) -> str:
    return f"the rewards {', '.join(self.names)}"

  def _put(self, score: Score) -> None:
    text, reward = divmod(self.at, len(self.names))
    self.batch.scores[self.begin + text][self.names[reward]] = score
    self.at += 1

  def _loaded(self, answer: dict) -> None:
    if "error" in answer:
      raise _failure(answer, f"a worker process could not import {self.what}")

  def _take(self, answer: dict) -> None:
    if "error" in answer:
      text, reward = divmod(self.at, len(self.names))
      raise _failure(answer, f"reward {self.names[reward]!r}, problem id={self.batch.problems[self.begin + text].id}")
    if "memory" in answer:
      raise MemoryError
    self._put(Score(answer["value"], answer["verdict"]))


def _answer(child, seconds: float) -> dict:
  return json.loads(receive(child.socket, seconds, MAX_ANSWER))


def _failure(answer: dict, where: str) -> Exception:
  error = (ValueError(f"{where}: {answer['message']}") if answer["value_error"]
           else RuntimeError(f"{where}: {answer['error']}: {answer['message']}"))
  error.add_note("in the worker process:\n" + answer["traceback"])
  return error

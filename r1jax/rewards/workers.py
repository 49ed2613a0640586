"""Rewards in worker processes that can be killed: a check that hangs, eats memory or crashes costs one answer only.

    with Workers(count=2, timeout=10.0) as pool:
      future = pool.submit(terms, problems, texts)     # goes on sampling meanwhile
      results = future.result()                        # [(total, {name: Score}), ..], in the order of the texts

What happens to a check, one reward on one text:
- longer than `timeout` seconds of wall clock: its process and all that it started (its process group) are killed, a new
  one takes over, the check is Score(0, "timeout")
- beyond `memory` bytes of address space: Score(0, "crashed"), new process
- its process dies (a segmentation fault, the kernel's out-of-memory killer, someone's kill): tried once more in a new
  one; if that dies too, Score(0, "crashed")
- the reward raises: the future raises, with the reward and the problem named. ValueError stays ValueError (a gold
  answer that cannot be read is a fault of the data), all else is a RuntimeError: never silently 0
`counts()` says how often. Verdicts of wall-clock limits depend on the machine: a resumed run may differ where one fell.

Rewards go to the processes by name (sending.py says which can). One that needs this process, such as a reward model on
the device, is marked with `in_parent`. Anything else is a ValueError at submit.

The processes are new programs, never forks: the run has threads and jax. They have their own session, so that Ctrl-C
in a terminal reaches the run only, and see no accelerator. They end with close(), with the run, or, on Linux, when the
run is killed; a process that a reward started itself and left behind outlives only the latter. Limits of memory, and an
end when the run is killed in the middle of a check, need Linux.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from r1jax.problem import Problem, Reward
from r1jax.rewards.jobs import CLOSED, Batch, Chunk, Local, Result
from r1jax.rewards.sending import dump, in_parent, is_in_parent

__all__ = ["Workers", "in_parent"]

MAX_CHUNK = 32           # texts in one message
RUN_CHILD = ("import json, sys; fd, parent, memory, sys.path[:] = json.loads(sys.argv[1]); "
             "from r1jax.rewards.child import main; main(fd, parent, memory)")


class Workers:
  """`count` worker processes; a context manager. Safe to use from several threads."""

  def __init__(self, count: int = 2, timeout: float = 10.0, memory: int = 2 * 2**30):
    if count < 1 or not timeout > 0 or memory < 2**27:
      raise ValueError(f"count={count} must be at least 1, timeout={timeout} seconds above 0, and memory={memory} bytes"
                       f" at least {2**27}: Python itself needs some")
    self.count, self.timeout, self.memory = count, timeout, memory
    self._counts = dict(checks=0, timeouts=0, crashes=0, replaced=0)
    self._lock, self.closed = threading.Lock(), False
    self._children: set[Child] = set()
    self._jobs, self._local_jobs = queue.SimpleQueue(), queue.SimpleQueue()
    # A child dies with the thread that started it, so each has its own, for as long as the pool lives.
    self._threads = [threading.Thread(target=_drive, args=(self, self._jobs), daemon=True) for _ in range(count)]
    self._threads.append(threading.Thread(target=_drive, args=(self, self._local_jobs), daemon=True))
    for thread in self._threads:
      thread.start()
    atexit.register(self.close)

  def submit(self, terms: dict[str, tuple[float, Reward]], problems: Sequence[Problem],
             texts: Sequence[str]) -> Future[list[Result]]:
    """Scores of texts[i] as an answer to problems[i]: a future of what rewards.total_reward gives for each.

    Returns at once. The future cannot be cancelled; close() ends it with a RuntimeError.
    """
    if len(problems) != len(texts):
      raise ValueError(f"{len(problems)} problems for {len(texts)} texts")
    rewards = {name: reward for name, (_, reward) in terms.items()}
    local = {name: reward for name, reward in rewards.items() if is_in_parent(reward)}
    remote = {name: reward for name, reward in rewards.items() if name not in local}
    blob = dump(remote)
    batch = Batch(terms, list(problems), list(texts))
    size = max(1, min(MAX_CHUNK, len(texts) // (4 * self.count)))
    chunks = [Chunk(batch, list(remote), blob, i, min(i + size, len(texts)))
              for i in range(0, len(texts), size)] if remote else []
    batch.parts_left = len(chunks) + bool(local)
    with self._lock:
      if self.closed:
        raise RuntimeError("the worker processes are closed")
      for chunk in chunks:
        self._jobs.put(chunk)
      if local:
        self._local_jobs.put(Local(batch, local))
    if not batch.parts_left:
      batch.finish()
    return batch.future

  def score(self, terms: dict[str, tuple[float, Reward]], problems: Sequence[Problem],
            texts: Sequence[str]) -> list[Result]:
    return self.submit(terms, problems, texts).result()

  def counts(self) -> dict[str, int]:
    """Since the start: checks done in workers, timeouts and crashes among them, processes replaced."""
    with self._lock:
      return dict(self._counts)

  def close(self) -> None:
    """Kills all processes. Futures that are not done raise RuntimeError."""
    atexit.unregister(self.close)
    with self._lock:
      self.closed = True
      for child in self._children:
        child.kill()
    for _ in range(self.count):
      self._jobs.put(None)
    self._local_jobs.put(None)
    for thread in self._threads[:-1]:
      thread.join()                        # the last may be amid a reward that has no limit of time

  def __enter__(self) -> Workers:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def add(self, **counts: int) -> None:
    with self._lock:
      for name, n in counts.items():
        self._counts[name] += n

  def fill(self, slot: Slot) -> Child:
    with self._lock:
      if self.closed:
        raise RuntimeError(CLOSED)
      if slot.child is None:
        slot.child = Child(self.memory)
        self._children.add(slot.child)
      return slot.child

  def end(self, slot: Slot) -> int | None:
    """Kills the process, if there is one; its exit status."""
    if slot.child is None:
      return None
    with self._lock:
      self._children.discard(slot.child)
      slot.child.kill()
    status, slot.child = slot.child.wait(), None
    return status


class Slot:
  """A thread's place for its process."""
  child: Child | None = None


class Child:
  """A process, and the socket to talk to it."""

  def __init__(self, memory: int):
    self.socket, theirs = socket.socketpair()
    with theirs:
      env = os.environ | dict(JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONHASHSEED="0")
      arguments = json.dumps([theirs.fileno(), os.getpid(), memory, [str(path) for path in sys.path]])
      self.process = subprocess.Popen(
        [sys.executable, "-c", RUN_CHILD, arguments], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
        start_new_session=True, env=env)

  def kill(self) -> None:
    """The whole group. It still has its number: nobody has waited for the process yet."""
    if self.process.returncode is None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self.process.pid, signal.SIGKILL)

  def wait(self) -> int:
    self.socket.close()
    return self.process.wait()


def _drive(pool: Workers, jobs: queue.SimpleQueue) -> None:
  """A thread of the pool: one job after the other, with one process at a time."""
  slot = Slot()
  while (job := jobs.get()) is not None:
    try:
      job.run(pool, slot)
    except Exception as error:
      pool.end(slot)              # it may be anywhere in the job
      job.batch.fail(error)
    else:
      job.batch.part_done()
  pool.end(slot)

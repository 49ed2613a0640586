"""One worker process of workers.py: loads rewards, applies them, answers one by one.

Starts without jax. What it limits of itself: address space, core files. What it cannot limit of itself, time, its
parent does. On Linux the kernel kills it when its parent dies, also in the middle of a check.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import os
import pickle
import resource
import signal
import socket
import sys
import traceback

from r1jax.problem import Problem, Reward
from r1jax.rewards.sending import load, prepare, receive, send

PR_SET_PDEATHSIG = 1     # linux/prctl.h
MAX_VERDICT = 100        # characters


def main(fd: int, parent: int, memory: int) -> None:
  """Serves messages from the socket `fd` until its other end is closed."""
  _limit(parent, memory)
  sock = socket.socket(fileno=fd)
  sock.set_inheritable(False)             # not for the processes that a reward starts
  os.dup2(2, 1)                           # what a reward prints is a message, not the output of the run
  loaded = functools.lru_cache(maxsize=8)(ready)
  while True:
    try:
      blob, problems, texts, start = pickle.loads(receive(sock))
    except (EOFError, OSError):
      return
    try:
      rewards = loaded(blob)
    except BaseException as error:
      _answer(sock, _error(error))
      continue
    _answer(sock, dict(loaded=True))
    for k in range(start, len(texts) * len(rewards)):
      i, j = divmod(k, len(rewards))
      name = list(rewards)[j]
      answer = check(rewards[name], problems[i], texts[i])
      _answer(sock, answer)
      if "error" in answer:               # the parent gives up on the rest
        break


def ready(blob: bytes) -> dict[str, Reward]:
  rewards = load(blob)
  for reward in rewards.values():
    prepare(reward)
  return rewards


def check(reward: Reward, problem: Problem, text: str) -> dict:
  """What the parent is told of one check: a value and verdict, that memory ran out, or an error."""
  try:
    result = reward(problem, text)
    value, verdict = result
    value = float(value)
    if not math.isfinite(value) or not isinstance(verdict, str) or len(verdict) > MAX_VERDICT:
      raise TypeError(f"a reward must return Score(finite number, short string), not {str(result)[:200]}")
  except MemoryError:
    return dict(memory=True)
  except BaseException as error:          # SystemExit too: an error of the reward, for the run to show
    return _error(error)
  return dict(value=value, verdict=verdict)


def _error(error: BaseException) -> dict:
  return dict(error=type(error).__name__, message=str(error)[:1000], value_error=isinstance(error, ValueError),
              traceback="".join(traceback.format_exception(error, limit=-8))[-4000:])


def _answer(sock: socket.socket, answer: dict) -> None:
  """JSON, not pickle: what has read hostile text has no power over the run."""
  send(sock, json.dumps(answer).encode())


def _limit(parent: int, memory: int) -> None:
  if sys.platform == "linux":
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
      raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:            # it died before the line above
      os._exit(1)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

"""Rewards for tests/test_workers.py: what a worker process may meet."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from r1jax.problem import Problem, Score


def length(problem: Problem, text: str, *, scale: float = 1.0) -> Score:
  return Score(scale * len(text), "counted")


PREPARED = []


def is_prepared(problem: Problem, text: str) -> Score:
  return Score(float(len(PREPARED)))


def _prepare() -> None:
  time.sleep(1.5)                         # longer than the limit of a check
  PREPARED.append(True)


is_prepared.prepare = _prepare


def obedient(problem: Problem, text: str) -> Score:
  """Does what the text says."""
  word, _, rest = text.partition(" ")
  if word == "hang":
    while True:
      pass
  if word == "hang_in_c":                 # one operation that never gives the interpreter back
    return Score(9**9**9)
  if word == "sleep":
    time.sleep(float(rest))
  if word == "spawn":                     # a process of its own, whose id it writes down, then hangs
    other = subprocess.Popen(["sleep", "1000"])
    Path(rest).write_text(str(other.pid))
    time.sleep(1000)
  if word == "memory":
    return Score(len(bytearray(10**12)))
  if word == "memory_slowly":
    hoard = []
    while True:
      hoard.append(bytearray(10**7))
  if word == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  if word == "die_once" and not Path(rest).exists():
    Path(rest).touch()
    os._exit(0)
  if word == "value_error":
    raise ValueError("gold answer '?' is not readable")
  if word == "raise":
    raise ZeroDivisionError("1/0")
  if word == "exit":
    sys.exit(3)
  if word == "deep":
    return obedient(problem, "deep")
  if word == "print":
    print(rest)
  if word == "nan":
    return Score(float("nan"))
  if word == "float":
    return 1.0
  if word == "jax":
    return Score(float("jax" in sys.modules), str(sorted(sys.modules.keys() & {"jax", "numpy", "flax"})))
  if word == "pid":
    return Score(os.getpid())
  return Score(1.0, f"{problem.id} {text}")


class Suffix:
  """A reward that is an object."""

  def __init__(self, suffix: str):
    self.suffix = suffix

  def __call__(self, problem: Problem, text: str) -> Score:
    return Score(float(text.endswith(self.suffix)))

  def starts(self, problem: Problem, text: str) -> Score:
    return Score(float(text.startswith(self.suffix)))

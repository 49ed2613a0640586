"""The least wall time of several runs, as every benchmark here takes it, and what else the machine did meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def best(run: Callable, repeats: int) -> float:
  """Seconds: the least of `repeats` runs after one that compiles, as other work on the machine only adds."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - began)
  return min(times)


def matmul_speed(size: int = 1536, repeats: int = 5, dtype: str = "float32") -> float:
  """FLOP/s of a large matmul: what this machine can do at best."""
  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(lambda a, b: a @ b)
  return 2 * size**3 / best(lambda: multiply(x, x), repeats)


class OtherWork:
  """How busy the machine is with other processes than this one and its children `pids`, from here on. Linux only."""

  def __init__(self, pids: Sequence[int] = ()):
    self.pids = pids
    self.began, self.before = time.monotonic(), self._seconds()

  def share(self) -> float:
    """Of the time of all cores; nan where there is no /proc."""
    return max(0.0, self._seconds() - self.before) / (time.monotonic() - self.began) / os.cpu_count()

  def _seconds(self) -> float:
    try:
      busy = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
      ours = sum(sum(map(int, open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[11:13]))
                 for pid in (os.getpid(), *self.pids))
    except OSError:
      return math.nan
    return (sum(busy) - busy[3] - busy[4] - ours) / os.sysconf("SC_CLK_TCK")       # idle, waiting for a disk

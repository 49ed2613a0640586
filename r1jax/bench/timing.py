"""The least wall time of several runs, as every benchmark here takes it."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax


def best(run: Callable, repeats: int) -> float:
  """Seconds: the least of `repeats` runs after one that compiles, as other work on the machine only adds."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - began)
  return min(times)

"""Lengths of answers before there are any: log-normal, cut at the longest that is allowed, with a given mean.

The tail is what matters: a rollout ends with its longest answer. R1 publishes means alone, so the width (sigma of the
logarithm) is an assumption. Letters: r1jax/types.py.
"""

from __future__ import annotations

import math

import numpy as np


def lognormal(mean: float, most: int, sigma: float, count: int, seed: int = 0) -> np.ndarray:
  """`count` lengths, 1 to `most`, whose expected mean is `mean`. ValueError where no such distribution exists."""
  if mean == most == 1:
    return np.ones(count, np.int64)
  if not 1 <= mean < most:
    raise ValueError(f"a mean length of {mean:g} must be at least 1 and below the longest, {most}")
  normal_N = np.random.default_rng(seed).standard_normal(count)
  return np.clip(np.rint(np.exp(location(mean, most, sigma) + sigma * normal_N)), 1, most).astype(np.int64)


def location(mean: float, most: int, sigma: float) -> float:
  """The mean of the logarithm with which the cut distribution has that mean."""
  low, high = math.log(mean) - sigma**2 - 1, math.log(most) + 8 * sigma + 1
  for _ in range(80):
    middle = (low + high) / 2
    low, high = (middle, high) if cut_mean(middle, most, sigma) < mean else (low, middle)
  return (low + high) / 2


def cut_mean(location: float, most: int, sigma: float) -> float:
  """E min(X, most) of a log-normal X."""
  if sigma == 0:
    return min(math.exp(location), most)
  z = (math.log(most) - location) / sigma
  below = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))
  return math.exp(location + sigma**2 / 2) * below(z - sigma) + most * below(-z)


def truncated_share(mean: float, most: int, sigma: float) -> float:
  """Share of answers that do not end before `most`."""
  z = (math.log(most) - location(mean, most, sigma)) / max(sigma, 1e-9)
  return 0.5 * math.erfc(z / math.sqrt(2))


def balance(work_N, groups: int) -> float:
  """Mean over largest load when each piece of work goes, largest first, to the group with the least so far.

  What packing to equal loads reaches (R1 supplement 2.1 sorts and equalises so): a device waits for the busiest one.
  """
  work_N = np.sort(np.asarray(work_N, np.float64))[::-1]
  load = np.zeros(groups)
  for work in work_N:
    load[load.argmin()] += work
  return float(load.mean() / load.max())

"""How sure a pass@1 is, and whether two evaluations of the same problems differ by more than chance.

The unit is the problem: answers to one are not independent (Miller, "Adding Error Bars to Evals", 2411.00640: clustered
standard errors, paired differences). p is a problem's share of right answers; B problems, G answers each.
- `interval`: Wilson's score interval with an effective sample size, mean (1 - mean) / se^2, se the clustered standard
  error. It stays within 0 and 1, and has a width where all problems agree (then B counts).
- `compare`: mean of the paired differences, its percentile bootstrap interval over problems, and the p-value of a
  sign-flip permutation test, exact up to EXACT differing problems.

Limits: both treat the problems as drawn from a larger world of such; the bootstrap's interval is too narrow for fewer
than some 20 problems; many comparisons need a stricter level, which is the reader's to choose.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EXACT = 12          # differing problems up to which all 2^n signs are tried
BLOCK = 2**20       # random numbers held at a time


@dataclasses.dataclass(frozen=True)
class Answered:
  """One evaluation: its Parquet file of answers, by problem."""
  path: Path
  gold: dict                         # problem id -> gold answer
  prompt: dict                       # problem id -> prompt
  right: dict[int, list[bool]]       # problem id -> whether each answer was right

  @property
  def name(self) -> str:
    return self.path.stem


@dataclasses.dataclass(frozen=True)
class Comparison:
  """B minus A. A problem is won where B has the larger share of right answers."""
  difference: float
  low: float
  high: float
  p_value: float
  exact: bool                        # all signs were tried
  wins: int
  losses: int
  ties: int


def read(path: str | Path) -> Answered:
  """The evaluation whose .json or .parquet this is. ValueError for a table that `r1jax eval` did not write."""
  path = Path(path)
  path = path.with_name(path.name.removesuffix(".json").removesuffix(".parquet") + ".parquet")
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file (expected what r1jax eval wrote: NAME.parquet beside NAME.json)")
  columns = ("problem", "sample", "prompt", "gold", "reward/accuracy")
  try:
    with pq.ParquetFile(path) as file:
      if missing := [name for name in columns if name not in file.schema_arrow.names]:
        raise ValueError(f"{path}: no column {', '.join(missing)}: not a table of r1jax eval")
      table = file.read(list(columns)).to_pydict()
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f"{path}: not a Parquet file, or cut short ({error})") from error
  gold, prompt, right, seen = {}, {}, {}, set()
  for id, sample, asked, wanted, value in zip(*(table[name] for name in columns), strict=True):
    if (id, sample) in seen or gold.get(id, wanted) != wanted or prompt.get(id, asked) != asked:
      raise ValueError(f"{path}: problem {id} is there twice")
    seen.add((id, sample))
    gold[id], prompt[id] = wanted, asked
    right.setdefault(id, []).append(value == 1)
  if not right:
    raise ValueError(f"{path}: no answers in it")
  return Answered(path, gold, prompt, right)


def shares(a: Answered, b: Answered) -> tuple[list[int], np.ndarray, np.ndarray]:
  """(problem ids, p of A, p of B), paired. ValueError, with the numbers, where the problems are not the same."""
  ids, of_b = a.right.keys(), b.right.keys()
  if ids != of_b:
    only_a, only_b = sorted(ids - of_b), sorted(of_b - ids)
    told = [f"{len(only)} only in {e.name}, such as {only[0]}" for only, e in ((only_a, a), (only_b, b)) if only]
    raise ValueError(f"not the same problems: {a.name} has {len(ids)}, {b.name} {len(of_b)}, {len(ids & of_b)} are in"
                     f" both; {'; '.join(told)}")
  ids = sorted(ids)
  if other := [id for id in ids if a.gold[id] != b.gold[id]]:
    raise ValueError(f"not the same problems: {len(other)} of {len(ids)} have another gold answer, such as problem"
                     f" {other[0]}: {str(a.gold[other[0]])[:80]!r} and {str(b.gold[other[0]])[:80]!r}")
  return ids, *(np.array([np.mean(e.right[id]) for id in ids]) for e in (a, b))


def interval(right: Sequence[Sequence[bool]], level: float = 0.95) -> tuple[float, float]:
  """(low, high) for pass@1, from whether each answer to each problem was right."""
  p = np.array([np.mean(each) for each in right])
  mean, answers = float(p.mean()), sum(map(len, right))
  n = float(len(p))
  if len(p) > 1 and 0 < mean < 1:
    variance = p.var(ddof=1) / len(p)
    # answers of one problem are at best independent of each other
    n = min(mean * (1 - mean) / variance, answers) if variance else float(answers)
  z = NormalDist().inv_cdf((1 + level) / 2)
  middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
  return max(0.0, middle - half) if mean else 0.0, min(1.0, middle + half) if mean < 1 else 1.0   # exact at the edges


def by_subject(ids: Sequence[int], right_BG: np.ndarray, subjects: dict[int, str]) -> dict[str, dict]:
  """problems, pass@1 and its interval of each subject, by name; ids without a subject do not count."""
  rows: dict[str, list[int]] = {}
  for b, id in enumerate(ids):
    if id in subjects:
      rows.setdefault(subjects[id], []).append(b)
  return {name: {"problems": len(b), "pass@1": float(right_BG[b].mean()), "interval": interval(right_BG[b])}
          for name, b in sorted(rows.items())}


def compare(p_a, p_b, *, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Comparison:
  """The paired difference B - A of shares p, problem by problem. At least two problems."""
  d = np.asarray(p_b, float) - np.asarray(p_a, float)
  if d.ndim != 1 or len(d) < 2 or draws < 100 or not 0 < level < 1:
    raise ValueError(f"compare needs at least 2 paired problems, got shape {d.shape}; draws={draws} of at least 100;"
                     f" level={level} within 0 and 1")
  rng = np.random.default_rng(seed)
  blocks = [min(max(1, BLOCK // len(d)), draws - i) for i in range(0, draws, max(1, BLOCK // len(d)))]
  means = np.concatenate([d[rng.integers(len(d), size=(k, len(d)))].mean(1) for k in blocks])
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  moved = d[d != 0]
  exact = len(moved) <= EXACT
  if exact:
    sums = np.array([np.dot(signs, moved) for signs in itertools.product((1, -1), repeat=len(moved))])
  else:
    sums = np.concatenate([rng.choice((-1.0, 1.0), size=(k, len(moved))) @ moved for k in blocks])
  extreme = int((np.abs(sums) >= abs(moved.sum()) - 1e-9).sum())      # sums of thirds are not exact
  p_value = extreme / len(sums) if exact else (extreme + 1) / (draws + 1)
  wins, losses = int((d > 0).sum()), int((d < 0).sum())
  return Comparison(float(d.mean()), float(low), float(high), p_value, exact, wins, losses, len(d) - wins - losses)

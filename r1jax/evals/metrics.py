"""pass@k and cons@k of n sampled answers to a problem. Each function is for one problem; average over problems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def pass_at_k(n: int, correct: int, k: int) -> float:
  """1 - C(n - c, k) / C(n, k): the chance that k of the n answers hold a right one, unbiased (Codex, 2107.03374)."""
  if not 1 <= k <= n:
    raise ValueError(f"pass@{k} needs 1 <= k <= n = {n} samples")
  return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def consensus(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
  """cons@n: is the most frequent final answer right? Of equally frequent ones each counts its share.

  answers: normalised final answers, None where there is none (no vote). 0 where nobody votes.
  """
  votes = Counter(a for a in answers if a is not None)
  if not votes:
    return 0.0
  top = max(votes.values())
  leaders = [a for a, count in votes.items() if count == top]
  right = {a for a, ok in zip(answers, correct, strict=True) if ok}
  return sum(a in right for a in leaders) / len(leaders)

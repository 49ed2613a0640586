"""What the numbers of a stage alone say, for a person to look at: one line each.

More, with thresholds and config keys to try, is the doctor's (checks.py).
"""

from __future__ import annotations

import functools
import math
import statistics


def ends_of(rows: list[dict], key: str) -> tuple[float, float, float]:
  """Means of a metric over the first and the last fifth of the steps, and the standard error of their difference.

  Too few steps: NaN for the means, infinity for the error.
  """
  values = [row[key] for row in rows if row.get(key) is not None]
  fifth = len(values) // 5
  if not fifth:
    return math.nan, math.nan, math.inf
  parts = values[:fifth], values[-fifth:]
  error = math.sqrt(sum(statistics.pvariance(part) / fifth for part in parts)) if fifth > 3 else math.inf
  return statistics.fmean(parts[0]), statistics.fmean(parts[1]), error


def same_reward(rows: list[dict]) -> list[dict]:
  """The last rows, those whose reward is made of the same parts: before them the total was of something else."""
  of = lambda row: {key for key in row if key.startswith("reward/")}
  rows = [row for row in rows if "reward" in row] or rows
  first = next((i for i in range(len(rows) - 1, -1, -1) if of(rows[i]) != of(rows[-1])), -1)
  return rows[first + 1:]


def look_at(rows: list[dict]) -> list[str]:
  """What the numbers alone say is wrong: [] is good. Compared: the first fifth of the steps and the last."""
  said = []
  for key in ("loss", "grad_norm", "reward", "kl"):
    if broken := [row["step"] for row in rows if key in row and row[key] is None]:
      said.append(f"{key} was not finite in {len(broken)} step(s), first at step {broken[0]}.")

  ends = functools.partial(ends_of, rows)
  right_then, right, _ = ends("accuracy")
  if (share := ends("zero_variance_share")[1]) > 0.8:
    why = ("the problems have become too easy" if right > 0.9 else "the problems are still too hard"
           if right < 0.1 else "a problem is solved always or never; larger groups would tell more")
    said.append(f"{share:.0%} of groups agree and so teach nothing: {why}.")
  if (share := ends("truncated_share")[1]) > 0.1:
    said.append(f"{share:.0%} of answers are cut off at the length limit, and are judged unfinished.")
  then, now, _ = ends("entropy")
  if now < 0.1 * then:
    solved = ", as it will on a task that is solved" if right > 0.9 else ": exploring has all but stopped"
    said.append(f"Entropy fell from {then:.3g} to {now:.3g} nats a token{solved}.")
  if (gap := ends("mismatch/k3")[1]) > 1e-3:
    said.append(f"Sampler and trainer disagree (k3 {gap:.2g}; healthy is below 0.001): look for a difference "
                "in precision, masks or temperature before trusting the curves.")
  if (share := ends("clip_share")[1]) > 0.2:
    said.append(f"{share:.0%} of tokens are clipped: updates are too large, or the answers too old.")
  then, now, error = ends_of(same_reward(rows), "reward")
  if now - then < -2 * error:
    said.append(f"Reward fell, from {then:.3g} to {now:.3g}.")
  elif now - then <= 2 * error < math.inf and not right > 0.9:
    said.append(f"Reward is flat: {then:.3g} at the start, {now:.3g} at the end, within its noise.")
  elif right < right_then - 0.05:
    said.append(f"Accuracy fell ({right_then:.0%} to {right:.0%}), reward did not: it is earned elsewhere.")
  return said

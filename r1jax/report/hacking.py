"""Reward against what it does not see: is what rises what was wanted?

An RL stage's trained reward is set beside its held-out figures (the rows' eval/*, and the evaluations of the policies
before and after the stage). A figure is flagged where it falls while the reward rises, both beyond their noise; the
paper shows such a case for a preference reward that is trained on for too long (v2, B.5). Where a reward is given new
parts within a stage, only what follows is looked at. A flag says where to read answers, it proves nothing: a figure may
fall for another reason.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import statistics
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from r1jax.report.advice import ends_of, same_reward
from r1jax.report.figures import Figures
from r1jax.report.folder import Run, Stage, label, show
from r1jax.report.markup import esc, list_html, notes_html, table_html

FALL = 0.03          # of a figure's height: smaller falls are not told; ours
ERRORS = 2.0         # standard errors that a movement must exceed; ours
POINTS = 200         # evaluations that are compared with each other, spread evenly
NEUTRAL = ("*length*", "*tokens*", "*seconds*", "*truncated*")     # figures of which less is no loss


class Fall(NamedTuple):
  """A held-out figure's deepest fall while the reward rose, between two evaluations."""
  key: str
  steps: tuple[int, int]
  figure: tuple[float, float]
  reward: tuple[float, float]


def seen(keys, prefix: str = "") -> list[str]:
  """The figures among `keys` that less of is worse."""
  return [key for key in keys if key.startswith(prefix) and not any(fnmatch.fnmatch(key, of) for of in NEUTRAL)]


def problems_of(run: Run, policy: str) -> dict[str, int]:
  """How many problems a policy's evaluation asked, by scenario; "" are all. {} where its answers cannot be read."""
  try:
    names = pq.read_schema(run.eval_samples[policy]).names
    table = pq.read_table(run.eval_samples[policy], columns=[n for n in ("problem", "scenario") if n in names])
    problems = table.column("problem").to_pylist()
    scenarios = table.column("scenario").to_pylist() if "scenario" in names else [""] * len(problems)
  except (pa.ArrowException, OSError, KeyError, ValueError):
    return {}
  asked = set(zip(scenarios, problems, strict=True))
  return {"": len(asked)} | {str(name): sum(of == name for of, _ in asked) for name in {of for of, _ in asked} if name}


def error_of(name: str, value: float, problems: dict[str, int]) -> float:
  """The standard error of a share over its scenario's problems, or as many as reasoning has; 0 of what is no share."""
  n = problems.get(name.partition("/")[0]) or problems.get("reasoning") or problems.get("")
  return math.sqrt(value * (1 - value) / n) if n and 0 <= value <= 1 else 0.0


def deepest_fall(rows: list[dict], key: str) -> Fall | None:
  """The largest fall of rows' `key` over any stretch in which the mean reward rose; None where there is none.

  The reward of an evaluation is the mean over the steps since the one before. Noise: of the figure, the median step
  between neighbours; of the reward, the standard error of its means.
  """
  points, rewards = [], []
  for row in same_reward(rows):
    if row.get("reward") is not None:
      rewards.append(row["reward"])
    if row.get(key) is not None and rewards:
      error = statistics.pvariance(rewards) / len(rewards)
      points.append((row["step"], row[key], statistics.fmean(rewards), error))
      rewards = []
  every = math.ceil(len(points) / POINTS) or 1
  points = points[::every]
  if len(points) < 2:
    return None
  noise = statistics.median(abs(b[1] - a[1]) for a, b in itertools.pairwise(points))
  noise = noise if len(points) > 4 else 0.0      # of few points the movement itself would count as noise
  found, deepest = None, 0.0
  for i, (start, high, then, error) in enumerate(points):
    for end, low, now, error_now in points[i + 1:]:
      rose = now - then > ERRORS * math.sqrt(error + error_now) and now > then
      if rose and high - low > max(deepest, FALL * abs(high), ERRORS * noise):
        found, deepest = Fall(key, (start, end), (high, low), (then, now)), high - low
  return found


def falls(stage: Stage) -> list[Fall]:
  keys = dict.fromkeys(key for row in stage.rows for key in row)
  return [fall for key in seen(keys, "eval/") if (fall := deepest_fall(stage.rows, key))]


def said(stage: Stage) -> list[str]:
  """The falls in words."""
  return [f"{label(fall.key.removeprefix('eval/'))} fell from {show(fall.key, fall.figure[0])} to "
          f"{show(fall.key, fall.figure[1])} between steps {fall.steps[0]:,} and {fall.steps[1]:,}, while the reward "
          f"rose from {fall.reward[0]:.3g} to {fall.reward[1]:.3g}." for fall in falls(stage)]


def change(run: Run, stage: Stage) -> tuple[list[tuple[str, ...]], list[str]]:
  """Figures of the policy that the stage began with and of the one that it left: a table, and what fell."""
  ends = (stage.start, stage.name) if run.is_pipeline else ("base", "final" if stage is run.stages[-1] else "")
  before, after = map(run.evals.get, ends)
  if not before or not after:
    return [], []
  then, now, error = ends_of(same_reward(stage.rows), "reward")
  asked = [problems_of(run, policy) for policy in ends]
  rose = now - then > (ERRORS * error if math.isfinite(error) else 0)
  table, fell = [("", "before", "after", "")], []
  for name in seen(after):
    a, b = before.get(name), after[name]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (a, b)):
      continue
    noise = math.hypot(*(error_of(name, value, of) for value, of in zip((a, b), asked, strict=True)))
    down = a - b > max(FALL * abs(a), ERRORS * noise)
    table.append((label(name), show(name, a), show(name, b), "▼ fell" if down else ""))
    if down and rose:
      fell.append(f"{label(name)} was {show(name, a)} before the stage and is {show(name, b)} after it, while the "
                  f"reward rose from {then:.3g} to {now:.3g}.")
  return (table if len(table) > 1 else []), fell


def hacked(run: Run) -> list[str]:
  return [f"{stage.name}: {line}" for stage in run.stages if stage.is_rl for line in (*said(stage),
                                                                                    *change(run, stage)[1])]


def folded(table: list[tuple[str, ...]], opened: bool) -> str:
  return (f'<details class="note"{" open" * opened}><summary>{len(table) - 1} figures before and after</summary>'
          f"{table_html(table)}</details>") if table else ""


def section(run: Run, figures: Figures) -> str:
  """For each RL stage: reward over held-out figures, flagged stretches shaded; then the ends of the stage."""
  body = ""
  for i, stage in enumerate(run.stages):
    if not stage.is_rl:
      continue
    keys = dict.fromkeys(key for row in stage.rows for key in row)
    spans = sorted({fall.steps for fall in falls(stage)})
    parts = [key for key in keys if key == "reward" or key.startswith("reward/")]
    table, fell = change(run, stage)
    drawn = figures.figure(i, stage.rows, "What is trained", parts, "reward and its parts", spans=spans)
    held = figures.figure(i, stage.rows, "What it does not see", seen(keys, "eval/"), "held-out figures", spans=spans)
    flags = [*said(stage), *fell]
    verdict = list_html("Look here", flags, "aside") or notes_html(
      ["No held-out figure fell, beyond its noise, while reward rose."])
    if not held and not table:
      verdict = notes_html(["Nothing was held out: there is nothing to set the reward against."])
    body += (f'<h3>{esc(stage.name)}</h3><div class="pair">{drawn}{held}</div>'
             f'<div class="top">{folded(table, bool(fell))}{verdict}</div>')
  return f"<h2>Reward against what it does not see</h2>{body}" if body else ""

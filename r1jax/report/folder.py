"""A run's folder as the report sees it: what it holds, what the numbers say, what a person reads first.

The folder may be that of a run in progress or of a killed one. So nothing here trusts a file to be whole: what cannot
be read becomes a note, never an exception.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.report import bill

SHARE = re.compile(r"(?!reward).*(accuracy|pass@|cons@|share|strict|lenient|verdict/|ledger/mfu)")   # shown in percent


class Stage(NamedTuple):
  name: str
  rows: list[dict[str, float | None]]   # one a step, in order; None where the run logged NaN or infinity
  samples: list[tuple[int, Path]]       # (step, parquet file), in order


class Run(NamedTuple):
  title: str
  config: dict[str, Any]
  result: dict[str, Any] | None         # None: the run has not ended
  stages: list[Stage]
  notes: list[str]                      # what could not be read
  ledger: dict[str, Any] | None = None  # ledger.json


def number(value) -> float | None:
  """A float, or None for what is not a usable one. Beyond 1e30 a float32 run has diverged: as good as NaN."""
  return float(value) if isinstance(value, int | float) and abs(value) < 1e30 else None


def read_json(path: Path, notes: list[str]) -> dict | None:
  try:
    value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    value = error
  if not isinstance(value, dict):
    notes.append(f"{path.name} could not be read: {value}")
  return value if isinstance(value, dict) else None


def read_rows(path: Path, notes: list[str]) -> list[dict]:
  """The rows by step. Rows of one step are merged; a step that goes back (a resume) drops what followed."""
  rows, bad, last = {}, 0, -math.inf
  for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
    try:
      row = json.loads(line) if line.strip() else None
    except ValueError:
      row = {}
    if row is None:
      continue
    row = {key: number(value) for key, value in row.items()} if isinstance(row, dict) else {}
    if row.get("step") is None:
      bad += 1
      continue
    step, row["step"] = row["step"], int(row["step"])
    if step < last:
      rows = {s: r for s, r in rows.items() if s < step}
    last = step
    rows.setdefault(step, {}).update(row)
  if bad:
    notes.append(f"{path.parent.name}/{path.name}: {bad} unreadable line{'s' * (bad > 1)} skipped "
                 "(a half-written last line is normal while a run goes on)")
  return list(rows.values())


def read(workdir: Path) -> Run:
  notes: list[str] = []
  config = read_json(workdir / "config.json", notes)
  if config is None:
    notes.append("no readable config.json: stages are listed by name, not in the order they ran")
    config = {"stages": sorted(path.parent.name for path in workdir.glob("*/metrics.jsonl"))}
  stages, names = [], config.get("stages")
  for name in map(str, names if isinstance(names, list) else ()):
    found = [(int(match[1]), path) for path in (workdir / name / "samples").glob("step_*.parquet")
             if (match := re.fullmatch(r"step_(\d+)\.parquet", path.name))]
    stages.append(Stage(name, read_rows(workdir / name / "metrics.jsonl", notes), sorted(found)))
  title = str(config.get("name") or ", then ".join(stage.name for stage in stages) or workdir.name)
  return Run(title, config, read_json(workdir / "result.json", notes), stages, notes,
             read_json(workdir / "ledger.json", notes))


def show(key: str, value) -> str:
  """A number as a person reads it; `key` says its unit."""
  value = value if isinstance(value, str) else number(value)
  if value is None or isinstance(value, str):
    return value or "–"
  if SHARE.match(key):
    return f"{100 * value:.1f}%"
  if key.split("/")[0] == "seconds":
    hours, minutes = f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min", f"{value / 60:.1f} min"
    return hours if value >= 3600 else minutes if value >= 60 else f"{value:.3g} s"
  return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def summary_of(run: Run) -> list[tuple[str, str, str]]:
  if run.result is None:   # unfinished: the best that there is
    table = [("so far", "first logged", "last logged")]
    for stage in run.stages:
      for key in ("loss", "reward", "accuracy", "length", "eval/greedy_accuracy", "eval/greedy_length"):
        if values := [row[key] for row in stage.rows if row.get(key) is not None]:
          table.append((f"{stage.name}: {key}", show(key, values[0]), show(key, values[-1])))
    return table
  keys = [key.partition("/") for key in run.result]
  pairs = dict.fromkeys(name for side, _, name in keys if side in ("base", "final"))
  table = [("", "base", "final")]
  for name in pairs:
    label = "mean answer length, tokens" if name == "length" else name.replace("_", " ")
    table.append((label, *(show(name, run.result[f"{side}/{name}"])
                  if f"{side}/{name}" in run.result else "" for side in ("base", "final"))))
  return table + [(key.replace("seconds/", "time, "), "", show(key, run.result[key])) for key in run.result
                  if key.partition("/")[0] not in ("base", "final")]


def bill_of(run: Run) -> tuple[list[tuple[str, ...]], list[str]]:
  """The table of what the run cost and what is to be said of it; ([], []) where there is none, or none to be read."""
  try:
    table = bill.table(run.ledger)
    return table, bill.notes(run.ledger) if table else []
  except (AttributeError, KeyError, TypeError, ValueError):
    return [], ["ledger.json could not be read"]


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
  then, now, error = ends("reward")
  if now - then < -2 * error:
    said.append(f"Reward fell, from {then:.3g} to {now:.3g}.")
  elif now - then <= 2 * error < math.inf and not right > 0.9:
    said.append(f"Reward is flat: {then:.3g} at the start, {now:.3g} at the end, within its noise.")
  elif right < right_then - 0.05:
    said.append(f"Accuracy fell ({right_then:.0%} to {right:.0%}), reward did not: it is earned elsewhere.")
  return said

"""A run's folder as the report sees it: what it holds, what the numbers say, what a person reads first.

The folder may be that of a run in progress or of a killed one. So nothing here trusts a file to be whole: what cannot
be read becomes a note, never an exception.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.report import bill

NO_POLICY = ("rejection", "reward_model")     # kinds of stages that leave the policy as it was
SHARE = re.compile(r"(?!reward).*(accuracy|pass@|cons@|share|strict|lenient|verdict/|ledger/mfu)")   # shown in percent


class Stage(NamedTuple):
  name: str
  rows: list[dict[str, float | None]]   # one a step, in order; None where the run logged NaN or infinity
  samples: list[tuple[int, Path]]       # (step, parquet file), in order
  kind: str                             # what it does: pretrain, rejection, reasoning_rl, ...
  start: str                            # the stage whose policy it starts from; "": none
  data: str                             # the stage whose data it learns from; "": none
  info: dict[str, Any]                  # stage.json: seconds, finished, redone; {} where there is none
  filters: dict[str, Any] | None        # filters.json of a rejection stage

  @property
  def is_rl(self) -> bool:
    return self.kind not in NO_POLICY and any("reward" in row for row in self.rows)


class Run(NamedTuple):
  title: str
  config: dict[str, Any]
  result: dict[str, Any] | None         # None: the run has not ended
  stages: list[Stage]
  notes: list[str]                      # what could not be read
  ledger: dict[str, Any] | None         # ledger.json
  evals: dict[str, dict[str, Any]]      # of each policy that was evaluated, in the run's order
  eval_samples: dict[str, Path]         # and its answers

  @property
  def is_pipeline(self) -> bool:
    """Whether stages have artefacts and lineage; else a plain chain, evaluated at its ends."""
    return any(stage.info or stage.data for stage in self.stages) or bool(set(self.evals) - {"base", "final"})


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
  stages: list[Stage] = []
  names = config.get("stages")
  for name in map(str, names if isinstance(names, list) else ()):
    stages.append(read_stage(workdir, name, config, stages, notes))
  title = str(config.get("name") or ", then ".join(stage.name for stage in stages) or workdir.name)
  result = read_json(workdir / "result.json", notes)
  policies = dict.fromkeys(["base", *(stage.name for stage in stages), "final"])
  evals = {name: found for name in policies if (found := read_eval(workdir, name, result or {}, notes))}
  tables = {name: path for name in policies if (path := workdir / "eval" / f"{name}.parquet").is_file()}
  return Run(title, config, result, stages, notes, read_json(workdir / "ledger.json", notes), evals, tables)


def read_stage(workdir: Path, name: str, config: dict, before: list[Stage], notes: list[str]) -> Stage:
  found = [(int(match[1]), path) for path in (workdir / name / "samples").glob("step_*.parquet")
           if (match := re.fullmatch(r"step_(\d+)\.parquet", path.name))]
  info = read_json(workdir / name / "stage.json", notes) or {}
  section = config.get(name) if isinstance(config.get(name), dict) else {}
  policies = [stage.name for stage in before if stage.kind not in NO_POLICY]

  def told(key: str, default: str) -> str:
    value = info.get(key) or section.get(key)
    return value if isinstance(value, str) and value else default
  return Stage(name, read_rows(workdir / name / "metrics.jsonl", notes), sorted(found), told("stage", name),
               told("start", policies[-1] if policies else ""), told("data", ""), info,
               read_json(workdir / name / "filters.json", notes))


def read_eval(workdir: Path, name: str, result: dict, notes: list[str]) -> dict[str, Any]:
  """A policy's figures by their names, from its own file or from what result.json holds of it."""
  values = read_json(workdir / "eval" / f"{name}.json", notes) or result
  return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


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


def label(name: str) -> str:
  return "mean answer length, tokens" if name == "length" else name.replace("_", " ").replace("/", ": ")


def summary_of(run: Run) -> list[tuple[str, ...]]:
  """The table that is read first, its header too: figures down, policies across, in the order of the run."""
  if run.result is None and not (run.is_pipeline and run.evals):   # unfinished: the best that there is
    table = [("so far", "first logged", "last logged")]
    for stage in run.stages:
      for key in ("loss", "reward", "accuracy", "length", "eval/greedy_accuracy", "eval/greedy_length"):
        if values := [row[key] for row in stage.rows if row.get(key) is not None]:
          table.append((f"{stage.name}: {key}", show(key, values[0]), show(key, values[-1])))
    return table
  policies = list(run.evals) if run.is_pipeline else ["base", "final"]
  of = lambda policy: run.evals.get(policy, {})
  table = [("", *policies)]
  for name in dict.fromkeys(name for policy in policies for name in of(policy)):
    table.append((label(name), *(show(name, of(policy)[name]) if name in of(policy) else "" for policy in policies)))
  if run.is_pipeline:     # the stages' times have a table of their own
    return table
  return table + [(key.replace("seconds/", "time, "), "", show(key, run.result[key])) for key in run.result
                  if key.partition("/")[0] not in ("base", "final")]


def bill_of(run: Run) -> tuple[list[tuple[str, ...]], list[str]]:
  """The table of what the run cost and what is to be said of it; ([], []) where there is none, or none to be read."""
  try:
    table = bill.table(run.ledger)
    return table, bill.notes(run.ledger) if table else []
  except (AttributeError, KeyError, TypeError, ValueError):
    return [], ["ledger.json could not be read"]

"""What a run leaves on disk and shows on screen: JSONL, sample files, what tracking.py adds, a live line.

Files belong to a stage's folder and are cut back to the checkpoint when it resumes, so that a run that was killed and
one that was not leave the same rows.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from r1jax import tracking


class Writer:
  """Metrics and samples of one stage, from step `start` on."""

  def __init__(self, folder: str | Path, start: int = 0, quiet: bool = False):
    """quiet: nothing is written, as another process does."""
    self.quiet = quiet
    if quiet:
      return
    self.folder = Path(folder)
    (self.folder / "samples").mkdir(parents=True, exist_ok=True)
    self._began = time.monotonic()
    self._before = truncate(self.folder / "metrics.jsonl", start)
    for path in (self.folder / "samples").glob("step_*.parquet"):
      if int(path.stem.removeprefix("step_")) >= start:
        path.unlink()
    self._rows = (self.folder / "metrics.jsonl").open("a")
    self._trackers = tracking.trackers(self.folder, start)

  def write(self, step: int, values: dict[str, float]) -> None:
    """One row. NaN and infinity become null: JSON has none."""
    values = {k: float(v) for k, v in values.items()}
    if self.quiet:
      return
    row = {"step": step, "seconds": round(self._before + time.monotonic() - self._began, 3)}
    row |= {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._rows.write(json.dumps(row) + "\n")
    self._rows.flush()
    for tracker in self._trackers:
      tracker.write(step, values)

  def samples(self, step: int, table: dict[str, list]) -> None:
    """All answers of a rollout, one Parquet file; written beside and renamed, so that none is ever half there."""
    if not self.quiet:
      write_table(self.folder / "samples" / f"step_{step:06d}.parquet", table)

  def close(self) -> None:
    if not self.quiet:
      self._rows.close()
      for tracker in self._trackers:
        tracker.close()


def write_table(path: Path, table: dict[str, list]) -> None:
  pq.write_table(pa.table(table), path.with_suffix(".tmp"))
  os.replace(path.with_suffix(".tmp"), path)


def write_text(path: Path, text: str) -> None:
  """Whole or not at all."""
  path.with_suffix(".tmp").write_text(text)
  os.replace(path.with_suffix(".tmp"), path)


def truncate(path: Path, start: int) -> float:
  """Drops rows from step `start` on, and a half-written last line. Returns the seconds of the last row that stays."""
  rows = read(path)
  kept = [row for row in rows if row["step"] < start]
  if path.exists():
    path.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(path.with_suffix(".tmp"), path)
  return kept[-1].get("seconds", 0.0) if kept else 0.0


def read(path: Path) -> list[dict]:
  """Rows of a metrics file; a last line that was cut short is left out."""
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


def progress(console: Console | None = None) -> Progress:
  """The live line: what runs, how far, the numbers to watch, time left."""
  return Progress(TextColumn("[bold]{task.description}"), BarColumn(bar_width=10),
                  TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[numbers]}"),
                  TimeRemainingColumn(compact=True), TextColumn("left"), console=console, refresh_per_second=2)


def line(row: dict[str, float]) -> str:
  """The numbers of the live line, in a fixed order, those that the row has."""
  shown = dict(reward="rew {:.2f}", accuracy="acc {:.2f}", length="len {:.1f}", kl="kl {:.3f}", entropy="ent {:.2f}",
               tokens_per_s="{:,.0f} tok/s")
  if "reward" not in row:
    shown = dict(loss="loss {:.3f}") | shown
  return " ".join(form.format(row[name]) for name, form in shown.items() if name in row)


def print_rows(console: Console, rows) -> None:
  """A table on the terminal; the first row is its header."""
  head, *rest = rows
  table = Table(*map(str, head))
  for row in rest:
    table.add_row(*map(str, row))
  console.print(table)

"""`r1jax doctor WORKDIR`"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from r1jax import report
from r1jax.report import doctor

STYLES = dict(bad="bold red", warning="yellow", note="dim", good="green")


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax doctor", allow_abbrev=False,
    description="Reads what a run has logged so far and says why its reward does not move: with the numbers, and the"
                " config key to try. A healthy run is told so. Changes nothing.")
  parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of a run: finished, running or killed")
  args = parser.parse_args(argv)
  if not (args.workdir / "config.json").is_file():
    raise FileNotFoundError(f"{args.workdir}: no run here (no config.json)")
  run = report.read(args.workdir)
  if not any(stage.rows for stage in run.stages):
    raise FileNotFoundError(f"{args.workdir}: the run has logged nothing yet (no rows in a stage's metrics.jsonl)")
  console = Console()
  for stage in run.stages:
    samples = last_samples(stage, run.notes)
    table = Table(title=Text(stage.name), title_justify="left", show_lines=True)
    for column in ("", "finding", "numbers", "try"):
      table.add_column(column, overflow="fold")     # a key that is cut short cannot be typed
    for finding in doctor.diagnose(stage.rows, samples, run.config, stage.name):
      # Text, not markup: a finding may quote what the policy wrote
      table.add_row(Text(finding.severity, STYLES[finding.severity]), *map(Text, map(printable, finding[1:])))
    console.print(table)
  for note in run.notes:
    console.print(Text(printable(note)))
  return 0


def printable(text: str) -> str:
  return "".join(c if c.isprintable() else "?" for c in text)


def last_samples(stage, notes: list[str]) -> list[dict]:
  """The rows of the last sample table that can be read, without their tokens."""
  for _, path in reversed(stage.samples):
    try:
      with pq.ParquetFile(path) as file:
        return file.read([name for name in file.schema_arrow.names if name != "tokens"]).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
      notes.append(f"{stage.name}/samples/{path.name} could not be read: {error}")
  return []

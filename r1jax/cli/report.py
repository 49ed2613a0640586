"""`r1jax report WORKDIR`"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from r1jax import report
from r1jax.metrics import print_rows


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax report", allow_abbrev=False,
    description="Writes WORKDIR/report.html, of a finished, running or killed run, and prints its table.")
  parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of a run")
  args = parser.parse_args(argv)
  if not (args.workdir / "config.json").is_file():
    raise FileNotFoundError(f"{args.workdir}: no run here (no config.json)")
  page = report.write(args.workdir)
  console = Console()
  print_rows(console, report.summary(args.workdir))
  run = report.read(args.workdir)
  table, said = report.bill_of(run)
  if table:
    print_rows(console, table)
  for line in said:
    console.print(line, soft_wrap=True)
  for stage in run.stages:
    for line in report.look_at(stage.rows):
      console.print(f"{stage.name}: {line}", markup=False)
  for line in report.hacked(run):
    console.print(line, markup=False)
  console.print(f"report: {page}", soft_wrap=True)
  return 0

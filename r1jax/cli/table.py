"""`r1jax table RUN [RUN ...]`"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1jax import data

# what a stage is known by, in this order, as far as it was measured; a person's words beside it
ROWS = {"pass@1": "accuracy, pass@1", "greedy_accuracy": "accuracy, greedy", "lenient": "accuracy, read leniently",
        "format": "format", "language": "language consistency", "length": "answer length, tokens",
        "general/helpful": "general: liked", "general/language": "general: language",
        "general/length": "general: length", "unsafe/safe": "unsafe: refused"}


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax table", allow_abbrev=False,
    description="The stage table of pipeline runs, like the paper's: a column for the policy of each stage. Of several "
                "runs (seeds of one experiment): means, the lowest and the highest.")
  parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
  parser.add_argument("--stages", nargs="+", metavar="NAME", help="these alone (default: all that were evaluated)")
  parser.add_argument("--markdown", action="store_true", help="as Markdown")
  args = parser.parse_args(argv)
  configs, figures = zip(*map(read, args.runs), strict=True)
  stages = [stage for stage in ["base", *configs[0]["stages"]] if all(stage in of for of in figures)]
  stages = list(dict.fromkeys(stages))
  if args.stages:
    if unknown := [name for name in args.stages if name not in stages]:
      raise ValueError(f"--stages {unknown[0]}: not evaluated in all of these runs; there are {', '.join(stages)}")
    stages = args.stages
  if not stages:
    raise ValueError("no stage has been evaluated in all of these runs (eval/STAGE.json; the config's eval.each=True)")
  rows = [(words, *(cell([of[stage].get(key) for of in figures]) for stage in stages))
          for key, words in ROWS.items() if any(key in of[stage] for of in figures for stage in stages)]
  if args.markdown:
    for row in (("", *stages), ("---",) * (len(stages) + 1), *rows):
      print("| " + " | ".join(row) + " |")
    return 0
  shown = Table("", *stages, title=f"{configs[0]['name']}, {len(figures)} run{'s' * (len(figures) > 1)}")
  for row in rows:
    shown.add_row(*row)
  widest = 4 + sum(3 + max(map(len, column)) for column in zip(("", *stages), *rows, strict=True))
  console = Console()
  console.width = max(console.width, widest)      # a wide table is scrolled, not broken up
  console.print(shown)
  return 0


def read(folder: Path) -> tuple[dict, dict[str, dict]]:
  """(config, {stage: its figures}) of a run's folder."""
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(f"{folder}: no run here (no config.json)")
  config = data.read_run(folder)
  found = {}
  for path in sorted((folder / "eval").glob("*.json")):
    values = data.read_object(path)
    found[path.stem] = {key.removeprefix(f"{path.stem}/"): value for key, value in values.items()
                        if key.startswith(f"{path.stem}/")}
  return config, found


def cell(values: list[float | None]) -> str:
  """Mean, and the ends of several."""
  known = [value for value in values if value is not None]
  if not known:
    return ""
  digits = 1 if max(known) > 2 else 3
  mean = f"{sum(known) / len(known):.{digits}f}"
  return mean if len(known) < 2 else f"{mean} ({min(known):.{digits}f} - {max(known):.{digits}f})"

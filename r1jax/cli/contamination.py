"""`r1jax contamination --train FILE --test FILE [--n 10] [--json FILE]`"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r1jax.evals import contamination

WORST = 20       # test problems that the table shows
LINES = 5        # training lines of each


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax contamination", allow_abbrev=False,
    description="Finds training lines that share N words in a row with a test problem (R1 removed such lines, N = 10)."
                " Counts all texts of a line, in lower case and without punctuation. Findings leave exit status 0.")
  parser.add_argument("--train", required=True, type=Path, metavar="FILE", help="JSONL; read as a stream")
  parser.add_argument("--test", required=True, type=Path, metavar="FILE", help="JSONL; its grams are kept in memory")
  parser.add_argument("--n", type=int, default=contamination.PAPER, metavar="N", help="words of a gram (default 10)")
  parser.add_argument("--common", type=int, default=0, metavar="K",
                      help="leave out grams that stand in more than K test problems, as a prompt template does"
                           " (default 0: none)")
  parser.add_argument("--json", type=Path, metavar="FILE", help="write every match there")
  args = parser.parse_args(argv)
  tests = contamination.index(args.test, args.n, args.common)
  partial = args.json.with_name(args.json.name + ".partial") if args.json else Path(os.devnull)
  lines = dirty = 0
  hits, worst = Counter(), {}                     # by test problem: training lines; the first few, and the fullest
  try:
    with partial.open("w") as out:
      out.write('{"overlaps": [')
      for _, found in contamination.overlaps(args.train, tests):
        for overlap in found:
          out.write((",\n" if hits else "\n") + json.dumps(dataclasses.asdict(overlap)))
          hits[overlap.test_line] += 1
          kept = worst.setdefault(overlap.test_line, [])
          kept.append(overlap)
          kept.sort(key=lambda o: (-o.share, o.train_line))
          del kept[LINES:]
        lines, dirty = lines + 1, dirty + bool(found)
      numbers = dict(train=str(args.train), test=str(args.test), n=tests.n, common=args.common, train_lines=lines,
                     train_lines_matched=dirty, test_problems=tests.problems, test_problems_matched=len(hits),
                     test_problems_too_short=tests.short, grams=len(tests.grams), grams_left_out=tests.left_out)
      out.write("],\n" + json.dumps(numbers)[1:] + "\n")
    if args.json:
      os.replace(partial, args.json)
  finally:
    if args.json:
      partial.unlink(missing_ok=True)
  _show(numbers, hits, worst)
  return 0


def _show(numbers: dict, hits: Counter, worst: dict) -> None:
  console = Console()
  if hits:
    ranked = sorted(hits, key=lambda line: (-worst[line][0].share, line))
    table = Table("test line", "training lines", "share of its grams", "the first in common",
                  title=f"matched test problems{'' if len(hits) <= WORST else f', {WORST} of {len(hits)}'}")
    for line in ranked[:WORST]:
      first = worst[line][0]
      more = f" and {hits[line] - LINES} more" if hits[line] > LINES else ""
      table.add_row(str(line), ", ".join(str(o.train_line) for o in worst[line]) + more, f"{first.share:.2f}",
                    Text(first.example))
    console.print(table)
  shown = Table("", f"{numbers['n']}-grams in common")
  shown.add_row("test problems", f"{len(hits)} of {numbers['test_problems']}")
  shown.add_row("training lines", f"{numbers['train_lines_matched']} of {numbers['train_lines']}")
  for key in ("test_problems_too_short", "grams_left_out"):
    if numbers[key]:
      shown.add_row(key.replace("_", " "), str(numbers[key]))
  console.print(shown)

"""`r1jax compare-evals A B`"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

MOVED = 10       # problems that the table shows each way


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax compare-evals", allow_abbrev=False,
    description="Compares two evaluations of the same problems, as r1jax eval wrote them: pass@1 of each, their"
                " difference B - A paired by problem, its confidence interval (bootstrap over problems) and p-value"
                " (sign-flip permutations), and the problems that were won and lost.")
  parser.add_argument("a", type=Path, metavar="A", help="NAME.json or NAME.parquet of r1jax eval")
  parser.add_argument("b", type=Path, metavar="B", help="another, of the same problems")
  parser.add_argument("--level", type=float, default=0.95, metavar="P", help="of the intervals (default 0.95)")
  parser.add_argument("--draws", type=int, default=10_000, metavar="N", help="of the bootstrap (default 10000)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
  args = parser.parse_args(argv)

  from r1jax.evals import significance
  a, b = significance.read(args.a), significance.read(args.b)
  ids, p_a, p_b = significance.shares(a, b)
  found = significance.compare(p_a, p_b, level=args.level, draws=args.draws, seed=args.seed)
  console, percent = Console(), f"{args.level:.4g}"
  sides = []
  for side, answered, p in (("A", a, p_a), ("B", b, p_b)):
    low, high = significance.interval(list(answered.right.values()), args.level)
    sides.append(dict(file=str(answered.path), pass_at_1=float(p.mean()), low=low, high=high))
    console.print(f"{side}: {answered.path}", soft_wrap=True, markup=False)
  table = Table(f"{len(ids)} problems", "pass@1", f"{percent} interval")
  for side, of in zip("AB", sides, strict=True):
    table.add_row(side, f"{of['pass_at_1']:.4f}", f"{of['low']:.4f} - {of['high']:.4f}")
  table.add_row("B - A", f"{found.difference:+.4f}", f"{found.low:+.4f} - {found.high:+.4f}")
  console.print(table)
  tested = "all signs" if found.exact else f"{args.draws} random signs"
  console.print(f"p = {found.p_value:.4g} ({tested}); B wins {found.wins}, loses {found.losses}, ties {found.ties}")
  moved = sorted(range(len(ids)), key=lambda i: p_b[i] - p_a[i])
  shown = [i for i in moved[::-1][:MOVED] if p_b[i] > p_a[i]] + [i for i in moved[:MOVED] if p_b[i] < p_a[i]][::-1]
  if shown:
    table = Table("problem", "A", "B", "B - A", title="most won, most lost")
    for i in shown:
      table.add_row(str(ids[i]), f"{p_a[i]:.3f}", f"{p_b[i]:.3f}", f"{p_b[i] - p_a[i]:+.3f}")
    console.print(table)
  for difference in differences(a, b):
    console.print(f"note: {difference}", soft_wrap=True, markup=False)
  if args.json:
    args.json.write_text(json.dumps(dict(a=sides[0], b=sides[1], problems=len(ids), level=args.level, seed=args.seed)
                                    | dataclasses.asdict(found), indent=1))
  return 0


def differences(a, b) -> list[str]:
  """What else the two differ in than the policy: settings of the records beside the tables, and prompts."""
  out = []
  records = [json.loads(p.read_text()) if (p := e.path.with_suffix(".json")).is_file() else {} for e in (a, b)]
  for key in ("template", "samples", "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"):
    values = [record.get(key) for record in records]
    if None not in values and values[0] != values[1]:
      out.append(f"{key} is {values[0]} in A, {values[1]} in B")
  if count := sum(a.prompt[id] != b.prompt[id] for id in a.prompt):
    out.append(f"{count} of {len(a.prompt)} prompts differ")
  return out

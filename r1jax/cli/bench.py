"""`r1jax bench grpo`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

BENCHES = ("grpo",)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax bench", allow_abbrev=False,
    description="grpo: whole GRPO steps (rollout of fixed length, reference log-probs, AdamW update) on random tokens, "
                "with the time of each phase, the share of this machine's matmul speed, and peak memory.")
  parser.add_argument("what", choices=BENCHES, help="what to measure")
  parser.add_argument("--shape", choices=("A", "B"), default="A",
                      help="A: 4 layers x 128, vocab 512, 8 prompts x 8 answers, 32 + 64 tokens (default);"
                           " B: SmolLM2-135M's, 4 x 8, 64 + 64")
  parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps to time (default 10)")
  parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
  args = parser.parse_args(argv)
  if args.steps < 1:
    raise ValueError(f"--steps={args.steps} must be at least 1")
  from r1jax.bench.grpo import measure, table
  result = measure(args.shape, args.steps)
  Console().print(table(result))
  if args.json:
    args.json.write_text(json.dumps(result, indent=1))
  return 0

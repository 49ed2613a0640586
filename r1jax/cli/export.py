"""`r1jax export --workdir DIR [--stage NAME | --all] OUT`"""

from __future__ import annotations

import argparse
from pathlib import Path

from r1jax.cli import policy
from r1jax.cli.import_ import check_folder


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax export", allow_abbrev=False,
    description="Writes a run's policy as a Hugging Face directory: config.json, safetensors, tokenizer.")
  parser.add_argument("--workdir", required=True, metavar="DIR", type=Path, help="folder of a run")
  policy.add_checkpoint_flags(parser)
  parser.add_argument("--all", action="store_true",
                      help="the newest policy of every stage that has one, each to OUT/STAGE")
  parser.add_argument("--shard-mb", type=int, default=5000, metavar="N", help="largest weights file (default 5000)")
  parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
  args = parser.parse_args(argv)
  if args.shard_mb < 1:
    raise ValueError(f"--shard-mb={args.shard_mb} must be at least 1")
  if args.all and (args.stage or args.step is not None):
    raise ValueError("--all writes the newest policy of every stage: --stage and --step do not go with it")
  from r1jax import policies
  if not args.all:
    _write(args, args.stage, args.step, args.out)
    return 0
  found = policies.stages_with_policy(args.workdir)
  if not any(found.values()):
    raise FileNotFoundError(f"{args.workdir}: no checkpoint of any stage")
  for stage, there in found.items():
    if there:
      _write(args, stage, None, args.out / stage)
    else:
      print(f"{stage}: no checkpoint yet, not written")
  return 0


def _write(args, stage: str, step: int | None, out: Path) -> None:
  from r1jax import hf, policies
  from r1jax.models import param, transformer
  check_folder(out)             # a run's folder would lose its own config.json
  params, model, task, where = policies.load_policy(args.workdir, stage, step)
  hf.save(out, params, model, task.tokenizer, max_shard_bytes=args.shard_mb * 2**20)
  print(f"{where}: {param.count(transformer.params(model)):,} parameters, {model.dtype} -> {out}")

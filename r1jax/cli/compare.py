"""`r1jax compare --config FILE --workdir DIR [--variants ARG ...] [--seeds N ...]`"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1jax.cli.run import load_config


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax compare", allow_abbrev=False,
    description="Runs variants of an experiment over several seeds, each from the same pre-trained base of its seed, "
                "and prints one table: means, lowest and highest of the seeds. Finished runs are not run again.")
  parser.add_argument("--config", required=True, metavar="FILE", help="experiment file with get_config(arg)")
  parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="a folder for each run goes there")
  parser.add_argument("--variants", nargs="+", metavar="ARG",
                      help="arguments of get_config, one each (default: the file's VARIANTS)")
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default 0 1 2")
  args, overrides = parser.parse_known_args(argv)
  variants = args.variants or _variants(args.config)
  configs = {v: load_config(f"{args.config}:{v}", overrides) for v in variants}
  _check(configs, args.workdir)      # all, before any runs
  console = Console()
  results: dict[str, list[dict]] = {v: [] for v in variants}
  for seed in args.seeds:
    for variant, config in configs.items():
      config.seed = seed
      folder = args.workdir / f"{variant.replace('=', '-').replace(',', '_')}-seed{seed}"
      results[variant].append(_run(config, folder, args.workdir / f"base-seed{seed}"))
      row = results[variant][-1]
      console.print(f"seed {seed}  {variant}: {row['base/greedy_accuracy']:.3f} -> {row['final/greedy_accuracy']:.3f},"
                    f" 90% after {row['rollouts_to_90']:.0f} rollouts")
  (args.workdir / "compare.json").write_text(json.dumps(results, indent=1))
  console.print(table(results, args.seeds))
  return 0


def table(results: dict[str, list[dict]], seeds) -> Table:
  out = Table("variant", "greedy accuracy", "pass@1", "rollouts to 90%", "mean length", "seconds of RL",
              title=f"seeds {' '.join(map(str, seeds))}: mean (lowest - highest)")
  for variant, rows in results.items():
    cells = []
    for key, digits in (("final/greedy_accuracy", 3), ("final/pass@1", 3), ("rollouts_to_90", 0), ("final/length", 1),
                        ("seconds/reasoning_rl", 0)):
      values = [row[key] for row in rows]
      mean, ends = sum(values) / len(values), f" ({min(values):.{digits}f} - {max(values):.{digits}f})"
      cells.append(f"{mean:.{digits}f}" + (ends if len(values) > 1 else ""))
    out.add_row(variant, *cells)
  return out


def _run(config, folder: Path, base: Path) -> dict:
  """result.json of one run, and after how many rollouts its greedy accuracy was 90% (one more than all: never)."""
  from r1jax import metrics, pipeline
  if base.is_dir() and not folder.is_dir():      # a finished stage is not run again
    _copy(base, folder / "pretrain")
  result = pipeline.run(config, folder)
  if (folder / "pretrain").is_dir() and not base.is_dir():
    _copy(folder / "pretrain", base)
  rows = metrics.read(folder / "reasoning_rl" / "metrics.jsonl")
  good = [i + 1 for i, row in enumerate(rows) if row.get("eval/greedy_accuracy", 0) >= 0.9]
  return result | dict(rollouts_to_90=float(good[0] if good else len(rows) + 1))


BASE = ("task", "model", "data", "start", "pretrain")      # what the base depends on, and so must be the same


def _check(configs: dict, workdir: Path) -> None:
  """ValueError for a config that does not freeze, or whose base is not that of the others and of earlier runs."""
  from r1jax import config as configs_of
  first, wanted = None, None
  for variant, config in configs.items():
    configs_of.freeze(config)
    if not config.get("eval", {}).get("samples", 8):
      raise ValueError("compare needs eval.samples above 0: the table has pass@1")
    made_of = {key: value for key, value in config.to_dict().items() if key in BASE}
    if wanted is None:
      first, wanted = variant, made_of
    if made_of != wanted:
      differ = [key for key in BASE if made_of.get(key) != wanted.get(key)]
      raise ValueError(f"variants {first} and {variant} differ in {', '.join(differ)}: they would not share a base")
  made_of, path = json.loads(json.dumps(wanted)), workdir / "base.json"
  if path.exists() and json.loads(path.read_text()) != made_of:
    raise ValueError(f"{workdir} holds runs from another base ({', '.join(BASE)} in base.json): take another --workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(made_of, indent=1))


def _copy(source: Path, target: Path) -> None:
  """Whole or not at all."""
  partial = target.with_name(target.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  shutil.copytree(source, partial)
  partial.rename(target)


def _variants(file: str) -> tuple[str, ...]:
  from r1jax.tasks import load_file
  if not Path(file).is_file():
    raise FileNotFoundError(f"--config: {file}: no such file")
  variants = getattr(load_file(file, "r1jax_compare"), "VARIANTS", ())
  if not variants:
    raise ValueError(f"--config: {file} has no VARIANTS: give --variants")
  return tuple(variants)

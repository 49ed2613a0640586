"""`r1jax run --config FILE[:ARG] --workdir DIR [--config.KEY=VALUE ...]`"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import io
import sys
import typing
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags
from rich.console import Console


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax run", allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter,
    description="Trains an experiment's stages in a folder and writes report.html there. Run on the same folder\n"
                "again, it goes on from the last checkpoint. Ctrl-C finishes the step in hand and saves.",
    epilog="examples:\n  r1jax run --config experiments/r1_zero_parity.py --workdir runs/parity --config.seed=1\n"
           "  srun r1jax run --distributed --config ... --workdir ...        on every node (docs/hosts.md)\n"
           "  r1jax run --coordinator host0:1234 --processes 2 --process 0 --config ... --workdir ...")
  parser.add_argument("--config", required=True, metavar="FILE[:ARG]",
                      help="experiment file with get_config(arg); ARG chooses a variant, e.g. FILE:tiny")
  parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run; made if it is not there")
  parser.add_argument("--quiet", action="store_true", help="no live line")
  parser.add_argument("--profile", metavar="UNITS", default="",
                      help="trace so many units (updates, rollouts) of each stage, or FIRST:END, into DIR/profile")
  several = parser.add_argument_group("several processes", "each is started with the same arguments; the folder is one"
                                      " that all of them see")
  several.add_argument("--distributed", action="store_true",
                       help="find the others as SLURM, Open MPI, Kubernetes or a TPU pod tell")
  several.add_argument("--coordinator", metavar="HOST:PORT", default="", help="where process 0 listens, said by hand")
  several.add_argument("--processes", type=int, metavar="N", help="how many there are")
  several.add_argument("--process", type=int, metavar="I", help="which this is, 0 to N - 1")
  several.add_argument("--heartbeat", type=int, default=100, metavar="SECONDS",
                       help="silence after which a process counts as dead, and the job ends (100)")
  several.add_argument("--patience", type=int, default=300, metavar="SECONDS",
                       help="how long to wait for the others at the start (300)")
  parser.add_argument("--config.KEY=VALUE", dest="_", metavar="", help="changes one value: --config.model.layers=4")
  args, rest = parser.parse_known_args(argv)
  _check_hosts(args)
  config = load_config(args.config, rest)

  from r1jax import hosts, loop, pipeline, profiling
  units = profiling.parse(args.profile) if args.profile else None
  if args.distributed or args.coordinator:
    hosts.start(args.coordinator, args.processes, args.process, args.heartbeat, args.patience)
  console = Console(stderr=True, quiet=args.quiet or not hosts.is_main())
  command = f"r1jax run {' '.join(argv)}"
  with loop.interruptible() as stop, hosts.job(command), profiling.asked(units):
    try:
      pipeline.run(config, args.workdir, stop=stop, console=console)
    except loop.Interrupted as error:
      if hosts.is_main():
        print(f"\n{error}. Go on with the same command:\n  {command}", file=sys.stderr)
      return 130
  return 0


def _check_hosts(args) -> None:
  """ValueError for flags of several processes that do not go together."""
  given = dict(coordinator=args.coordinator, processes=args.processes, process=args.process)
  missing = [f"--{name}" for name, value in given.items() if value in (None, "")]
  if len(missing) not in (0, 3):
    raise ValueError(f"--coordinator, --processes and --process go together; {' and '.join(missing)} missing")
  if args.coordinator:
    if not args.coordinator.rpartition(":")[0] or not args.coordinator.rpartition(":")[2].isdigit():
      raise ValueError(f"--coordinator={args.coordinator}: give HOST:PORT")
    if not 0 <= args.process < args.processes:
      raise ValueError(f"--process={args.process} must be within 0 and --processes={args.processes} less one")
  if args.distributed and args.coordinator:
    raise ValueError("--distributed finds the others, --coordinator names them: give one of the two")
  if args.heartbeat < 1 or args.patience < 1:
    raise ValueError(f"--heartbeat={args.heartbeat} and --patience={args.patience} must be at least 1 second")


def load_config(file: str, overrides: list[str]):
  """The ConfigDict of an experiment file with `--config.key=value` overrides. ValueError for what does not fit."""
  path = file.partition(":")[0]
  if not Path(path).is_file():
    raise FileNotFoundError(f"--config: {path}: no such file")
  config = _parse([f"--config={file}"], config_flags.DEFINE_config_file)
  _fill(config, [flag for flag in overrides if flag.startswith("--config.")])
  for i, flag in enumerate(overrides):
    if flag.startswith("--config."):
      _check_key(config, flag.removeprefix("--config.").partition("=")[0])
    elif not (i and overrides[i - 1].startswith("--config.") and "=" not in overrides[i - 1]):   # its value
      raise ValueError(f"unknown argument {flag!r}; see r1jax run --help")
  return _parse(overrides, functools.partial(config_flags.DEFINE_config_dict, config=config)) if overrides else config


def _fill(config, overrides: list[str]) -> None:
  """What an experiment leaves to its defaults is there for a flag to change: --config.reasoning_rl.ahead=1."""
  from r1jax.config import STAGES, RunConfig, kinds, required
  for flag in overrides:
    at, kind = config, RunConfig
    parts = flag.partition("=")[0].removeprefix("--config.").split(".")
    for i, part in enumerate(parts):
      fields = {f.name: f for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
      own = kinds(typing.get_type_hints(kind)[part])[0] if part in fields else None
      if part in fields and at.get(part) is None and not required(fields[part]):
        default = _default(fields[part], own, inside=i + 1 < len(parts))
        with at.unlocked():
          at[part] = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default
      if not isinstance(at.get(part), ConfigDict):
        break
      at = at[part]
      kind = own or (STAGES.get(at.get("stage", part)) if kind is RunConfig else None)


def _default(field, kind, inside: bool):
  """Of a field that is None unless given: room for a value of its kind; for a flag of a key `inside`, its defaults."""
  from r1jax.config import required
  default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
  if default is not None:
    return default
  if inside:
    return kind() if dataclasses.is_dataclass(kind) and not any(map(required, dataclasses.fields(kind))) else None
  return config_dict.placeholder(kind) if kind in (str, int, float) else None


def _parse(argv: list[str], define):
  values = flags.FlagValues()
  try:
    define("config", flag_values=values, lock_config=True, sys_argv=["r1jax", *argv])
    with contextlib.redirect_stderr(io.StringIO()):
      values(["r1jax", *argv])
    return values.config
  except Exception as error:      # whatever the experiment file raises; the last line says it
    raise ValueError(f"--config: {str(error).strip().splitlines()[-1]}") from error


def _check_key(config, key: str) -> None:
  """ValueError for a key that the experiment does not have, with the nearest one that it has."""
  at = config
  for part in key.split("."):
    if not isinstance(at, ConfigDict) or part not in at:
      near = difflib.get_close_matches(part, list(at) if isinstance(at, ConfigDict) else [], 1)
      raise ValueError(f"--config.{key}: the experiment has no such key"
                       + (f"; did you mean {near[0]}?" if near else f" ({part})"))
    at = at[part]

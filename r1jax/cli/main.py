"""`r1jax COMMAND`: reads the command line, turns what the user got wrong into one line and exit code 2."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from r1jax import compiled
from r1jax.cpu import keep_memory

COMMANDS = dict(
  run="train an experiment's stages in a folder; on the same folder again, resume",
  eval="score a run's policy on its held-out problems or on a JSONL file",
  sample="stream answers of a run's policy to prompts",
  compare="run variants of an experiment over several seeds, and print one table",
  table="the stage table of pipeline runs, over seeds too",
  report="write report.html of a run's folder, and print its table",
  doctor="say why a run's reward does not move, with the numbers and the config key to try",
  export="write a run's policy as a Hugging Face directory",
  bench="measure speed on this machine",
  plan="what a run elsewhere would need and cost: memory, time, dollars",
  contamination="find training lines that share 10 words in a row with a test problem",
)
# a word that Python keeps for itself cannot be a keyword argument above
COMMANDS["import"] = "turn released weights, such as a GGUF file, into a Hugging Face directory"
COMMANDS["compare-evals"] = "the difference of two evaluations of the same problems, and whether it is more than chance"


def main(argv: list[str] | None = None) -> int:
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(
    prog="r1jax", description="DeepSeek-R1's training system in JAX.", formatter_class=argparse.RawTextHelpFormatter,
    epilog="commands:\n" + "\n".join(f"  {name:15s}{text}" for name, text in COMMANDS.items())
    + "\n\n`r1jax COMMAND --help` tells more.")
  parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
  if not argv or argv[0] in ("-h", "--help"):
    parser.print_help()
    return 0 if argv else 2
  command = parser.parse_args(argv[:1]).command
  logging.basicConfig(format="%(message)s", level=logging.WARNING)
  logging.getLogger("absl").setLevel(logging.ERROR)      # Orbax tells of every save
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  keep_memory()
  compiled.keep()
  try:
    return _module(command).main(argv[1:]) or 0
  except BrokenPipeError:       # | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except (ValueError, NotImplementedError, OSError) as error:
    if os.environ.get("R1JAX_DEBUG"):
      raise
    print(f"r1jax {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"r1jax {command}: interrupted", file=sys.stderr)
    return 130


def _module(command: str):
  """Imported when it is asked for: --help and errors need no jax."""
  import importlib
  import keyword
  return importlib.import_module(f"r1jax.cli.{command.replace('-', '_')}" + "_" * keyword.iskeyword(command))


if __name__ == "__main__":
  sys.exit(main())

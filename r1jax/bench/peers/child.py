"""A peer's trainer in a process of its own, which takes a step when it is told to.

The scripts beside this file speak the protocol: a line in, a step, a line of JSON out; one more line at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Peer:
  pid: int
  step: Callable[[], dict]   # takes the next of what["steps"] steps and returns its line; after the last, the end's


MODULES = dict(trl="trl", tunix="tunix")      # what a Python must be able to import to run it


def python_of(text: str) -> tuple[str, str]:
  """(peer, interpreter) of "trl" (this Python, where trl can be imported) or of "trl=/path/to/python"."""
  name, _, python = text.partition("=")
  if name not in MODULES:
    raise ValueError(f"--peer={text}: {name!r} is none of {', '.join(MODULES)}")
  if not python and importlib.util.find_spec(MODULES[name]) is None:
    raise ValueError(f"--peer={name}: {sys.executable} has no module {MODULES[name]}; give the Python of an environment"
                     f" that has it, as --peer {name}=/path/to/bin/python")
  if python and not Path(python).is_file():
    raise ValueError(f"--peer={text}: there is no file {python}")
  return name, python or sys.executable


@contextlib.contextmanager
def started(name: str, python: str, what: dict, folder: Path = Path(__file__).parent) -> Iterator[Peer]:
  """The peer, until the end of the block. what: sizes of the model and the batch, as bench.grpo.describe makes them."""
  script = folder / f"run_{name}.py"
  with tempfile.TemporaryFile("w+") as errors:
    process = subprocess.Popen([python, script, json.dumps(what)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=errors, text=True, bufsize=1)

    def step() -> dict:
      with contextlib.suppress(BrokenPipeError):      # it has ended: it says why, or its last line is still to be read
        process.stdin.write("step\n")
      line = process.stdout.readline()
      if not line:
        code = process.wait()
        errors.seek(0)
        said = [text.strip() for text in errors if text.strip()] or ["no message"]
        raise ValueError(f"peer {name} ({python}) ended with code {code}: {said[-1][:500]}")
      return json.loads(line)

    try:
      yield Peer(process.pid, step)
    finally:
      process.kill()
      process.wait()
      for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
          pipe.close()

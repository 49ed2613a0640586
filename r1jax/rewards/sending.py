"""How rewards, and messages, get from the run to its worker processes (workers.py).

A function is sent as the place where it is defined: (module, file, name). So a function at the top level of any file
can be sent, also one of a task or experiment file that was loaded by its path, and a functools.partial of it, a bound
method, or an object with __call__, as long as what they hold can be pickled. Lambdas, functions inside functions and
those typed into a notebook cannot. Two attributes of a reward mean something here: `in_parent` and `prepare`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import os
import pickle
import socket
import sys
import time
import types
from pathlib import Path

from r1jax.problem import Reward

MAX_MESSAGE = 2**30    # bytes


def in_parent(reward: Reward) -> Reward:
  """Marks a reward that needs this process, such as a reward model on the device: it never goes to a worker.

  It runs in one thread of the run's own process, without limits of time or memory.
  """
  reward.in_parent = True
  return reward


def is_in_parent(reward: Reward) -> bool:
  return bool(_attribute(reward, "in_parent"))


def prepare(reward: Reward) -> None:
  """Calls what a reward has as its attribute `prepare`, such as a slow import, before its first check is timed."""
  (_attribute(reward, "prepare") or (lambda: None))()


def _attribute(reward: Reward, name: str):
  """An attribute of a function, or of the one that it is a functools.partial of."""
  return getattr(reward, name, None) or (
    _attribute(reward.func, name) if isinstance(reward, functools.partial) else None)


def dump(rewards: dict[str, Reward]) -> bytes:
  """The rewards for `load` in another process. ValueError names the one that cannot be sent."""
  for name, reward in rewards.items():
    try:
      _dumps(reward)
    except Exception as error:    # whatever the parts of a reward raise when they are pickled
      raise ValueError(
        f"reward {name!r} ({reward!r}) cannot be sent to a worker process: {error}. Define it at the top level of a"
        " file (a functools.partial of such a function is fine), or mark it with sending.in_parent: then it runs in"
        " the process of the run, without limits") from error
  return _dumps(rewards)


def load(blob: bytes) -> dict[str, Reward]:
  return pickle.loads(blob)


def _dumps(value) -> bytes:
  out = io.BytesIO()
  _Pickler(out).dump(value)
  return out.getvalue()


class _Pickler(pickle.Pickler):
  """Functions and classes go by their place in a file; everything else as usual."""

  def reducer_override(self, value):
    if isinstance(value, (types.FunctionType, type)) and value is not _fetch:
      place = _place(value)
      if place is not None:
        return _fetch, place
    return NotImplemented


def _place(value) -> tuple[str, str, str] | None:
  """(module, file, name) of a function or class; None: it is in no Python file."""
  scope = getattr(value, "__globals__", None)
  if scope is None:        # a class: its module's, or for one loaded by path, that of any of its functions
    scope = vars(sys.modules[value.__module__]) if value.__module__ in sys.modules else next(
      (f.__globals__ for f in vars(value).values() if isinstance(f, types.FunctionType)), {})
  found = scope.get(value.__qualname__.partition(".")[0])
  for part in value.__qualname__.split(".")[1:]:
    found = getattr(found, part, None)
  if found is not value:
    raise pickle.PicklingError(f"{value.__qualname__} is not at the top level of {value.__module__}")
  file = scope.get("__file__")
  if file is None:
    if value.__module__ == "__main__":
      raise pickle.PicklingError(f"{value.__qualname__} is defined in no file")
    return None
  return value.__module__, os.path.abspath(file), value.__qualname__


def _fetch(module: str, file: str, name: str):
  found = _module(module, file)
  for part in name.split("."):
    found = getattr(found, part)
  return found


@functools.cache
def _module(name: str, file: str) -> types.ModuleType:
  """The module by its name if that leads to the file, else from the file."""
  try:
    spec = importlib.util.find_spec(name) if name != "__main__" else None
  except (ImportError, ValueError):
    spec = None
  if spec is not None and spec.origin and Path(spec.origin).exists() and os.path.samefile(spec.origin, file):
    return importlib.import_module(name)
  spec = importlib.util.spec_from_file_location(f"r1jax_file_{Path(file).stem}_{len(sys.modules)}", file)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module      # dataclasses look their module up there
  spec.loader.exec_module(module)
  return module


def send(to: socket.socket, data: bytes, seconds: float | None = None) -> None:
  """One message. TimeoutError if the other side does not take it in time, OSError if it is gone."""
  to.settimeout(seconds)
  to.sendall(len(data).to_bytes(8, "big") + data)


def receive(at: socket.socket, seconds: float | None = None, most: int = MAX_MESSAGE) -> bytes:
  """The next message. TimeoutError if it is not there in time, EOFError if the other side is gone."""
  until = None if seconds is None else time.monotonic() + seconds
  size = int.from_bytes(_exactly(at, 8, until), "big")
  if size > most:
    raise EOFError(f"a message of {size} bytes, more than {most}")
  return _exactly(at, size, until)


def _exactly(at: socket.socket, size: int, until: float | None) -> bytes:
  parts = []
  while size:
    # not 0: that would not wait at all, and what has arrived already is in time
    at.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
    part = at.recv(min(size, 2**20))
    if not part:
      raise EOFError("the other side is gone")
    parts.append(part)
    size -= len(part)
  return b"".join(parts)

"""Untrusted Python programs, run without root and without containers, by the Linux kernel's own means.

What holds for a program (jail.py, seccomp.py; `capabilities()` says which means this machine has):
- network: none (seccomp: no socket but a connected pair; with namespaces also a network of its own, with nothing in it)
- files: reads the Python standard library, shared libraries and three devices; writes /tmp, a tmpfs of its own that
  is gone afterwards. Without namespaces it writes nothing at all
- processes: none but itself and its threads, or as many as `Limits.processes` says where there are namespaces; no exec
- CPU and wall time, memory, size of files, of /tmp and of the output, open files: `Limits`. Whatever a case has
  started is dead when run() returns
- it gets no environment, no inherited file descriptor, nothing of the parent's memory

Needed: no_new_privs, seccomp, and namespaces or Landlock (Linux 6.2); else run() refuses, unless `unsandboxed`.
Limits of this sandbox: a kernel bug is a way out; memory is counted for each process; without namespaces the
program can see which files exist (not their contents), threads are bounded by memory only, and CPU and memory are its
only reach.

run() is safe in a process with threads (such as JAX's): it starts `python runner.py` by subprocess without preexec_fn.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1jax.rewards.sandbox import landlock

RUNNER = Path(__file__).with_name("runner.py")
MB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
  """For each case by itself."""
  cpu: int = 5                 # seconds, of each process
  wall: float = 10.0           # seconds; more than the CPU's, as a busy machine is not the program's fault
  memory: int = 1024 * MB      # bytes of address space, of each process
  file_size: int = 16 * MB     # of one file
  disk: int = 32 * MB          # of all of /tmp
  output: int = 1 * MB         # bytes on standard output, and of what calls return
  open_files: int = 64
  processes: int = 1           # alive at once; more than 1 needs namespaces
  threads: int = 32            # of all of them together, beyond the first of each; enforced with namespaces

  def __post_init__(self):
    if not self.wall > 0:
      raise ValueError(f"wall={self.wall} must be positive")
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), 0 if field.name == "threads" else 1
      if field.name != "wall" and (type(value) is not int or value < least):
        raise ValueError(f"{field.name}={value!r} must be an integer of at least {least}")
    if self.memory < 64 * MB:
      raise ValueError(f"memory={self.memory} is less than an interpreter needs, {64 * MB}")


@dataclasses.dataclass(frozen=True)
class Means:
  """What protects us from a program."""
  namespaces: bool = False     # user, PID, mount, network, IPC, UTS, cgroup
  landlock: int = 0            # ABI version; 0: none
  seccomp: bool = False
  no_new_privs: bool = False
  reasons: tuple[str, ...] = ()   # why something is missing, in the kernel's words

  def missing(self) -> list[str]:
    """What run() needs and this lacks."""
    out = [name for name in ("no_new_privs", "seccomp") if not getattr(self, name)]
    return out + ([] if self.namespaces or self.landlock else ["namespaces or Landlock"])


@dataclasses.dataclass(frozen=True)
class Case:
  """What to do with a program once: evaluate expressions after it, or, where there are none, run it as a script."""
  expressions: tuple[str, ...] = ()
  setup: str = ""              # statements between the program and the expressions
  names: tuple[tuple[str, Any], ...] = ()   # (name, value as JSON, see values.py) for the expressions
  stdin: str = ""              # for a script


@dataclasses.dataclass(frozen=True)
class Result:
  status: str                  # ok, error (an exception), syntax, exit (ended without a word), killed, timeout,
  #                              overflow (too much output), skipped
  values: tuple = ()           # of the expressions, as JSON: values.decode() reads them
  stdout: bytes = b""          # of a script
  detail: str = ""             # what the program says went wrong; not to be trusted
  cpu: float = 0.0             # seconds
  wall: float = 0.0


DEFAULT = Limits()


class SandboxError(RuntimeError):
  """The sandbox itself failed: it says nothing about the program."""


@functools.cache
def capabilities() -> Means:
  """What this machine allows, found out by doing it: each means is tried in a process of its own, once."""
  if not sys.platform.startswith("linux"):
    return Means(reasons=(f"{sys.platform} is not Linux",))
  probe = Case(("__import__('random').randrange(1) + 7",))
  found, reasons = {}, []
  for name, alone in dict(no_new_privs={}, seccomp=dict(no_new_privs=True), landlock=dict(no_new_privs=True),
                          namespaces={}).items():
    try:
      result = _start("", [probe], DEFAULT, False, Means(**{name: True, **alone}))[0]
      found[name] = result.status == "ok" and result.values == (7,)
      reasons += [] if found[name] else [f"{name}: {result.status} {result.detail}".strip()]
    except SandboxError as error:
      reasons.append(f"{name}: {error}")
  if found.get("landlock"):
    found["landlock"] = landlock.abi()
  return Means(**found, reasons=tuple(reasons))


def require(means: Means | None = None) -> Means:
  """The means to use. NotImplementedError that says what is missing, where programs would not be held."""
  means = capabilities() if means is None else means
  if missing := means.missing():
    raise NotImplementedError(
      f"programs cannot be run safely here: no {', no '.join(missing)} ({'; '.join(means.reasons) or 'not asked for'})."
      f" unsandboxed=True runs them with your own rights, within limits of time and memory only")
  return means


def run(program: str, cases: Sequence[Case], *, limits: Limits = DEFAULT, stop: bool = False,
        means: Means | None = None, unsandboxed: bool = False) -> list[Result]:
  """One result for each case, each in a process of its own that is dead on return. Thread-safe.

  stop: the cases after the first that is not "ok" are skipped. means: those to use; None: all that there are.
  SandboxError where the sandbox itself failed, twice.
  """
  means = Means() if unsandboxed else require(means)
  if limits.processes > 1 and not (means.namespaces or unsandboxed):
    raise NotImplementedError(f"processes={limits.processes} needs namespaces: {'; '.join(means.reasons)}")
  if not cases:
    return []
  try:
    return _start(program, cases, limits, stop, means)
  except SandboxError:
    return _start(program, cases, limits, stop, means)


def _start(program: str, cases: Sequence[Case], limits: Limits, stop: bool, means: Means) -> list[Result]:
  job = json.dumps(dict(
    program=program, stop=stop, parent=os.getpid(), limits=dataclasses.asdict(limits),
    means=dict(namespaces=means.namespaces, landlock=bool(means.landlock), seccomp=means.seccomp,
               no_new_privs=means.no_new_privs),
    cases=[dict(expressions=c.expressions, setup=c.setup, values=dict(c.names), stdin=c.stdin) for c in cases]))
  # a fixed hash seed: one program, one verdict. -S: no site-packages; not -I, which would ignore the seed. One arena:
  # malloc gives a thread one of 64 MB where the address space has room at that moment, and the next has no stack
  environment = dict(PYTHONHASHSEED="0", PYTHONUTF8="1", LANG="C.UTF-8", TZ="UTC", MALLOC_ARENA_MAX="1")
  # -P is in effect an isolated path; nothing of the caller's environment is passed on
  process = subprocess.Popen(
    [sys.executable, "-P", "-s", "-S", str(RUNNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, env=environment, cwd="/", start_new_session=True)
  try:
    # the runner keeps the cases' limits: this one is for a runner that hangs
    out, err = process.communicate(job.encode(), timeout=30 + len(cases) * (limits.wall + 2))
  except subprocess.TimeoutExpired:
    raise SandboxError(f"the runner did not end in time ({len(cases)} cases of {limits.wall} s)") from None
  finally:
    _kill(process)
  try:
    answer = json.loads(out)
    outcomes = answer.get("outcomes") or []
  except ValueError:
    raise SandboxError(f"the runner ended with {process.returncode}: {err.decode(errors='replace')[-300:]}") from None
  if "refused" in answer:
    raise SandboxError(answer["refused"])
  results = [_result(case, outcome) for case, outcome in zip(cases, outcomes, strict=False)]
  return results + [Result("skipped")] * (len(cases) - len(results))


def _kill(process: subprocess.Popen) -> None:
  """The whole group; where there are namespaces, the death of their process 1 ends all that is in them."""
  if process.poll() is None:
    try:
      os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    process.kill()
    process.communicate()


def _result(case: Case, outcome: dict) -> Result:
  """The outcome as the runner saw it; the reply in it is the program's own."""
  times = dict(cpu=outcome["cpu"], wall=outcome["wall"])
  if outcome["status"] != "ok":
    return Result(outcome["status"], **times)
  try:
    reply = json.loads(outcome["reply"]) if outcome["reply"] else {}
    if not isinstance(reply, dict):
      raise ValueError("not an object")
  except (ValueError, RecursionError):
    return Result("error", detail="a reply that cannot be read", **times)
  stdout = outcome["stdout"].encode("latin-1")
  for status in ("syntax", "error"):
    if status in reply:
      return Result(status, detail=str(reply[status])[:300], stdout=stdout, **times)
  if outcome["code"] < 0:
    return Result("killed", detail=f"signal {-outcome['code']}", stdout=stdout, **times)
  got = reply.get("values")
  if outcome["code"] or (case.expressions and not (isinstance(got, list) and len(got) == len(case.expressions))):
    return Result("exit", detail=f"status {outcome['code']}", stdout=stdout, **times)
  return Result("ok", tuple(got or ()), stdout, **times)

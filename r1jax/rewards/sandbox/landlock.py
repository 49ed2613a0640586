"""Landlock (landlock(7)): a process gives up what it may open, and more, for itself and what it starts. No root needed.

Files and directories by a list of what is allowed; TCP since ABI 4 (Linux 6.7), signals and abstract Unix sockets to
others since ABI 6 (6.12). It does not see stat, chmod, chown, utime and chdir: those are for a seccomp filter.
Also loaded by runner.py in a bare interpreter: the standard library only.
"""

from __future__ import annotations

import ctypes
import os

LEAST = 3                                    # since Linux 6.2: before it, truncation was not covered

_libc = ctypes.CDLL(None, use_errno=True)
_CREATE, _ADD, _RESTRICT = 444, 445, 446     # system calls, the same number on all machines
_WRITE_FILE, _READ_FILE, _READ_DIR, _REFER, _TRUNCATE, _IOCTL = 2, 4, 8, 1 << 13, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REFER | _TRUNCATE | sum(1 << i for i in (4, 5, 7, 8, 10, 12))   # remove and make


class _Ruleset(ctypes.Structure):
  _fields_ = tuple((name, ctypes.c_uint64) for name in ("files", "tcp", "scoped"))


class _Beneath(ctypes.Structure):
  _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


def _check(result: int, what: str) -> int:
  if result < 0:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
  return result


def abi() -> int:
  """The kernel's version of Landlock; 0: none."""
  return max(0, _libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1))


def restrict(readable: list[str], writable: list[str]) -> None:
  """From now on only these, and what is below them, can be opened; no TCP, no signals to others.

  Needs no_new_privs. A path that does not exist is passed over. OSError where the kernel is too old.
  """
  version = abi()
  if version < LEAST:
    raise OSError(38, f"Landlock ABI {version}, at least {LEAST} needed")
  rules = _Ruleset((1 << 15) - 1 | (_IOCTL if version >= 5 else 0), 3 if version >= 4 else 0, 3 if version >= 6 else 0)
  size = 24 if version >= 6 else 16 if version >= 4 else 8
  ruleset = _check(_libc.syscall(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0), "landlock_create_ruleset")
  for path, access in [(p, _READ) for p in readable] + [(p, _WRITE) for p in writable]:
    try:
      fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
      continue
    if not os.path.isdir(path):
      access &= _WRITE_FILE | _READ_FILE | _TRUNCATE
    rule = _Beneath(access, fd)
    _check(_libc.syscall(_ADD, ruleset, 1, ctypes.byref(rule), 0), f"landlock_add_rule {path}")
    os.close(fd)
  _check(_libc.syscall(_RESTRICT, ruleset, 0), "landlock_restrict_self")
  os.close(ruleset)

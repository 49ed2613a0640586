"""Compiled programs are kept on disk: a resumed run and a second `r1jax sample` start without XLA's minutes.

JAX's own persistent cache, by its environment variables, which stay the user's where they are set
(JAX_ENABLE_COMPILATION_CACHE=false turns it off). The folder is one for each kind of processor: a home directory may be
shared, and what was compiled for one processor can crash on another. Called by the command line, never on import.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def folder() -> Path:
  """~/.cache/r1jax/compiled-<processor>, or below XDG_CACHE_HOME."""
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(home) / "r1jax" / f"compiled-{processor()}"


def processor() -> str:
  """A short name for what this processor can do."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    text = "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
  except OSError:                      # no /proc
    text = platform.processor() + platform.machine()
  return hashlib.sha1(text.encode()).hexdigest()[:12]


def keep() -> None:
  """Before jax is imported."""
  try:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder()))
  except RuntimeError:                 # a user without a home
    return
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

"""report.html: a run's folder read into one page, which opens from disk and fetches nothing."""

from __future__ import annotations

import os
from pathlib import Path

from r1jax.report.advice import look_at
from r1jax.report.folder import bill_of, read, summary_of
from r1jax.report.hacking import hacked
from r1jax.report.page import render

__all__ = ["bill_of", "hacked", "look_at", "read", "summary", "write"]


def summary(workdir: Path) -> list[tuple[str, ...]]:
  """The table at the top of the report, as strings; its first row is the header."""
  return summary_of(read(Path(workdir)))


def write(workdir: Path) -> Path:
  """Writes workdir/report.html from what the folder holds now, and returns its path."""
  path = Path(workdir) / "report.html"
  partial = path.with_suffix(".html.partial")   # then renamed: a browser that reloads never sees half a page
  partial.write_text(render(read(Path(workdir))), encoding="utf-8", errors="replace", newline="\n")
  os.replace(partial, path)
  return path

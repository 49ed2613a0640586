"""An evaluation in parts that are kept: after a kill it goes on, and what it leaves is the same to the byte.

A part is the rows of a few problems, one Parquet file, renamed into place when it is whole. Beside the parts stands
what they are answers to: policy, problems, their tokens, sampling. Where any of that is another, the parts are of no
use and are removed. Not seen: a change of the code, of rewards say, between the two sessions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import pyarrow.parquet as pq

from r1jax import lineage, metrics
from r1jax.types import Problem


class Parts:
  """The finished parts in a folder. `dropped` says what had changed, where an older evaluation's had to go."""

  def __init__(self, folder: Path, settings: dict):
    self.folder, self.dropped = folder, []
    path, new = folder / "settings.json", lineage.plain(settings)
    if folder.is_dir():
      old = _read(path)
      self.dropped = [key for key in new | old if new.get(key) != old.get(key)]
      if self.dropped:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metrics.write_text(path, json.dumps(new, indent=1))

  def path(self, first: int) -> Path:
    """Of the part that begins with problem number `first`."""
    return self.folder / f"problem_{first:08d}.parquet"

  def done(self, first: int) -> bool:
    return self.path(first).is_file()

  def write(self, first: int, table: dict[str, list]) -> None:
    metrics.write_table(self.path(first), table)

  def table(self, firsts: Sequence[int]) -> dict[str, list]:
    """All rows, in order. Lists again, so that a column's type is that of all its values, not of a part's."""
    whole: dict[str, list] = {}
    for first in firsts:
      for name, values in pq.read_table(self.path(first)).to_pydict().items():
        whole.setdefault(name, []).extend(values)
    return whole

  def remove(self) -> None:
    """The whole is written: the parts are not needed any more."""
    shutil.rmtree(self.folder)


def refuse_another(path: Path, settings: dict, but: Sequence[str] = ()) -> None:
  """ValueError where `path` is the record of an evaluation with other settings than these; those in `but` may differ.

  So may the policy's name: its parameters tell it.
  """
  if not path.exists():
    return
  old, new = _read(path).get("settings"), lineage.plain(settings)
  if not isinstance(old, dict):
    raise ValueError(f"{path} does not say what it was made with, so it is not overwritten: give another --out")
  old, new = (of | of.get("sampling", {}) for of in (old, new))
  said = [f"{key} ({old.get(key)!r}, now {new.get(key)!r})" for key in old | new
          if key not in ("policy", "sampling", *but) and old.get(key) != new.get(key)]
  if said:
    raise ValueError(f"{path} is of another evaluation, it differs in {', '.join(said)}: give another --out")


def _read(path: Path) -> dict:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    found = None
  return found if isinstance(found, dict) else {"settings.json": "unreadable"}


def digest(problems: Sequence[Problem]) -> str:
  """Of what is asked and what is right."""
  return lineage.digest([(p.id, p.prompt, p.answer) for p in problems])


def tokens_digest(prompts: Sequence[Sequence[int]]) -> str:
  """Of the prompts as the policy reads them: of tokenizer and chat template."""
  return lineage.digest([list(map(int, prompt)) for prompt in prompts])


def fingerprint(params) -> str:
  """A number that another policy's parameters do not have: of each leaf the weighted sum of its bits, modulo 2^32.

  Whole numbers, so neither sharding nor the order of summing changes it, and any one changed value does.
  """
  def one(x):
    bits = x if jnp.issubdtype(x.dtype, jnp.integer) else jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    place = jnp.zeros((), jnp.uint32)
    for axis in range(x.ndim):     # odd weights, which differ along each axis: none of them loses a bit
      place = place * jnp.uint32(2654435761) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (place + 1), dtype=jnp.uint32)
  sums = jax.device_get(jax.jit(lambda tree: [one(x) for x in jax.tree.leaves(tree)])(params))
  names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  return lineage.digest(list(zip(names, map(int, sums), strict=True)))

"""Checkpoints: Orbax, asynchronous, the last K kept; a damaged one is set aside and the one before it is used.

A checkpoint holds the TrainState and a small JSON of the rest (position in the data, checksums of all arrays). Orbax
writes into a temporary folder and renames it, so that a killed process leaves no half checkpoint under a final name;
checksums find the others: truncated, overwritten, flipped bits.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

log = logging.getLogger("r1jax")
# Orbax' words for a whole checkpoint of another tree, or of other shapes
MISMATCH = ("Structure mismatch", "structures do not match", "is not compatible with the stored shape")


class Checkpoints:
  """The checkpoints of one folder. Use as a context manager: leaving it waits for the last write."""

  def __init__(self, folder: str | Path, keep: int = 2, read_only: bool = False):
    """read_only: nothing is removed or moved, for a run may be writing there at this moment."""
    self.folder, self.read_only = Path(folder).absolute(), read_only
    options = (ocp.CheckpointManagerOptions(read_only=True) if read_only else
               ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True,
                                            cleanup_tmp_directories=True))
    self._open = lambda: ocp.CheckpointManager(self.folder, options=options)
    self._manager = self._open()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Starts writing; the arrays may be changed or donated as soon as this returns."""
    # a copy, so that donating the state to the next step cannot touch what the writer still reads
    state = jax.tree.map(jnp.copy, _present(state))
    meta = dict(meta, checksums=checksums(state))
    if not self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state),
                                                            meta=ocp.args.JsonSave(meta))):
      raise ValueError(f"{self.folder}: Orbax declined to save step {step}; saved are {self.steps()}")

  def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
    """(step, state, meta) of the newest whole checkpoint, or of `step`; None if there is none at all.

    abstract: the state's shapes and dtypes. Damaged checkpoints are moved to a folder beside, with a warning; if
    `step` was asked for by number, or none is left, that is a ValueError. So is a whole checkpoint of another tree,
    that of another version or config: it stays where it is.
    """
    tried = []
    for number in reversed(self.steps()) if step is None else [step]:
      if number not in self.steps():
        raise ValueError(f"{self.folder}: no checkpoint of step {number}; there are {self.steps()}")
      try:
        return number, *self._read(number, abstract)
      except Exception as error:   # Orbax, TensorStore and JSON raise many kinds; all mean: not this one
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        if any(words in str(error) for words in MISMATCH):
          raise ValueError(f"{self.folder}: checkpoint {number} holds other arrays than this config and version of"
                           f" r1jax ({' '.join(str(error).split())[:300]})") from error
        tried.append(f"step {number}: {reason}")
        if step is None:
          self._set_aside(number, reason)
    if tried:
      raise ValueError(f"{self.folder}: no whole checkpoint ({'; '.join(tried)})")
    return None

  def _read(self, step: int, abstract):
    out = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_present(abstract)),
                                                              meta=ocp.args.JsonRestore()))
    meta = dict(out["meta"])
    found, wanted = checksums(out["state"]), meta.pop("checksums")
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    if wrong or len(found) != len(wanted):
      raise ValueError(f"checksum of {', '.join(wrong[:3]) or 'the list of arrays'} does not match")
    return _like(abstract, out["state"]), meta

  def _set_aside(self, step: int, reason: str) -> None:
    if self.read_only:
      log.warning("checkpoint %s/%s cannot be read (%s): using the one before", self.folder, step, reason)
      return
    aside = self.folder.with_name(self.folder.name + ".damaged")
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / str(step), ignore_errors=True)
    self._manager.close()
    shutil.move(self.folder / str(step), aside / str(step))
    self._manager = self._open()
    log.warning("checkpoint %s/%s is damaged (%s): moved to %s, using the one before", self.folder, step, reason, aside)


def _present(state):
  """A TrainState as a dictionary of what it has: a field added to it later does not make old checkpoints unreadable."""
  if not dataclasses.is_dataclass(state):
    return state
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {name: _present(value) for name, value in fields.items() if value is not None}


def _like(abstract, found):
  """What _present made of a state, as that state's classes again."""
  if not dataclasses.is_dataclass(abstract):
    return found
  return abstract.replace(**{name: _like(getattr(abstract, name), value) for name, value in found.items()})


def abstract(make_state, *args):
  """Shapes of make_state(*args), all on one device, to restore a checkpoint with where the run itself is not."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
                      jax.eval_shape(make_state, *args))


def checksums(state) -> dict[str, int]:
  """CRC-32 of each array's bytes, by path. Arrays that other hosts hold parts of are left out."""
  return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(np.asarray(x)).view(np.uint8))
          for path, x in jax.tree_util.tree_leaves_with_path(state) if x.is_fully_addressable}

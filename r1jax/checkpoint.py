"""Checkpoints: Orbax, asynchronous, the last K kept; a damaged one is set aside and the one before it is used.

A checkpoint holds the TrainState and a small JSON of the rest (position in the data, checksums of all arrays). Orbax
writes into a temporary folder and renames it, so that a killed process leaves no half checkpoint under a final name;
checksums find the others: truncated, overwritten, flipped bits. Of several hosts each writes, reads and sums up its own
parts of the arrays; a checkpoint fits any mesh and any number of hosts that see its folder.
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

from r1jax import hosts

log = logging.getLogger("r1jax")
# Orbax' words for a whole checkpoint of another tree, or of other shapes, and ours for one of other dtypes
MISMATCH = ("Structure mismatch", "structures do not match", "is not compatible with the stored shape",
            "is not the stored dtype")


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

  def __exit__(self, error, *_) -> None:
    if error and hosts.count() > 1:      # Orbax would wait for the other hosts, which may be gone
      return
    self._manager.wait_until_finished()
    self._manager.close()

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Starts writing; the arrays may be changed or donated as soon as this returns."""
    # a copy, so that donating the state to the next step cannot touch what the writer still reads
    state = jax.tree.map(jnp.copy, _present(state))
    meta = dict(meta, checksums=checksums(state), checksum=KIND)
    if not self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state),
                                                            meta=ocp.args.JsonSave(meta))):
      raise ValueError(f"{self.folder}: Orbax declined to save step {step}; saved are {self.steps()}")

  def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any, dict] | None:
    """(step, state, meta) of the newest whole checkpoint, or of `step`; None if there is none at all.

    abstract: the state's shapes and dtypes. Damaged checkpoints are moved to a folder beside, with a warning; if
    `step` was asked for by number, or none is left, that is a ValueError. So is a whole checkpoint of another tree or
    of other dtypes, that of another version or config: it stays where it is.
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
    out = error = None
    try:
      self._same_dtypes(step, abstract)
      out = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_present(abstract)),
                                                                meta=ocp.args.JsonRestore()))
    except Exception as wrong:
      error = wrong
    if any(errors := hosts.gather(error and str(error))):      # one host's failure is everyone's
      raise error or ValueError(next(filter(None, errors)))
    meta = dict(out["meta"])
    wanted, kind = meta.pop("checksums"), meta.pop("checksum", "crc32")
    found = checksums(out["state"]) if kind == KIND else _crc32(out["state"])
    wanted = wanted if kind == KIND else {name: value for name, value in wanted.items() if name in found}
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    if wrong or len(found) != len(wanted):
      raise ValueError(f"checksum of {', '.join(wrong[:3]) or 'the list of arrays'} does not match")
    return _like(abstract, out["state"]), meta

  def _same_dtypes(self, step: int, abstract) -> None:
    """ValueError where an array is stored with another dtype: Orbax would cast it, and say nothing."""
    stored = hosts.gather(_stored_dtypes(self.folder / str(step) / "state"))[0]      # all hosts judge by the same
    for name, dtype in _dtypes(_present(abstract)).items():
      if stored.get(name, dtype) != dtype:
        raise ValueError(f"{name}: {dtype} is not the stored dtype, {stored[name]}")

  def _set_aside(self, step: int, reason: str) -> None:
    if self.read_only:
      log.warning("checkpoint %s/%s cannot be read (%s): using the one before", self.folder, step, reason)
      return
    aside = self.folder.with_name(self.folder.name + ".damaged")
    aside.mkdir(exist_ok=True)
    self._manager.close()

    def move():
      shutil.rmtree(aside / str(step), ignore_errors=True)
      shutil.move(self.folder / str(step), aside / str(step))
    hosts.from_main(move)
    self._manager = self._open()
    log.warning("checkpoint %s/%s is damaged (%s): moved to %s, using the one before", self.folder, step, reason, aside)


def _present(state):
  """A TrainState as a dictionary of what it has: a field added to it later does not make old checkpoints unreadable."""
  if not dataclasses.is_dataclass(state):
    return state
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {name: _present(value) for name, value in fields.items() if value is not None}


def _dtypes(tree) -> dict[str, np.dtype]:
  """Of each array, by path; metadata of a checkpoint has the same paths."""
  return {jax.tree_util.keystr(path, simple=True, separator="."): x.dtype
          for path, x in jax.tree_util.tree_leaves_with_path(tree) if getattr(x, "dtype", None) is not None}


def _stored_dtypes(folder: Path) -> dict[str, np.dtype]:
  """Those that a checkpoint's arrays are written with; none where its metadata cannot be read: reading it will tell."""
  try:
    return _dtypes(ocp.StandardCheckpointHandler().metadata(folder).tree)
  except Exception:            # Orbax, TensorStore and JSON raise many kinds
    return {}


def _like(abstract, found):
  """What _present made of a state, as that state's classes again."""
  if not dataclasses.is_dataclass(abstract):
    return found
  return abstract.replace(**{name: _like(getattr(abstract, name), value) for name, value in found.items()})


def abstract(make_state, *args):
  """Shapes of make_state(*args), all on one device (of several hosts: on each), to restore a checkpoint with where the
  run itself is not."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if hosts.count() == 1 else hosts.everywhere()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
                      jax.eval_shape(make_state, *args))


KIND = "weighted"


def checksums(state) -> dict[str, int]:
  """Of each array, by path: the sum of its values' bits, each times an odd number that its place gives, mod 2^32.

  One wrong value always shows, as an odd factor can be undone. The sum does not depend on how the array is split.
  """
  of = lambda x: sum(_sum(s.data, s.index, x.shape) for s in x.addressable_shards if not s.replica_id)
  own = {jax.tree_util.keystr(path): of(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}
  parts = hosts.gather(own)
  return {name: sum(part[name] for part in parts) % 2**32 for name in own}


def _sum(data, index, shape) -> int:
  """The part of a checksum that one shard, which lies at `index` of an array of `shape`, has in it."""
  x = np.atleast_1d(np.asarray(data))
  if not x.size:
    return 0
  starts = [i.indices(n)[0] for i, n in zip(index, shape, strict=True)] or [0]
  strides = np.cumprod([1, *shape[:0:-1]])[::-1].astype(np.uint64)
  at = np.zeros((), np.uint32)           # the place of each row's first value, in the whole array
  for start, stride, n in zip(starts[:-1], strides, x.shape, strict=False):
    at = at[..., None] + (np.arange(start, start + n, dtype=np.uint64) * stride).astype(np.uint32)
  at, total = at.reshape(-1), 0
  x = np.ascontiguousarray(x).reshape(len(at), -1)
  bits = x.view(np.uint32 if x.itemsize % 4 == 0 else f"u{x.itemsize}")
  wide = np.uint32(bits.shape[1] // x.shape[1])                       # values of 8 bytes are two
  column = (np.arange(bits.shape[1], dtype=np.uint64) + starts[-1] * int(wide)).astype(np.uint32)
  rows = max(1, 2**16 // bits.shape[1])
  for i in range(0, len(at), rows):
    place = at[i:i + rows, None] * wide + column
    weight = (place * np.uint32(0x9E3779B1)) ^ (place >> np.uint32(15)) | np.uint32(1)
    total += int(np.dot(bits[i:i + rows].astype(np.uint32, copy=False).reshape(-1), weight.reshape(-1)))
  return total % 2**32


def _crc32(state) -> dict[str, int]:
  """What older checkpoints have in place of `checksums`: CRC-32 of the bytes, where a host holds all of them."""
  return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(np.asarray(x)).view(np.uint8))
          for path, x in jax.tree_util.tree_leaves_with_path(state) if x.is_fully_addressable}

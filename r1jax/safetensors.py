"""safetensors files: a memory-mapped reader and a streaming writer, for files that nobody vouches for.

A file is 8 bytes (length of the header, little-endian), a JSON header {name: {dtype, shape, data_offsets}}, where
"__metadata__" may hold strings, and the tensors' bytes, row-major and without holes (format: the README of
huggingface/safetensors). Every refusal is a ValueError with the path and what is wrong. Differs from that package: a
key that occurs twice, a key that the format does not know and a BOOL byte other than 0 and 1 are refused as well.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import reprlib
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {name: np.dtype(code) for name, code in dict(
  F64="<f8", F32="<f4", F16="<f2", BF16=ml_dtypes.bfloat16, F8_E4M3=ml_dtypes.float8_e4m3fn,
  F8_E5M2=ml_dtypes.float8_e5m2, I64="<i8", I32="<i4", I16="<i2", I8="i1", U64="<u8", U32="<u4", U16="<u2", U8="u1",
  BOOL="?").items()}
MAX_HEADER = 100_000_000   # bytes, also of an index; the limit of the reference implementation
MAX_DIMS = 32              # what every NumPy version can hold
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PYTORCH = {"format": "pt"}   # the metadata without which transformers refuses a file
Specs = Mapping[str, tuple[Any, tuple[int, ...]]]   # name -> (dtype, shape)

_repr = reprlib.Repr()   # bounded in length and depth: what it shows comes from the file
_repr.maxstring = _repr.maxother = 160
_show = _repr.repr


@dataclass(frozen=True)
class Entry:
  """Where a tensor lies: `start` and `stop` are byte offsets from the start of the file."""
  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int
  stop: int


def read_header(path: str | Path) -> tuple[dict[str, Entry], dict[str, str]]:
  """(entries in the header's order, metadata) of one file; reads no tensor. ValueError for a malformed file."""
  if not os.path.isfile(path):
    raise FileNotFoundError(f"{path}: no such file (expected safetensors)")
  with open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
      raise ValueError(f"{path}: {size} bytes; the length of the header alone takes 8")
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
      raise ValueError(f"{path}: header of {length} bytes; the limit is {MAX_HEADER}")
    if length > size - 8:
      raise ValueError(f"{path}: header of {length} bytes in a file of {size}")
    header = _json(path, "header", file.read(length))
  metadata = header.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
    raise ValueError(f"{path}: __metadata__ must map strings to strings, got {_show(metadata)}")
  entries, origin = {}, 8 + length
  for name, fields in header.items():
    try:
      entries[name] = _entry(name, fields, origin, size)
    except ValueError as error:
      raise ValueError(f"{path}: tensor {_show(name)}: {error}") from error
  end = origin
  for entry in sorted(entries.values(), key=lambda e: (e.start, e.stop)):
    if entry.start != end:
      fault = "overlaps the one before" if entry.start < end else "leaves a hole before it"
      raise ValueError(f"{path}: tensor {_show(entry.name)} {fault}: data byte {entry.start - origin}, "
                       f"expected {end - origin}")
    end = entry.stop
  if end != size:
    raise ValueError(f"{path}: {size - end} trailing bytes after the last tensor")
  return entries, metadata


def _json(path, what: str, raw: bytes) -> dict:
  def unique(pairs):
    out = {}
    for key, value in pairs:
      if key in out:
        raise ValueError(f"key {_show(key)} occurs twice")
      key.encode()   # a lone surrogate is a str in Python that nothing can print or write
      out[key] = value
    return out
  try:
    value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
  except (ValueError, RecursionError, MemoryError) as error:
    raise ValueError(f"{path}: {what} is not UTF-8 JSON ({type(error).__name__}: {error})") from error
  if not isinstance(value, dict) or raw[:1] != b"{":
    raise ValueError(f"{path}: {what} must be a JSON object that starts with '{{', got {_show(value)}")
  return value


def _entry(name: str, fields, origin: int, size: int) -> Entry:
  """Checks one entry of the header by itself. origin: where the data starts; size: of the file."""
  naturals = lambda x: isinstance(x, list) and all(type(n) is int and n >= 0 for n in x)   # a bool is an int, too
  if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
    raise ValueError(f"must be an object of dtype, shape and data_offsets, got {_show(fields)}")
  code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
  if not isinstance(code, str) or code not in DTYPES:
    raise ValueError(f"unknown dtype {_show(code)}; known: {', '.join(DTYPES)}")
  if not naturals(shape) or len(shape) > MAX_DIMS:
    raise ValueError(f"shape must be a list of at most {MAX_DIMS} integers >= 0, got {_show(shape)}")
  if not naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    raise ValueError(f"data_offsets must be integers 0 <= start <= stop, got {_show(offsets)}")
  start, stop = offsets
  if stop > size - origin:
    raise ValueError(f"ends at data byte {_show(stop)}, but the file has {size - origin} (cut short?)")
  # NumPy refuses such a shape even where another dimension is 0
  if math.prod(n for n in shape if n) * DTYPES[code].itemsize >= 2**63:
    raise ValueError(f"shape {_show(shape)} overflows 63 bits")
  if math.prod(shape) * DTYPES[code].itemsize != stop - start:
    raise ValueError(f"{code} of shape {_show(shape)} takes {math.prod(shape) * DTYPES[code].itemsize} bytes, "
                     f"but data_offsets give {stop - start}")
  return Entry(name, DTYPES[code], tuple(shape), origin + start, origin + stop)


def tensor(source: str | Path | mmap.mmap, entry: Entry) -> np.ndarray:
  """A read-only view into the mapped file: nothing is copied, only the pages that are used get into memory.

  The view may be unaligned: the format does not ask for more.
  """
  memory = source if isinstance(source, mmap.mmap) else _map(source)
  if entry.stop > len(memory):
    raise ValueError(f"tensor {_show(entry.name)} ends at byte {entry.stop}, but the file has only {len(memory)} now")
  array = np.ndarray(entry.shape, entry.dtype, memory, entry.start)
  if entry.dtype == bool and array.size and array.view(np.uint8).max() > 1:
    raise ValueError(f"tensor {_show(entry.name)}: BOOL byte {array.view(np.uint8).max()}; only 0 and 1 are valid")
  return array


def _map(path) -> mmap.mmap:
  with open(path, "rb") as file:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@dataclass(frozen=True)
class Checkpoint:
  """The tensors of one or several files, by name. A file is mapped when the first of its tensors is read."""
  files: dict[str, tuple[Path, Entry]]
  maps: dict[Path, mmap.mmap] = field(default_factory=dict)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(self.files)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._find(name)[1].shape

  def dtype(self, name: str) -> np.dtype:
    return self._find(name)[1].dtype

  def read(self, name: str) -> np.ndarray:
    """A read-only view, as `tensor` gives it."""
    path, entry = self._find(name)
    if path not in self.maps:
      self.maps[path] = _map(path)
    try:
      return tensor(self.maps[path], entry)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from error

  def release(self, name: str) -> None:
    """Gives the tensor's pages back. Views stay valid: what they use again is read from the file again."""
    path, entry = self._find(name)
    begin = entry.start - entry.start % mmap.PAGESIZE
    if path in self.maps and entry.stop > entry.start and hasattr(mmap, "MADV_DONTNEED"):
      self.maps[path].madvise(mmap.MADV_DONTNEED, begin, entry.stop - begin)

  def close(self) -> None:
    """Forgets the maps; each ends with the last view into it."""
    self.maps.clear()

  def _find(self, name: str) -> tuple[Path, Entry]:
    if name not in self.files:
      raise ValueError(f"no tensor {_show(name)} among {len(self.files)}, as {_show(list(self.files)[:3])}")
    return self.files[name]


def open_files(path: str | Path) -> Checkpoint:
  """Opens one file, or a folder with an index and its shards, or a folder with one file. Reads the headers only."""
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or folder")
  if (path / INDEX).is_file():
    return _open_shards(path / INDEX)
  found = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
  if path.is_dir() and any(SHARD.fullmatch(file.name) for file in found):
    raise ValueError(f"{path}: has shards but no {INDEX} (an unfinished copy?)")
  if path / SINGLE in found:
    found = [path / SINGLE]
  if len(found) != 1:
    raise ValueError(f"{path}: expected {INDEX}, {SINGLE} or one *.safetensors, got {len(found)} of the last")
  return Checkpoint({name: (found[0], entry) for name, entry in read_header(found[0])[0].items()})


def _open_shards(index: Path) -> Checkpoint:
  if index.stat().st_size > MAX_HEADER:
    raise ValueError(f"{index}: index of {index.stat().st_size} bytes; the limit is {MAX_HEADER}")
  shard_of = _json(index, "index", index.read_bytes()).get("weight_map")
  if not isinstance(shard_of, dict):
    raise ValueError(f"{index}: weight_map must be an object, got {_show(shard_of)}")
  for name, file in shard_of.items():
    if not isinstance(file, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", file):
      raise ValueError(f"{index}: tensor {_show(name)}: {_show(file)} is no name of a *.safetensors in this folder")
  if SINGLE not in shard_of.values() and (index.parent / SINGLE).exists():
    raise ValueError(f"{index}: {SINGLE} lies beside it, but is not in the index: which of the two is meant?")
  files = {}
  for file in dict.fromkeys(shard_of.values()):
    shard = index.parent / file
    if not os.path.isfile(shard):   # unlike Path.is_file, never raises
      raise ValueError(f"{index}: shard {_show(file)} is missing")
    for name, entry in read_header(shard)[0].items():
      if shard_of.get(name) != file:
        raise ValueError(f"{shard}: holds tensor {_show(name)}, for which the index says {_show(shard_of.get(name))}")
      files[name] = (shard, entry)
  for name, file in shard_of.items():
    if name not in files:
      raise ValueError(f"{index.parent / file}: lacks tensor {_show(name)}, which the index puts there")
  return Checkpoint({name: files[name] for name in shard_of})


def _nbytes(dtype, shape) -> int:
  return math.prod(map(int, shape)) * np.dtype(dtype).itemsize


def _layout(specs: Specs, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, Entry]]:
  """(the file's bytes up to the data, entries). Widest dtype first, so that every tensor is aligned to its dtype."""
  if "__metadata__" in specs or not all(isinstance(text, str) for pair in metadata.items() for text in pair):
    raise ValueError(f"__metadata__ must be no tensor and map strings to strings, got {_show(dict(metadata))}")
  fields, end = {}, 0
  for name, (dtype, shape) in sorted(specs.items(), key=lambda item: -np.dtype(item[1][0]).itemsize):
    code = next((code for code, known in DTYPES.items() if known == np.dtype(dtype)), None)
    if code is None or any(n < 0 for n in shape) or len(shape) > MAX_DIMS:
      raise ValueError(f"tensor {_show(name)}: cannot write dtype {np.dtype(dtype)}, shape {_show(shape)}")
    fields[name] = dict(dtype=code, shape=[int(n) for n in shape],
                        data_offsets=[end, end := end + _nbytes(dtype, shape)])
  header = ({"__metadata__": dict(metadata)} if metadata else {}) | {name: fields[name] for name in specs}
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
  text += b" " * (-len(text) % 8)
  if len(text) > MAX_HEADER:
    raise ValueError(f"header of {len(text)} bytes for {len(specs)} tensors; the limit is {MAX_HEADER}")
  start = 8 + len(text)
  return len(text).to_bytes(8, "little") + text, {n: _entry(n, fields[n], start, start + end) for n in specs}


def write(path: str | Path, tensors: Iterable[tuple[str, Any]], specs: Specs,
          metadata: Mapping[str, str] = PYTORCH) -> None:
  """Writes one file, holding one tensor at a time. tensors: (name, array), each of `specs` once, in any order.

  The file gets its name once it is whole; if something raises before, what was there stays as it was. ValueError for
  a tensor that is not in `specs`, differs from it in dtype or shape, comes twice, or never.
  """
  path = Path(path)
  header, missing = _layout(specs, metadata)
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    with temporary.open("xb") as file:
      file.write(header)
      for name, value in tensors:
        if name not in missing:
          raise ValueError(f"{path}: tensor {_show(name)} {'comes twice' if name in specs else 'is not in specs'}")
        entry, array = missing.pop(name), np.asarray(value)
        if (array.dtype, array.shape) != (entry.dtype, entry.shape):
          raise ValueError(f"{path}: tensor {_show(name)} is {array.dtype}{list(array.shape)}, "
                           f"but specs say {entry.dtype}{list(entry.shape)}")
        file.seek(entry.start)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        del value, array   # before the next one is made
      if missing:
        raise ValueError(f"{path}: {len(missing)} tensors of specs never came, as {_show(list(missing)[:3])}")
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_sharded(folder: str | Path, specs: Specs, get: Callable[[str], Any], max_shard_bytes: int = 5_000_000_000,
                  metadata: Mapping[str, str] = PYTORCH) -> list[Path]:
  """Writes model.safetensors, or shards and their index as Hugging Face names them; gives the tensors' files.

  A shard is filled in the order of `specs` and starts anew before it would pass max_shard_bytes of tensors. An earlier
  checkpoint of such names is replaced, once all is written: get may still read from it, and if get raises, it stays.
  """
  if max_shard_bytes < 1:
    raise ValueError(f"max_shard_bytes={max_shard_bytes} must be at least 1")
  folder, shards, filled = Path(folder), [{}], 0
  for name, spec in specs.items():
    if filled and filled + _nbytes(*spec) > max_shard_bytes:
      shards.append({})
      filled = 0
    shards[-1][name] = spec
    filled += _nbytes(*spec)
  names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
  files = dict(zip(names if len(shards) > 1 else [SINGLE], shards, strict=True))
  index = dict(metadata=dict(total_size=sum(_nbytes(*spec) for spec in specs.values())),
               weight_map={name: file for file, part in files.items() for name in part})
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
    for file, part in files.items():
      write(Path(temporary, file), ((name, get(name)) for name in part), part, metadata)
    Path(temporary, INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # the index goes first and comes last: in between, open_files refuses rather than mixes old with new
    (folder / INDEX).unlink(missing_ok=True)
    for file in files:
      os.replace(Path(temporary, file), folder / file)
    for old in folder.glob("model*.safetensors"):
      if old.name not in files and (old.name == SINGLE or SHARD.fullmatch(old.name)):
        old.unlink()
    if len(files) > 1:
      os.replace(Path(temporary, INDEX), folder / INDEX)
  return [folder / file for file in files]


# FP8 in blocks, as DeepSeek-V3 is released (inference/kernel.py, weight_dequant). M, N matrix, bm, bn its block

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
FP8_MAX = 448.0


def dequantize_blocks(w_MN: np.ndarray, scale_inv: np.ndarray, block: tuple[int, int] = (128, 128),
                      dtype: Any = ml_dtypes.bfloat16) -> np.ndarray:
  """w * scale_inv of its block, multiplied in float32: E4M3 [M,N], float32 [ceil(M/bm), ceil(N/bn)] -> dtype [M,N].

  One row of blocks at a time, so that float32 is never held for the whole matrix.
  """
  grid = tuple(-(-n // b) for n, b in zip(w_MN.shape, block, strict=False))
  if w_MN.ndim != 2 or (w_MN.dtype, scale_inv.dtype, scale_inv.shape) != (FP8, np.float32, grid):
    raise ValueError(f"expected {FP8}[M,N] and float32{list(grid)} (blocks of {list(block)}), got "
                     f"{w_MN.dtype}{list(w_MN.shape)} and {scale_inv.dtype}{list(scale_inv.shape)}")
  out_MN = np.empty(w_MN.shape, dtype)
  for i, scale_n in enumerate(scale_inv):
    rows = slice(i * block[0], (i + 1) * block[0])
    out_MN[rows] = w_MN[rows].astype(np.float32) * np.repeat(scale_n, block[1])[:w_MN.shape[1]]
  return out_MN


def quantize_blocks(w_MN: np.ndarray, block: tuple[int, int] = (128, 128)) -> tuple[np.ndarray, np.ndarray]:
  """float [M,N] -> (E4M3 [M,N], float32 scale_inv [ceil(M/bm), ceil(N/bn)] = largest |w| of the block / 448, or 1)."""
  if w_MN.ndim != 2 or not w_MN.size:
    raise ValueError(f"expected a matrix, got shape {list(w_MN.shape)}")
  (M, N), (bm, bn) = w_MN.shape, block
  q_MN, scale_inv = np.empty((M, N), FP8), np.empty((-(-M // bm), -(-N // bn)), np.float32)
  for i in range(len(scale_inv)):
    w_bN = w_MN[i * bm:(i + 1) * bm].astype(np.float32)
    amax_n = np.maximum.reduceat(np.abs(w_bN).max(axis=0), np.arange(0, N, bn))
    if not np.isfinite(amax_n).all():
      raise ValueError(f"rows {i * bm} to {i * bm + len(w_bN) - 1} hold a value that is not finite in float32")
    # at least the smallest normal number: a coarser scale could let w / scale_inv pass 448, which becomes NaN
    scale_inv[i] = np.where(amax_n > 0, np.maximum(amax_n / FP8_MAX, np.finfo(np.float32).tiny), 1)
    q_MN[i * bm:(i + 1) * bm] = w_bN / np.repeat(scale_inv[i], bn)[:N]
  return q_MN, scale_inv

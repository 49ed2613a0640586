"""Hugging Face directories, in and out: config.json, safetensors (single or sharded), tokenizer, generation_config.

`load` reads tensor by tensor into arrays that live where their sharding says: beside the parameters, host memory holds
one tensor at a time. `save` writes a directory that transformers loads. Which tensor is which leaf is in
models/<family>.py; a tensor that is missing, not expected or of another shape is a ValueError that names it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from r1jax import safetensors, sharding, tokenizer
from r1jax.models import deepseek, llama, names, param, qwen, transformer
from r1jax.models.names import Slot
from r1jax.models.transformer import ModelConfig

FAMILIES = (llama, qwen, deepseek)
FP8_SCALE = "_scale_inv"          # DeepSeek: w.weight comes with w.weight_scale_inv, one factor per 128 x 128 block
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
IGNORED = ".rotary_emb.inv_freq"  # in old Llama files: a table that follows from config.json
FUSED = (".experts.gate_up_proj", ".experts.down_proj")
BLOCK = 2 << 20                   # bytes that are on the way to a device at one time
# how to compute, not what: config.json has no place for these
HOW = dict(remat="elementwise", logit_chunk=2048)
HOW_MOE = dict(dispatch="dropless", capacity_factor=1.25)

log = logging.getLogger("r1jax")


def family_of(model_type: str):
  """The module of r1jax/models for a config.json's model_type."""
  for family in FAMILIES:
    if model_type in family.TYPES:
      return family
  known = ", ".join(t for f in FAMILIES for t in f.TYPES)
  raise NotImplementedError(f"config.json: model_type {model_type!r} is none of {known}")


def read_config(folder: str | Path) -> ModelConfig:
  path = Path(folder) / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file (expected a Hugging Face model directory)")
  try:
    hf = json.loads(path.read_bytes())
    if not isinstance(hf, dict) or not isinstance(hf.get("model_type"), str):
      raise ValueError("no model_type")
    return family_of(hf["model_type"]).from_hf(hf)
  except NotImplementedError as error:
    raise NotImplementedError(f"{folder}: {error}") from error
  except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
    raise ValueError(f"{path}: not a config of a known model ({type(error).__name__}: {error})") from error


def slots(cfg: ModelConfig) -> list[Slot]:
  """Every tensor of a checkpoint of this model and where it goes."""
  family = _family(cfg)
  return list(names.slots(cfg, deepseek.layer_names(cfg) if family is deepseek else family.LAYER))


def to_hf(cfg: ModelConfig) -> dict:
  """The contents of config.json. ValueError for a model that none can describe: it would be read as another."""
  family = _family(cfg)
  if family is deepseek and not cfg.moe:
    raise ValueError("no config.json has model.mla without model.moe")
  out = family.to_hf(cfg)
  plain = dataclasses.replace(cfg, **HOW, moe=cfg.moe and dataclasses.replace(cfg.moe, **HOW_MOE))
  back = family.from_hf(out)
  lost = [f.name for f in dataclasses.fields(cfg) if getattr(back, f.name) != getattr(plain, f.name)]
  if lost:
    raise ValueError(f"a config.json of type {out['model_type']!r} cannot hold "
                     + ", ".join(f"model.{name}={getattr(cfg, name)}" for name in lost))
  return out


def _family(cfg: ModelConfig):
  return deepseek if cfg.mla else qwen if cfg.qkv_bias or cfg.qk_norm or cfg.moe else llama


def check_names(wanted: list[Slot], shape_of: Callable[[str], tuple[int, ...]], present, where: str) -> None:
  """ValueError for tensors that are missing, of another shape, or that nothing wants. FP8 scales are looked at too."""
  present = set(present)
  missing = [s.hf for s in wanted if s.hf not in present]
  if missing:
    raise ValueError(f"{where}: {len(missing)} tensors are missing: {_some(missing)}")
  scales = {s.hf + FP8_SCALE for s in wanted} & present
  extra = sorted(present - scales - {s.hf for s in wanted})
  if extra:
    raise ValueError(f"{where}: {len(extra)} tensors belong to no weight of the model: {_some(extra)}")
  for s in wanted:
    found = tuple(shape_of(s.hf))
    if found != s.shape:
      raise ValueError(f"{where}: {s.hf} has shape {found}, the model wants {s.shape}")
    if s.hf + FP8_SCALE in scales:
      found, blocks = tuple(shape_of(s.hf + FP8_SCALE)), tuple(-(-n // 128) for n in s.shape)
      if found != blocks:
        raise ValueError(f"{where}: {s.hf + FP8_SCALE} has shape {found}, the model wants {blocks}")


def _some(many) -> str:
  return ", ".join(many[:5]) + (", ..." if len(many) > 5 else "")


def _check_dtypes(wanted: list[Slot], files: safetensors.Checkpoint, present, where: str) -> None:
  """Floats as they are, or FP8 with its scales; a scale beside anything else would be forgotten."""
  present = set(present)
  for s in wanted:
    found, scale = files.dtype(s.hf), s.hf + FP8_SCALE
    if (found == safetensors.FP8) != (scale in present):
      raise ValueError(f"{where}: {s.hf} is {found}, and {scale} is {'there' if scale in present else 'missing'}")
    if scale in present and (len(s.shape) != 2 or files.dtype(scale) not in FLOATS):
      raise ValueError(f"{where}: {s.hf} of shape {s.shape} has {files.dtype(scale)} scales")
    if found != safetensors.FP8 and found not in FLOATS:
      raise ValueError(f"{where}: {s.hf} is {found}, not a float of 16 bits or more")


def load(folder: str | Path, dtype: str = "", mesh=None) -> tuple[Any, ModelConfig]:
  """(params, cfg) of a Hugging Face directory.

  dtype: of the parameters; empty: as config.json says. mesh: where they shall live (sharding.RULES); None: one device.
  A multi-token prediction module that config.json promises and no file has is left out, with a warning: transformers
  drops it when it saves a DeepSeek model.
  """
  folder = Path(folder)
  cfg = read_config(folder)
  if dtype:
    cfg = dataclasses.replace(cfg, dtype=dtype)
  files = safetensors.open_files(folder)
  try:
    if cfg.mtp and not any(n.startswith(f"model.layers.{cfg.layers}.") for n in files.names):
      log.warning("%s: config.json promises a multi-token prediction module, but no file has model.layers.%d.*: "
                  "going on without", folder, cfg.layers)
      cfg = dataclasses.replace(cfg, mtp=0)
    return _read(files, cfg, mesh, str(folder)), cfg
  finally:
    files.close()


def _read(files: safetensors.Checkpoint, cfg: ModelConfig, mesh, where: str):
  """The parameters of `cfg`, all checks first."""
  present = [n for n in files.names if not n.endswith(IGNORED)]
  if fused := [n for n in present if n.endswith(FUSED)]:
    raise NotImplementedError(f"{where}: {fused[0]} holds all experts in one; have transformers write them apart"
                              " (save_pretrained with save_original_format=True)")
  experts = cfg.moe.experts * (cfg.layers - cfg.dense_layers) if cfg.moe else 0
  if cfg.layers + experts > len(present):     # before a list of so many names is made
    raise ValueError(f"{where}: config.json says {cfg.layers} layers with {experts} experts in all, but the files hold"
                     f" only {len(present)} tensors")
  wanted = slots(cfg)
  if cfg.tied_head and names.TOP["head"].hf in present:
    _check_tied(files, where)
    present.remove(names.TOP["head"].hf)
  check_names(wanted, files.shape, present, where)
  _check_dtypes(wanted, files, present, where)
  tree = transformer.params(cfg)
  places = sharding.shardings(mesh, tree) if mesh is not None else None
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  fill = {}
  for path, group in itertools.groupby(sorted((s for s in wanted if s.path), key=lambda s: s.path),
                                       lambda s: s.path):
    fill[path] = _leaf(files, list(group), _at(tree, path), cfg, _at(places, path) if places else one)
  return jax.tree_util.tree_map_with_path(lambda path, p: fill[tuple(k.key for k in path)], tree,
                                          is_leaf=param.is_param)


def _at(tree, path):
  return functools.reduce(lambda t, k: t[k], path, tree)


def _check_tied(files: safetensors.Checkpoint, where: str) -> None:
  """Some files hold a tied head a second time. If it is not the same, config.json is wrong."""
  embed, head = names.TOP["embed"].hf, names.TOP["head"].hf
  if embed in files.names:
    raw = [memoryview(files.read(n).reshape(-1).view(np.uint8)) for n in (embed, head)]
    if raw[0] != raw[1]:
      raise ValueError(f"{where}: config.json ties the head to the embedding, but {head} is not {embed}")
    files.release(embed)
    files.release(head)


def _leaf(files: safetensors.Checkpoint, group: list[Slot], declared: param.Param, cfg: ModelConfig, where):
  """One leaf. Each device's part is an array of its own, which tensor after tensor is written into, in place."""
  shape, dtype, depth = declared.shape, jnp.dtype(declared.dtype or cfg.dtype), len(group[0].index)
  boxes = {device: [range(n)[i] for n, i in zip(shape, box, strict=True)]
           for device, box in where.addressable_devices_indices_map(shape).items()}
  small = math.prod(where.shard_shape(shape)) * dtype.itemsize <= BLOCK
  parts: dict[jax.Device, Any]
  if small:     # made here and sent as a whole: nothing to compile
    parts = {device: np.empty([len(r) for r in box], dtype) for device, box in boxes.items()}
  else:
    zeros = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=where)(shape, dtype)
    parts = {s.device: s.data for s in zeros.addressable_shards}
    del zeros     # the parts are to be given away one by one
  for s in group:
    here = {device: box for device, box in boxes.items() if all(i in r for i, r in zip(s.index, box, strict=False))}
    x = _ours(files, s, dtype) if here else None
    for device, box in here.items():
      first = tuple(i - r.start for i, r in zip(s.index, box, strict=False))
      cut = x[tuple(slice(r.start, r.stop) for r in box[depth:])]
      if small:
        parts[device][first] = cut
        continue
      for start, block in _blocks(cut, dtype.itemsize):
        block = jax.device_put(block.astype(dtype, copy=False), device)
        parts[device] = jax.block_until_ready(_put(device.platform)(parts[device], block, first + start))
        files.release(s.hf)       # the pages that the block was read from: x may be a view of the file
    files.release(s.hf)
  return jax.make_array_from_single_device_arrays(shape, where, [jax.device_put(x, d) for d, x in parts.items()])


def _blocks(x: np.ndarray, itemsize: int):
  """(where it starts, part) of x: parts of up to BLOCK bytes, each in one piece of the file."""
  axis = int(np.argmax(x.strides))
  length = x.shape[axis]
  rows = min(length, max(1, BLOCK * length // (x.size * itemsize)))
  for i in range(0, length, rows):
    i = min(i, length - rows)      # the last one may repeat some rows: all blocks have one shape, and one program
    yield tuple(i if a == axis else 0 for a in range(x.ndim)), x[(slice(None),) * axis + (slice(i, i + rows),)]


@functools.cache
def _put(platform: str):
  """f(whole, part, at): `part`, from `at` on, into `whole`, in place."""
  def put(whole, part, at):
    part = jnp.expand_dims(part, tuple(range(whole.ndim - part.ndim)))
    return jax.lax.dynamic_update_slice(whole, part, at)
  # without it, XLA's CPU has all of a bfloat16 `whole` go to float32 and back
  options = dict(xla_disable_hlo_passes="float-normalization-bf16") if platform == "cpu" else None
  return jax.jit(put, donate_argnums=0, compiler_options=options)


def _ours(files: safetensors.Checkpoint, s: Slot, dtype) -> np.ndarray:
  """An HF tensor in our shape: a view of the file, or for FP8 an array of dtype."""
  x = files.read(s.hf)
  if x.dtype == safetensors.FP8:
    x = safetensors.dequantize_blocks(x, files.read(s.hf + FP8_SCALE).astype(np.float32), dtype=dtype)
    files.release(s.hf + FP8_SCALE)
  return to_ours(x, s)


def to_ours(x: np.ndarray, s: Slot) -> np.ndarray:
  """[out, in] -> [in, out], heads apart. A view."""
  return (x.T if s.linear else x).reshape(s.ours)


def to_theirs(x: np.ndarray, s: Slot) -> np.ndarray:
  """The inverse of to_ours."""
  return x.reshape(s.shape[::-1]).T if s.linear else x.reshape(s.shape)


def save(folder: str | Path, params, cfg: ModelConfig, tok: tokenizer.Tokenizer | None = None,
         max_shard_bytes: int = 5_000_000_000, settings: Mapping[str, Any] | None = None) -> None:
  """Writes config.json, safetensors (with an index when they are several), and the tokenizer's files.

  settings: more keys of config.json, such as max_position_embeddings.
  """
  config = full_config(cfg, tok, settings)
  _check_tree(params, cfg)
  wanted = {s.hf: s for s in slots(cfg)}
  original = {s.hf: wanted[s.copy_of] if s.copy_of else s for s in wanted.values()}

  def get(hf):
    s = original[hf]
    leaf = _at(params, s.path)
    return np.ascontiguousarray(to_theirs(np.asarray(leaf[s.index] if s.index else leaf), s))
  specs = {hf: (np.dtype(_at(params, s.path).dtype), s.shape) for hf, s in original.items()}
  write_model(folder, config, specs, get, max_shard_bytes)
  if tok is not None:
    tok.save_dir(folder)


def full_config(cfg: ModelConfig, tok: tokenizer.Tokenizer | None, settings: Mapping[str, Any] | None = None) -> dict:
  """to_hf, the tokenizer's ends, and more keys."""
  return to_hf(cfg) | _token_ids(tok, cfg) | dict(settings or {})


def write_model(folder: str | Path, config: dict, specs: safetensors.Specs, get: Callable[[str], np.ndarray],
                max_shard_bytes: int = 5_000_000_000) -> list[Path]:
  """Writes the tensors that get(name) gives, and config.json once they are there; gives the tensors' files."""
  files = safetensors.write_sharded(folder, specs, get, max_shard_bytes)
  (Path(folder) / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
  return files


def _check_tree(params, cfg: ModelConfig) -> None:
  """ValueError that names a leaf which is missing, of another shape, or which the model does not have."""
  have = {path: tuple(x.shape) for path, x in names.leaves(params)}
  want = {path: p.shape for path, p in names.leaves(transformer.params(cfg))}
  for path in [*want, *have]:
    if have.get(path) != want.get(path):
      raise ValueError(f"parameters: {'/'.join(path)} has shape {have.get(path)}, the model wants {want.get(path)}")


def _token_ids(tok: tokenizer.Tokenizer | None, cfg: ModelConfig) -> dict:
  if tok is None:
    return {}
  if tok.vocab > cfg.vocab:
    raise ValueError(f"the tokenizer has {tok.vocab} tokens, model.vocab={cfg.vocab}")
  ids = dict(eos_token_id=tok.end_id, bos_token_id=tok.bos_id)
  return {k: v for k, v in ids.items() if v is not None}

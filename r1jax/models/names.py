"""How leaves of our parameter trees are called in Hugging Face checkpoints. Each family's file has its table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

from r1jax.models import transformer
from r1jax.models.rope import RopeConfig
from r1jax.models.transformer import ModelConfig


class Name(NamedTuple):
  """hf: the tensor's name, "{e}" an expert's number. linear: HF stores [out, in]; ours is [in, out], heads apart."""
  hf: str
  linear: bool = False


class Slot(NamedTuple):
  """One HF tensor and the place in our tree that it fills."""
  hf: str
  path: tuple[str, ...]            # of the leaf
  index: tuple[int, ...]           # within it: layer, expert
  shape: tuple[int, ...]           # of the HF tensor
  linear: bool
  ours: tuple[int, ...]            # shape of that place
  copy_of: str = ""                # a second copy of another tensor: read over, and written again

TOP = {"embed": Name("model.embed_tokens.weight"), "final_norm": Name("model.norm.weight"),
       "head": Name("lm_head.weight", True)}

MTP = {"embed_norm": Name("enorm.weight"), "hidden_norm": Name("hnorm.weight"), "merge": Name("eh_proj.weight", True),
       "final_norm": Name("shared_head.norm.weight")}


def slots(cfg: ModelConfig, layer_names: dict[str, Name]) -> Iterator[Slot]:
  """Every tensor of a checkpoint of this model, in order: top, layers, MTP. KeyError: a leaf that has no name."""
  tree = transformer.params(cfg)
  for name, p in TOP.items():
    if name in tree:
      yield _slot(p, tree[name].shape, (name,), (), "")
  first = 0
  for kind, count in cfg.stacks.items():
    layer = list(leaves(transformer.layer_params(cfg, kind)))
    for i in range(count):
      for path, p in layer:
        yield from _each(cfg, layer_names["/".join(path)], p.shape, (kind, *path), (i,), f"model.layers.{first + i}.")
    first += count
  if cfg.mtp:
    prefix = f"model.layers.{cfg.layers}."
    for name, p in MTP.items():
      yield _slot(p, tree["mtp"][name].shape, ("mtp", name), (), prefix)
    for path, p in leaves(tree["mtp"]["layer"]):
      yield from _each(cfg, layer_names["/".join(path)], p.shape, ("mtp", "layer", *path), (), prefix)
    shape = (cfg.vocab, cfg.dim)       # the module shares embedding and head; checkpoints hold them a second time
    head = TOP["embed" if cfg.tied_head else "head"].hf
    for hf, original in (("embed_tokens.weight", TOP["embed"].hf), ("shared_head.head.weight", head)):
      yield Slot(prefix + hf, (), (), shape, False, shape, copy_of=original)


def leaves(tree, path=()):
  """(path, leaf) of nested dicts."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _each(cfg, name, shape, path, index, prefix):
  if "{e}" not in name.hf:
    yield _slot(name, shape, path, index, prefix)
    return
  for e in range(cfg.moe.experts):
    yield _slot(Name(name.hf.format(e=e), name.linear), shape[1:], path, (*index, e), prefix)


def _slot(name, shape, path, index, prefix):
  return Slot(prefix + name.hf, path, index, _hf_shape(name, path, shape), name.linear, shape)


def _hf_shape(name, path, shape):
  size = math.prod(shape)
  if not name.linear:
    return (size,) if path[-1].endswith("_bias") else shape
  inputs = shape[0] * shape[1] if path[-2:] == ("attention", "out") else shape[0]
  return size // inputs, inputs


def rope_from_hf(hf: dict, **changes) -> RopeConfig:
  """rope_theta and rope_scaling of older config.json files, rope_parameters of newer ones."""
  given = dict(hf.get("rope_parameters") or {}) or dict(hf.get("rope_scaling") or {})
  theta = given.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
  kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
  given.pop("type", None)
  rename = {"original_max_position_embeddings": "original"}
  given = {rename.get(k, k): v for k, v in given.items() if v is not None}
  if kind == "default":
    given = {}
  elif kind == "llama3" and "original" not in given:
    given["original"] = hf["max_position_embeddings"]
  known = {f.name for f in dataclasses.fields(RopeConfig)}
  unknown = [k for k in given if k not in known and not (k == "truncate" and given[k])]
  if kind not in ("default", "linear", "llama3", "yarn") or unknown:
    raise NotImplementedError(f"config.json: rope type {kind!r} with {unknown or given}")
  numbers = {k: (int(v) if k == "original" else float(v)) for k, v in given.items() if k in known}
  return RopeConfig(theta=float(theta), kind=kind, **numbers, **changes)


def rope_to_hf(rope: RopeConfig) -> dict:
  """The older two keys, which every reader knows."""
  out: dict = dict(rope_theta=rope.theta)
  if rope.kind == "default":
    return out
  scaling: dict = dict(rope_type=rope.kind, type=rope.kind, factor=rope.factor)
  if rope.kind != "linear":
    scaling["original_max_position_embeddings"] = rope.original
    out["max_position_embeddings"] = round(rope.original * rope.factor)    # some readers take the factor from here
  if rope.kind == "llama3":
    scaling |= dict(low_freq_factor=rope.low_freq_factor, high_freq_factor=rope.high_freq_factor)
  if rope.kind == "yarn":
    scaling |= dict(beta_fast=rope.beta_fast, beta_slow=rope.beta_slow)
    scaling |= {k: getattr(rope, k) for k in ("mscale", "mscale_all_dim", "attention_factor") if getattr(rope, k)}
  return out | dict(rope_scaling=scaling)


def refuse(hf: dict, **expected) -> None:
  """NotImplementedError where a config.json asks for what these models do not have."""
  for key, values in expected.items():
    if hf.get(key, values[0]) not in values:
      raise NotImplementedError(f"config.json: {key}={hf[key]!r} is not supported, only {values}")


def common_from_hf(hf: dict) -> dict:
  """The keys that all families share."""
  refuse(hf, hidden_act=("silu",))
  quantised = hf.get("quantization_config") or {}
  kind, block = quantised.get("quant_method", "fp8"), quantised.get("weight_block_size", [128, 128])
  if (kind, block) != ("fp8", [128, 128]):
    raise NotImplementedError(f"config.json: weights quantised as {kind!r} in blocks {block}; only fp8 in [128, 128]")
  needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
  missing = [k for k in needed if not isinstance(hf.get(k), int)]
  if missing:
    raise ValueError(f"config.json: {', '.join(missing)} missing or no whole number")
  dtype = hf.get("dtype") or hf.get("torch_dtype") or "float32"
  return dict(vocab=hf["vocab_size"], dim=hf["hidden_size"], layers=hf["num_hidden_layers"],
              heads=hf["num_attention_heads"], kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
              ffn=hf["intermediate_size"], norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
              tied_head=bool(hf.get("tie_word_embeddings", False)), dtype=str(dtype).removeprefix("torch."))


def common_to_hf(cfg: ModelConfig) -> dict:
  return dict(vocab_size=cfg.vocab, hidden_size=cfg.dim, num_hidden_layers=cfg.layers,
              num_attention_heads=cfg.heads, num_key_value_heads=cfg.kv_heads, intermediate_size=cfg.ffn,
              rms_norm_eps=cfg.norm_eps, tie_word_embeddings=cfg.tied_head, torch_dtype=cfg.dtype, hidden_act="silu",
              attention_bias=False, **rope_to_hf(cfg.rope))

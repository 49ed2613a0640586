"""From an experiment file to frozen dataclasses, checked before any jax call.

An experiment has `get_config(arg) -> ConfigDict`; `config` is that dict, `cfg` the frozen RunConfig made of it here.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

import ml_collections

from r1jax import hf, tasks
from r1jax.evals.evaluate import EvalConfig
from r1jax.ledger import LedgerConfig
from r1jax.models.transformer import ModelConfig
from r1jax.sharding import MeshConfig
from r1jax.stages.distill import DistillConfig
from r1jax.stages.preferences import DPOConfig
from r1jax.stages.pretrain import PretrainConfig
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.stages.reward_model import RewardModelConfig
from r1jax.stages.sft import SFTConfig
from r1jax.tasks import DataConfig

STAGES = ("pretrain", "sft", "dpo", "reward_model", "distill", "reasoning_rl")


@dataclasses.dataclass(frozen=True)
class RewardsConfig:
  """Where rewards are computed: in processes that can be killed (rewards/workers.py), or in the run's own."""
  workers: int = 0               # processes; 0: in the run's own, without limits: for rules that cannot hang
  timeout: float = 10.0          # seconds of one check
  memory: int = 2 * 2**30        # bytes of a process

  def __post_init__(self):
    if self.workers < 0 or self.timeout <= 0 or self.memory < 2**27:
      raise ValueError(f"rewards.workers={self.workers} must not be negative, timeout={self.timeout} seconds above 0,"
                       f" memory={self.memory} bytes at least {2**27}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A whole run. `stages` says what runs, in order; a stage that is not named needs no section."""
  name: str
  stages: tuple[str, ...]
  task: Any                      # the Config of the task's module
  model: ModelConfig             # vocab is the tokenizer's: it is filled in when the task is made
  start: str | None = None       # a Hugging Face directory to start from: its weights, its sizes, its tokenizer
  seed: int = 0
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  pretrain: PretrainConfig | None = None
  sft: SFTConfig | None = None
  dpo: DPOConfig | None = None
  reward_model: RewardModelConfig | None = None
  distill: DistillConfig | None = None
  reasoning_rl: RLConfig | None = None
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  rewards: RewardsConfig = dataclasses.field(default_factory=RewardsConfig)
  ledger: LedgerConfig = dataclasses.field(default_factory=LedgerConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

  def __post_init__(self):
    if not self.stages:
      raise ValueError("stages is empty")
    if twice := [stage for stage in STAGES if self.stages.count(stage) > 1]:
      raise ValueError(f"stages: {twice[0]} is named twice; a folder holds one run of a stage: start another from it"
                       " (r1jax export, start=DIR)")
    for stage in self.stages:
      if stage not in STAGES:
        raise ValueError(f"stages: {stage!r} is none of {STAGES}")
      if getattr(self, stage) is None:
        raise ValueError(f"stages names {stage}, but the config has no section {stage}")
    if not 0 <= self.seed < 2**31:
      raise ValueError(f"seed={self.seed} must be within 0 and 2^31 - 1")


def parse_arg(arg: str | None, **defaults):
  """`file.py:tiny,bits=8` -> ConfigDict(tiny=True, bits=8). Names must be known; types follow the defaults."""
  out = ml_collections.ConfigDict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, given, value = part.partition("=")
    if name not in defaults:
      raise ValueError(f"config argument {name!r} is none of {', '.join(defaults)}")
    kind = type(defaults[name])
    if kind is bool:
      out[name] = value.lower() in ("1", "true", "yes") if given else True
    elif not given:
      raise ValueError(f"config argument {name} needs a value: {name}={defaults[name]}")
    else:
      out[name] = kind(value)
  return out


def freeze(config: ml_collections.ConfigDict) -> RunConfig:
  """Checks every key and value. ValueError, with the key's path, for what is unknown, missing or out of range."""
  plain = config.to_dict()
  task = dict(plain.get("task") or {})
  if "name" not in task:
    raise ValueError("task.name is missing")
  plain["task"] = build(tasks.find(task.pop("name")).Config, task, "task")
  model = dict(plain.get("model") or {})
  if plain.get("start"):
    plain["model"] = _started(plain["start"], model)
    data = dict(plain.get("data") or {})
    plain["data"] = data | dict(tokenizer=data.get("tokenizer") or plain["start"])
  else:
    if "vocab" in model:
      raise ValueError("model.vocab comes from the tokenizer: leave it out")
    plain["model"] = model | dict(vocab=1)
  return build(RunConfig, plain, "")


def _started(folder: str, section: dict) -> ModelConfig:
  """The model of a Hugging Face directory, in f32 unless told, with what may be chosen freely."""
  free = ("dtype", "remat", "logit_chunk")
  fixed = [key for key in section if key not in free]
  if fixed:
    raise ValueError(f"model.{fixed[0]}: the model is that of start={folder}; only {', '.join(free)} can be chosen")
  return dataclasses.replace(hf.read_config(folder), **dict(dtype="float32") | section)


def with_vocab(cfg: RunConfig, vocab: int) -> ModelConfig:
  """The model for a tokenizer of so many tokens. Released models often have some rows more than tokens."""
  if cfg.start:
    if vocab > cfg.model.vocab:
      raise ValueError(f"the tokenizer has {vocab} tokens, the model of start={cfg.start} only {cfg.model.vocab}")
    return cfg.model
  return dataclasses.replace(cfg.model, vocab=vocab)


def build(cls, values: dict, path: str):
  """A dataclass from nested dicts; sections are built by the types of its fields."""
  hints = typing.get_type_hints(cls)
  names = [f.name for f in dataclasses.fields(cls)]
  for key in values:
    if key not in names:
      near = difflib.get_close_matches(key, names, 1)
      raise ValueError(f"unknown key {_join(path, key)}" + (f"; did you mean {near[0]}?" if near else ""))
  for field in dataclasses.fields(cls):
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if required and field.name not in values:
      raise ValueError(f"{_join(path, field.name)} is missing")
  return cls(**{key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()})


def _convert(hint, value, path: str):
  """`value` as the field's type, or a ValueError. Whole numbers pass for floats; lists for tuples."""
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  if value is None and type(None) in options:
    return None
  kind = next((o for o in options if o is not type(None)), hint)
  if dataclasses.is_dataclass(kind) and isinstance(value, dict):
    return build(kind, value, path)
  plain = typing.get_origin(kind) or kind
  if plain is Any or (dataclasses.is_dataclass(kind) and isinstance(value, kind)):
    return value
  if plain is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if plain is tuple and isinstance(value, (list, tuple)):
    return tuple(value)
  if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
    raise ValueError(f"{path}={value!r} must be of type {plain.__name__}")
  return value


def _join(path: str, key: str) -> str:
  return f"{path}.{key}" if path else key

"""From an experiment file to frozen dataclasses, checked before any jax call.

An experiment has `get_config(arg) -> ConfigDict`; `config` is that dict, `cfg` the frozen RunConfig made of it here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
import zlib
from pathlib import Path
from typing import Any

import ml_collections

from r1jax import hf, tasks
from r1jax.evals.evaluate import EvalConfig
from r1jax.ledger import LedgerConfig
from r1jax.models.transformer import ModelConfig
from r1jax.sharding import MeshConfig
from r1jax.stages.all_scenarios_rl import AllScenariosConfig
from r1jax.stages.distill import DistillConfig
from r1jax.stages.preferences import DPOConfig
from r1jax.stages.pretrain import PretrainConfig
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.reward_model import RewardModelConfig
from r1jax.stages.sft import SFTConfig
from r1jax.tasks import DataConfig
from r1jax.tracking import TrackingConfig

STAGES = dict(pretrain=PretrainConfig, sft=SFTConfig, dpo=DPOConfig, reward_model=RewardModelConfig,
              distill=DistillConfig, rejection=RejectionConfig, reasoning_rl=RLConfig,
              all_scenarios_rl=AllScenariosConfig)
NO_POLICY = ("reward_model", "rejection")      # leave something else than a policy
LEARN_FROM_DATA = ("sft", "distill")


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
class Section:
  """One stage of a run. In the experiment these keys stand beside the stage's own."""
  name: str
  stage: str                     # which of stages/ it is; None in the experiment: that of its name
  cfg: Any                       # that stage's config
  start: str                     # the stage whose policy it starts from; "": the run's start. Default: the one before
  data: str                      # the stage whose data.jsonl it learns from; "": data.demonstrations, or the task's own
  model: ModelConfig | None      # None: the run's. Of a stage that starts from another, its model
  seed: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A whole run. `stages` says what runs, in order; each is a section of its name, with its stage's config."""
  name: str
  stages: tuple[str, ...]
  sections: dict[str, Section]
  task: Any                      # the Config of the task's module
  model: ModelConfig             # vocab is the tokenizer's: it is filled in when the task is made
  start: str | None = None       # a Hugging Face directory to start from: its weights, its sizes, its tokenizer
  only: str = ""                 # the one stage to run now, from what the others left in the folder
  seed: int = 0
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  rewards: RewardsConfig = dataclasses.field(default_factory=RewardsConfig)
  ledger: LedgerConfig = dataclasses.field(default_factory=LedgerConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  rollout_mesh: MeshConfig | None = None       # while reasoning_rl samples; None: mesh
  rollout_devices: int = 0       # the last so many devices only sample, those before them only train; 0: all do both
  tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)

  def __post_init__(self):
    if not 0 <= self.seed < 2**31:
      raise ValueError(f"seed={self.seed} must be within 0 and 2^31 - 1")
    if self.only and self.only not in self.stages:
      raise ValueError(f"only={self.only!r} is none of the stages {', '.join(self.stages)}")
    if self.rollout_devices < 0:
      raise ValueError(f"rollout_devices={self.rollout_devices} must not be negative")

  def section(self, stage: str) -> Section | None:
    """The first section of a stage."""
    return next((s for s in self.sections.values() if s.stage == stage), None)


TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


def parse_arg(arg: str | None, **defaults):
  """`file.py:tiny,bits=8` -> ConfigDict(tiny=True, bits=8). Names must be known; types follow the defaults."""
  out = ml_collections.ConfigDict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, given, value = part.partition("=")
    if name not in defaults:
      raise ValueError(f"config argument {name!r} is none of {', '.join(defaults)}")
    kind = type(defaults[name])
    if kind is bool:
      if given and value.lower() not in TRUE + FALSE:
        raise ValueError(f"config argument {part}: {value!r} is none of {', '.join(TRUE + FALSE)}")
      out[name] = value.lower() in TRUE if given else True
    elif not given:
      raise ValueError(f"config argument {name} needs a value: {name}={defaults[name]}")
    else:
      out[name] = kind(value)
  return out


def beside(file: str, name: str):
  """The experiment file `name` that lies beside `file`, as a module: what an ablation changes one line of."""
  return tasks.load_file(Path(file).with_name(name), f"r1jax_experiment_{Path(name).stem}")


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
  names = plain.get("stages") or ()
  if isinstance(names, str) or not names:
    raise ValueError("stages is empty")
  fields = [f.name for f in dataclasses.fields(RunConfig)]
  is_stage = lambda key: key in STAGES or (isinstance(plain[key], dict) and plain[key].get("stage") in STAGES)
  given = {key: plain.pop(key) for key in list(plain) if key in names or (key not in fields and is_stage(key))}
  plain["sections"] = _sections(tuple(names), given, bool(plain.get("start")), plain.get("seed") or 0)
  return build(RunConfig, plain, "")


def _sections(names: tuple[str, ...], given: dict, started: bool, seed) -> dict[str, Section]:
  """The stages of a run, each checked, with what it starts from and learns from."""
  out: dict[str, Section] = {}
  for name in names:
    if name in out:
      raise ValueError(f"stages: {name} is named twice; a folder holds one run of a stage: give the second a name of"
                       f" its own, with stage={name!r} in its section")
    if name not in given:
      raise ValueError(f"stages names {name}, but the config has no section {name}" if name in STAGES else
                       f"stages: {name!r} is none of {tuple(STAGES)}, and the config has no section of that name")
    section = dict(given[name])
    kind = section.pop("stage", None) or name
    if kind not in STAGES:
      raise ValueError(f"{name}.stage={kind!r} is none of {', '.join(STAGES)}")
    before = [s.name for s in out.values() if s.stage not in NO_POLICY]
    start = section.pop("start", None)
    start = (before[-1] if before else "") if start is None else start
    if start and start not in before:
      raise ValueError(f"{name}.start={start!r} is no stage before it that leaves a policy; these are"
                       f" {', '.join(before) or 'none'}")
    data = section.pop("data", None) or ""
    if data and (data not in out or out[data].stage != "rejection" or kind not in LEARN_FROM_DATA):
      raise ValueError(f"{name}.data={data!r}: {' and '.join(LEARN_FROM_DATA)} learn from the data of a rejection stage"
                       " before them")
    model = section.pop("model", None)
    if model and (start or started):
      raise ValueError(f"{name}.model: a stage that starts from {start or 'released weights'} has its model")
    model = out[start].model if start else model and build(ModelConfig, dict(model) | dict(vocab=1), f"{name}.model")
    # stages of one kind do not draw the same numbers; the first keeps the run's seed
    kin = (kind, "reasoning_rl") if kind == "all_scenarios_rl" else (kind,)
    own = (seed + zlib.crc32(name.encode())) % 2**31 if any(s.stage in kin for s in out.values()) else seed
    out[name] = Section(name, kind, build(STAGES[kind], section, name), start, data, model, own)
    if kind == "all_scenarios_rl":
      trained = [s.name for s in out.values() if s.stage == "reward_model"]
      if missing := sorted(set(out[name].cfg.preference) - set(trained)):
        raise ValueError(f"{name}.preference: {missing[0]!r} is no reward_model stage before it; these are"
                         f" {', '.join(trained) or 'none'}")
  for name in given.keys() - set(names):      # not run, but not wrong either
    own = {k: v for k, v in given[name].items() if k not in ("stage", "start", "data", "model")}
    build(STAGES[given[name].get("stage") or name], own, name)
  return out


def _started(folder: str, section: dict) -> ModelConfig:
  """The model of a Hugging Face directory, in f32 unless told, with what may be chosen freely."""
  free = ("dtype", "remat", "logit_chunk")
  fixed = [key for key in section if key not in free]
  if fixed:
    raise ValueError(f"model.{fixed[0]}: the model is that of start={folder}; only {', '.join(free)} can be chosen")
  return dataclasses.replace(hf.read_config(folder), **dict(dtype="float32") | section)


def with_vocab(cfg: RunConfig, vocab: int, section: Section | None = None) -> ModelConfig:
  """The model for a tokenizer of so many tokens: the run's, or a stage's own. Released models often have more rows."""
  if section and section.model:
    return dataclasses.replace(section.model, vocab=vocab)
  if cfg.start:
    if vocab > cfg.model.vocab:
      raise ValueError(f"the tokenizer has {vocab} tokens, the model of start={cfg.start} only {cfg.model.vocab}")
    return cfg.model
  return dataclasses.replace(cfg.model, vocab=vocab)


def required(field: dataclasses.Field) -> bool:
  return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def kinds(hint) -> list:
  """[T, U] of `T | U | None`."""
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  return [o for o in options if o is not type(None)]


def build(cls, values: dict, path: str):
  """A dataclass from nested dicts; sections are built by the types of its fields."""
  hints = typing.get_type_hints(cls)
  names = [f.name for f in dataclasses.fields(cls)]
  for key in values:
    if key not in names:
      near = difflib.get_close_matches(key, names, 1)
      raise ValueError(f"unknown key {_join(path, key)}" + (f"; did you mean {near[0]}?" if near else ""))
  for field in dataclasses.fields(cls):
    if required(field) and field.name not in values:
      raise ValueError(f"{_join(path, field.name)} is missing")
  return cls(**{key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()})


def _convert(hint, value, path: str):
  """`value` as the field's type, or a ValueError. Whole numbers pass for floats; lists for tuples."""
  if value is None and type(None) in typing.get_args(hint):
    return None
  kind, *others = kinds(hint)
  if others:                       # of dict | tuple; a tuple comes back from a file as a list
    read = tuple(value) if isinstance(value, list) else value
    kind = next((k for k in (kind, *others) if isinstance(read, typing.get_origin(k) or k)), kind)
  if dataclasses.is_dataclass(kind) and isinstance(value, dict):
    return build(kind, value, path)
  plain = typing.get_origin(kind) or kind
  if plain is Any or (dataclasses.is_dataclass(kind) and isinstance(value, kind)):
    return value
  if plain is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
  if any(isinstance(x, float) and not math.isfinite(x) for x in inside):
    raise ValueError(f"{path}={value} must be finite")
  if plain is tuple and isinstance(value, (list, tuple)):
    return tuple(value)
  if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
    raise ValueError(f"{path}={value!r} must be of type {plain.__name__}")
  return value


def _join(path: str, key: str) -> str:
  return f"{path}.{key}" if path else key

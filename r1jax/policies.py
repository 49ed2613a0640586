"""Policies where they lie: the start of a run, a checkpoint of one of its stages, a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import jax
import ml_collections

from r1jax import checkpoint, data, hf, sharding, tasks, tokenizer
from r1jax import config as configs
from r1jax.checkpoint import Checkpoints
from r1jax.config import NO_POLICY, RunConfig, Section
from r1jax.models import transformer
from r1jax.sampler import SampleConfig
from r1jax.stages import (
  all_scenarios_rl,
  distill,
  preferences,
  pretrain,
  reasoning_rl,
  rejection,
  reward_model,
  sft,
)
from r1jax.tasks import gsm8k
from r1jax.types import Task

STAGES = dict(pretrain=pretrain, sft=sft, dpo=preferences, reward_model=reward_model, distill=distill,
              rejection=rejection, reasoning_rl=reasoning_rl, all_scenarios_rl=all_scenarios_rl)


def make_task(config: ml_collections.ConfigDict, cfg: RunConfig) -> Task:
  return tasks.find(config.task.name).make(cfg.task, cfg.data)


def freeze_folder(workdir: str | Path) -> RunConfig:
  """The frozen config of the run in a folder."""
  return configs.freeze(read_config(Path(workdir)))


def read_config(workdir: Path) -> ml_collections.ConfigDict:
  """The resolved config that a run was started with."""
  plain = data.read_run(workdir)
  config = ml_collections.ConfigDict(plain)
  config.stages = tuple(plain["stages"])
  return config


def first_params(cfg: RunConfig, model: transformer.ModelConfig, mesh):
  """What the first stage starts from: the weights of `start`, or random ones."""
  if cfg.start:
    params, found = hf.load(cfg.start, model.dtype, mesh)
    if found.mtp != model.mtp:
      raise ValueError(f"{cfg.start}: its files hold {found.mtp} multi-token prediction modules, its config.json"
                       f" promises {model.mtp}: set num_nextn_predict_layers to what they hold")
    return params
  place = sharding.shardings(mesh, transformer.params(model))
  return jax.jit(lambda key: transformer.init(model, key), out_shardings=place)(jax.random.key(cfg.seed))


def sampling_of(cfg: RunConfig) -> SampleConfig:
  """How this run samples."""
  found = [getattr(getattr(s.cfg, "rl", s.cfg), "sampling", None) for s in cfg.sections.values()]
  return next(filter(None, reversed(found)), SampleConfig(256))


def load_policy(workdir: str | Path, stage: str = "", step: int | None = None):
  """(params, model, task, where) of a run's checkpoint: of its last stage that has one, the newest, unless told.

  FileNotFoundError where there is no run or no checkpoint; ValueError for one that cannot be read.
  """
  workdir = Path(workdir)
  if not (workdir / "config.json").is_file():
    raise FileNotFoundError(f"{workdir}: no run here (no config.json)")
  config = read_config(workdir)
  cfg = configs.freeze(config)
  task = make_task(config, cfg)
  if stage and stage not in cfg.stages:
    raise ValueError(f"{workdir}: no stage {stage!r}; there are {', '.join(cfg.stages)}")
  if stage and cfg.sections[stage].stage in NO_POLICY:
    left = "a reward model" if cfg.sections[stage].stage == "reward_model" else "data"
    raise ValueError(f"{workdir}: stage {stage} leaves {left}, not a policy")
  for section in reversed(cfg.sections.values()):
    if section.stage not in NO_POLICY and stage in ("", section.name):
      model = configs.with_vocab(cfg, task.tokenizer.vocab, section)
      if restored := restore(cfg, workdir, section, model, step):
        return restored[1].params, model, task, f"{section.name} {restored[0]}"
  raise FileNotFoundError(f"{workdir}: no checkpoint" + (f" of stage {stage}" if stage else ""))


def stages_with_policy(workdir: str | Path) -> dict[str, bool]:
  """The stages of a run that leave a policy, in order, and whether each has a checkpoint by now."""
  workdir = Path(workdir)
  if not (workdir / "config.json").is_file():
    raise FileNotFoundError(f"{workdir}: no run here (no config.json)")
  out = {}
  for section in freeze_folder(workdir).sections.values():
    if section.stage not in NO_POLICY:
      folder = workdir / section.name / "checkpoints"
      out[section.name] = False
      if folder.is_dir():
        with Checkpoints(folder, read_only=True) as checkpoints:
          out[section.name] = bool(checkpoints.steps())
  return out


def restore(cfg: RunConfig, workdir: Path, section: Section, model: transformer.ModelConfig, step: int | None = None):
  """(number, state, meta) of a stage's newest checkpoint, or of `step`; None where there is none."""
  folder = workdir / section.name / "checkpoints"
  if not folder.is_dir():
    return None
  with Checkpoints(folder, read_only=True) as checkpoints:
    return checkpoints.restore(abstract_state(section, model), step)


def abstract_state(section: Section, model: transformer.ModelConfig):
  """Shapes of a stage's TrainState, to restore its checkpoint with."""
  return checkpoint.abstract(
    lambda key: STAGES[section.stage].first_state(section.cfg, transformer.init(model, key), model), jax.random.key(0))


def load_model(folder: str | Path, dtype: str = ""):
  """(params, model, task) of a Hugging Face directory; the task has its tokenizer and mathematical rewards.

  dtype: empty is float32 on CPU, where bf16 gains a tenth at best (bench decode), and as config.json says elsewhere.
  """
  tok = tokenizer.load_dir(folder)
  params, model = hf.load(folder, dtype or ("float32" if jax.default_backend() == "cpu" else ""))
  if tok.vocab > model.vocab:
    raise ValueError(f"{folder}: its tokenizer has {tok.vocab} tokens, its model only {model.vocab}")
  def no_problem(i):
    raise ValueError(f"{folder}: a model directory has no problems: give a file of them")
  task = Task(name=Path(folder).name, tokenizer=tok, problem=no_problem, size=0, held_out=(), **gsm8k.SCORING)
  return params, model, task

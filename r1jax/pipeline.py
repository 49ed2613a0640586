"""Runs an experiment's stages in order in one folder, hands the policy over, evaluates its ends, writes the report.

The folder: config.json (the resolved config), tokenizer.json, a folder per stage (checkpoints, metrics.jsonl, samples,
tensorboard), result.json, ledger.json, report.html. Run again on the same folder, it goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import operator
import os
import time
from pathlib import Path

import jax
import ml_collections
from rich.console import Console

from r1jax import checkpoint, hf, ledger, metrics, report, sharding, tasks, tokenizer
from r1jax import config as configs
from r1jax.checkpoint import Checkpoints
from r1jax.config import RunConfig
from r1jax.evals import evaluate
from r1jax.loop import Stop
from r1jax.models import param, transformer
from r1jax.rewards import workers
from r1jax.sampler import SampleConfig
from r1jax.stages import distill, preferences, pretrain, reasoning_rl, reward_model, sft
from r1jax.tasks import gsm8k
from r1jax.types import Task

STAGES = dict(pretrain=pretrain, sft=sft, dpo=preferences, reward_model=reward_model, distill=distill,
              reasoning_rl=reasoning_rl)


def run(config: ml_collections.ConfigDict, workdir: str | Path, *, stop: Stop | None = None,
        console: Console | None = None) -> dict[str, float]:
  """The whole experiment. Returns what result.json holds: accuracies and lengths before and after, seconds."""
  cfg = configs.freeze(config)
  task = make_task(config, cfg)
  console = console or Console(quiet=True)
  workdir = Path(workdir)
  _claim(workdir, config)
  task.tokenizer.save(workdir / "tokenizer.json")
  model = configs.with_vocab(cfg, task.tokenizer.vocab)
  mesh = sharding.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh), reward_workers(cfg) as pool:
    tree = transformer.params(model)
    console.print(f"{cfg.name}: {param.count(tree):,} parameters on {mesh.size} {jax.default_backend()} device(s)")
    params = first_params(cfg, model, mesh)
    rates = ledger.rates(cfg.ledger, model, mesh.size, workdir / "ledger.json")
    _ledger(workdir, cfg, rates, started=True)
    result = {}
    for stage in cfg.stages:
      if stage == base_of(cfg):
        result |= _ends("base", params, cfg, task, model, workdir, console, pool, rates)
      params = STAGES[stage].run(getattr(cfg, stage), task, workdir / stage, params, model=model, seed=cfg.seed,
                                 stop=stop, console=console, files=cfg.data, pool=pool,
                                 **(dict(rates=rates) if stage in ledger.STAGES else {}))
    result |= _ends("final", params, cfg, task, model, workdir, console, pool, rates)
  result |= _seconds(workdir, cfg, result)
  _write_json(workdir / "result.json", result)
  for error in _ledger(workdir, cfg, rates)["errors"]:
    console.print(f"ledger: {error}", soft_wrap=True)
  page = report.write(workdir)
  metrics.print_rows(console, report.summary(workdir))
  console.print(f"report: {page}", soft_wrap=True)
  return result


def reward_workers(cfg: RunConfig):
  """The worker processes for rewards, or None where the config wants none; to be used in a `with`."""
  if not cfg.rewards.workers:
    return contextlib.nullcontext()
  return workers.Workers(cfg.rewards.workers, cfg.rewards.timeout, cfg.rewards.memory)


def base_of(cfg: RunConfig) -> str:
  """The stage whose start is evaluated as the base policy: RL, or what comes first after pre-training."""
  later = [stage for stage in cfg.stages if stage != "pretrain"]
  return "reasoning_rl" if "reasoning_rl" in later else later[0] if later else ""


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


def make_task(config: ml_collections.ConfigDict, cfg: RunConfig) -> Task:
  return tasks.find(config.task.name).make(cfg.task, cfg.data)


def sampling_of(cfg: RunConfig) -> SampleConfig:
  """How this run samples."""
  sampling = cfg.reasoning_rl.sampling if cfg.reasoning_rl else cfg.distill.sampling if cfg.distill else None
  return sampling or SampleConfig(256)


def freeze_folder(workdir: str | Path) -> RunConfig:
  """The frozen config of the run in a folder."""
  return configs.freeze(read_config(Path(workdir)))


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
  model = configs.with_vocab(cfg, task.tokenizer.vocab)
  if stage and stage not in cfg.stages:
    raise ValueError(f"{workdir}: no stage {stage!r}; there are {', '.join(cfg.stages)}")
  if stage == "reward_model":
    raise ValueError(f"{workdir}: stage reward_model leaves a reward model, not a policy")
  for name in [stage] if stage else reversed([s for s in cfg.stages if s != "reward_model"]):
    folder = workdir / name / "checkpoints"
    if folder.is_dir():
      with Checkpoints(folder, read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract_state(cfg, name, model), step)
      if restored:
        return restored[1].params, model, task, f"{name} {restored[0]}"
  raise FileNotFoundError(f"{workdir}: no checkpoint" + (f" of stage {stage}" if stage else ""))


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


def abstract_state(cfg: RunConfig, stage: str, model: transformer.ModelConfig):
  """Shapes of a stage's TrainState, to restore its checkpoint with."""
  section = getattr(cfg, stage)
  return checkpoint.abstract(lambda key: STAGES[stage].first_state(section, transformer.init(model, key), model),
                             jax.random.key(0))


def read_config(workdir: Path) -> ml_collections.ConfigDict:
  """The resolved config that a run was started with."""
  plain = json.loads((workdir / "config.json").read_text())
  config = ml_collections.ConfigDict(plain)
  config.stages = tuple(plain["stages"])
  return config


def _claim(workdir: Path, config) -> None:
  """Writes the config, or checks that the run in this folder has the same one."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / "config.json"
  new = json.loads(json.dumps(config.to_dict()))
  if path.exists():
    old = _flat(json.loads(path.read_text()))
    changed = [f"{k}: {old.get(k)!r} -> {v!r}" for k, v in _flat(new).items() if old.get(k) != v]
    changed += [f"{k}: {v!r} -> gone" for k, v in old.items() if k not in _flat(new)]
    if changed:
      raise ValueError(f"{workdir} holds a run with another config ({'; '.join(changed[:5])}):"
                       " choose another --workdir, or delete it")
  else:
    _write_json(path, new)


def _ends(which: str, params, cfg: RunConfig, task: Task, model, workdir: Path, console,
          pool=None, rates: ledger.Rates | None = None) -> dict[str, float]:
  """Evaluates the base or the final policy, once: the numbers are kept in eval/<which>.json."""
  path = workdir / "eval" / f"{which}.json"
  if path.exists():
    return json.loads(path.read_text())
  console.print(f"evaluating the {which} policy")
  began = time.monotonic()
  sampling = sampling_of(cfg)
  drawn = []
  common = dict(model=model, prompts_at_once=cfg.eval.prompts_at_once, pool=pool, drawn_into=drawn)
  out = evaluate.greedy(params, task, sampling=sampling, problems=cfg.eval.problems, **common)
  path.parent.mkdir(exist_ok=True)
  if cfg.eval.samples:
    sampled, table = evaluate.evaluate(
      params, task, task.held_out[:cfg.eval.problems or None], cfg.eval.samples, seed=cfg.seed,
      cfg=evaluate.drawn(sampling, cfg.eval.temperature, cfg.eval.top_p), **common)
    out |= sampled
    metrics.write_table(path.with_suffix(".parquet"), table)
  seconds = time.monotonic() - began
  if rates:
    parts = [ledger.sampled(model, [part]) for part in drawn]         # greedy ones, and groups
    spent = dataclasses.replace(functools.reduce(operator.add, parts), seconds=seconds)
    ledger.write(path.with_suffix(".ledger.json"), ledger.row(rates, eval=spent))
  out = {f"{which}/{k}": v for k, v in out.items()} | {f"seconds/eval_{which}": seconds}
  _write_json(path, out)
  return out


def _ledger(workdir: Path, cfg: RunConfig, rates: ledger.Rates, started: bool = False) -> dict:
  """Writes ledger.json from what the run's rows say; when it has only started, by what rates it will be."""
  path = workdir / "ledger.json"
  if started:
    if not path.exists():
      ledger.write(path, dataclasses.asdict(rates))
    return {}
  rows = {stage: metrics.read(workdir / stage / "metrics.jsonl") for stage in cfg.stages if stage in ledger.STAGES}
  rows["base and final"] = [json.loads(p.read_text()) for p in sorted((workdir / "eval").glob("*.ledger.json"))]
  out = ledger.totals(rates, rows)
  ledger.write(path, out)
  return out


def _seconds(workdir: Path, cfg: RunConfig, result: dict) -> dict[str, float]:
  """Wall time of each stage, of all processes that worked on it, and of the whole; start-up is not in it."""
  rows = {stage: metrics.read(workdir / stage / "metrics.jsonl") for stage in cfg.stages}
  out = {f"seconds/{stage}": r[-1]["seconds"] if r else 0.0 for stage, r in rows.items()}
  evals = sum(v for k, v in result.items() if k.startswith("seconds/eval"))
  return out | {"seconds/total": sum(out.values()) + evals}


def _flat(tree: dict, path: str = "") -> dict:
  out = {}
  for key, value in tree.items():
    out |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
  return out


def _write_json(path: Path, value) -> None:
  path.with_suffix(".tmp").write_text(json.dumps(value, indent=1))
  os.replace(path.with_suffix(".tmp"), path)

"""Runs an experiment's stages in order in one folder, hands policies and data over, evaluates, writes the report.

The folder: config.json (the resolved config), tokenizer.json, a folder per stage (stage.json, checkpoints,
metrics.jsonl, samples, tensorboard, data.jsonl of those that make data), eval/, result.json, ledger.json, report.html.
Run again on the same folder, finished stages are skipped, the one that was cut goes on, and what a changed config, file
or earlier stage concerns is done again, with the reason; its old folder is kept as NAME.before.
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

from r1jax import config as configs
from r1jax import hosts, ledger, lineage, metrics, policies, report, sharding, tracking
from r1jax.config import NO_POLICY, RunConfig, Section
from r1jax.evals import evaluate
from r1jax.loop import Stop
from r1jax.models import param, transformer
from r1jax.rewards import workers
from r1jax.sampler import SampleConfig
from r1jax.stages import reward_model
from r1jax.types import Task

# files of the user's that a stage reads, beside those of the task
FILES = dict(sft=("demonstrations",), distill=("demonstrations",), dpo=("preferences",),
             reward_model=("preferences", "safety"), rejection=("other",), all_scenarios_rl=("general", "unsafe"))
TASK_FILES = ("train", "test", "tokenizer")


def run(config: ml_collections.ConfigDict, workdir: str | Path, *, stop: Stop | None = None,
        console: Console | None = None) -> dict[str, float]:
  """The whole experiment, or its stage `only`. Returns what result.json holds: accuracies and lengths, seconds."""
  cfg = configs.freeze(config)
  task = policies.make_task(config, cfg)
  console = console or Console(quiet=True)
  workdir = Path(workdir)
  if cfg.rollout_devices and hosts.count() > 1:
    raise NotImplementedError(f"rollout_devices={cfg.rollout_devices} in {hosts.count()} processes: each samples its"
                              " share on its own devices")
  for section in cfg.sections.values():
    if hasattr(stage := policies.STAGES[section.stage], "refuse"):
      stage.refuse(section.cfg, task, configs.with_vocab(cfg, task.tokenizer.vocab, section))
  hosts.from_main(lambda: (_claim(workdir, config), task.tokenizer.save(workdir / "tokenizer.json")))
  model = configs.with_vocab(cfg, task.tokenizer.vocab)
  with (sharding.use(cfg.mesh, cfg.rollout_mesh, rollout_devices=cfg.rollout_devices) as mesh,
        reward_workers(cfg) as pool, tracking.of_run(cfg.tracking, workdir, cfg.name, config.to_dict())):
    tree = transformer.params(model)
    console.print(f"{cfg.name}: {param.count(tree):,} parameters on {mesh.size} {jax.default_backend()} device(s)"
                  + (f", {cfg.rollout_devices} more to sample" if cfg.rollout_devices else ""))
    with hosts.own_devices():
      devices = mesh.size + cfg.rollout_devices
      rates = hosts.from_main(lambda: ledger.rates(cfg.ledger, model, devices, workdir / "ledger.json"))
    hosts.from_main(lambda: _ledger(workdir, cfg, rates, started=True))
    at = Run(cfg, task, workdir, mesh, console, stop, pool, rates)
    result = {}
    for section in cfg.sections.values():
      if section.name == base_of(cfg) and not cfg.only:
        result |= at.evaluate("base", section.start)
      at.stage(section)
      if cfg.eval.each and section.stage not in NO_POLICY and not (cfg.only and section.name != cfg.only):
        result |= at.evaluate(section.name, section.name)
    last = [s.name for s in cfg.sections.values() if s.stage not in NO_POLICY]
    if cfg.only:
      return result
    if last and not cfg.eval.each:
      result |= at.evaluate("final", last[-1])
  if not hosts.is_main():
    return result
  result |= _seconds(workdir, cfg, result)
  _write_json(workdir / "result.json", result)
  for error in _ledger(workdir, cfg, rates)["errors"]:
    console.print(f"ledger: {error}", soft_wrap=True)
  page = report.write(workdir)
  metrics.print_rows(console, report.summary(workdir))
  console.print(f"report: {page}", soft_wrap=True)
  return result


class Run:
  """A run in hand: what all of its stages share, the digests of those that are done, and the last policy."""

  def __init__(self, cfg: RunConfig, task: Task, workdir: Path, mesh, console, stop, pool, rates):
    self.cfg, self.task, self.workdir, self.mesh, self.console = cfg, task, workdir, mesh, console
    self.stop, self.pool, self.rates = stop, pool, rates
    self.digests: dict[str, str] = {}
    self.last: tuple[str, object] = ("", None)     # name of a stage, its policy

  def model(self, section: Section | None) -> transformer.ModelConfig:
    return configs.with_vocab(self.cfg, self.task.tokenizer.vocab, section)

  def policy(self, name: str, section: Section | None = None):
    """The parameters that a stage left; of "", those that `section` begins with. One policy is kept in memory."""
    if not name:
      return policies.first_params(self.cfg, self.model(section), self.mesh)
    if self.last[0] != name:
      self.last = ("", None)      # its memory first
      section = self.cfg.sections[name]
      found = policies.restore(self.cfg, self.workdir, section, self.model(section))
      if found is None:
        raise ValueError(f"{self.workdir / name}: it is finished but has no checkpoint: delete it to run it anew")
      place = sharding.shardings(self.mesh, transformer.params(self.model(section)))
      self.last = (name, jax.jit(lambda x: x, out_shardings=place)(found[1].params))
    return self.last[1]

  def stage(self, section: Section) -> None:
    """Runs one stage, goes on with it, or skips it, as its folder says."""
    folder = self.workdir / section.name
    judges = sorted(section.cfg.preference) if section.stage == "all_scenarios_rl" else ()
    upstream = {name: self.digests[name] for name in (section.start, section.data, *judges) if name}
    files = (*TASK_FILES, *(() if section.data else FILES.get(section.stage, ())))

    def look():
      made = self.workdir / section.data / "data.jsonl"
      if section.data and made.exists():       # its contents: a person may have edited it
        upstream[section.data] += f" {lineage.file_digest(made)}"
      return lineage.inputs(self.cfg, section, upstream, files), lineage.read(folder)
    made_of, known = hosts.from_main(look)
    mark = self.digests[section.name] = lineage.digest(made_of)
    redone = ""
    if known and known["hash"] != mark:
      redone = "; ".join(lineage.changes(known["inputs"], made_of)[:3])
    if self.cfg.only and section.name != self.cfg.only:
      if self.cfg.sections[self.cfg.only].name in self.cfg.stages and section.name in _needed(self.cfg, self.cfg.only):
        if not known or not known["finished"] or redone:
          raise ValueError(f"only={self.cfg.only} needs stage {section.name}, which is "
                           + (f"out of date ({redone})" if redone else "not finished") + f" in {self.workdir}")
      return
    if redone:
      aside = hosts.from_main(lambda: lineage.set_aside(folder))
      self.console.print(f"{section.name} is done again: {redone}. What was there is in {aside.name}", soft_wrap=True)
    elif known and known["finished"]:
      self.console.print(f"{section.name}: finished before")
      return
    record = dict(name=section.name, stage=section.stage, start=section.start, data=section.data, hash=mark,
                  inputs=made_of, seconds=0.0, finished=False) | (dict(redone=redone) if redone else {})
    if known and not redone and "redone" in known:
      record["redone"] = known["redone"]
    hosts.from_main(lambda: lineage.write(folder, record))
    params = self.policy(section.start, section)
    self.last = ("", None)        # the stage may give its start's memory to its own state
    data = dataclasses.replace(self.cfg.data, demonstrations=str(self.workdir / section.data / "data.jsonl")) \
      if section.data else self.cfg.data
    more = {}
    if section.stage == "rejection":
      more["policy"] = f"{section.start or 'the start'} {upstream.get(section.start, '')}".strip()
    if section.stage == "all_scenarios_rl":
      more["judges"] = {name: self.judge(name, section.cfg.scale) for name in judges}
    params = policies.STAGES[section.stage].run(section.cfg, self.task, folder, params, model=self.model(section),
                                       seed=section.seed, stop=self.stop, console=self.console, files=data,
                                       pool=self.pool, rates=self.rates, **more)

    def finish():
      rows = metrics.read(folder / "metrics.jsonl")
      lineage.write(folder, record | dict(finished=True, seconds=rows[-1]["seconds"] if rows else 0.0))
    hosts.from_main(finish)
    if section.stage not in NO_POLICY:
      self.last = (section.name, params)

  def judge(self, name: str, scale: str):
    """The reward model that a stage trained, as a reward."""
    section = self.cfg.sections[name]
    return reward_model.judge(self.workdir / name, section.cfg, self.task, self.model(section), scale)

  def evaluate(self, which: str, name: str) -> dict[str, float]:
    """Evaluates the policy of stage `name` ("": the run's start), once: the numbers are kept in eval/<which>.json."""
    path = self.workdir / "eval" / f"{which}.json"
    sampling = policies.sampling_of(self.cfg)
    policy = self.digests[name] if name else hosts.from_main(
      lambda: lineage.digest(lineage.of_start(self.cfg, TASK_FILES)))
    mark = lineage.digest(lineage.plain(dict(policy=policy, eval=dataclasses.asdict(self.cfg.eval),
                                             sampling=dataclasses.asdict(sampling))))
    marked = path.with_suffix(".hash")
    known = lambda: path.exists() and (not marked.exists() or marked.read_text() == mark)
    if done := hosts.from_main(lambda: json.loads(path.read_text()) if known() else None):
      return done
    out = _evaluate(which, self.policy(name, self.cfg.sections.get(name)), self.cfg, self.task,
                    self.model(self.cfg.sections.get(name)), path, self.console, sampling, self.pool, self.rates)
    hosts.from_main(lambda: marked.write_text(mark))
    return out


def _needed(cfg: RunConfig, name: str) -> set[str]:
  """The stages that a stage reads, directly."""
  section = cfg.sections[name]
  judges = section.cfg.preference if section.stage == "all_scenarios_rl" else ()
  return {section.start, section.data, *judges} - {""}


def reward_workers(cfg: RunConfig):
  """The worker processes for rewards, or None where the config wants none; to be used in a `with`."""
  if not cfg.rewards.workers:
    return contextlib.nullcontext()
  return workers.Workers(cfg.rewards.workers, cfg.rewards.timeout, cfg.rewards.memory)


def base_of(cfg: RunConfig) -> str:
  """The stage whose start is evaluated as the base policy: RL, or what comes first after pre-training. "": none is,
  where the policy of each stage is evaluated."""
  later = [s for s in cfg.sections.values() if s.stage != "pretrain"]
  if not later or (cfg.eval.each and later[0].start):
    return ""
  return next((s.name for s in later if s.stage == "reasoning_rl" and not cfg.eval.each), later[0].name)


def _claim(workdir: Path, config) -> None:
  """Writes the config; the folder of another experiment is refused. What a change means for each stage: lineage.py."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / "config.json"
  new = json.loads(json.dumps(config.to_dict()))
  if path.exists() and (old := json.loads(path.read_text()).get("name")) != new["name"]:
    raise ValueError(f"{workdir} holds a run of another experiment, {old!r}: choose another --workdir")
  _write_json(path, new)


def _evaluate(which: str, params, cfg: RunConfig, task: Task, model, path: Path, console, sampling: SampleConfig,
              pool=None, rates: ledger.Rates | None = None) -> dict[str, float]:
  """A policy's figures, and its answers beside them; path: that of eval/<which>.json."""
  console.print(f"evaluating the {which} policy")
  began = time.monotonic()
  drawn = []
  common = dict(model=model, prompts_at_once=cfg.eval.prompts_at_once, pool=pool, drawn_into=drawn)
  out = evaluate.greedy(params, task, sampling=sampling, problems=cfg.eval.problems, **common)
  if hosts.is_main():
    path.parent.mkdir(exist_ok=True)
  tables = []
  if cfg.eval.samples:
    sampled, table = evaluate.evaluate(
      params, task, task.held_out[:cfg.eval.problems or None], cfg.eval.samples, seed=cfg.seed,
      cfg=evaluate.drawn(sampling, cfg.eval.temperature, cfg.eval.top_p), **common)
    out |= sampled
    tables.append(table)
    for scenario, suite in task.suites.items():
      figures, table = evaluate.suite(
        params, task, suite, cfg.eval.samples, seed=cfg.seed,
        cfg=evaluate.drawn(sampling, cfg.eval.temperature, cfg.eval.top_p), **common)
      out |= {f"{scenario}/{name}": value for name, value in figures.items()}
      tables.append(table)
  seconds = time.monotonic() - began
  out = {f"{which}/{k}": v for k, v in out.items()} | {f"seconds/eval_{which}": seconds}
  if not hosts.is_main():
    return out
  if tables:
    metrics.write_table(path.with_suffix(".parquet"), joined(tables))
  if rates:
    parts = [ledger.sampled(model, [part]) for part in drawn]         # greedy ones, and groups
    spent = dataclasses.replace(functools.reduce(operator.add, parts), seconds=seconds)
    ledger.write(path.with_suffix(".ledger.json"), ledger.row(rates, eval=spent))
  _write_json(path, out)
  return out


def joined(tables: list[dict[str, list]]) -> dict[str, list]:
  """Tables one below the other; None where one has not a column that others have."""
  columns = list(dict.fromkeys(name for table in tables for name in table))
  rows = [len(table["problem"]) for table in tables]
  return {name: [x for table, n in zip(tables, rows, strict=True) for x in table.get(name, [None] * n)]
          for name in columns}


def _ledger(workdir: Path, cfg: RunConfig, rates: ledger.Rates, started: bool = False) -> dict:
  """Writes ledger.json from what the run's rows say; when it has only started, by what rates it will be."""
  path = workdir / "ledger.json"
  if started:
    if not path.exists():
      ledger.write(path, dataclasses.asdict(rates))
    return {}
  rows = {s.name: metrics.read(workdir / s.name / "metrics.jsonl") for s in cfg.sections.values()}
  rows["evaluation"] = [json.loads(p.read_text()) for p in sorted((workdir / "eval").glob("*.ledger.json"))]
  out = ledger.totals(rates, rows)
  ledger.write(path, out)
  return out


def _seconds(workdir: Path, cfg: RunConfig, result: dict) -> dict[str, float]:
  """Wall time of each stage, of all processes that worked on it, and of the whole; start-up is not in it."""
  rows = {stage: metrics.read(workdir / stage / "metrics.jsonl") for stage in cfg.stages}
  out = {f"seconds/{stage}": r[-1]["seconds"] if r else 0.0 for stage, r in rows.items()}
  evals = sum(v for k, v in result.items() if k.startswith("seconds/eval"))
  return out | {"seconds/total": sum(out.values()) + evals}


def _write_json(path: Path, value) -> None:
  path.with_suffix(".tmp").write_text(json.dumps(value, indent=1))
  os.replace(path.with_suffix(".tmp"), path)

"""Where rows of metrics go beside the run's own files: TensorBoard and Weights & Biases, each switched by the config.

One W&B run is one run folder: its stages' metrics are named STAGE/metric, over STAGE/step. Its id is kept in
wandb.json, so that a resumed run goes on in the same W&B run; the rows that a killed run repeats, which have the same
values, are sent again. Without a network: WANDB_MODE=offline, then `wandb sync` later. What fails in W&B fails the run
only while it begins.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib.util
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
  tensorboard: bool = True       # event files in STAGE/tensorboard
  wandb: str = ""                # a W&B project; empty: off

  def __post_init__(self):
    if self.wandb and importlib.util.find_spec("wandb") is None:
      raise ValueError(f'tracking.wandb={self.wandb} needs wandb: pip install "r1jax[wandb]"')


@dataclasses.dataclass(frozen=True)
class Tracking:
  """What is in force: the config, and the W&B run that is open, if one is."""
  cfg: TrackingConfig
  wandb_run: object | None = None


# in force for all stages of a run, as a mesh is: it changes nothing that a stage computes
_NOW: contextvars.ContextVar[Tracking | None] = contextvars.ContextVar("tracking", default=None)


@contextlib.contextmanager
def of_run(cfg: TrackingConfig, workdir: Path, name: str, config: dict) -> Iterator[None]:
  """Stages that run within write to what `cfg` names. config: what the run was started with, for W&B to show."""
  from r1jax import hosts  # here, not above: without it this file needs no jax
  run = _wandb(cfg.wandb, Path(workdir), name, config) if cfg.wandb and hosts.is_main() else None
  token, code = _NOW.set(Tracking(cfg, run)), 1
  try:
    yield
    code = 0
  finally:
    _NOW.reset(token)
    if run is not None:
      run.finish(exit_code=code)


def _wandb(project: str, workdir: Path, name: str, config: dict):
  """The W&B run of this folder, begun or gone on with."""
  import wandb  # here, not above: only who asks for it has it
  path = workdir / "wandb.json"
  known = json.loads(path.read_text()) if path.exists() else {}
  if known.get("project") != project:
    known = dict(project=project, id=secrets.token_hex(4))
    workdir.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(known))
    os.replace(path.with_suffix(".tmp"), path)
  return wandb.init(project=project, id=known["id"], resume="allow", name=name, config=config, dir=str(workdir))


def trackers(folder: Path, start: int) -> list:
  """Those of one stage from step `start` on, each with write(step, values) and close()."""
  now = _NOW.get() or Tracking(TrackingConfig())
  return ([TensorBoard(folder, start)] if now.cfg.tensorboard else []) + (
    [WandB(now.wandb_run, folder.name)] if now.wandb_run is not None else [])


class TensorBoard:
  def __init__(self, folder: Path, start: int):
    import tensorboardX  # here, not above: it imports torch where that is installed, a second and a half
    if not start:
      shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

  def write(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._board.close()


class WandB:
  """W&B wants steps that never go back within a run: each stage's metrics have an axis of their own."""

  def __init__(self, run, stage: str):
    self._run, self._stage = run, stage
    run.define_metric(f"{stage}/step")
    run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

  def write(self, step: int, values: dict[str, float]) -> None:
    shown = {f"{self._stage}/{name}": value for name, value in values.items() if math.isfinite(value)}
    self._run.log({f"{self._stage}/step": step} | shown)

  def close(self) -> None:
    """The run stays open for the next stage."""

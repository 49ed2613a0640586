"""Trackers by config: TensorBoard on and off, one W&B run a folder, gone on with after a resume."""

import importlib.machinery
import json
import math
import subprocess
import sys
import types

import pytest
from conftest import experiment

from r1jax import config as configs
from r1jax import hosts, metrics, tracking
from r1jax.tracking import TrackingConfig

ROWS = [dict(loss=2.0, lr=1e-3), dict(loss=1.0, lr=1e-3)]


class FakeRun:
  def __init__(self, **started):
    self.started, self.axes, self.rows, self.ended = started, {}, [], None

  def define_metric(self, name, step_metric=None):
    self.axes[name] = step_metric

  def log(self, row):
    self.rows.append(row)

  def finish(self, exit_code=0):
    self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
  """A module that stands for wandb; `runs` are those that were begun."""
  module = types.ModuleType("wandb")
  module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
  module.runs = []
  module.init = lambda **started: module.runs.append(FakeRun(**started)) or module.runs[-1]
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def write(folder, start=0, rows=ROWS):
  writer = metrics.Writer(folder, start)
  for step, row in enumerate(rows, start):
    writer.write(step, row)
  writer.close()


def test_tensorboard_is_written_unless_it_is_switched_off(tmp_path):
  write(tmp_path / "plain")
  with tracking.of_run(TrackingConfig(), tmp_path, "run", {}):
    write(tmp_path / "on")
  with tracking.of_run(TrackingConfig(tensorboard=False), tmp_path, "run", {}):
    write(tmp_path / "off")
  write(tmp_path / "after")
  assert [bool(list((tmp_path / name).glob("tensorboard/events*"))) for name in ("plain", "on", "off", "after")] == [
    True, True, False, True]
  assert metrics.read(tmp_path / "off" / "metrics.jsonl")[1]["loss"] == 1.0


def test_without_tensorboard_it_is_not_even_imported():
  code = ("import sys, tempfile, pathlib; from r1jax import metrics, tracking\n"
          "folder = pathlib.Path(tempfile.mkdtemp())\n"
          "with tracking.of_run(tracking.TrackingConfig(tensorboard=False), folder, 'run', {}):\n"
          "  metrics.Writer(folder / 'stage').close()\n"
          "sys.exit(any(name in sys.modules for name in ('tensorboardX', 'wandb')))")
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_stages_are_logged_to_one_wandb_run_on_axes_of_their_own(tmp_path, wandb):
  with tracking.of_run(TrackingConfig(wandb="r1"), tmp_path, "tiny", dict(seed=3)):
    write(tmp_path / "pretrain")
    write(tmp_path / "zero", rows=[dict(reward=0.5, kl=math.nan)])
  [run] = wandb.runs
  assert run.started == dict(project="r1", id=run.started["id"], resume="allow", name="tiny", config=dict(seed=3),
                             dir=str(tmp_path))
  assert run.rows == [{"pretrain/step": 0, "pretrain/loss": 2.0, "pretrain/lr": 1e-3},
                      {"pretrain/step": 1, "pretrain/loss": 1.0, "pretrain/lr": 1e-3},
                      {"zero/step": 0, "zero/reward": 0.5}]
  assert run.axes["pretrain/*"] == "pretrain/step" and run.axes["zero/*"] == "zero/step" and run.ended == 0


def test_of_several_processes_one_tells_wandb(tmp_path, wandb, monkeypatch):
  monkeypatch.setattr(hosts, "is_main", lambda: False)
  with tracking.of_run(TrackingConfig(wandb="r1"), tmp_path, "tiny", {}):
    metrics.Writer(tmp_path / "pretrain", quiet=True).close()
  assert wandb.runs == [] and not list(tmp_path.iterdir())


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, wandb):
  with pytest.raises(KeyboardInterrupt), tracking.of_run(TrackingConfig(wandb="r1"), tmp_path, "tiny", {}):
    write(tmp_path / "pretrain")
    raise KeyboardInterrupt
  with tracking.of_run(TrackingConfig(wandb="r1"), tmp_path, "tiny", {}):
    write(tmp_path / "pretrain", 2)
  with tracking.of_run(TrackingConfig(wandb="other"), tmp_path, "tiny", {}):
    pass
  first, second, other = wandb.runs
  assert first.started["id"] == second.started["id"] != other.started["id"]
  assert (first.ended, second.ended) == (1, 0) and second.rows[0]["pretrain/step"] == 2
  assert json.loads((tmp_path / "wandb.json").read_text())["project"] == "other"


def test_a_project_without_the_package_is_refused_where_the_config_is_built(monkeypatch):
  monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"tracking.wandb=r1 needs wandb: pip install"):
    TrackingConfig(wandb="r1")
  TrackingConfig()


def test_an_experiment_says_where_its_rows_go(wandb):
  c = experiment("r1_zero_parity")
  assert configs.freeze(c).tracking == TrackingConfig(tensorboard=True, wandb="")
  c.tracking = dict(tensorboard=False, wandb="r1")
  assert configs.freeze(c).tracking == TrackingConfig(tensorboard=False, wandb="r1")
  c.tracking = dict(wandb=True)
  with pytest.raises(ValueError, match=r"tracking.wandb=True must be of type str"):
    configs.freeze(c)


@pytest.mark.slow
def test_the_real_wandb_takes_the_rows_without_a_network(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="wandb is not installed")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  ids = set()
  for start in (0, 2):
    with tracking.of_run(TrackingConfig(wandb="r1"), tmp_path, "tiny", dict(seed=3)):
      write(tmp_path / "pretrain", start)
      ids.add(tracking._NOW.get().wandb_run.id)
  assert ids == {json.loads((tmp_path / "wandb.json").read_text())["id"]}
  files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
  assert len(files) == 2 and all(b"pretrain/loss" in path.read_bytes() for path in files)

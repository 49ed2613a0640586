"""A run that was killed at any moment and resumed leaves the same bits as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from r1jax import policies
from r1jax.metrics import read

RUN = [sys.executable, "-m", "r1jax.cli.main", "run", "--config", str(ROOT / "experiments" / "r1_zero_parity.py:tiny"),
       "--config.pretrain.steps=40", "--config.pretrain.batch=16", "--config.reasoning_rl.rollouts=30",
       "--config.reasoning_rl.questions_per_rollout=8", "--config.reasoning_rl.minibatches=2",
       "--config.reasoning_rl.reference_refresh=8", "--config.reasoning_rl.eval_every=7", "--config.eval.problems=16",
       "--config.reasoning_rl.checkpoint.every=3", "--config.pretrain.checkpoint.every=9", "--quiet"]
TIMES = ("seconds", "tokens_per_s", "sampler/", "ledger/")      # all else must be the same


def start(workdir: Path) -> subprocess.Popen:
  return subprocess.Popen([*RUN, "--workdir", str(workdir)], env=os.environ | {"JAX_PLATFORMS": "cpu"},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def leaves(workdir: Path) -> dict:
  """All that a run leaves, but for times."""
  params, _, _, where = policies.load_policy(workdir)
  out = {"where": where, "params": [np.asarray(x) for x in jax.tree.leaves(params)]}
  for stage in ("pretrain", "reasoning_rl"):
    out[stage] = [{k: v for k, v in row.items() if not k.startswith(TIMES)}
                  for row in read(workdir / stage / "metrics.jsonl")]
  for path in sorted(workdir.glob("**/*.parquet")):
    out[str(path.relative_to(workdir))] = pq.read_table(path).to_pydict()
  out["result"] = {k: v for k, v in json.loads((workdir / "result.json").read_text()).items()
                   if not k.startswith(TIMES)}
  return out


def assert_same(a: dict, b: dict) -> None:
  assert a.keys() == b.keys()
  for x, y in zip(a["params"], b["params"], strict=True):
    np.testing.assert_array_equal(x, y)
  for key in a.keys() - {"params"}:
    assert a[key] == b[key], key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  process = start(workdir)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, out + err
  return leaves(workdir)


@pytest.mark.slow
def test_killed_and_resumed_is_bitwise_the_same(uninterrupted, tmp_path):
  rng = random.Random(7)
  workdir, kills = tmp_path / "run", 0
  for stage, low, high in (("pretrain", 5, 35), ("reasoning_rl", 2, 20), ("reasoning_rl", 22, 50)):
    process = start(workdir)
    target = rng.randint(low, high)
    while process.poll() is None:      # kill once that step was written: in the middle of what follows
      rows = read(workdir / stage / "metrics.jsonl")
      if rows and rows[-1]["step"] >= target:
        break
      time.sleep(0.005)
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    kills += process.returncode == -signal.SIGKILL
  assert kills == 3
  process = start(workdir)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, out + err
  assert_same(leaves(workdir), uninterrupted)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  process = start(workdir)
  while process.poll() is None and len(read(workdir / "reasoning_rl" / "metrics.jsonl")) < 4:
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 130 and "Traceback" not in err
  assert "stopped in stage reasoning_rl" in err and f"--workdir {workdir}" in err
  process = start(workdir)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, out + err
  assert_same(leaves(workdir), uninterrupted)


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  for _ in range(2):
    process = start(workdir)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
  assert_same(leaves(workdir), uninterrupted)
  other = [*RUN, "--workdir", str(workdir), "--config.name=other"]
  again = subprocess.run(other, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  assert again.returncode == 2 and "another experiment, 'r1_zero_parity" in again.stderr
  assert len(again.stderr.splitlines()) == 1
  assert_same(leaves(workdir), uninterrupted)

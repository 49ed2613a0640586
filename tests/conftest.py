"""Tests run on the CPU, whatever else the machine has."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from r1jax import cpu

cpu.keep_memory()

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def gsm8k():
  """(train, test) paths of the real GSM8K files, or a skip that says so."""
  folder = DATA / "gsm8k"
  if not folder.is_dir():
    pytest.skip(f"no GSM8K files in {folder}")
  return folder / "train.jsonl", folder / "test.jsonl"


def experiment(name: str, arg: str = "tiny"):
  """The config of experiments/NAME.py."""
  path = ROOT / "experiments" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)

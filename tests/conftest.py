"""Tests run on the CPU, whatever else the machine has."""

import importlib.util
import os
import resource
from pathlib import Path

import pytest

from r1jax import compiled, cpu

ROOT = Path(__file__).parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# most of the tests' time is XLA compiling, much of it the same programs in other processes and in the last session
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / f"compiled-{compiled.processor()}"))
compiled.keep()
cpu.keep_memory()

DATA = ROOT.parent / "shared" / "data"
# From so many bytes or memory maps of this process on (the kernel's limit is 65,530), programs compiled for past test
# files are given up
MEMORY, MAPS = 4 * 2**30, 20_000


@pytest.fixture(scope="module", autouse=True)
def programs_that_no_test_needs_any_more():
  yield
  maps = Path("/proc/self/maps")
  if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY
      or (maps.exists() and maps.read_bytes().count(b"\n") > MAPS)):
    import gc

    import jax
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def gsm8k():
  """(train, test) paths of the real GSM8K files, or a skip that says so."""
  folder = DATA / "gsm8k"
  if not folder.is_dir():
    pytest.skip(f"no GSM8K files in {folder}")
  return folder / "train.jsonl", folder / "test.jsonl"


@pytest.fixture(scope="session")
def released(tmp_path_factory):
  """A tiny released model's directory: bytes, a chat template, three rows more than tokens."""
  from tiny import weights

  from r1jax import hf, tokenizer
  from r1jax.models.transformer import ModelConfig
  model = ModelConfig(vocab=260, dim=16, layers=1, heads=2, kv_heads=1, ffn=24, tied_head=False)
  folder = tmp_path_factory.mktemp("released")
  tok = tokenizer.Tokenizer(tokenizer.byte_tokenizer().backend, 256, templates=dict(default=CHATML))
  hf.save(folder, weights(model), model, tok)
  return folder


CHATML = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
          "{% if add_generation_prompt %}<assistant>{% endif %}")


def experiment(name: str, arg: str = "tiny"):
  """The config of experiments/NAME.py."""
  path = ROOT / "experiments" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)

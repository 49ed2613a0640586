"""Reading a Hugging Face checkpoint: how much memory of the host it takes beyond the parameters, and how fast it is.

A process of its own reads the files, so that nothing else counts: its resident memory, pages of the mapped files
included, at its highest, less what it had after the imports and a first small jit. Linux only (/proc).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from rich.table import Table

from r1jax import cpu, hf, safetensors
from r1jax.models.transformer import ModelConfig

# 0.5 GB in bfloat16; no tensor is larger than a shard
MODEL = ModelConfig(vocab=30_000, dim=1024, layers=12, heads=16, kv_heads=8, ffn=4096, tied_head=False,
                    dtype="bfloat16")
SHARD_BYTES = 64_000_000
BAR = 1.2   # of the largest shard: what loading may take beyond the parameters


def measure(folder: Path | None = None) -> dict:
  """Memory and time of hf.load on a folder; None: random weights of MODEL, written to a temporary one."""
  if folder is not None:
    return _in_a_fresh_process(folder)
  with tempfile.TemporaryDirectory() as temporary:
    write_random(Path(temporary), MODEL, SHARD_BYTES)
    return _in_a_fresh_process(Path(temporary)) | dict(folder="random weights")


def write_random(folder: Path, model: ModelConfig, max_shard_bytes: int) -> None:
  """A checkpoint of the model with random values of its dtype."""
  rng, dtype = np.random.default_rng(0), np.dtype(getattr(ml_dtypes, model.dtype, model.dtype))
  specs = {s.hf: (dtype, s.shape) for s in hf.slots(model)}
  safetensors.write_sharded(folder, specs, lambda name: rng.random(specs[name][1], np.float32).astype(dtype),
                            max_shard_bytes)
  (folder / "config.json").write_text(json.dumps(hf.to_hf(model)))


def _in_a_fresh_process(folder: Path) -> dict:
  done = subprocess.run([sys.executable, "-m", "r1jax.bench.load", str(folder)], capture_output=True, text=True)
  if done.returncode:
    raise ValueError(f"loading {folder} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
  return json.loads(done.stdout.splitlines()[-1])


def _load(folder: Path) -> dict:
  cpu.keep_memory()                           # as the command line does
  jax.jit(lambda x: x + 1)(jnp.zeros(8)).block_until_ready()
  before = _memory("VmRSS")
  Path("/proc/self/clear_refs").write_text("5")            # the high-water mark starts from here
  began = time.perf_counter()
  params, cfg = hf.load(folder)
  leaves = jax.block_until_ready(jax.tree.leaves(params))
  seconds = time.perf_counter() - began
  peak = _memory("VmHWM") - before
  params_bytes = sum(x.nbytes for x in leaves)
  here = sum(s.data.nbytes for x in leaves for s in x.addressable_shards if s.device.platform == "cpu")
  sizes = [f.stat().st_size for f in folder.glob("*.safetensors")]
  return dict(folder=str(folder), device=jax.devices()[0].device_kind, jax=jax.__version__,
              model=f"{cfg.layers} x {cfg.dim}, {cfg.dtype}", params_bytes=params_bytes, files=len(sizes),
              files_bytes=sum(sizes), largest_shard_bytes=max(sizes), peak_beyond_params_bytes=peak - here,
              ratio_to_largest_shard=(peak - here) / max(sizes), seconds=seconds, bytes_per_s=sum(sizes) / seconds)


def _memory(field: str) -> int:
  """Bytes of one field of /proc/self/status."""
  return int(re.search(field + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def table(result: dict) -> Table:
  out = Table("hf.load", f"{result['folder']}, {result['device']}, jax {result['jax']}")
  out.add_row("model", result["model"])
  for name in ("params", "largest_shard", "peak_beyond_params"):
    out.add_row(f"{name.replace('_', ' ')}, MB", f"{result[f'{name}_bytes'] / 1e6:,.1f}")
  out.add_row("that, in units of the largest shard", f"{result['ratio_to_largest_shard']:.2f} (at most {BAR} wanted)")
  out.add_row("seconds", f"{result['seconds']:.2f}")
  out.add_row(f"MB a second, from {result['files']} files", f"{result['bytes_per_s'] / 1e6:,.0f}")
  return out


if __name__ == "__main__":
  print(json.dumps(_load(Path(sys.argv[1]))))

"""Reading a Hugging Face checkpoint: how much memory of the host it takes beyond the parameters, and how fast it is.

A process of its own reads the files, so that nothing else counts: its resident memory, pages of the mapped files
included, at its highest, less what it had after the imports and a first small jit. Linux only (/proc).
"""

from __future__ import annotations

import json
import os
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

from r1jax import cpu, hf, safetensors, sharding
from r1jax.models.mla import MLAConfig
from r1jax.models.moe import MoEConfig
from r1jax.models.transformer import ModelConfig

# 0.5 GB in bfloat16; no tensor is larger than a shard
MODEL = ModelConfig(vocab=30_000, dim=1024, layers=12, heads=16, kv_heads=8, ffn=4096, tied_head=False,
                    dtype="bfloat16")
# DeepSeek-R1's layout, scaled down: FP8 linear layers with a factor per block of 128 x 128, as many files as it takes
FP8_MODEL = ModelConfig(
  vocab=16_000, dim=1024, layers=7, heads=16, kv_heads=16, ffn=2560, dense_layers=1, mtp=1, tied_head=False,
  mla=MLAConfig(q_rank=256, kv_rank=128, nope_dim=64, rope_dim=32, v_dim=64),
  moe=MoEConfig(experts=32, top_k=4, ffn=512, shared=1, groups=8, top_groups=4), dtype="bfloat16")
SHARD_BYTES = 64_000_000
BAR = 1.2   # of the largest shard: what loading may take beyond the parameters


def measure(folder: Path | None = None, fp8: bool = False, devices: int = 1) -> dict:
  """Memory and time of hf.load on a folder; None: random weights of MODEL, or of FP8_MODEL, in a temporary one.

  devices: more than one are simulated by the CPU, and weights are split over them (fsdp).
  """
  if folder is not None:
    return _in_a_fresh_process(folder, devices)
  with tempfile.TemporaryDirectory() as temporary:
    write_random(Path(temporary), FP8_MODEL if fp8 else MODEL, SHARD_BYTES, fp8)
    return _in_a_fresh_process(Path(temporary), devices) | dict(folder=f"random {'FP8 ' * fp8}weights")


def write_random(folder: Path, model: ModelConfig, max_shard_bytes: int, fp8: bool = False) -> None:
  """A checkpoint of the model with random values of its dtype; fp8: linear layers as DeepSeek publishes them."""
  rng, dtype = np.random.default_rng(0), np.dtype(getattr(ml_dtypes, model.dtype, model.dtype))
  specs = {}
  for s in hf.slots(model):
    packed = fp8 and "_proj" in s.hf and "eh_proj" not in s.hf
    specs[s.hf] = (safetensors.FP8 if packed else dtype, s.shape)
    if packed:
      specs[s.hf + hf.FP8_SCALE] = (np.dtype(np.float32), tuple(-(-n // 128) for n in s.shape))
  safetensors.write_sharded(folder, specs, lambda name: rng.random(specs[name][1], np.float32).astype(specs[name][0]),
                            max_shard_bytes)
  quantised = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
  (folder / "config.json").write_text(json.dumps(
    hf.to_hf(model) | (dict(quantization_config=quantised) if fp8 else {})))


def _in_a_fresh_process(folder: Path, devices: int) -> dict:
  env = dict(os.environ)
  if devices > 1:
    env |= dict(JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
  done = subprocess.run([sys.executable, "-m", "r1jax.bench.load", str(folder)], env=env, capture_output=True,
                        text=True)
  if done.returncode:
    raise ValueError(f"loading {folder} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
  return json.loads(done.stdout.splitlines()[-1])


def _load(folder: Path) -> dict:
  cpu.keep_memory()                           # as the command line does
  jax.jit(lambda x: x + 1)(jnp.zeros(8)).block_until_ready()
  before = _memory("VmRSS")
  Path("/proc/self/clear_refs").write_text("5")            # the high-water mark starts from here
  began = time.perf_counter()
  mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=jax.device_count())) if jax.device_count() > 1 else None
  params, cfg = hf.load(folder, mesh=mesh)
  leaves = jax.block_until_ready(jax.tree.leaves(params))
  seconds = time.perf_counter() - began
  peak = _memory("VmHWM") - before
  params_bytes = sum(x.nbytes for x in leaves)
  here = sum(s.data.nbytes for x in leaves for s in x.addressable_shards if s.device.platform == "cpu")
  sizes = [f.stat().st_size for f in folder.glob("*.safetensors")]
  return dict(folder=str(folder), device=jax.devices()[0].device_kind, devices=jax.device_count(), jax=jax.__version__,
              model=f"{cfg.layers} x {cfg.dim}, {cfg.dtype}", params_bytes=params_bytes, files=len(sizes),
              files_bytes=sum(sizes), largest_shard_bytes=max(sizes), peak_beyond_params_bytes=peak - here,
              ratio_to_largest_shard=(peak - here) / max(sizes), seconds=seconds, bytes_per_s=sum(sizes) / seconds)


def _memory(field: str) -> int:
  """Bytes of one field of /proc/self/status."""
  return int(re.search(field + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def table(result: dict) -> Table:
  out = Table("hf.load", f"{result['folder']}, {result['devices']} x {result['device']}, jax {result['jax']}")
  out.add_row("model", result["model"])
  for name in ("params", "largest_shard", "peak_beyond_params"):
    out.add_row(f"{name.replace('_', ' ')}, MB", f"{result[f'{name}_bytes'] / 1e6:,.1f}")
  out.add_row("that, in units of the largest shard", f"{result['ratio_to_largest_shard']:.2f} (at most {BAR} wanted)")
  out.add_row("seconds", f"{result['seconds']:.2f}")
  out.add_row(f"MB a second, from {result['files']} files", f"{result['bytes_per_s'] / 1e6:,.0f}")
  return out


if __name__ == "__main__":
  print(json.dumps(_load(Path(sys.argv[1]))))

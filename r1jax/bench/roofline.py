"""What a device can do at best: the makers' peaks, of products without sparsity and of memory; a CPU is measured."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax import hardware
from r1jax.bench.timing import best, matmul_speed

Device = hardware.Hardware
PEAKS = {kind: row for row in hardware.TABLE.values() for kind in row.kinds}      # how a device_kind begins


def of(device: jax.Device) -> Device | None:
  """The limits of a device; None for an accelerator that the table does not have."""
  if device.platform == "cpu":
    f32, bf16 = matmul_speed(), matmul_speed(dtype="bfloat16")
    # XLA's CPU has no FP8 products: they are those of float32
    return Device(bf16, max(bf16, f32), f32, memory_speed(), measured=True)
  return hardware.of_kind(device.device_kind)


def memory_speed(size: int = 64 << 20, repeats: int = 5) -> float:
  """Bytes/s of a large copy (read and written) or of a large sum (read), whichever is more."""
  x = jnp.ones(size // 4)
  copy, total = jax.jit(lambda x: x + 1), jax.jit(jnp.sum)
  return max(2 * size / best(lambda: copy(x), repeats), size / best(lambda: total(x), repeats))

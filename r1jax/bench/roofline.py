"""What a device can do at best: the makers' peaks, of products without sparsity and of memory; a CPU is measured."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.bench.grpo import matmul_speed
from r1jax.bench.timing import best


@dataclasses.dataclass(frozen=True)
class Device:
  """FLOP/s by the type of the factors, and bytes/s of its memory."""
  bf16: float
  fp8: float
  f32: float              # as XLA multiplies float32 where it may round: TF32 on NVIDIA's, passes of bf16 on a TPU
  bandwidth: float
  measured: bool = False

  def seconds(self, flops: float, bytes_: float, dtype: str) -> tuple[float, str]:
    """The least time of that work, and what bounds it."""
    peak = dict(bfloat16=self.bf16, float16=self.bf16, fp8=self.fp8, float32=self.f32)[dtype]
    return max((flops / peak, "compute"), (bytes_ / self.bandwidth, "memory"))


# how a device_kind begins, the longest match counts; data sheets of NVIDIA and Google
PEAKS = {
  "NVIDIA H100": Device(989e12, 1979e12, 494e12, 3.35e12),
  "NVIDIA H100 PCIe": Device(756e12, 1513e12, 378e12, 2.0e12),
  "NVIDIA H800": Device(989e12, 1979e12, 494e12, 3.35e12),
  "NVIDIA H200": Device(989e12, 1979e12, 494e12, 4.8e12),
  "NVIDIA A100": Device(312e12, 312e12, 156e12, 2.039e12),
  "NVIDIA A100-SXM4-40GB": Device(312e12, 312e12, 156e12, 1.555e12),
  "TPU v5 lite": Device(197e12, 197e12, 197e12, 0.819e12),
  "TPU v5e": Device(197e12, 197e12, 197e12, 0.819e12),
  "TPU v5": Device(459e12, 459e12, 459e12, 2.765e12),
  "TPU v5p": Device(459e12, 459e12, 459e12, 2.765e12),
  "TPU v6 lite": Device(918e12, 918e12, 918e12, 1.64e12),
  "TPU v6e": Device(918e12, 918e12, 918e12, 1.64e12),
}


def of(device: jax.Device) -> Device | None:
  """The limits of a device; None for an accelerator that the table does not have."""
  if device.platform == "cpu":
    f32, bf16 = matmul_speed(), bfloat16_speed()       # XLA's CPU has no FP8 products: they are those of float32
    return Device(bf16, max(bf16, f32), f32, memory_speed(), measured=True)
  names = [name for name in PEAKS if device.device_kind.startswith(name)]
  return PEAKS[max(names, key=len)] if names else None


def bfloat16_speed(size: int = 1536, repeats: int = 5) -> float:
  """FLOP/s of a large bfloat16 matmul, which some processors have instructions for."""
  x = jnp.ones((size, size), jnp.bfloat16)
  multiply = jax.jit(lambda a, b: a @ b)
  return 2 * size**3 / best(lambda: multiply(x, x), repeats)


def memory_speed(size: int = 64 << 20, repeats: int = 5) -> float:
  """Bytes/s of a large copy (read and written) or of a large sum (read), whichever is more."""
  x = jnp.ones(size // 4)
  copy, total = jax.jit(lambda x: x + 1), jax.jit(jnp.sum)
  return max(2 * size / best(lambda: copy(x), repeats), size / best(lambda: total(x), repeats))

"""What an accelerator can do at best, by its maker's data sheet: products without sparsity, memory, links.

One table for rooflines (bench/roofline.py), plans and ledgers. A CPU has no row: it is measured where it is needed.
Scope: rates that no program exceeds; what one reaches is lower. TPU memory is that of a chip, and so are its rates.
"""

from __future__ import annotations

import dataclasses

GOOGLE = "https://docs.cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Hardware:
  """FLOP/s by the type of the factors, bytes/s of memory and links, bytes of memory."""
  bf16: float
  fp8: float              # that of bf16 where the device has no FP8 products
  f32: float              # as XLA multiplies float32 where it may round: TF32 on NVIDIA's, passes of bf16 on a TPU
  bandwidth: float
  memory: float = 0.0
  link: float = 0.0       # of all links of one device to its neighbours, both directions together, as makers count it
  neighbours: int = 0     # devices that such links join into one domain: a server's, a whole pod's
  kinds: tuple[str, ...] = ()            # how jax's device_kind begins
  source: str = ""
  measured: bool = False
  network: float = 0.0    # bytes/s that a device sends beyond its neighbours, one way; 0: not known

  def peak(self, dtype: str) -> float:
    """FLOP/s of products of that type. ValueError for one that is not known."""
    peaks = dict(bfloat16=self.bf16, float16=self.bf16, fp8=self.fp8, float32=self.f32)
    if dtype not in peaks:
      raise ValueError(f"no peak for products of {dtype!r}; there are {', '.join(peaks)}")
    return peaks[dtype]

  def seconds(self, flops: float, bytes_: float, dtype: str) -> tuple[float, str]:
    """The least time of that work, and what bounds it."""
    return max((flops / self.peak(dtype), "compute"), (bytes_ / self.bandwidth, "memory"))


# NVIDIA's data sheets print products of sparse matrices, from Hopper on these alone: twice what is here. Networks: one
# adapter to a GPU of NVIDIA's servers, of 400 Gb/s (DGX H100, H200, B200; H800: 2505.09343) or 200 (DGX A100, 80 GB);
# PCIe cards and 40 GB are taken to be as these. TPUs: what Google's page says of a chip (v5p) or of a pod (v5e, v6e).
NIC = 50e9
TABLE = {
  "h100": Hardware(989e12, 1979e12, 494e12, 3.35e12, 80e9, 900e9, 8, ("NVIDIA H100",), "NVIDIA H100 data sheet, SXM",
                   network=NIC),
  "h100-pcie": Hardware(756e12, 1513e12, 378e12, 2.0e12, 80e9, 600e9, 2, ("NVIDIA H100 PCIe",),
                        "NVIDIA H100 data sheet of 2022, PCIe; a bridge joins two", network=NIC),
  "h800": Hardware(989e12, 1979e12, 494e12, 3.35e12, 80e9, 400e9, 8, ("NVIDIA H800",),
                   "as H100 SXM but for NVLink, 400 GB/s (DeepSeek-V3's hardware paper, 2505.09343)", network=NIC),
  "h200": Hardware(989e12, 1979e12, 494e12, 4.8e12, 141e9, 900e9, 8, ("NVIDIA H200",), "NVIDIA H200 data sheet, SXM",
                   network=NIC),
  "b200": Hardware(2250e12, 4500e12, 1100e12, 8.0e12, 180e9, 1800e9, 8, ("NVIDIA B200",),
                   "NVIDIA Blackwell architecture brief, HGX B200 at 1000 W", network=NIC),
  "a100": Hardware(312e12, 312e12, 156e12, 2.039e12, 80e9, 600e9, 8, ("NVIDIA A100",),
                   "NVIDIA A100 data sheet, 80 GB SXM; no FP8 products", network=NIC / 2),
  "a100-40gb": Hardware(312e12, 312e12, 156e12, 1.555e12, 40e9, 600e9, 8, ("NVIDIA A100-SXM4-40GB",),
                        "NVIDIA A100 data sheet of 2020, 40 GB SXM; no FP8 products", network=NIC / 2),
  "v4": Hardware(275e12, 275e12, 275e12, 1.2e12, 32 * 2**30, 600e9, 4096, ("TPU v4",),
                 GOOGLE + "v4; links: 6 of 50 GB/s each way (2304.01433)"),
  "v5e": Hardware(197e12, 197e12, 197e12, 0.819e12, 16e9, 400e9, 256, ("TPU v5 lite", "TPU v5e"), GOOGLE + "v5e",
                  network=6.4e12 / 8 / 256),
  "v5p": Hardware(459e12, 459e12, 459e12, 2.765e12, 95 * 2**30, 1200e9, 8960, ("TPU v5", "TPU v5p"),
                  GOOGLE + "v5p-training", network=50e9 / 8),
  "v6e": Hardware(918e12, 918e12, 918e12, 1.638e12, 32e9, 800e9, 256, ("TPU v6 lite", "TPU v6e"), GOOGLE + "v6e",
                  network=25.6e12 / 8 / 256),
}


def find(name: str) -> Hardware:
  """A row of the table by its name. ValueError with all names for another."""
  if name.lower() not in TABLE:
    raise ValueError(f"hardware {name!r} is none of {', '.join(TABLE)}")
  return TABLE[name.lower()]


def of_kind(device_kind: str) -> Hardware | None:
  """The row of a device as jax names it, the longest match; None for one that the table does not have."""
  found = [(len(kind), row) for row in TABLE.values() for kind in row.kinds if device_kind.startswith(kind)]
  return max(found, key=lambda pair: pair[0])[1] if found else None

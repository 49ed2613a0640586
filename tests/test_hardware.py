"""The table of devices: every row is whole and plausible, names are found, and rooflines come from it."""

import pytest

from r1jax import hardware
from r1jax.bench import roofline


@pytest.mark.parametrize("name", hardware.TABLE)
def test_a_row_is_whole_and_its_figures_keep_their_order(name):
  row = hardware.find(name)
  assert 1e14 < row.f32 <= row.bf16 <= row.fp8 < 1e16
  assert 15e9 < row.memory < 200e9 and 5e11 < row.bandwidth < 1e13
  assert row.link < row.bandwidth and row.neighbours >= 2          # memory is nearer than neighbours
  assert row.source and row.kinds and not row.measured
  assert all(hardware.of_kind(kind) is row and roofline.PEAKS[kind] is row for kind in row.kinds)


def test_the_h800_is_an_h100_with_slower_links():
  h100, h800 = hardware.find("H100"), hardware.find("h800")
  assert (h800.link, h100.link) == (400e9, 900e9)
  assert (h800.bf16, h800.fp8, h800.bandwidth, h800.memory) == (h100.bf16, h100.fp8, h100.bandwidth, h100.memory)


def test_a_device_is_found_by_the_longest_name_that_it_begins_with():
  of = lambda kind: next((name for name, row in hardware.TABLE.items() if row is hardware.of_kind(kind)), None)
  assert [of(k) for k in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB",
                          "TPU v5 lite", "TPU v5", "TPU v4", "TPU v6 lite", "NVIDIA B200", "cpu")] == [
    "h100", "h100-pcie", "a100", "a100-40gb", "v5e", "v5p", "v4", "v6e", "b200", None]


def test_an_unknown_name_or_type_is_refused_with_those_there_are():
  with pytest.raises(ValueError, match=r"hardware 'h900' is none of h100, .*v6e"):
    hardware.find("h900")
  with pytest.raises(ValueError, match="no peak for products of 'int8'"):
    hardware.find("h100").peak("int8")


def test_the_least_time_is_that_of_what_bounds_it():
  device = hardware.Hardware(bf16=4.0, fp8=8.0, f32=2.0, bandwidth=1.0)
  assert device.seconds(40, 5, "bfloat16") == (10, "compute")
  assert device.seconds(40, 30, "float32") == (30, "memory")

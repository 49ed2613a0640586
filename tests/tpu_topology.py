"""TPUs that compile and do not run: libtpu's compile-only devices, on any machine that has the package."""

import importlib.util
import os

import jax
import pytest
from lowering import mesh_of


def topology(name: str):
  """The devices of `v5e:2x2` and the like; skips without libtpu."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed, so there is no compiler for TPUs (pip install libtpu)")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")    # it locks a device; there is none to share
  from jax.experimental import topologies
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
  except jax.errors.JaxRuntimeError as error:
    if "lockfile" not in str(error):
      raise
    pytest.skip("another process is using libtpu, which lets in one at a time")


def compiled(f, *args, name: str = "v5e:2x2"):
  """f compiled for one such device, of arrays or their shapes."""
  device = topology(name)[0]
  where = jax.sharding.SingleDeviceSharding(device)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), args)
  with mesh_of(device.device_kind, 1, "tpu"):
    return jax.jit(f).lower(*shapes).compile()

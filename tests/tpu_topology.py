"""TPUs that can be compiled for and not run: libtpu's compile-only devices."""

import importlib.util
import os

import pytest


def topology(name: str):
  """The devices of a topology such as "v5e:2x2"; skips where libtpu is missing."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed (pip install libtpu)")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  from jax.experimental import topologies
  return topologies.get_topology_desc(platform="tpu", topology_name=name).devices

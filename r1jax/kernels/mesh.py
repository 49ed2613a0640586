"""Whether a kernel would have to be split: XLA cannot divide a Pallas call over the devices of a mesh."""

from __future__ import annotations

import jax
from jax.sharding import AxisType


def splits() -> bool:
  """Whether the mesh of `with jax.set_mesh(mesh)` lets XLA split what is written here; in a shard_map it does not."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1 and any(kind == AxisType.Auto for kind in mesh.axis_types)

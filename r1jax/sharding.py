"""Meshes and logical axes: model code names axes ("heads"), only the rules below know the mesh.

The mesh is Auto: jit places the parts, the rules pin parameters and activations, and a mesh of one device changes
nothing. Axes so far: data (copies of the policy), fsdp (parameters split, gathered layer by layer), tensor (heads,
feed-forward and vocabulary split).
"""

from __future__ import annotations

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1jax.models.param import is_param

AXES = ("data", "fsdp", "tensor")

RULES = dict(
  batch=("data", "fsdp"),
  embed="fsdp",          # of weights
  embed_act=None,        # of activations
  heads="tensor",
  kv_heads="tensor",
  ffn="tensor",
  expert=None,
  vocab="tensor",
  layers=None,
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; data=-1 takes what is left."""
  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    for axis in ("fsdp", "tensor"):
      if getattr(self, axis) < 1:
        raise ValueError(f"mesh.{axis}={getattr(self, axis)} must be at least 1")
    if self.data < 1 and self.data != -1:
      raise ValueError(f"mesh.data={self.data} must be at least 1, or -1 for all that is left")


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
  devices = jax.devices() if devices is None else devices
  rest = cfg.fsdp * cfg.tensor
  data = len(devices) // rest if cfg.data == -1 else cfg.data
  if data * rest != len(devices):
    raise ValueError(f"mesh data={data} x fsdp={cfg.fsdp} x tensor={cfg.tensor} = {data * rest} devices,"
                     f" but {len(devices)} are present")
  return jax.make_mesh((data, cfg.fsdp, cfg.tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def shard(x, *axes: str | None):
  """Pins an activation's logical axes to the mesh of `with jax.set_mesh(mesh)`; no effect outside, or on one device."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))


def spec(mesh: Mesh, axes, shape) -> PartitionSpec:
  """Mesh axes of a tensor with these logical axes. An axis that does not divide stays whole (a kv head, say)."""
  def place(axis, size):
    names = RULES[axis] if axis else None
    if names is None:
      return None
    ways = math.prod(mesh.shape[n] for n in ((names,) if isinstance(names, str) else names))
    return names if size % ways == 0 else None
  return PartitionSpec(*(place(a, n) for a, n in zip(axes, shape, strict=True)))


def shardings(mesh: Mesh, tree):
  """Of a declared parameter tree (models/param.py): where each weight lives."""
  return jax.tree.map(lambda p: NamedSharding(mesh, spec(mesh, p.axes, p.shape)), tree, is_leaf=is_param)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the data and fsdp axes."""
  return NamedSharding(mesh, PartitionSpec(RULES["batch"]))

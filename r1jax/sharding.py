"""Meshes and logical axes: model code names axes ("heads"), only the rules below know the mesh.

The mesh is Auto: jit places the parts, the rules pin parameters and activations, and a mesh of one device changes
nothing. What jit would split badly is written out in a shard_map: experts (models/expert_parallel.py), attention over
parts of a sequence (kernels/attention/ring.py), log-probs over parts of the vocabulary (kernels/token_logprobs).
Axes of the mesh:
  stage     layers split, rows go through them in parts (models/pipelined.py)
  data      copies of the policy, each with its rows
  fsdp      parameters split, gathered layer by layer; each with its rows
  expert    experts split; each with its rows
  context   sequences split
  tensor    heads, feed-forward and vocabulary split; these devices talk most and are neighbours
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1jax.models.param import is_param

AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")

# logical axis -> mesh axes, first the one that varies slowest. MeshConfig.rules overrides
RULES: dict[str, tuple[str, ...]] = dict(
  batch=("data", "fsdp", "expert"),
  sequence=("context",),
  embed=("fsdp",),       # of weights
  embed_act=(),          # of activations
  heads=("tensor",),
  kv_heads=("tensor",),
  ffn=("tensor",),
  expert=("expert",),
  vocab=("tensor",),
  layers=("stage",),
)

_config = jax.make_user_context(default_value=None)                   # the MeshConfig; jit's caches tell them apart
_rollout = contextvars.ContextVar("rollout", default=None)            # (mesh, config) of sampling, where it has its own


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; data=-1 takes what is left."""
  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  expert: int = 1
  context: int = 1
  stage: int = 1
  stage_parts: int = 0           # parts of a micro-batch's rows that go through the stages; 0: four times the stages
  rules: dict | tuple = ()       # logical axis -> mesh axes, in place of those in RULES; kept as a sorted tuple

  def __post_init__(self):
    for axis in AXES:
      size = getattr(self, axis)
      if size < 1 and (axis, size) != ("data", -1):
        raise ValueError(f"mesh.{axis}={size} must be at least 1" + (", or -1 for all that is left" * (axis == "data")))
    if self.stage_parts < 0:
      raise ValueError(f"mesh.stage_parts={self.stage_parts} must not be negative")
    rules = {name: (axes,) if isinstance(axes, str) else tuple(axes or ()) for name, axes in dict(self.rules).items()}
    for name, axes in rules.items():
      if name not in RULES:
        raise ValueError(f"mesh.rules: {name!r} is none of {', '.join(RULES)}")
      if unknown := [axis for axis in axes if axis not in AXES]:
        raise ValueError(f"mesh.rules.{name}: {unknown[0]!r} is none of {', '.join(AXES)}")
      if len(set(axes)) < len(axes):
        raise ValueError(f"mesh.rules.{name}={axes} names an axis twice")
    if both := set((RULES | rules)["batch"]) & set((RULES | rules)["sequence"]):
      raise ValueError(f"mesh.rules: {both.pop()!r} cannot split both batch and sequence")
    if len((RULES | rules)["layers"]) > 1:
      raise ValueError(f"mesh.rules.layers={rules['layers']}: stages are along one axis")
    object.__setattr__(self, "rules", tuple(sorted(rules.items())))


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
  devices = jax.devices() if devices is None else devices
  sizes = {axis: getattr(cfg, axis) for axis in AXES}
  if cfg.data == -1:
    sizes["data"] = len(devices) // (-math.prod(sizes.values())) or 1
  if math.prod(sizes.values()) != len(devices):
    named = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1 or axis == "data")
    raise ValueError(f"mesh {named} = {math.prod(sizes.values())} devices, but {len(devices)} are present")
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


@contextlib.contextmanager
def use(cfg: MeshConfig, rollout: MeshConfig | None = None, devices=None, rollout_devices: int = 0):
  """The mesh of a config, with its rules, for all that runs within. rollout: another one, which resharding.for_rollout
  changes to: of the same devices, or of the last `rollout_devices` alone, which then have no part in the first."""
  devices = list(jax.devices() if devices is None else devices)
  if rollout_devices:
    if rollout_devices >= len(devices):
      raise ValueError(f"rollout_devices={rollout_devices} leave none of {len(devices)} to train on")
    devices, apart = devices[:-rollout_devices], devices[-rollout_devices:]
    layout = make_mesh(rollout or MeshConfig(), apart), rollout or MeshConfig()
  else:
    layout = None if rollout is None else (make_mesh(rollout, devices), rollout)
  with sampling(layout), entered(make_mesh(cfg, devices), cfg) as mesh:
    yield mesh


@contextlib.contextmanager
def entered(mesh: Mesh, cfg: MeshConfig):
  with jax.set_mesh(mesh), _config(cfg):
    yield mesh


def config() -> MeshConfig:
  """Of the mesh in use."""
  return _config.value or MeshConfig()


@contextlib.contextmanager
def sampling(layout: tuple[Mesh, MeshConfig] | None):
  """rollout_layout() is `layout` within: a thread begins without one."""
  token = _rollout.set(layout)
  try:
    yield
  finally:
    _rollout.reset(token)


def apart() -> bool:
  """Whether sampling has devices that the mesh in use has not."""
  mesh, layout = jax.sharding.get_mesh(), rollout_layout()
  return layout is not None and not mesh.empty and not set(layout[0].devices.flat) & set(mesh.devices.flat)


def rollout_layout() -> tuple[Mesh, MeshConfig] | None:
  """(mesh, config) of sampling, or None where it has the trainer's."""
  return _rollout.get()


def axes_of(axis: str | None) -> tuple[str, ...]:
  """Mesh axes of a logical axis. "token" is batch and sequence flattened into one."""
  rules = RULES | dict(config().rules)
  return () if axis is None else rules["batch"] + rules["sequence"] if axis == "token" else rules[axis]


def split_mesh():
  """The mesh of `with jax.set_mesh(mesh)`; None outside, on one device, or where a shard_map has taken it over."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def ways(axis: str) -> int:
  """Parts into which the mesh splits a logical axis that is long enough."""
  mesh = split_mesh()
  return 1 if mesh is None else math.prod(mesh.shape[name] for name in axes_of(axis) if name in mesh.shape)


def shard(x, *axes: str | None):
  """Pins an activation's logical axes to the mesh of `with jax.set_mesh(mesh)`; no effect outside, or on one device."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or len(mesh.manual_axes) == len(mesh.axis_names):
    return x
  return jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))


def spec(mesh: Mesh, axes, shape) -> PartitionSpec:
  """Mesh axes of a tensor with these logical axes.

  A mesh axis splits the first of them that asks for it. Of several, the last are given up until the size divides: an
  axis that does not divide at all stays whole (a kv head, say).
  """
  taken = set(getattr(mesh, "manual_axes", ()))       # a shard_map's own, such as pipelined.py's stages

  def place(axis, size):
    names = [n for n in axes_of(axis) if mesh.shape.get(n, 1) > 1 and n not in taken]
    while names and size % math.prod(mesh.shape[n] for n in names):
      names.pop()
    taken.update(names)
    return tuple(names) if len(names) > 1 else names[0] if names else None
  return PartitionSpec(*(place(a, n) for a, n in zip(axes, shape, strict=True)))


def names(part) -> tuple[str, ...]:
  """The mesh axes of one entry of a spec."""
  return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def shardings(mesh: Mesh, tree):
  """Of a declared parameter tree (models/param.py): where each weight lives."""
  return jax.tree.map(lambda p: NamedSharding(mesh, spec(mesh, p.axes, p.shape)), tree, is_leaf=is_param)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the axes of "batch"."""
  return NamedSharding(mesh, PartitionSpec(axes_of("batch")))

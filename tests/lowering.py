"""A function lowered for an accelerator that is not there, as text; compiled for a TPU where libtpu is installed."""

import contextlib

import jax

CARDS = dict(cuda=("NVIDIA H100 80GB HBM3", 132, "gpu"), tpu=("TPU v5 lite", 1, "tpu"))
CALLS = dict(cuda="__gpu$xla.gpu.triton", tpu="tpu_custom_call", cpu="no kernel's call")


def lowered(f, platform: str, *args) -> str:
  """The module for `platform` (cuda, tpu or cpu), of arrays or their shapes."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  with mesh_of(*CARDS[platform]) if platform in CARDS else contextlib.nullcontext():
    return jax.jit(f).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def mesh_of(kind: str, cores: int, platform: str):
  """Pallas asks which device it lowers for: on TPUs where FP8 is met, and from jax 0.12 on for every CUDA kernel."""
  if not hasattr(jax.sharding, "AbstractDevice"):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice(kind, cores, platform)
  auto = (jax.sharding.AxisType.Auto,)
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=device))

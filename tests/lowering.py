"""A function lowered for an accelerator that is not there, as text; compiled for a TPU where libtpu is installed."""

import contextlib

import jax

H100 = "NVIDIA H100 80GB HBM3"


def text(f, *args, platform: str) -> str:
  """The module for `platform` (cuda, tpu or cpu), of arrays or their shapes."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  with _card() if platform == "cuda" else contextlib.nullcontext():
    return jax.jit(f).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def _card():
  """From jax 0.12 on, Pallas wants to know which card it lowers for."""
  if not hasattr(jax.sharding, "AbstractDevice"):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice(H100, 132, "gpu")
  auto = (jax.sharding.AxisType.Auto,)
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=device))

"""A function lowered for a platform that this machine has not."""

import contextlib

import jax
from jax import sharding

CALLS = dict(cuda="__gpu$xla.gpu.triton", tpu="tpu_custom_call", cpu="no kernel's call")


def lowered(function, platform: str, *args) -> str:
  """The text of it. jax above 0.10 wants to know which GPU."""
  card = contextlib.nullcontext()
  if platform == "cuda" and hasattr(sharding, "AbstractDevice"):
    device = sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    card = sharding.use_abstract_mesh(sharding.AbstractMesh((1,), ("x",), abstract_device=device))
  with card:
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()

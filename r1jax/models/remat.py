"""What the backward pass computes again instead of keeping it: the names that a config may say, and jax's policies."""

from __future__ import annotations

import jax

from r1jax import offload

# nothing; all but results of matmuls, those of attention too; all but those with the weights (less memory traffic, so
# faster too); as this, and they wait in the host's memory; whole layers
REMAT = ("none", "dots", "elementwise", "offload", "layer")


def policy(name: str):
  """What jax.checkpoint saves, by a name of REMAT other than none; None: nothing but the layer's input."""
  policies = jax.checkpoint_policies
  if name == "offload":
    offload.check("model.remat=offload")
    return policies.offload_dot_with_no_batch_dims("device", offload.HOST)
  return dict(layer=None, dots=policies.dots_saveable, elementwise=policies.dots_with_no_batch_dims_saveable)[name]

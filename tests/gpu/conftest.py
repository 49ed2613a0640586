"""These tests need an NVIDIA GPU: JAX_PLATFORMS=cuda pytest tests/gpu (the other tests ask for the CPU)."""

import jax
import pytest


@pytest.fixture(autouse=True)
def gpu():
  if jax.default_backend() != "gpu":
    pytest.skip(f"jax runs on {jax.default_backend()} here; with a GPU: JAX_PLATFORMS=cuda pytest tests/gpu")

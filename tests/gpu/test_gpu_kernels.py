"""Every kernel's implementations for GPUs at real shapes against ref, with gradients: the benchmark's cases.

They need an NVIDIA GPU: JAX_PLATFORMS=cuda pytest tests/gpu (the other tests ask for the CPU).
"""

import jax
import pytest

from r1jax.bench import kernels

EVERY = [pytest.param(op, case, name, id=f"{op.name}: {case.name}: {name}")
         for op in kernels.OPS for case in op.cases() for name in op.impls.get("gpu", ())]


@pytest.fixture(autouse=True)
def gpu():
  if jax.default_backend() != "gpu":
    pytest.skip(f"jax runs on {jax.default_backend()} here; with a GPU: JAX_PLATFORMS=cuda pytest tests/gpu")


@pytest.mark.parametrize(("op", "case", "name"), EVERY)
def test_an_implementation_gives_what_ref_gives(op, case, name):
  args = case.make(jax.random.key(0))
  found = {}
  for impl in ("ref", name):
    try:
      found[impl] = kernels.untimed(op, impl, args)
    except NotImplementedError as error:
      pytest.skip(f"{impl}: {error}")
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      pytest.skip(f"{impl} does not fit this card: {str(error)[:200]}")
  assert not (errors := kernels.check(found[name], found["ref"], case.tolerance))["wrong"], errors

"""State that waits in the host's memory between its uses: the KL reference, the optimizer's moments.

JAX's memory kinds: `pinned_host` on GPUs and TPUs (and, for tests, on the CPU backend, where it is the same memory).
The reference is needed once a rollout and the moments only in the updates; sampling then has the device for itself.
"""

from __future__ import annotations

import jax

HOST = "pinned_host"
WHAT = ("none", "optimizer", "reference", "both")


def check(what: str) -> None:
  """NotImplementedError where the backend has no such memory. what: the config's key and value."""
  device = jax.local_devices()[0]
  kinds = sorted(memory.kind for memory in device.addressable_memories())
  if HOST not in kinds:
    raise NotImplementedError(f"{what}: the {device.platform} backend has no {HOST} memory, only {', '.join(kinds)}")


def to_host(tree):
  """Arrays in the host's memory, sharded as they were; scalars stay."""
  return _moved(tree, HOST)


def to_device(tree):
  """Arrays in the devices' memory again."""
  return _moved(tree, jax.local_devices()[0].default_memory().kind)


def _moved(tree, kind: str):
  return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)) if x.ndim else x, tree)


def awake(state, what: str, use: str = "both"):
  """The state with what `rest` put away back on the devices, as far as it is of use now."""
  return _with(state, what, use, to_device)


def rest(state, what: str):
  """The state with what it is to wait without on the host. what: one of WHAT."""
  return _with(state, what, "both", to_host)


def _with(state, what: str, use: str, move):
  if what in ("optimizer", "both") and use in ("optimizer", "both"):
    state = state.replace(opt_state=move(state.opt_state))
  if what in ("reference", "both") and use in ("reference", "both") and state.ref_params is not None:
    state = state.replace(ref_params=move(state.ref_params))
  return state

"""Several processes, one run: all run the same program (jax.distributed), and the work of hosts is divided by share.

One mesh spans the devices of all processes. Parameters, optimizer and updates are global arrays on it, and XLA moves
what must move. What a process does alone, sampling and rewards of its share of the questions, tokenising, runs on its
own devices (`own_devices`) and is put together again as Python objects (`gather`), so that afterwards all processes
hold the same rows and make the same batch. A sample's random numbers are folded from its problem, so no answer depends
on the division. With one process each function is the identity.

Limits: as many devices in each process; a working folder that all of them see; the policy, split over the devices of
one process, must fit there to be sampled from; gathered rows pass through the devices' memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax import sharding

FIRST = 4096                     # bytes of a gathered object that travel at once; longer ones take a second round
LOST = 75                        # exit status of a process that lost the others: sysexits.h's "try again"
# the caller's mistakes: the same command would fail again
MISTAKES = (ValueError, NotImplementedError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


# --- the job

def start(coordinator: str = "", processes: int | None = None, process: int | None = None, heartbeat: int = 100,
          patience: int = 300) -> None:
  """Joins the job, before any other call of jax. coordinator: HOST:PORT of process 0; empty: as the cluster says.

  heartbeat: seconds without a sign of life after which a process counts as dead, and the others end too. patience:
  seconds to wait for the others to come.
  """
  if coordinator and process == 0:
    try:
      socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:       # JAX would crash
      raise ValueError(f"--coordinator={coordinator}: process 0 cannot listen there ({error})") from error

  def alone():
    print(f"r1jax: process {process if coordinator else '?'}: the {processes or 'other'} processes did not all meet at"
          f" {coordinator or 'the coordinator'} within {patience} seconds", file=sys.stderr, flush=True)
    os._exit(LOST)
  # JAX would abort with a stack trace after its own time: this comes first
  times = dict(heartbeat_timeout_seconds=heartbeat, initialization_timeout=patience + 60)
  watch = threading.Timer(patience, alone)
  watch.daemon = True
  watch.start()
  if coordinator:
    times |= dict(coordinator_address=coordinator, num_processes=processes, process_id=process,
                  cluster_detection_method="deactivate")
  try:
    jax.distributed.initialize(**times)
  except ValueError as error:
    raise ValueError(f"--distributed: no SLURM, Open MPI, Kubernetes or TPU pod is to be seen here ({error}): give"
                     " --coordinator HOST:PORT --processes N --process I") from error
  except RuntimeError as error:
    raise ValueError(f"process {process} cannot join at {coordinator}: {first_line(error)}") from error
  finally:
    watch.cancel()
  if jax.local_device_count() * count() != jax.device_count():
    raise ValueError(f"process {jax.process_index()} has {jax.local_device_count()} of {jax.device_count()} devices:"
                     f" the {count()} processes must have as many each")


@contextlib.contextmanager
def job(again: str = ""):
  """What a process of several runs in: whatever ends it early is said in one line, and it ends at once.

  At once: an orderly end would wait for the others, which wait for this one. again: the command to go on with.
  """
  try:
    yield
  except BaseException as error:
    if count() == 1 or isinstance(error, SystemExit):
      raise
    if os.environ.get("R1JAX_DEBUG"):
      sys.excepthook(type(error), error, error.__traceback__)
    # XLA's errors begin with a code in capitals; of a collective that broke, some come as ValueError
    mine = isinstance(error, MISTAKES) and not re.match(r"[A-Z_]+: ", first_line(error))
    text = f"r1jax: process {jax.process_index()} of {count()}: {first_line(error)}"
    if not mine:
      text += ("\nThe job is over, most likely because another process ended: see what the others say. Go on from the"
               f" last checkpoint, with this or another number of processes:\n  {again}")
    print(text, file=sys.stderr, flush=True)
    os._exit(2 if mine else LOST)


def first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def count() -> int:
  """Processes of this job."""
  return jax.process_count()


def is_main() -> bool:
  """Whether this process writes what there is one of: config, metrics, samples, report."""
  return jax.process_index() == 0


# --- host work, divided

def share(number: int) -> range:
  """This process's part of 0 .. number - 1: contiguous, in the order of processes, sizes that differ by one at most."""
  at = [number * i // count() for i in (jax.process_index(), jax.process_index() + 1)]
  return range(*at)


def divided(items: Sequence, work: Callable[[Sequence], Sequence]) -> list:
  """work(items), one result for each, of which every process does its share."""
  return flat(gather(list(work([items[i] for i in share(len(items))]))))


def flat(parts: Sequence[Sequence]) -> list:
  return [x for part in parts for x in part]


def gather(value: Any) -> list:
  """The values of all processes, in their order, on all of them. Anything that can be pickled."""
  if count() == 1:
    return [value]
  data = pickle.dumps(value)
  data = len(data).to_bytes(8, "little") + data
  row_P = _allgather(data[:FIRST], FIRST)
  sizes = [8 + int.from_bytes(row[:8], "little") for row in row_P]
  if (longest := max(sizes)) > FIRST:
    rest_P = _allgather(data[FIRST:], 1 << (longest - FIRST - 1).bit_length())      # few shapes
    row_P = [first + rest for first, rest in zip(row_P, rest_P, strict=True)]
  return [pickle.loads(row[8:size]) for row, size in zip(row_P, sizes, strict=True)]


def _allgather(data: bytes, width: int) -> list[bytes]:
  padded = np.zeros(width, np.uint8)
  padded[:len(data)] = np.frombuffer(data, np.uint8)
  return [row.tobytes() for row in multihost_utils.process_allgather(padded)]


def from_main(work: Callable[[], Any]) -> Any:
  """What work() gives on the main process, where alone it is called; its exception, too, is everyone's."""
  if count() == 1:
    return work()
  out = error = None
  if is_main():
    try:
      out = work()
    except Exception as wrong:
      error = wrong
  out, error = gather((out, error))[0]
  if error is not None:
    raise error
  return out


def any_of(flag: bool) -> bool:
  """Whether it is so on any process."""
  return flag if count() == 1 else any(gather(bool(flag)))


# --- arrays

def place(batch: Any) -> Any:
  """A batch that all processes hold, on the mesh of `with jax.set_mesh(mesh)`: rows divided where they can be."""
  if count() == 1:
    return batch
  mesh = jax.sharding.get_mesh()
  rows = sharding.batch_sharding(mesh)

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x
    value = np.asarray(x)
    try:
      rows.shard_shape(value.shape)
      where = rows
    except ValueError:
      where = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(value.shape, where, lambda index: value[index])
  return jax.tree.map(one, batch)


def placing(step: Callable) -> Callable:
  """step(state, batch, ...), a jitted function, for batches that are not placed yet."""
  return step if count() == 1 else lambda state, batch, *more: step(state, place(batch), *more)


def spread(tree: Any) -> Any:
  """Arrays that each process holds for itself, all the same, as arrays of the whole mesh; others as they are."""
  if count() == 1:
    return tree
  whole = everywhere()

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x
    value = np.asarray(x)
    return jax.make_array_from_callback(value.shape, whole, lambda index: value[index])
  return jax.tree.map(one, tree)


def fetch(x) -> np.ndarray:
  """An array's values, on every process."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    return multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def everywhere() -> NamedSharding:
  """Whole on each device of the mesh of `with jax.set_mesh(mesh)`."""
  return NamedSharding(jax.sharding.get_mesh(), PartitionSpec())


def mesh():
  """Where weights that are read shall live: None for one process, which may do with one device."""
  return None if count() == 1 else jax.sharding.get_mesh()


@contextlib.contextmanager
def own_devices(params: Any = None) -> Iterator[Any]:
  """`params` on this process's devices alone, under a mesh of these: for work that each process does for itself.

  The mesh has the axes of the global one, as wide as they fit; what is left over goes to that of copies. All
  processes must come here together: parts that lie elsewhere are fetched.
  """
  if count() == 1:
    yield params
    return
  whole = jax.sharding.get_mesh()
  sizes = _own_shape(whole)
  by_process = np.asarray([[d for d in jax.devices() if d.process_index == p] for p in range(count())])
  copies = Mesh(by_process.reshape(count(), *sizes), ("process", *whole.axis_names),
                axis_types=(jax.sharding.AxisType.Auto,) * (1 + len(sizes)))
  own = Mesh(copies.devices[jax.process_index()], whole.axis_names, axis_types=copies.axis_types[1:])

  def one(x):
    spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else PartitionSpec()
    parts = [s.data for s in jax.device_put(x, NamedSharding(copies, spec)).addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(own, spec), parts)
  params = jax.tree.map(one, params)
  with jax.set_mesh(own):
    yield params


def _own_shape(mesh: Mesh) -> list[int]:
  """Of one process's mesh: its axes divide those of the whole one, so that whatever is split there can be here."""
  left, sizes = jax.local_device_count(), {}
  for axis in reversed(mesh.axis_names):
    if axis != "data":
      sizes[axis] = math.gcd(mesh.shape[axis], left)
      left //= sizes[axis]
  return [sizes.get(axis, left) for axis in mesh.axis_names]

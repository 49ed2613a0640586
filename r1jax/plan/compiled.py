"""Bytes on one device as XLA's compiler counts them: the real update or decode step, of abstract arrays.

In a process of its own, as the number of devices is fixed when jax starts: simulated CPU devices, or, where libtpu is
installed, the devices of a TPU topology that compile and do not run. Nothing is allocated; a large model takes minutes.
Layouts are those that sharding.MeshConfig can express. The CPU's compiler has no kernels, and keeps copies that others
do not: its number is an upper bound for other devices, and the right one for runs on CPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pickle
import subprocess
import sys
import time

from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.plan.layout import AXES, RULES, Layout

WHAT = ("update", "decode")


@dataclasses.dataclass(frozen=True)
class Case:
  """A program to compile. target: "cpu", or a TPU topology such as v5p:8x8x8."""
  what: str
  cfg: ModelConfig
  layout: Layout
  prompts: int                   # of an update, or lanes of a decode step; over all devices
  group: int
  prompt: int                    # tokens
  answer: int                    # tokens, or columns of a decode step's caches
  micro_batches: int = 1
  reference: bool = True
  optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(3e-6))
  target: str = "cpu"

  def __post_init__(self):
    if self.what not in WHAT:
      raise ValueError(f"what={self.what!r} is none of {WHAT}")


@functools.cache
def measure(case: Case, timeout: float | None = None) -> dict[str, float]:
  """Bytes on one device: arguments, outputs, aliased, temporary, peak; seconds and host's bytes of compiling.

  RuntimeError with the compiler's last line where it refuses, NotImplementedError where a mesh cannot express a layout.
  """
  mesh_axes(case.layout)
  env = dict(os.environ, JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="false", TPU_SKIP_MDS_QUERY="1",
             ALLOW_MULTIPLE_LIBTPU_LOAD="1", TF_CPP_MIN_LOG_LEVEL="2")
  if case.target == "cpu":
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={case.layout.devices}"
  done = subprocess.run([sys.executable, "-m", "r1jax.plan.compiled"], input=pickle.dumps(case), env=env,
                        capture_output=True, timeout=timeout)
  if done.returncode:
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"ended with {done.returncode}"]
    raise RuntimeError(f"compiling {case.what} on {case.layout}: {lines[-1]}")
  return json.loads(done.stdout.decode().strip().splitlines()[-1])


def mesh_axes(layout: Layout) -> dict[str, int]:
  """What sharding.MeshConfig is given for a layout. NotImplementedError for axes that it lacks."""
  from r1jax.sharding import MeshConfig
  known = [field.name for field in dataclasses.fields(MeshConfig)]
  if lacking := [axis for axis in AXES if getattr(layout, axis) > 1 and axis not in known]:
    raise NotImplementedError(f"layout {layout}: sharding.py's mesh has no {', '.join(lacking)} axis")
  return {axis: getattr(layout, axis) for axis in AXES if axis in known}


@contextlib.contextmanager
def meshed(layout: Layout, devices):
  """The mesh of a layout, in use."""
  import jax

  from r1jax import sharding
  cfg = sharding.MeshConfig(**mesh_axes(layout))
  if hasattr(sharding, "use"):          # a mesh with rules of its own
    with sharding.use(dataclasses.replace(cfg, rules=dict(embed=RULES["embed"])), devices=devices) as mesh:
      yield mesh
  else:
    mesh = sharding.make_mesh(cfg, devices)
    with jax.set_mesh(mesh):
      yield mesh


def program(case: Case, mesh):
  """(function, abstract arguments) of a case, with the shardings that a run has."""
  import jax

  from r1jax import sharding
  from r1jax.models import param, transformer
  tree = transformer.params(case.cfg)
  place = sharding.shardings(mesh, tree)
  with_place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  params = jax.tree.map(with_place, param.abstract(tree, case.cfg.dtype), place)
  return (_update if case.what == "update" else _decode)(case, mesh, params)


def _update(case: Case, mesh, params):
  import jax
  import jax.numpy as jnp

  from r1jax import optimizer, train
  from r1jax import update as update_
  from r1jax.grpo import LossConfig
  from r1jax.sampler import SampleConfig
  from r1jax.stages import reasoning_rl
  from r1jax.types import Batch, TrainState
  cfg = reasoning_rl.RLConfig(
    case.optimizer, LossConfig(kl_coef=0.001 if case.reference else 0.0), SampleConfig(case.answer),
    dict(accuracy=1.0), rollouts=1, questions_per_rollout=case.prompts, group_size=case.group,
    micro_batches=case.micro_batches, reference="fused")
  tx = optimizer.make(case.optimizer, 1)
  loss = lambda params, batch: reasoning_rl.policy_loss(params, batch, model=case.cfg, cfg=cfg)

  def reference(ref_params, part):      # as update.updater has it
    logp_NA = update_.logprobs(ref_params, part, model=case.cfg, cfg=cfg)[0]
    return part.replace(ref_logp_NA=jax.lax.stop_gradient(logp_NA))
  step = jax.jit(functools.partial(train.train_step, loss_fn=loss, tx=tx, micro_batches=case.micro_batches,
                                   prepare=reference if case.reference else None), donate_argnames="state")
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  of_path = {jax.tree_util.keystr(path): x.sharding for path, x in jax.tree_util.tree_leaves_with_path(params)}

  def moments(path, x):
    names = [jax.tree_util.keystr(path[i:]) for i in range(len(path))]
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=next((of_path[n] for n in names if n in of_path), whole))
  opt_state = jax.tree_util.tree_map_with_path(moments, jax.eval_shape(tx.init, params))
  scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  state = TrainState(scalar, params, opt_state, params if case.reference else None)
  B, N, P, A = case.prompts, case.prompts * case.group, case.prompt, case.answer
  rows = functools.partial(_rows, mesh)
  return step, (state, Batch(rows((B, P), "int32"), rows((B,), "int32"), rows((N, A), "int32"), rows((N, A)),
                             rows((N,)), old_logp_NA=rows((N, A))))


def _rows(mesh, shape, dtype="float32"):
  """An array whose rows are spread; whole where they do not divide."""
  import jax

  from r1jax import sharding
  spec = sharding.spec(mesh, ("batch",) + (None,) * (len(shape) - 1), shape)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))


def _decode(case: Case, mesh, params):
  import jax
  import jax.numpy as jnp

  from r1jax import prefill, sampler
  from r1jax.models import transformer
  from r1jax.sampler import SampleConfig
  cfg, model = SampleConfig(case.answer), case.cfg
  B, N = case.prompts, case.prompts * case.group
  key_N = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), N))
  prompts = jax.eval_shape(lambda: prefill.empty(model=model, cfg=cfg, B=B, P=case.prompt))
  state = jax.eval_shape(functools.partial(sampler.rows, model=model, cfg=cfg, end_id=0, columns=case.answer), params,
                         prompts, key_N)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  place = lambda x: (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) if not x.ndim else
                     _rows(mesh, x.shape, x.dtype))
  state = jax.tree.map(place, state)

  def step(params, state):
    turned = transformer.positions(model, jnp.arange(case.prompt + case.answer + 1)[None])
    return sampler.step(params, model, cfg, 0, turned, state)
  return jax.jit(step, donate_argnums=1), (params, state)


def _child(case: Case) -> dict[str, float]:
  import resource

  import jax
  if case.target == "cpu":
    devices = jax.devices()[:case.layout.devices]
  else:
    from jax.experimental import topologies
    devices = topologies.get_topology_desc(platform="tpu", topology_name=case.target).devices
  with meshed(case.layout, devices) as mesh:
    function, arguments = program(case, mesh)
    began = time.monotonic()
    lowered = function.lower(*arguments)
    lowering = time.monotonic() - began
    compiled = lowered.compile()
  m = compiled.memory_analysis()
  used = dict(arguments=m.argument_size_in_bytes, outputs=m.output_size_in_bytes, aliased=m.alias_size_in_bytes,
              temporary=m.temp_size_in_bytes)
  used["peak"] = used["arguments"] + used["outputs"] - used["aliased"] + used["temporary"]
  if getattr(m, "peak_memory_in_bytes", 0):
    used["compiler_peak"] = m.peak_memory_in_bytes
  return used | dict(lower_seconds=lowering, compile_seconds=time.monotonic() - began - lowering,
                     host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
  print(json.dumps(_child(pickle.loads(sys.stdin.buffer.read()))))

"""Every form of token_logprobs against its reference: kernels in the interpreter, lowered for CUDA and TPU and compiled
for the latter, and on a mesh of eight devices. As the losses call it: test_losses.py."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import CALLS, lowered
from tpu_topology import topology

from r1jax import losses, sharding
from r1jax.kernels.token_logprobs import (
  IMPLS,
  cases,
  chunked,
  pallas_gpu,
  pallas_tpu,
  parallel,
  parts,
  ref,
  token_logprobs,
)

# M, D, V, type, tied: real models' heads scaled down (V no multiple of a block, D of the depth), and odd ones
TABLE = [
  (33, 36, 192 * 2 + 1, jnp.float32, True),        # SmolLM2-135M
  (130, 96, 1187, jnp.bfloat16, True),             # Qwen2.5-1.5B
  (64, 112, 505, jnp.bfloat16, False),             # DeepSeek-V3
  (256, 64, 256, jnp.float32, False),              # nothing ragged
  (13, 6, 11, jnp.float32, False),
  (1, 64, 300, jnp.bfloat16, True),
]


def inputs(M, D, V, dtype=jnp.float32, scale=0.5):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * scale, dtype)
  weights = tuple(jnp.asarray(rng.normal(size=M), jnp.float32) for _ in range(2))
  return draw(M, D), draw(D, V), jnp.asarray(rng.integers(0, V, M)), weights


@functools.partial(jax.jit, static_argnums=4)
def wanted(hidden_MD, head_DV, target_M, weights, temperature):
  """The reference's outputs and gradients, in f32."""
  wide = (x.astype(jnp.float32) for x in (hidden_MD, head_DV))
  outs, pull = jax.vjp(lambda h, w: ref.token_logprobs(h, w, target_M, temperature), *wide)
  return *outs, *pull(weights)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def by_kernel(name, hidden_MD, head_DV, target_M, weights, temperature, tied):
  kernel, more = dict(pallas_gpu=(pallas_gpu, dict(chunk=50)), pallas_tpu=(pallas_tpu, {}))[name]
  head = head_DV.T if tied else head_DV
  logp_M, entropy_M, logsumexp_M = parts.finish(kernel.stats(hidden_MD, head, target_M, temperature, tied, True))
  d_hidden_MD, d_head = kernel.backward(hidden_MD, head, target_M, logsumexp_M, entropy_M, *weights,
                                        temperature=temperature, tied=tied, dtypes=(hidden_MD.dtype, head_DV.dtype),
                                        interpret=True, **more)
  assert (d_hidden_MD.dtype, d_head.dtype) == (hidden_MD.dtype, head_DV.dtype)
  return logp_M, entropy_M, d_hidden_MD, d_head.T if tied else d_head


def close(got, want, values: float, gradients: float):
  for name, a, b in zip(("logp", "entropy", "d hidden", "d head"), got, want, strict=True):
    error = np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
    assert error < (gradients if name[:2] == "d " else values), (name, error)


@pytest.mark.parametrize("name", ["pallas_gpu", "pallas_tpu"])
@pytest.mark.parametrize("M, D, V, dtype, tied", TABLE)
def test_kernels_give_the_references_values_and_gradients(name, M, D, V, dtype, tied, monkeypatch):
  monkeypatch.setattr(pallas_gpu, "PROGRAMS", 4)         # so that a program has several blocks, the last one fewer
  arrays = inputs(M, D, V, dtype)
  close(by_kernel(name, *arrays, 0.7, tied), wanted(*arrays, 0.7), 1e-5, 1e-4 if dtype == jnp.float32 else 1e-2)


@pytest.mark.parametrize("name", ["pallas_gpu", "pallas_tpu"])
def test_large_logits_lose_no_digits(name):
  hidden_MD, head_DV, target_M, weights = inputs(20, 16, 300)
  arrays = hidden_MD * 300, head_DV, target_M, weights
  got, want = by_kernel(name, *arrays, 1.0, False), wanted(*arrays, 1.0)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-3)     # logits of 1e3 are known to 1e-4
  np.testing.assert_allclose(got[1], want[1], rtol=1e-3, atol=1e-3)
  assert all(np.isfinite(x).all() for x in got)


@pytest.mark.parametrize("case", [c for c in cases.cases() if c.small], ids=lambda c: c.name)
def test_the_op_on_this_platform_and_by_name(case):
  args = case.make(jax.random.key(1))
  run = lambda impl: jax.jit(lambda: token_logprobs(**args, impl=impl))()
  for impl in (None, "chunked"):
    for a, b in zip(run(impl), run("ref"), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_parts_of_the_vocabulary_add_up_by_hand():
  # logits log 1, log 2 | log 5 -> 1/8, 2/8, 5/8
  split = [parts.add_block(parts.none((1,)), jnp.log(jnp.array([row])), jnp.array([hit]))
           for row, hit in (((1.0, 2.0), (False, False)), ((5.0,), (True,)))]
  both = parts.combine(jax.tree.map(lambda *x: jnp.stack(x), *split), lambda x: x.max(0), lambda x: x.sum(0))
  logp, entropy, logsumexp = parts.finish(both)
  np.testing.assert_allclose(logp, np.log(5 / 8), rtol=1e-6)
  np.testing.assert_allclose(entropy, -sum(p * np.log(p) for p in (1 / 8, 2 / 8, 5 / 8)), rtol=1e-6)
  np.testing.assert_allclose(logsumexp, np.log(8), rtol=1e-6)


def test_a_subset_is_for_chunked_alone_and_unknown_names_are_refused():
  hidden_MD, head_DV, target_M, _ = inputs(3, 4, 5)
  kept_Mk = jnp.zeros((3, 1), jnp.int32)
  for impl in ("pallas_gpu", "pallas_tpu"):
    with pytest.raises(NotImplementedError, match=r"kept_Mk \(3, 1\); impl='chunked' has"):
      token_logprobs(hidden_MD, head_DV, target_M, 1.0, 4, kept_Mk, impl)
  with pytest.raises(ValueError, match="impl='best' is none of"):
    token_logprobs(hidden_MD, head_DV, target_M, 1.0, 4, impl="best")
  for impl in (None, "chunked", "ref"):
    logp_M, _ = token_logprobs(hidden_MD, head_DV, jnp.zeros(3, jnp.int32), 1.0, 4, kept_Mk, impl)
    np.testing.assert_allclose(logp_M, 0, atol=1e-6)     # the only one left


def loss(hidden_MD, head, target_M, tied, impl=None):
  outs = losses.token_logprobs(hidden_MD, head.T if tied else head, target_M, 0.8, 2048, None, impl, tied)
  return sum(jnp.sum(o) for o in outs)


def abstract(M, D, V, tied, placed=None, dtype=jnp.bfloat16):
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=placed)
  return shape((M, D), dtype), shape((V, D) if tied else (D, V), dtype), shape((M,), jnp.int32)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_it_and_its_gradient_lower_for_every_platform_at_the_size_of_real_models(platform):
  for D, V in (*cases.MODELS.values(), (64, 50_257)):
    tied = D < 2000
    step = jax.value_and_grad(functools.partial(loss, tied=tied), (0, 1))
    text = lowered(step, platform, *abstract(4096, D, V, tied))
    calls = dict(cuda=(2, 3), tpu=(3,), cpu=(0,))[platform]        # on a GPU one more where a strip is left over
    assert text.count(CALLS[platform]) in calls, (platform, D, V, tied)


@pytest.mark.parametrize("impl", [i for i in IMPLS if i.startswith("pallas")])
def test_a_named_kernel_is_strict(impl):
  other = dict(pallas_gpu="tpu", pallas_tpu="cuda")[impl]
  with pytest.raises(Exception, match=r"(?i)pallas|interpret|platform|cuda|tpu"):
    lowered(functools.partial(loss, tied=False, impl=impl), other, *abstract(128, 64, 256, False))


# --- the TPU's compiler, without one

@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", pytest.param("v6e:2x2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("M, D, V, tied", [(4096, 1536, 151_936, True), (4096, 7168, 129_280, False)])
def test_the_tpus_compiler_takes_it_and_needs_no_copy_of_the_head(name, M, D, V, tied):
  placed = jax.sharding.SingleDeviceSharding(topology(name)[0])
  step = jax.jit(jax.value_and_grad(functools.partial(loss, tied=tied), (0, 1)))
  memory = step.lower(*abstract(M, D, V, tied, placed)).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 32 * 2**20 < D * V * 2


def test_the_tpus_compiler_splits_the_vocabulary_over_four_devices():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, tensor=4), topology("v5e:2x2"))
  place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  M, D, V = 4096, 1536, 151_936
  args = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(*axes)) for x, axes in zip(
    abstract(M, D, V, True), (("data", None), ("tensor", None), ("data",)), strict=True)]
  with jax.set_mesh(mesh):
    step = jax.jit(jax.value_and_grad(functools.partial(loss, tied=True), (0, 1)))
    compiled = step.lower(*args).compile()
  text, memory = compiled.as_text(), compiled.memory_analysis()
  assert "all-gather" not in text and text.count('custom_call_target="tpu_custom_call"') == 3
  assert memory.temp_size_in_bytes < 64 * 2**20 and memory.argument_size_in_bytes < D * V * 2


# --- a mesh of CPU devices

SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from r1jax import losses, sharding
import test_token_logprobs as t
from lowering import CALLS

assert jax.device_count() == 8
M, D, V = 64, 8, 256
hidden, head, target, weights = t.inputs(M, D, V)
rng = np.random.default_rng(1)
kept = np.stack([rng.permutation(V)[:6] for _ in range(M)])
kept[:, 0], kept[::3, 4:] = target, -1

def run(hidden, embed, target, kept=None, impl=None):
  def mix(h, e):
    outs = losses.token_logprobs(h, e.T, target, 0.7, 8, kept, impl, tied=True)
    return sum(jnp.vdot(o, g) for o, g in zip(outs, weights)), outs
  (_, outs), grads = jax.value_and_grad(mix, (0, 1), has_aux=True)(hidden, embed)
  return outs, grads

same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), a, b)
embed = head.T
alone = {name: jax.device_get(jax.jit(run)(hidden, embed, target, k)) for name, k in (("all", None), ("kept", kept))}
for sizes in ((2, 1, 4), (1, 1, 8), (2, 2, 2), (8, 1, 1)):
  mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
  place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))
  with jax.set_mesh(mesh):
    args = place(hidden, ("data", "fsdp")), place(embed, "tensor", "fsdp"), place(target, ("data", "fsdp"))
    compiled = jax.jit(run).lower(*args).compile()
    text = compiled.as_text()
    same(jax.device_get(compiled(*args)), alone["all"])
    same(jax.device_get(jax.jit(run)(*args, place(kept, ("data", "fsdp")))), alone["kept"])
    largest = max(np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"[fs]\\d+\\[([\\d,]+)\\]", text))
    assert largest < M * V / 4, (sizes, largest)
    assert sizes[1] > 1 or "all-gather" not in text, sizes      # along fsdp weights are gathered, that is what it is
    assert "all-reduce" in text, sizes
    lower = jax.jit(run).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    assert lower.count(CALLS["tpu"]) == 3, sizes
print("SAME")
"""


def test_eight_devices_give_what_one_does_without_gathering_the_head_or_all_logits():
  env = os.environ | dict(XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu",
                          PYTHONPATH=str(Path(__file__).parents[1]))
  done = subprocess.run([sys.executable, "-c", SHARDED], cwd=Path(__file__).parent, env=env, capture_output=True,
                        text=True, timeout=300, check=False)
  assert done.stdout.strip().endswith("SAME"), done.stdout + done.stderr


def test_a_mesh_that_does_not_divide_is_refused_with_the_numbers():
  mesh = jax.sharding.AbstractMesh((1, 1, 4), ("data", "fsdp", "tensor"))
  hidden_MD, head_DV, target_M, _ = inputs(3, 4, 5)
  with pytest.raises(ValueError, match="V=5 does not divide over 'tensor', 4 devices"):
    parallel.vocab_parallel(hidden_MD, head_DV, target_M, 1.0, 4, mesh=mesh, vocab="tensor")


def test_a_slices_stats_and_gradients_are_those_of_the_whole():
  hidden_MD, head_DV, target_M, weights = inputs(13, 6, 12)
  _, entropy_M, d_hidden_MD, d_head_DV = wanted(hidden_MD, head_DV, target_M, weights, 0.7)
  halves = [chunked.stats(hidden_MD, head_DV[:, i:i + 6], target_M - i, None, 0.7, 4) for i in (0, 6)]
  both = parts.combine(jax.tree.map(lambda *x: jnp.stack(x), *halves), lambda x: x.max(0), lambda x: x.sum(0))
  _, entropy, logsumexp_M = parts.finish(both)
  np.testing.assert_allclose(entropy, entropy_M, rtol=1e-5)
  grads = [chunked.backward(hidden_MD, head_DV[:, i:i + 6], target_M - i, None, (logsumexp_M, entropy), *weights, 0.7,
                            4, [jnp.float32] * 2) for i in (0, 6)]
  np.testing.assert_allclose(grads[0][0] + grads[1][0], d_hidden_MD, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(jnp.concatenate([g[1] for g in grads], axis=1), d_head_DV, rtol=1e-4, atol=1e-5)

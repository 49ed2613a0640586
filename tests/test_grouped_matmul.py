"""Grouped matmul: every implementation against the reference, values and gradients, for rows however they fall."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered
from tpu_topology import compiled

from r1jax.bench import calls
from r1jax.kernels.grouped_matmul import blocks, cases, grouped_matmul, pallas_gpu, pallas_tpu, ref

ANYWHERE = ("blocks", "ragged_dot", "ref")       # the others are kernels of one platform
PALLAS = dict(triton=pallas_gpu, megablox=pallas_tpu)
COUNTS = ([5, 0, 7, 1], [0, 0, 0, 13], [13, 0, 0, 0], [4, 4, 4, 1], [0, 3, 0, 2], [0, 0, 0, 0])


def inputs(count, M=13, D=6, F=5, dtype=np.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  return draw(M, D), draw(len(count), D, F), jnp.asarray(count, jnp.int32)


def by_hand(x_MD, w_EDF, count):
  out, row = np.zeros((len(x_MD), w_EDF.shape[2])), 0
  for e, n in enumerate(count):
    for _ in range(n):
      out[row] = np.asarray(x_MD[row], np.float64) @ np.asarray(w_EDF[e], np.float64)
      row += 1
  return out


@functools.cache
def run(impl, block):
  return jax.jit(lambda x, w, count: grouped_matmul(x, w, count, impl, block))


@functools.cache
def gradients(impl, block):
  loss = lambda x, w, count, g: jnp.sum(grouped_matmul(x, w, count, impl, block) * g)
  return jax.jit(jax.grad(loss, (0, 1)))


@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("impl", [None, *ANYWHERE])
def test_every_implementation_multiplies_rows_by_their_experts_matrix(impl, block):
  for count in COUNTS:
    x_MD, w_EDF, count_E = inputs(count)
    np.testing.assert_allclose(run(impl, block)(x_MD, w_EDF, count_E), by_hand(x_MD, w_EDF, count), atol=1e-5,
                               err_msg=str(count))


@pytest.mark.parametrize("impl", [None, "blocks", "ragged_dot"])
def test_gradients_are_the_references(impl):
  for count in COUNTS:
    x_MD, w_EDF, count_E = inputs(count)
    g_MF = jnp.asarray(np.random.default_rng(1).normal(size=(13, 5)), jnp.float32)
    for mine, theirs in zip(gradients(impl, 4)(x_MD, w_EDF, count_E, g_MF),
                            gradients("ref", 4)(x_MD, w_EDF, count_E, g_MF), strict=True):
      np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=str(count))


def test_bf16_sums_in_f32():
  x_MD, w_EDF, count_E = inputs([6, 7], D=512, dtype=jnp.bfloat16)
  out_MF = run("blocks", 4)(x_MD, w_EDF, count_E)
  assert out_MF.dtype == jnp.bfloat16
  np.testing.assert_allclose(out_MF.astype(np.float32), by_hand(x_MD, w_EDF, [6, 7]), rtol=2**-7, atol=0.05)


def test_cost_follows_the_rows_not_the_experts():
  """The blocks that are multiplied: rows / block, and at most one more for each expert that has any."""
  rng = np.random.default_rng(0)
  for E in (4, 64):
    count = np.bincount(rng.integers(0, E, 512), minlength=E)
    _, _, rows, used = blocks._blocks(jnp.asarray(count), 512, E, 16)
    assert int(rows.sum()) == 512 and int(used) == sum(-(-n // 16) for n in count) <= 512 // 16 + E


def case_shapes(case):
  args = jax.eval_shape(case.make, jax.random.key(0))
  return args["x_MD"], args["w_EDF"], args["count_E"]


@functools.cache
def parity_table():
  """Arguments in f32: rows however they fall, and cases with widths cut to a sixteenth: more than a block, and odd."""
  by_name = {case.name: case for case in cases.cases()}
  table = [inputs(count) for count in COUNTS]
  for name, rows in (("deepseek-v3 gate, 32 of 256 experts, 8192 rows, 512 of them padding", 140),
                     ("odd, 3 experts, float32", 150)):
    x_MD, w_EDF, _ = case_shapes(by_name[name])
    less = lambda n: n // 16 if n > 1000 else n
    table.append(tuple(cases.make(jax.random.key(0), rows, 3, less(x_MD.shape[1]), less(w_EDF.shape[2]), "float32",
                                  5).values()))
  return table


@pytest.mark.parametrize("name", PALLAS)
def test_the_kernels_of_gpus_and_tpus_do_as_ref_does_in_the_interpreter(name):
  @jax.jit
  def run(x_MD, w_EDF, count_E, g_MF):
    return (PALLAS[name].forward(x_MD, w_EDF, count_E, interpret=True),
            *PALLAS[name].backward(x_MD, w_EDF, count_E, g_MF, interpret=True))

  @jax.jit
  def by_ref(x_MD, w_EDF, count_E, g_MF):
    out_MF, pull = jax.vjp(lambda x, w: ref.grouped_matmul(x, w, count_E), x_MD, w_EDF)
    return out_MF, *pull(g_MF)
  for args in parity_table():
    g_MF = jax.random.normal(jax.random.key(2), (len(args[0]), args[1].shape[2]))
    for what, mine, theirs in zip(("y", "dx", "dw"), run(*args, g_MF), by_ref(*args, g_MF), strict=True):
      assert mine.dtype == theirs.dtype and calls.error(mine, theirs) < 2e-6, (what, args[1].shape, args[2])


@pytest.mark.parametrize("name", PALLAS)
def test_what_stands_in_the_rows_of_no_expert_does_not_matter(name):
  x_MD, w_EDF, count_E = inputs([5, 0, 3])
  spoilt_MD, g_MF = x_MD.at[8:].set(jnp.nan), jnp.ones((13, 5)).at[8:].set(jnp.nan)
  out_MF = PALLAS[name].forward(spoilt_MD, w_EDF, count_E, interpret=True)
  np.testing.assert_allclose(out_MF, by_hand(x_MD, w_EDF, [5, 0, 3]), atol=1e-5)
  dx_MD, dw_EDF = PALLAS[name].backward(spoilt_MD, w_EDF, count_E, g_MF, interpret=True)
  np.testing.assert_array_equal(dx_MD[8:], 0)
  np.testing.assert_allclose(dw_EDF, jnp.stack([x_MD[:5].sum(0), 0 * x_MD[0], x_MD[5:8].sum(0)])[..., None]
                             * jnp.ones(5), atol=1e-5)


def test_the_table_has_each_row_once_and_no_more_tiles_than_are_needed():
  for count in COUNTS:
    expert, first, filled = pallas_gpu._table(jnp.asarray(count, jnp.int32), 13, len(count), 4)
    rows = [(int(e), r) for e, f, n in zip(expert, first, filled, strict=True) for r in range(f, f + n)]
    owner = np.repeat(np.arange(len(count) + 1), [*count, 13 - sum(count)])
    assert rows == list(zip(owner, range(13), strict=True)), count
    assert np.count_nonzero(filled) == sum(-(-n // 4) for n in [*count, 13 - sum(count)])


CALLS = dict(cuda="__gpu$xla.gpu.triton", tpu="tpu_custom_call")


@pytest.mark.parametrize("platform", [*CALLS, "cpu"])
def test_it_and_its_gradient_lower_at_full_size_for_every_platform_without_one(platform):
  both = jax.value_and_grad(lambda x, w, count: jnp.sum(grouped_matmul(x, w, count)), (0, 1))
  for case in cases.cases():
    module = lowered(both, platform, *case_shapes(case))
    calls = {p: module.count(call) for p, call in CALLS.items()}
    assert calls == {p: 3 * (p == platform) for p in CALLS}, (case.name, calls)


def test_the_hopper_kernel_of_jax_lowers_where_it_fits_and_says_where_it_does_not():
  named = lambda x, w, count: grouped_matmul(x, w, count, "mosaic_gpu")
  grad = jax.grad(lambda *a: jnp.sum(named(*a).astype(jnp.float32)), (0, 1))
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16)
  args = shape(8192, 7168), shape(32, 7168, 2048), jax.ShapeDtypeStruct((32,), jnp.int32)
  assert "mosaic_gpu" in lowered(named, "cuda", *args)
  module = lowered(grad, "cuda", *args)
  assert "mosaic_gpu" in module and CALLS["cuda"] in module
  with pytest.raises(NotImplementedError, match="depth 7168, width 2048, 256 experts"):
    lowered(named, "cuda", shape(256, 7168), shape(256, 7168, 2048), jax.ShapeDtypeStruct((256,), jnp.int32))
  with pytest.raises(NotImplementedError, match="not float32 by float32"):
    named(*inputs([5, 8]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2"])       # its kernels have the least memory
def test_it_and_its_gradient_compile_for_tpus(name):
  for case in [c for c in cases.cases() if "gate, 32" in c.name or "down, 128" in c.name or "bfloat16" in c.name]:
    args = case_shapes(case)
    done = compiled(jax.grad(lambda *a: jnp.sum(grouped_matmul(*a)), (0, 1)), *args, name=name)
    assert "tpu_custom_call" in done.as_text()
    if not case.small:     # where padding to tiles is little: the cost follows the rows, forward and backward
      (M, D), F = args[0].shape, args[1].shape[2]
      assert done.cost_analysis()["flops"] < 3.3 * 2 * M * D * F, case.name


def test_unknown_implementations_are_refused():
  with pytest.raises(ValueError, match="impl='best' is none of"):
    grouped_matmul(*inputs([5, 8]), impl="best")
  assert ref.grouped_matmul(*inputs([5, 8])).shape == (13, 5)


def test_under_a_mesh_of_several_devices_xla_splits_what_it_can():
  """A Pallas call would be refused on TPUs; inside a shard_map the mesh is no longer XLA's, and kernels come back."""
  args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs([5, 8], D=128, F=128)]
  text = lambda: jax.jit(grouped_matmul).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
  mesh = jax.sharding.AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
  assert CALLS["tpu"] in text()
  with jax.sharding.use_abstract_mesh(mesh):
    assert CALLS["tpu"] not in text()

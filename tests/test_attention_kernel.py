"""Attention's kernels against ref.py in Pallas' interpreter, gradients too; they lower for GPU and compile for TPU."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered
from tpu_topology import topology

from r1jax import sharding
from r1jax.kernels import attention as op
from r1jax.kernels.attention import bounds, cases, ref, shipped

CASES = {case.name: case for case in cases.cases()}
SMALL = {name: case for name, case in CASES.items() if case.small}
FULL = {name: case for name, case in CASES.items() if not case.small}
CALL = dict(cuda="__gpu$xla.gpu.triton", tpu="tpu_custom_call")
NAMES = ("q_NTHC", "k_NKTC", "v_NKTE", "segment_NT")


def arrays(case, key=0):
  made = case.make(jax.random.key(key))
  return [made[name] for name in NAMES]


def with_gradients(attend):
  """(q, k, v, segments, g) -> o, and the gradients of sum(o g)."""
  def run(q, k, v, segment_NT, g):
    o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segment_NT), q, k, v)
    return o, *pull(g)
  return jax.jit(run)


def interpreted(impl):
  if impl == "splash":
    return with_gradients(lambda q, k, v, segment_NT: shipped.splash(q, k, v, interpret=True))
  return with_gradients(lambda q, k, v, s: op.flash(q, k, v, s, impl, (("interpret", True),)))


REFERENCE = with_gradients(ref.attention)


def agree(attend, args, tolerance):
  q, _, v, _ = args
  g = jax.random.normal(jax.random.key(9), (*q.shape[:3], v.shape[3]), v.dtype)
  for mine, theirs, name in zip(attend(*args, g), REFERENCE(*args, g), ("o", "dq", "dk", "dv"), strict=True):
    mine, theirs = np.asarray(mine, np.float32), np.asarray(theirs, np.float32)
    assert np.abs(mine - theirs).max() < tolerance * np.abs(theirs).max(), name      # and no NaN


def patterns(T):
  """Segments: packed rows, shared prompts, and what nobody would write."""
  rng, t = np.random.default_rng(0), np.arange(T)
  return dict(
    one=np.zeros(T), all_shared=np.full(T, op.SHARED), packed=np.minimum(t // 37 + 1, 5) % 5,
    prompt=np.asarray(op.shared_prompt_segments(T - 2 * (T // 3), 2, T // 3, jnp.array([T // 4])))[0],
    short_prompt=np.where(t < 3, op.SHARED, np.where(t < T - 40, -2, 7)),
    anywhere=rng.integers(-2, 3, T), late=np.where(t == T - 2, op.SHARED, t // 64),
  )


def test_the_rule_by_hand():
  segment_T = np.array([-1, -1, -2, 0, 0, 1])
  want = [[1, 0, 0, 0, 0, 0],
          [1, 1, 0, 0, 0, 0],
          [1, 1, 1, 0, 0, 0],      # the prompt's padding sees the prompt and itself, and nobody sees it
          [1, 1, 0, 1, 0, 0],
          [1, 1, 0, 1, 1, 0],
          [1, 1, 0, 0, 0, 1]]
  np.testing.assert_array_equal(ref.sees(jnp.array([segment_T]), 6)[0], want)
  np.testing.assert_array_equal(op.shared_prompt_segments(3, 2, 2, jnp.array([2])), [[-1, -1, -2, 0, 0, 1, 1]])


def test_the_reference_by_hand():
  """One head, two tokens: scores 0 and ln 3 (times sqrt(C) before scaling) weigh the values 1 to 3."""
  q = jnp.array([[[[5., 0.]], [[2**0.5, 0.]]]])                           # [N, T, H, C]
  k = jnp.array([[[[0., 1.], [np.log(3.), 1.]]]])                         # [N, K, T, C]
  v = jnp.array([[[[8.], [4.]]]])
  np.testing.assert_allclose(ref.attention(q, k, v)[0, :, 0, 0], [8., 8 / 4 + 4 * 3 / 4], rtol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_the_form_for_cpu_does_as_the_reference(name):
  agree(with_gradients(op.attention), arrays(SMALL[name]), SMALL[name].tolerance)


def test_a_shared_prompt_is_one_pattern_of_segments():
  P, G, A, length_B = 7, 3, 4, jnp.array([5, 7])
  q, k, v, _ = arrays(cases.plain("", cases.Heads(4, 2, 8, 6), 2, P + G * A, dtype=jnp.float32))
  segment_BS = op.shared_prompt_segments(P, G, A, length_B)
  agree(with_gradients(lambda q, k, v, _: op.shared_prompt(P, G, length_B, q, k, v)), (q, k, v, segment_BS), 1e-5)


@pytest.mark.parametrize("impl", ["triton", "tpu"])
def test_kernels_with_segments_do_as_the_reference(impl):
  attend = interpreted(impl)
  (case,) = (case for name, case in SMALL.items() if "MLA" in name)
  q, k, v, segment_NT = arrays(case)
  for name, segment_T in (patterns(q.shape[1]) | {"case": segment_NT[0]}).items():
    try:
      agree(attend, (q, k, v, jnp.asarray(segment_T, jnp.int32)[None]), case.tolerance)
    except AssertionError as error:
      raise AssertionError(name) from error


@pytest.mark.parametrize("impl", ["triton", "tpu", "splash"])
def test_plain_kernels_do_as_the_reference(impl):
  (case,) = (case for name, case in SMALL.items() if "MLA" not in name)
  agree(interpreted(impl), arrays(case), case.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["triton", "tpu"])
@pytest.mark.parametrize("heads", [cases.Heads(3, 1, 64, 64), cases.Heads(6, 1, 128, 128), cases.Heads(2, 2, 192, 128)])
def test_heads_of_real_models_do_as_the_reference(heads, impl):
  agree(interpreted(impl), arrays(cases.packed("", heads, 1, (100, 120), 36)), 2e-2)


@pytest.mark.parametrize("blocks", [(16, 16), (32, 16), (16, 32)])
def test_bounds_leave_out_no_block_that_is_seen(blocks):
  block_q, block_k, T = *blocks, 150
  both = jax.jit(lambda ids: (ref.sees(ids, T)[0], *(x[0] for x in bounds.bounds(ids, 1, T, block_q, block_k))))
  for name, segment_T in patterns(T).items():
    sees, shared_Q, own_Q, upto_S = map(np.asarray, both(jnp.asarray(segment_T, jnp.int32)[None]))
    for i, j in zip(*np.nonzero(sees), strict=True):
      a, b = i // block_q, j // block_k
      assert b < shared_Q[a] or own_Q[a] <= b, (name, i, j)
      assert a < upto_S[b], (name, i, j)


def test_bounds_follow_what_is_seen_not_the_square():
  """A prompt of 64 and 8 answers of 64, blocks of 64: each answer looks at the prompt and at itself."""
  segment_NT = op.shared_prompt_segments(64, 8, 64, jnp.array([64]))
  at = bounds.bounds(segment_NT, 1, 576, 64, 64)
  np.testing.assert_array_equal(at.shared_NQ, [[1] * 9])
  np.testing.assert_array_equal(at.own_NQ, [[1, *range(1, 9)]])
  np.testing.assert_array_equal(at.upto_NS, [[9, *range(2, 10)]])


def gradient(impl=None):
  return jax.grad(lambda q, k, v, s: op.attention(q, k, v, s, impl).astype(jnp.float32).sum(), (0, 1, 2))


@pytest.mark.parametrize("name", FULL)
def test_real_shapes_lower_to_kernels_for_gpu_and_tpu(name):
  shapes = jax.eval_shape(FULL[name].make, jax.random.key(0))
  args = [shapes[x] for x in NAMES]
  for platform, call in CALL.items():
    assert lowered(gradient(), platform, *args).count(call) == 3, platform        # forward, dq, dk and dv
  assert lowered(op.attention, "cuda", *args).count(CALL["cuda"]) == 1


def test_a_shared_prompt_lowers_to_kernels_and_on_cpu_to_products():
  P, G, A = 512, 16, 32
  q, k, v, _ = (jax.eval_shape(lambda: arrays(cases.plain("", cases.MODELS["qwen3-0.6b"], 2, P + G * A))))
  loss = lambda length, q, k, v: op.shared_prompt(P, G, length, q, k, v).astype(jnp.float32).sum()
  args = (jax.ShapeDtypeStruct((2,), jnp.int32), q, k, v)
  for platform, call in CALL.items():
    assert lowered(jax.grad(loss, (1, 2, 3)), platform, *args).count(call) == 3
  text = lowered(jax.grad(loss, (1, 2, 3)), "cpu", *args)
  assert "custom_call" not in text and f"{P + G * A}x{P + G * A}" not in text       # nor the masked square


def test_a_mesh_splits_kernels_over_rows_and_heads():
  mesh = jax.sharding.AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
  shapes = jax.eval_shape(cases.plain("", cases.MODELS["qwen3-8b"], 4, 1024).make, jax.random.key(0))
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = jax.jit(gradient()).trace(*(shapes[x] for x in NAMES)).lower(lowering_platforms=("tpu",))
  calls = [line for line in lowered.as_text().splitlines() if CALL["tpu"] in line]
  assert len(calls) == 3 and all("tensor<2x16x1024x128xbf16>" in line for line in calls)       # 4 rows, 32 heads


def test_mosaic_is_for_what_fits_and_says_so(monkeypatch):
  from jax.experimental.pallas.ops.gpu import attention_mgpu
  shapes = lambda C, dtype, T=1024: [jax.ShapeDtypeStruct(s, dtype) for s in ((1, T, 4, C), (1, 2, T, C), (1, 2, T, C))]
  cuda = types.SimpleNamespace(cuda_runtime_get_version=lambda: 13000)
  monkeypatch.setattr(attention_mgpu, "cuda_versions", None)
  attend = functools.partial(op.attention, impl="mosaic")
  with pytest.raises(NotImplementedError, match="CUDA plugin"):
    jax.eval_shape(attend, *shapes(128, jnp.float16))
  monkeypatch.setattr(attention_mgpu, "cuda_versions", cuda)
  for bad in (shapes(128, jnp.bfloat16), shapes(192, jnp.float16), shapes(64, jnp.float16, 1000)):
    with pytest.raises(NotImplementedError, match="float16 and a multiple of 128"):
      jax.eval_shape(attend, *bad)
  with pytest.raises(NotImplementedError, match="segments=True"):
    jax.eval_shape(attend, *shapes(64, jnp.float16), jax.ShapeDtypeStruct((1, 1024), jnp.int32))
  text = lowered(gradient("mosaic"), "cuda", *shapes(64, jnp.float16), None)
  assert "mosaic_gpu" in text and text.count(CALL["cuda"]) == 2                 # the backward is ours


def test_wrong_calls_are_refused():
  q, k, v, _ = arrays(SMALL[max(SMALL)])
  with pytest.raises(ValueError, match="impl='best' is none of"):
    op.attention(q, k, v, impl="best")
  with pytest.raises(ValueError, match="do not fit together"):
    op.attention(q[:, :, :3], k, v)
  with pytest.raises(ValueError, match="segments"):
    op.attention(q, k, v, jnp.zeros((1, 3), jnp.int32))
  with pytest.raises(ValueError, match="are not a prompt of P=70 and G=5"):
    op.shared_prompt(70, 5, jnp.array([3]), q, k, v)
  with pytest.raises(NotImplementedError, match="splash takes no segments"):
    op.attention(q, k, v, jnp.zeros(q.shape[:2], jnp.int32), impl="splash")


@pytest.mark.slow
@pytest.mark.parametrize("chip, name", [("v5e:2x2", "qwen3-8b packed 2 x 4096"), ("v5p:2x2x1", "deepseek-v3 1 x 4096"),
                                        ("v6e:2x2", "deepseek-v3 1 x (512 + 8 x 512)"), ("v5e:2x2", "odd 2 x 150")])
def test_kernels_compile_for_tpus(chip, name):
  where = jax.sharding.SingleDeviceSharding(topology(chip)[0])
  shapes = jax.eval_shape(CASES[name].make, jax.random.key(0))
  args = [shapes[x] and jax.ShapeDtypeStruct(shapes[x].shape, shapes[x].dtype, sharding=where) for x in NAMES]
  assert CALL["tpu"] in jax.jit(gradient()).lower(*args).compile().as_text()


@pytest.mark.slow
def test_kernels_compile_for_a_mesh_of_tpus():
  """Without the shard_map the compiler refuses: it cannot split a kernel."""
  mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3,
                       devices=topology("v5e:2x2"))
  shapes = jax.eval_shape(cases.packed("", cases.MODELS["qwen3-8b"], 4, (300, 200), 12).make, jax.random.key(0))
  axes = ("batch", None, "heads"), ("batch", "kv_heads"), ("batch", "kv_heads"), ("batch",)
  place = lambda x, names: jax.NamedSharding(mesh, sharding.spec(mesh, names, x.shape[:len(names)]))
  args = [jax.ShapeDtypeStruct(shapes[x].shape, shapes[x].dtype, sharding=place(shapes[x], names))
          for x, names in zip(NAMES, axes, strict=True)]
  with jax.set_mesh(mesh):
    compiled = jax.jit(gradient()).lower(*args).compile()
  assert CALL["tpu"] in compiled.as_text() and "all-gather" not in compiled.as_text()

"""FP8 matmul: what quantising costs, every implementation against the reference, gradients, checkpoints' convention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered
from tpu_topology import compiled

from r1jax import safetensors
from r1jax.bench import calls
from r1jax.kernels import fp8_matmul as fp8
from r1jax.kernels.fp8_matmul import (
  cases,
  dequantise,
  fp8_matmul,
  pallas_gpu,
  pallas_tpu,
  quantise_blocks,
  quantise_rows,
  ref,
)

PALLAS = dict(triton=pallas_gpu, pallas_tpu=pallas_tpu)
SHAPES = ((5, 129, 257), (130, 300, 200), (1, 1, 1))      # rows, input, output
# half a step of E4M3's 3 bits: 1 / 16 of a value, and where it is subnormal, of its smallest step, 2^-9 of scale
STEP = 2.0**-4


def draw(*shape, seed=0, dtype=jnp.float32):
  """Values whose sizes differ from block to block as activations' do."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape) * np.exp(2 * rng.normal(size=(shape[0], 1))), dtype)


def hand_quantised(a, high):
  """f64 values after quantising, block by block."""
  a = np.asarray(a, np.float64)
  out = np.zeros_like(a)
  for i in range(0, a.shape[0], high):
    for j in range(0, a.shape[1], 128):
      block = a[i:i + high, j:j + 128]
      scale = np.abs(block).max() / 448 or 1.0
      q = (block / scale).astype(np.float32).astype(safetensors.FP8)
      out[i:i + high, j:j + 128] = q.astype(np.float64) * scale
  return out


def test_a_block_worked_by_hand():
  q, scale = quantise_rows(jnp.asarray([[448.0, 1.0, -3.3, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.0, 0.07]]))
  np.testing.assert_allclose(scale[:, 0], [1.0, 1.0, 1 / 448])
  np.testing.assert_array_equal(q.astype(jnp.float32), [[448, 1, -3.25, 0], [0, 0, 0, 0], [448, 224, 0, 32]])
  q, scale = quantise_blocks(jnp.ones((130, 200)).at[129, 199].set(-4.0))
  assert q.dtype == jnp.float8_e4m3fn and scale.shape == (2, 2)
  np.testing.assert_allclose(scale, np.array([[1, 1], [1, 4]]) / 448, rtol=1e-6)


@pytest.mark.parametrize("quantise", [quantise_rows, quantise_blocks])
def test_an_error_is_at_most_half_a_step(quantise):
  for M, D, _ in SHAPES:
    x = draw(M, D)
    q, scale = quantise(x)
    back, high = np.asarray(dequantise(q, scale)), 1 if quantise is quantise_rows else 128
    each = np.repeat(np.repeat(np.asarray(scale), 128, 1)[:, :D], high, 0)[:M]
    assert np.all(np.abs(back - x) <= np.maximum(STEP * np.abs(x), 2.0**-10 * each) * 1.0001), (M, D)
    np.testing.assert_allclose(back, hand_quantised(x, high), rtol=1e-6)


def test_blocks_are_those_of_a_checkpoint():
  """weight_scale_inv of [out, in] weights: safetensors.quantize_blocks, which hf.py reads."""
  for _, D, F in SHAPES:
    w_DF = draw(D, F, seed=1)
    theirs, theirs_scale = safetensors.quantize_blocks(np.asarray(w_DF.T))
    mine, scale = quantise_blocks(w_DF)
    np.testing.assert_array_equal(np.asarray(mine.T).view(np.uint8), theirs.view(np.uint8))
    np.testing.assert_allclose(scale.T, theirs_scale, rtol=1e-6)
    read = safetensors.dequantize_blocks(np.asarray(mine.T), np.asarray(scale.T), dtype=np.float32)
    np.testing.assert_array_equal(read, dequantise(mine, scale).T)


def by_hand(x_MD, w_DF, g_MF):
  """(y, dx, dw) in f64, of blocks quantised one by one: Fprop, Dgrad, and Wgrad with x quantised a second time."""
  x, w, g = hand_quantised(x_MD, 1), hand_quantised(w_DF, 128), hand_quantised(g_MF, 1)
  again = hand_quantised(np.asarray(x, np.float32).T, 1)
  return x @ w, g @ w.T, again @ hand_quantised(g_MF.T, 1).T


@functools.cache
def public(impl):
  """(y, dx, dw) of the public function."""
  def run(x_MD, w_DF, g_MF):
    y_MF, pull = jax.vjp(lambda x, w: fp8_matmul(x, w, impl), x_MD, w_DF)
    return y_MF, *pull(g_MF)
  return jax.jit(run)


@pytest.mark.parametrize("impl", [None, "ref"])
def test_all_three_products_are_those_of_the_report(impl):
  for M, D, F in SHAPES:
    args = draw(M, D), draw(D, F, seed=1), draw(M, F, seed=2)
    for what, mine, hand in zip(("y", "dx", "dw"), public(impl)(*args), by_hand(*args), strict=True):
      assert calls.error(mine, jnp.asarray(hand, jnp.float32)) < 2e-6, (what, M, D, F)


@pytest.mark.parametrize("name", PALLAS)
def test_the_kernels_of_gpus_and_tpus_do_as_ref_does_in_the_interpreter(name):
  product = functools.partial(PALLAS[name].product, interpret=True)

  @jax.jit
  def run(x_MD, w_DF, g_MF):
    y_MF, saved = fp8.forward(x_MD, w_DF, product)
    return y_MF, *fp8.backward(saved, g_MF, product)
  for M, D, F in (*SHAPES[:2], (140, 650, 260)):
    args = draw(M, D), draw(D, F, seed=1), draw(M, F, seed=2)
    for what, mine, theirs in zip(("y", "dx", "dw"), run(*args), public("ref")(*args), strict=True):
      assert mine.dtype == theirs.dtype and calls.error(mine, theirs) < 2e-6, (what, M, D, F)


def test_more_scales_than_a_tpus_lanes_are_each_put_to_their_own_depth():
  args = [a for seed in (0, 1) for a in quantise_rows(draw(3, 129 * 128 + 5, seed=seed))]
  assert calls.error(pallas_tpu.product(*args, jnp.float32, interpret=True), ref.product(*args, jnp.float32)) < 2e-6


def test_every_tile_is_computed_once_in_groups_that_share_columns():
  for high, wide in ((1, 1), (3, 5), (8, 4), (21, 3)):
    tiles = [tuple(int(t) for t in pallas_gpu._tile_of(i, high, wide)) for i in range(high * wide)]
    assert sorted(tiles) == [(m, n) for m in range(high) for n in range(wide)]
  assert tiles[:9] == [(m, 0) for m in range(8)] + [(0, 1)]


@pytest.mark.parametrize("product", [ref.product, *(functools.partial(m.product, interpret=True) for m in
                                                    PALLAS.values())], ids=["ref", *PALLAS])
def test_zeros_are_zero_and_a_nan_spoils_its_own_row_alone(product):
  x_MD, w_DF = draw(4, 256).at[1].set(0).at[2, 7].set(jnp.nan).at[3].set(1e-42), draw(256, 130, seed=1)
  forward = jax.jit(lambda x, w: fp8.forward(x, w, product))
  y_MF = forward(x_MD, w_DF)[0]
  assert np.isfinite(y_MF[np.array([0, 1, 3])]).all() and np.isnan(y_MF[2]).all()
  np.testing.assert_array_equal(y_MF[1], 0)
  zeros_MF, saved = forward(jnp.zeros_like(x_MD), jnp.zeros_like(w_DF))
  np.testing.assert_array_equal(zeros_MF, 0)
  for gradient in jax.jit(lambda saved, g: fp8.backward(saved, g, product))(saved, zeros_MF):
    np.testing.assert_array_equal(gradient, 0)
  assert np.isnan(forward(x_MD.at[0, 0].set(jnp.inf), w_DF)[0][0]).all()


def test_bfloat16_comes_out_as_it_went_in_and_near_what_no_quantising_gives():
  x_MD, w_DF = draw(64, 512, dtype=jnp.bfloat16), draw(512, 96, seed=1)
  y, dx, dw = public(None)(x_MD, w_DF, jnp.ones((64, 96), jnp.bfloat16))
  assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  exact = np.asarray(x_MD, np.float64) @ np.asarray(w_DF, np.float64)
  assert np.linalg.norm(np.asarray(y, np.float64) - exact) < 0.05 * np.linalg.norm(exact)


def shapes_of(case):
  args = jax.eval_shape(case.make, jax.random.key(0))
  return args["x_MD"], args["w_DF"]


CALLS = dict(cuda="__gpu$xla.gpu.triton", tpu="tpu_custom_call")
BOTH = jax.value_and_grad(lambda x, w: jnp.sum(fp8_matmul(x, w)), (0, 1))


@pytest.mark.parametrize("platform", [*CALLS, "cpu"])
def test_it_and_its_gradient_lower_at_full_size_for_every_platform_without_one(platform):
  for case in cases.cases():
    module = lowered(BOTH, platform, *shapes_of(case))
    calls = {p: module.count(call) for p, call in CALLS.items()}
    assert calls == {p: 3 * (p == platform) for p in CALLS}, (case.name, calls)
    assert "f8E4M3FN" in module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2"])       # its kernels have the least memory
def test_it_and_its_gradient_compile_for_tpus(name):
  for case in [c for c in cases.cases() if "decoded" in c.name or "odd, bfloat16" in c.name]:
    assert "tpu_custom_call" in compiled(BOTH, *shapes_of(case), name=name).as_text()


def test_wrong_calls_are_refused():
  with pytest.raises(ValueError, match="impl='best' is none of"):
    fp8_matmul(draw(2, 3), draw(3, 4), "best")
  for x, w in (((2, 3), (4, 3)), ((0, 3), (3, 4))):
    with pytest.raises(ValueError, match="no empty axis, got"):
      fp8_matmul(jnp.zeros(x), jnp.zeros(w))
  with pytest.raises(NotImplementedError, match="32 bits"):
    large, scale = jax.ShapeDtypeStruct((2**20, 2048), safetensors.FP8), jax.ShapeDtypeStruct((2**20, 16), jnp.float32)
    jax.eval_shape(lambda a, s: pallas_gpu.product(a, s, a, s, jnp.float32), large, scale)

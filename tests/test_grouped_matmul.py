"""Grouped matmul: every implementation against the reference, values and gradients, for rows however they fall."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.grouped_matmul import IMPLS, blocks, grouped_matmul, ref

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
@pytest.mark.parametrize("impl", [None, *IMPLS])
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


def test_it_lowers_for_gpu_and_tpu_without_one():
  args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs([5, 8], D=128, F=128)]
  for platform in ("cuda", "tpu", "cpu"):
    text = jax.jit(grouped_matmul).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert ("while" in text) == (platform == "cpu"), platform


def test_unknown_implementations_are_refused():
  with pytest.raises(ValueError, match="impl='best' is none of"):
    grouped_matmul(*inputs([5, 8]), impl="best")
  assert ref.grouped_matmul(*inputs([5, 8])).shape == (13, 5)

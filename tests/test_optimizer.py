"""The optimizer's state in a chosen type: arithmetic stays f32, what is kept is rounded, a checkpoint holds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import checkpoint, train
from r1jax.optimizer import OptimizerConfig, make


def grads(i):
  rng = np.random.default_rng(i)
  return dict(w=jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), norm=jnp.asarray(rng.normal(size=6), jnp.float32))


PARAMS = jax.tree.map(lambda x: 0.1 * x, grads(100))


def run(cfg, steps=5, params=PARAMS):
  tx = make(cfg, 10)
  state, seen = tx.init(params), []
  step = jax.jit(tx.update)
  for i in range(steps):
    updates, state = step(jax.tree.map(lambda g, p: g.astype(p.dtype), grads(i), params), state, params)
    seen.append(updates)
  return seen, state


def floats(state):
  return [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]


def test_f32_state_is_plain_adamw():
  plain, _ = run(OptimizerConfig(0.01, weight_decay=0.1))
  same, state = run(OptimizerConfig(0.01, weight_decay=0.1, state_dtype="float32"))
  jax.tree.map(np.testing.assert_array_equal, plain, same)
  assert {x.dtype for x in floats(state)} == {jnp.dtype("float32")}


def test_bfloat16_moments_take_half_and_move_almost_the_same():
  plain, f32 = run(OptimizerConfig(0.01, clip_norm=0.0))
  half, state = run(OptimizerConfig(0.01, clip_norm=0.0, state_dtype="bfloat16"))
  assert {x.dtype for x in floats(state)} == {jnp.dtype("bfloat16")}
  assert 2 * sum(x.nbytes for x in floats(state)) == sum(x.nbytes for x in floats(f32))
  # the first update is before anything was stored; later ones differ by the rounding of both moments, 2^-9 each
  jax.tree.map(np.testing.assert_array_equal, plain[0], half[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=2e-4), half, plain)
  assert any((np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(plain), strict=True))


def test_bfloat16_moments_by_hand():
  cfg = OptimizerConfig(1.0, b1=0.5, b2=0.75, clip_norm=0.0, state_dtype="bfloat16")
  tx = make(cfg, 10)
  w = jnp.float32([1.0, 2.0])
  state = tx.init(w)
  _, state = tx.update(jnp.float32([1.001, 3.0]), state, w)
  mu, nu = (x for x in floats(state))
  # halves of the gradient, a quarter of its square, to 8 bits: 0.5005 -> 0.5, 0.2505 -> 0.25
  np.testing.assert_array_equal(mu.astype("f4"), [0.5, 1.5])
  np.testing.assert_array_equal(nu.astype("f4"), [0.25, 2.25])


def test_bfloat16_parameters_may_have_f32_moments():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  for dtype in ("", "float32"):
    _, state = run(OptimizerConfig(0.01, state_dtype=dtype), params=params)
    assert {x.dtype for x in floats(state)} == {jnp.dtype(dtype or "bfloat16")}


def test_a_checkpoint_keeps_the_rounded_state_to_the_bit(tmp_path):
  tx = make(OptimizerConfig(0.01, state_dtype="bfloat16"), 10)
  state = train.init_state(PARAMS, tx)
  state = state.replace(opt_state=tx.update(grads(0), state.opt_state, PARAMS)[1])
  with checkpoint.Checkpoints(tmp_path, 1) as kept:
    kept.save(1, state, {})
  with checkpoint.Checkpoints(tmp_path, 1) as kept:
    _, restored, _ = kept.restore(jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state))
  assert [x.dtype for x in jax.tree.leaves(restored)] == [x.dtype for x in jax.tree.leaves(state)]
  jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize(("change", "message"), [
  (dict(state_dtype="int8"), "'int8' is none of"), (dict(state_dtype="bfloat16", b2=0.999), "b2=0.999")])
def test_a_state_that_could_not_move_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    OptimizerConfig(0.01, **change)

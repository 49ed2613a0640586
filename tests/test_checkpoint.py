"""Saving and restoring, bit for bit, and what happens to checkpoints that are not whole."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import checkpoint
from r1jax.checkpoint import Checkpoints
from r1jax.types import TrainState


def state_of(seed, n=200):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return TrainState(step=jnp.int32(seed), params={"w": draw(n, n), "b": jnp.asarray(draw(7), jnp.bfloat16)},
                    opt_state=(draw(n), {"count": jnp.int32(3)}), ref_params=None)


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0))


def same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.shape, x.dtype, np.asarray(x).tobytes()) == (y.shape, y.dtype, np.asarray(y).tobytes())


def save(folder, *steps, keep=5):
  with Checkpoints(folder, keep=keep) as saved:
    for step in steps:
      saved.save(step, state_of(step), dict(position=step * 10))


def largest(folder):
  return max((f for f in (folder / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def truncate(folder):
  file = largest(folder)
  file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])


def flip(folder):
  file = largest(folder)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def empty(folder):
  for file in folder.rglob("*"):
    if file.is_file():
      file.write_bytes(b"")


def lose_the_meta(folder):
  for file in (folder / "meta").rglob("*"):
    file.unlink()


def other_checksum(folder):
  file, = (f for f in (folder / "meta").rglob("*") if f.is_file() and "checksums" in f.read_text())
  meta = json.loads(file.read_text())
  meta["checksums"][next(iter(meta["checksums"]))] ^= 1
  file.write_text(json.dumps(meta))


DAMAGES = (truncate, flip, empty, lose_the_meta, other_checksum)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
  save(tmp_path / "c", 3)
  with Checkpoints(tmp_path / "c") as saved:
    step, state, meta = saved.restore(ABSTRACT)
  assert (step, meta) == (3, dict(position=30))
  same_bits(state, state_of(3))


def test_no_checkpoint_at_all_is_none(tmp_path):
  with Checkpoints(tmp_path / "c") as saved:
    assert saved.restore(ABSTRACT) is None and saved.steps() == []


def test_the_last_k_are_kept_and_any_of_them_can_be_asked_for(tmp_path):
  save(tmp_path / "c", 1, 2, 5, 9, keep=2)
  with Checkpoints(tmp_path / "c", keep=2) as saved:
    assert saved.steps() == [5, 9]
    assert saved.restore(ABSTRACT)[0] == 9
    step, state, meta = saved.restore(ABSTRACT, step=5)
    assert (step, meta["position"]) == (5, 50)
    same_bits(state, state_of(5))
    with pytest.raises(ValueError, match=r"no checkpoint of step 2; there are \[5, 9\]"):
      saved.restore(ABSTRACT, step=2)


def test_buffers_donated_right_after_save_do_not_reach_the_checkpoint(tmp_path):
  spoil = jax.jit(lambda s: jax.tree.map(lambda x: -x - 1, s), donate_argnums=0)
  n = 3000
  spoil(state_of(0, n))                  # compiled now: the first donation must not wait until the writer has read
  with Checkpoints(tmp_path / "c") as saved:
    for seed in (1, 2):
      state = state_of(seed, n)
      saved.save(seed, state, {})
      for _ in range(20):
        state = spoil(state)
      jax.block_until_ready(state)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0, n))
  with Checkpoints(tmp_path / "c") as saved:
    for seed in (1, 2):
      same_bits(saved.restore(abstract, step=seed)[1], state_of(seed, n))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_moved_aside_and_the_one_before_is_used(tmp_path, caplog, damage):
  save(tmp_path / "c", 1, 2, 3)
  damage(tmp_path / "c/3")
  with caplog.at_level(logging.WARNING, "r1jax"), Checkpoints(tmp_path / "c", keep=5) as saved:
    step, state, _ = saved.restore(ABSTRACT)
    assert step == 2
    same_bits(state, state_of(2))
    warnings = [r.getMessage() for r in caplog.records if r.name == "r1jax"]
    assert len(warnings) == 1 and "c/3 is damaged" in warnings[0]
    assert (tmp_path / "c.damaged/3").is_dir() and not (tmp_path / "c/3").exists()
    assert saved.steps() == [1, 2]
    saved.save(3, state_of(3), dict(position=30))            # the run goes on from there
  with Checkpoints(tmp_path / "c", keep=5) as saved:
    same_bits(saved.restore(ABSTRACT)[1], state_of(3))


def test_all_damaged_is_an_error_that_names_each(tmp_path):
  save(tmp_path / "c", 1, 2)
  truncate(tmp_path / "c/1")
  flip(tmp_path / "c/2")
  with Checkpoints(tmp_path / "c") as saved, pytest.raises(ValueError, match=r"no whole checkpoint \(step 2.*step 1"):
    saved.restore(ABSTRACT)


def test_a_damaged_one_asked_for_by_number_is_an_error_and_stays(tmp_path):
  save(tmp_path / "c", 1, 2)
  flip(tmp_path / "c/2")
  with Checkpoints(tmp_path / "c") as saved, pytest.raises(ValueError, match="step 2"):
    saved.restore(ABSTRACT, step=2)
  assert (tmp_path / "c/2").is_dir()


def test_a_half_written_folder_is_not_a_checkpoint(tmp_path):
  save(tmp_path / "c", 1)
  half = tmp_path / "c/2.orbax-checkpoint-tmp-1"
  (half / "state").mkdir(parents=True)
  (half / "state/data").write_bytes(b"half")
  with Checkpoints(tmp_path / "c") as saved:
    assert saved.steps() == [1]
    assert saved.restore(ABSTRACT)[0] == 1
    saved.save(2, state_of(2), {})
  with Checkpoints(tmp_path / "c") as saved:
    assert saved.restore(ABSTRACT)[0] == 2


def test_a_state_within_a_state_comes_back_as_it_was(tmp_path):
  state = state_of(1).replace(critic=state_of(2))
  with Checkpoints(tmp_path / "c") as saved:
    saved.save(1, state, {})
  with Checkpoints(tmp_path / "c") as saved:
    found = saved.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))[1]
  same_bits(found, state)
  assert isinstance(found.critic, TrainState) and found.critic.ref_params is None


def test_a_checkpoint_of_another_tree_is_an_error_that_says_so_and_stays(tmp_path):
  save(tmp_path / "c", 1)
  with Checkpoints(tmp_path / "c") as saved, pytest.raises(ValueError, match="checkpoint 1 holds other arrays"):
    saved.restore(ABSTRACT.replace(ref_params=ABSTRACT.params))
  other = dict(ABSTRACT.params, b=jax.ShapeDtypeStruct((8,), jnp.bfloat16))
  with Checkpoints(tmp_path / "c") as saved, pytest.raises(ValueError, match="checkpoint 1 holds other arrays"):
    saved.restore(ABSTRACT.replace(params=other))
  assert (tmp_path / "c/1").is_dir() and not (tmp_path / "c.damaged").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_a_checkpoint_of_another_dtype_is_an_error_that_says_so_and_stays(tmp_path, dtype):
  state = state_of(1).replace(params={"w": jnp.zeros(4), "b": jnp.zeros(7, jnp.bfloat16)})      # every cast is exact
  with Checkpoints(tmp_path / "c") as saved:
    saved.save(1, state, {})
    saved.save(2, state, {})
  other = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  other = other.replace(params=dict(other.params, w=jax.ShapeDtypeStruct((4,), dtype)))
  for step in (None, 1):
    with Checkpoints(tmp_path / "c") as saved, pytest.raises(
        ValueError, match=rf"holds other arrays .*params\.w: {dtype} is not the stored dtype, float32"):
      saved.restore(other, step)
  assert (tmp_path / "c/1").is_dir() and (tmp_path / "c/2").is_dir() and not (tmp_path / "c.damaged").exists()


def test_a_checkpoint_with_less_metadata_as_older_versions_of_orbax_write_is_read(tmp_path):
  save(tmp_path / "c", 1)
  shutil.rmtree(tmp_path / "c/1/state/array_metadatas")
  with Checkpoints(tmp_path / "c") as saved:
    same_bits(saved.restore(ABSTRACT)[1], state_of(1))


def test_read_only_removes_and_moves_nothing(tmp_path):
  save(tmp_path / "c", 1, 2)
  flip(tmp_path / "c/2")
  half = tmp_path / "c/3.orbax-checkpoint-tmp-1"
  half.mkdir()
  with Checkpoints(tmp_path / "c", read_only=True) as saved:
    assert saved.restore(ABSTRACT)[0] == 1
  assert half.is_dir() and (tmp_path / "c/2").is_dir() and not (tmp_path / "c.damaged").exists()


def test_checksums_see_one_bit_of_any_array():
  clean = checkpoint.checksums(state_of(0))
  assert len(clean) == 5
  for i, leaf in enumerate(jax.tree.leaves(state_of(0))):
    bits = np.array(leaf).reshape(-1).view(np.uint8)
    bits[-1] ^= 1
    leaves, tree = jax.tree.flatten(state_of(0))
    leaves[i] = jnp.asarray(bits.view(leaf.dtype).reshape(leaf.shape))
    found = checkpoint.checksums(jax.tree.unflatten(tree, leaves))
    assert sum(found[k] != clean[k] for k in clean) == 1

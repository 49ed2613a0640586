"""Speculative decoding: guesses change the time and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import weights

from r1jax import drafts, prefill, sampler, train
from r1jax.models import deepseek, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.sampler import SampleConfig

MODEL = ModelConfig(vocab=6, dim=16, layers=2, heads=4, kv_heads=2, ffn=24, mtp=1)
MLA = dataclasses.replace(deepseek.PRESETS["deepseek-tiny"], vocab=7, mtp=1)
ROWS = [[1, 2, 1, 2, 1], [4], [0, 5, 0, 5, 0, 5, 0, 5]]
END = 3


def draw(cfg, model=MODEL, rows=ROWS, G=3, end_id=END):
  keys = sampler.sample_keys(0, 0, jnp.arange(len(rows)), jnp.arange(G))
  return jax.tree.map(np.asarray, sampler.sample(
    weights(model), train.pad_rows(rows, 8, 0), jnp.asarray([len(r) for r in rows], jnp.int32), keys, model=model,
    cfg=cfg, end_id=end_id))


def same(a, b, atol=1e-5):
  for name in ("token_NA", "length_N", "ended_N", "kept_NAk"):
    if getattr(a, name) is not None:
      np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
  np.testing.assert_allclose(a.logp_NA, b.logp_NA, atol=atol)


@pytest.mark.parametrize(("model", "more"), [
  (MODEL, dict(draft="lookup", drafts=3)), (MODEL, dict(draft="mtp", drafts=1)),
  pytest.param(MODEL, dict(draft="mtp", drafts=2, top_k=3, keep_mask=True), marks=pytest.mark.slow),
  (MODEL, dict(draft="lookup", drafts=2, temperature=0.0)),
  pytest.param(MLA, dict(draft="mtp", drafts=2, prefill_chunk=3), marks=pytest.mark.slow)])
def test_an_answer_is_the_one_without_guesses(model, more):
  cfg = SampleConfig(20, **more)
  plain = draw(dataclasses.replace(cfg, draft="none", prefill_chunk=0), model)
  guessed = draw(cfg, model)
  same(guessed, plain)
  assert guessed.count["tokens"] == plain.count["tokens"] == plain.length_N.sum()
  if model.moe:
    inside = np.arange(20) < plain.length_N[:, None] - 1
    np.testing.assert_array_equal(guessed.expert_NALk[inside], plain.expert_NALk[inside])
  assert 0 < guessed.count["right"] < guessed.count["guessed"]      # some guesses of both kinds
  assert guessed.count["steps"] < plain.count["steps"]


def test_a_text_that_repeats_is_guessed_well():
  """A head that always says the token after the last one, of a cycle of five: after one round all guesses are right."""
  model = ModelConfig(vocab=5, dim=5, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=2, tied_head=False)
  params = jax.tree.map(jnp.zeros_like, transformer.init(model, jax.random.key(0)))
  params |= dict(embed=jnp.eye(5), head=100 * jnp.roll(jnp.eye(5), 1, axis=1), final_norm=jnp.ones(5))
  cfg = SampleConfig(25, draft="lookup", drafts=4)
  out = sampler.sample(params, np.array([[0]], np.int32), jnp.array([1]), sampler.sample_keys(
    0, 0, jnp.arange(1), jnp.arange(1)), model=model, cfg=cfg, end_id=9)
  assert out.token_NA[0].tolist() == [(1 + i) % 5 for i in range(25)]
  # 1 from the prompt, 2 3 4 one by one, then 0 (a guess where nothing is known is 0) and 1: 19 are left, 5 a step
  assert int(out.count["steps"]) == 4 + 4 and int(out.count["right"]) == 24 - 8


def test_look_up_by_hand():
  text = np.array([[7, 8, 9, 7, 8, -1], [1, 2, 3, 2, -1, -1], [4, -1, -1, -1, -1, -1], [-1, 5, 6, 5, 5, -1]])
  token = np.array([[8], [2], [4], [5]])
  got = drafts.lookup(jnp.asarray(text), jnp.array([5, 4, 1, 5]), jnp.asarray(token), 2)
  # the pair 7 8 and what followed; 2 alone; nothing; 5 alone, and 5 followed it, and past the end 0
  np.testing.assert_array_equal(got, [[8, 9, 7], [2, 3, 2], [4, 0, 0], [5, 5, 0]])


def test_prompts_are_right_aligned():
  got = drafts.right_aligned(jnp.array([[1, 2, 0, 0], [3, 4, 5, 6]]), jnp.array([2, 4]))
  np.testing.assert_array_equal(got, [[-1, -1, 1, 2], [3, 4, 5, 6]])


@pytest.mark.parametrize("model", [MODEL, pytest.param(MLA, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chunk", [3, 5])
def test_a_prefill_in_parts_is_the_whole(model, chunk):
  run = lambda cfg: jax.tree.map(np.asarray, prefill.prefill(
    weights(model), train.pad_rows(ROWS, 8, 0), jnp.array([5, 1, 8], jnp.int32), model=model, cfg=cfg))
  whole, parts = run(SampleConfig(4)), run(SampleConfig(4, prefill_chunk=chunk))
  np.testing.assert_allclose(parts.hidden_BD, whole.hidden_BD, atol=1e-5)
  axes = transformer.cache_columns(model)
  for a, b in zip(parts.cache, whole.cache, strict=True):
    for x, y, axis in zip(a, b, axes, strict=True):
      if x is not None:
        for row, length in enumerate((5, 1, 8)):
          np.testing.assert_allclose(np.take(x[row], range(length), axis - 1), np.take(y[row], range(length), axis - 1),
                                     atol=1e-5)


@pytest.mark.parametrize(("dtype", "least", "most"), [("bfloat16", 1e-5, 0.1), ("int8", 1e-5, 0.1),
                                                     ("float8_e4m3fn", 1e-4, 0.5)])
def test_a_narrow_cache_moves_log_probs_a_little(dtype, least, most):
  plain = draw(SampleConfig(8, temperature=0.0), end_id=99)
  narrow = draw(SampleConfig(8, temperature=0.0, cache=dtype), end_id=99)
  agree = np.cumprod(narrow.token_NA == plain.token_NA, axis=1).astype(bool)
  off = np.abs(narrow.logp_NA - plain.logp_NA)[agree]
  assert agree[:, 1].any() and least < off.max() < most


def test_a_drafter_that_the_model_lacks_is_refused():
  with pytest.raises(ValueError, match=r"draft=mtp needs model.mtp=1, here 0"):
    draw(SampleConfig(4, draft="mtp"), dataclasses.replace(MODEL, mtp=0))

"""Sampling against the trainer's forward pass, against its own layout, and against the distribution it should have."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import score, weights

from r1jax import drawing, rollout, room, sampler, tokenizer, train
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.sampler import SampleConfig
from r1jax.types import Problem

MODEL = ModelConfig(vocab=12, dim=16, layers=2, heads=4, kv_heads=2, ffn=24)
END, NEVER = 3, 99      # NEVER: an end token that the vocabulary does not have


def prompts(*lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, MODEL.vocab, n).tolist() for n in lengths]


def sample(rows, G, cfg, end_id=END, ids=None, step=0, seed=0, padded_to=0, model=MODEL):
  keys_N = sampler.sample_keys(seed, step, jnp.asarray(ids or range(len(rows)), jnp.int32), jnp.arange(G))
  prompt_BP = train.pad_rows(rows, padded_to or max(map(len, rows)), 0)
  state = sampler.sample(weights(model), prompt_BP, jnp.asarray([len(r) for r in rows], jnp.int32), keys_N, model=model,
                         cfg=cfg, end_id=end_id)
  return jax.tree.map(np.asarray, state)


def sequences(rows, state):
  """Prompt and answer of each row, padded with zeros, and where each answer begins."""
  G = len(state.length_N) // len(rows)
  whole = [rows[n // G] + state.token_NA[n, :state.length_N[n]].tolist() for n in range(len(state.length_N))]
  return train.pad_rows(whole, max(map(len, whole)), 0), [len(rows[n // G]) for n in range(len(whole))]


# --- the trainer's log-probs

@pytest.mark.parametrize(("lengths", "G", "cfg"), [
  ((5, 1, 8), 2, SampleConfig(10)), ((5, 1, 8), 2, SampleConfig(10, temperature=0.6)), ((1,), 1, SampleConfig(10)),
  ((6,), 5, SampleConfig(7, temperature=0.6, top_p=0.8, top_k=5, min_p=0.01)),
  ((2, 9), 1, SampleConfig(10, temperature=0.0)), ((3, 3), 3, SampleConfig(1))])
def test_log_probs_are_those_of_the_trainer_on_the_same_tokens(lengths, G, cfg):
  rows = prompts(*lengths)
  state = sample(rows, G, cfg)
  token_NT, start_N = sequences(rows, state)
  logp_NT = np.asarray(score(weights(MODEL), token_NT, model=MODEL, temperature=cfg.scale))
  assert state.length_N.min() >= 1
  for n, (start, length) in enumerate(zip(start_N, state.length_N, strict=True)):
    np.testing.assert_allclose(state.logp_NA[n, :length], logp_NT[n, start:start + length], atol=1e-5)
    assert not state.logp_NA[n, length:].any()


def test_with_a_keep_mask_log_probs_are_over_the_tokens_left_on_both_sides():
  rows, cfg = prompts(5, 1), SampleConfig(10, temperature=0.7, top_k=5, top_p=0.9, keep_mask=True)
  state = sample(rows, 4, cfg)
  kept_NAk = state.kept_NAk
  assert kept_NAk.shape == (8, 10, 5)
  logp_NA = np.asarray(train.score(weights(MODEL), train.pad_rows(rows, 5, 0), jnp.array([5, 1]), state.token_NA,
                                   None, kept_NAk, model=MODEL, temperature=0.7))
  plain_NA = np.asarray(train.score(weights(MODEL), train.pad_rows(rows, 5, 0), jnp.array([5, 1]), state.token_NA,
                                    model=MODEL, temperature=0.7))
  sizes = set()
  for n, length in enumerate(state.length_N):
    np.testing.assert_allclose(state.logp_NA[n, :length], logp_NA[n, :length], atol=1e-5)
    assert (logp_NA[n, :length] > plain_NA[n, :length] + 1e-4).any()
    for t in range(length):
      assert state.token_NA[n, t] in kept_NAk[n, t]
      sizes.add(int((kept_NAk[n, t] >= 0).sum()))
  assert len(sizes) > 1 and max(sizes) <= 5                   # top-p cut some of the five
  same = sample(rows, 4, SampleConfig(10, temperature=0.7, top_k=5, top_p=0.9))
  np.testing.assert_array_equal(same.token_NA, state.token_NA)   # what is drawn does not change


def test_greedy_takes_the_argmax_of_the_full_forward():
  rows = prompts(4, 7)
  state = sample(rows, 1, SampleConfig(8, temperature=0.0), end_id=NEVER)
  assert len(np.unique(state.token_NA)) > 2                              # not one token over and over
  token_NT, start_N = sequences(rows, state)
  N, T = token_NT.shape
  hidden_NTD, _ = transformer.forward(weights(MODEL), MODEL, token_NT, np.broadcast_to(np.arange(T), (N, T)))
  best_NT = np.asarray(jnp.argmax(hidden_NTD @ transformer.head(weights(MODEL)), axis=-1))
  for n, start in enumerate(start_N):
    np.testing.assert_array_equal(state.token_NA[n], best_NT[n, start - 1:start + 7])


# --- a sample depends on (seed, step, problem, sample) alone

@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_they_come_out_of():
  rows, ids, cfg = prompts(5, 1, 8), [40, 7, 23], SampleConfig(10)
  together = sample(rows, 4, cfg, ids=ids)
  pick = lambda state, n: (state.token_NA[n], state.length_N[n], state.ended_N[n])
  same = lambda a, b: [np.testing.assert_array_equal(x, y) for x, y in zip(a, b, strict=True)]
  order = [2, 0, 1]
  turned = sample([rows[b] for b in order], 4, cfg, ids=[ids[b] for b in order])
  alone = sample(rows[2:], 2, cfg, ids=ids[2:])            # and a group of another size
  longer = sample(rows, 4, cfg, ids=ids, padded_to=16)
  for b, g in itertools.product(range(3), range(4)):
    same(pick(together, 4 * b + g), pick(turned, 4 * order.index(b) + g))
    same(pick(together, 4 * b + g), pick(longer, 4 * b + g))
  for g in range(2):
    same(pick(together, 8 + g), pick(alone, g))


def test_seeds_steps_problems_and_samples_draw_differently():
  row, cfg = prompts(5), SampleConfig(12)
  answers = {tuple(answer) for other in (dict(), dict(step=1), dict(seed=1))
             for answer in sample(row * 2, 2, cfg, ids=[1, 2], end_id=NEVER, **other).token_NA}
  assert len(answers) == 12


@functools.cache
def bytes_and_model():
  tok = tokenizer.byte_tokenizer()
  return tok, ModelConfig(vocab=tok.vocab, dim=16, layers=1, heads=2, kv_heads=1, ffn=16)


@pytest.mark.slow
def test_a_question_that_is_asked_twice_gets_other_answers_and_the_first_stay_as_they_were():
  tok = tokenizer.byte_tokenizer()
  model = ModelConfig(vocab=tok.vocab, dim=16, layers=1, heads=2, kv_heads=1, ffn=24)
  ask = lambda *ids: rollout.sample(weights(model), [Problem(i, "ab", "") for i in ids], 2, model=model, tokenizer=tok,
                                    cfg=SampleConfig(6), seed=0, step=0, prompts_at_once=2).answers
  once, twice = ask(5, 7), ask(5, 7, 5)
  assert twice[:4] == once and len({tuple(a) for a in twice}) == 6


def test_rollouts_do_not_depend_on_how_many_prompts_run_at_once():
  tok, model = bytes_and_model()
  problems = [Problem(i, "ab" * (1 + i), "") for i in (4, 0, 2, 1, 3)]
  draw = lambda at_once, problems=problems: rollout.sample(
    weights(model), problems, 3, model=model, tokenizer=tok, cfg=SampleConfig(6), seed=5, step=2,
    prompts_at_once=at_once)
  whole = draw(0)
  assert (len(whole.answers), whole.group_size) == (15, 3)
  part = draw(2)                                           # two, two, and one filled up
  assert (part.answers, part.texts, part.prompts) == (whole.answers, whole.texts, whole.prompts)
  np.testing.assert_array_equal(part.truncated_N, whole.truncated_N)
  for a, b in zip(part.logps, whole.logps, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert draw(0, problems[::-1]).answers[:3] == whole.answers[-3:]


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_a_batch_of_rollouts_lines_up_tokens_mask_and_log_probs(shared_prompt):
  tok, model = bytes_and_model()
  problems = [Problem(0, "hello", ""), Problem(1, "a", ""), Problem(2, "xyz", "")]
  out = rollout.sample(weights(model), problems, 2, model=model, tokenizer=tok, cfg=SampleConfig(5), seed=0, step=0)
  batch = rollout.to_batch(out, np.arange(6.0), [1, 1, 0, 1, 1, 1], shared_prompt)
  assert len(batch.prompt_BP) == (3 if shared_prompt else 6)
  batch = rollout.take(batch, np.array([2, 0]), 2)
  rows = (4, 5, 0, 1)
  np.testing.assert_array_equal(batch.advantage_N, rows)
  np.testing.assert_array_equal(batch.mask_NA.sum(1), [len(out.answers[n]) for n in rows])
  logp_NA = np.asarray(train.score(weights(model), batch.prompt_BP, batch.prompt_length_B, batch.answer_NA,
                                   model=model))
  inside = batch.mask_NA > 0
  np.testing.assert_allclose(batch.sampler_logp_NA[inside], logp_NA[inside], atol=1e-5)
  for row, n in enumerate(rows):
    assert batch.answer_NA[row, :len(out.answers[n])].tolist() == out.answers[n]
    b = row // 2 if shared_prompt else row
    assert batch.prompt_BP[b, :batch.prompt_length_B[b]].tolist() == out.prompts[n // 2]
  assert not rollout.to_batch(out, np.arange(6.0), [1, 1, 0, 1, 1, 1]).mask_NA[2].any()


# --- where answers end

def test_the_end_token_ends_a_row_and_nothing_is_written_after_it():
  A = 12
  state = sample(prompts(5, 1, 8), 8, SampleConfig(A))
  ended = [np.flatnonzero(row == END) for row in state.token_NA]
  for n, at in enumerate(ended):
    assert state.ended_N[n] == bool(len(at))                              # not done: truncated
    assert state.length_N[n] == (at[0] + 1 if len(at) else A)
    assert (state.token_NA[n, state.length_N[n]:] == END).all()
    assert (state.logp_NA[n, :state.length_N[n]] < 0).all() and not state.logp_NA[n, state.length_N[n]:].any()
  assert 0 < state.ended_N.sum() < len(ended) and len(set(state.length_N)) > 3     # the case has some of all


def test_an_end_at_the_last_place_is_not_a_truncation():
  rows, G = prompts(5), 64
  long = sample(rows, G, SampleConfig(3))
  at_last = (long.length_N == 3) & (long.token_NA[:, 2] == END)
  assert at_last.any() and long.ended_N[at_last].all()
  assert ((long.length_N == 3) & ~long.ended_N).any()


def test_the_loop_stops_when_all_have_ended():
  state = sample(prompts(5), 1, SampleConfig(500))
  assert state.ended_N.all() and state.count["steps"] == state.length_N.max() - 1 < 499   # the last token is not run


@pytest.mark.parametrize("steps, prepare", [(1, sampler.for_steps), (4, lambda params, model: params)])
def test_advancing_in_parts_is_advancing_in_one_go(steps, prepare):
  rows, G, cfg = prompts(5, 1, 8), 2, SampleConfig(9)
  static = dict(model=MODEL, cfg=cfg, end_id=END)
  key_N = sampler.sample_keys(0, 0, jnp.arange(3), jnp.arange(G))
  state = sampler.start(weights(MODEL), train.pad_rows(rows, 8, 0), jnp.array([5, 1, 8]), key_N, **static)
  calls, params = 0, prepare(weights(MODEL), MODEL)
  while not state.done_N.all():
    before = int(state.count["steps"])
    state = sampler.advance(params, state, steps, **static)
    assert before < state.count["steps"] <= before + steps
    calls += 1
  assert calls > 1
  parts, whole = room.answers(state, length=9, end_id=END), sample(rows, G, cfg)
  for name in ("token_NA", "length_N", "ended_N"):
    np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
  np.testing.assert_allclose(parts.logp_NA, whole.logp_NA, atol=1e-6)


def test_keys_that_do_not_divide_over_the_prompts_are_an_error():
  with pytest.raises(ValueError, match="5 keys are not a multiple of 2 prompts"):
    sampler.sample(None, np.zeros((2, 3), np.int32), None, np.zeros(5), model=MODEL, cfg=SampleConfig(1), end_id=0)


# --- which tokens, and how often

def kept(p, **cfg):
  logit_NV = np.asarray(drawing.keep(jnp.log(jnp.asarray(p, jnp.float32))[None], SampleConfig(1, **cfg)))[0]
  stay = logit_NV > drawing.CUT / 2
  np.testing.assert_allclose(logit_NV[stay], np.log(np.asarray(p))[stay], rtol=1e-5)     # who stays is not changed
  return set(np.flatnonzero(stay).tolist())


@pytest.mark.parametrize(("cfg", "stay"), [
  (dict(), {0, 1, 2, 3}), (dict(top_k=1), {1}), (dict(top_k=2), {1, 3}), (dict(top_k=4), {0, 1, 2, 3}),
  (dict(top_k=99), {0, 1, 2, 3}), (dict(top_p=0.01), {1}), (dict(top_p=0.49), {1}), (dict(top_p=0.51), {1, 3}),
  (dict(top_p=0.74), {1, 3}), (dict(top_p=0.76), {0, 1, 3}), (dict(top_p=0.91), {0, 1, 2, 3}),
  (dict(min_p=0.25), {0, 1, 3}), (dict(min_p=0.4), {1, 3}), (dict(min_p=0.6), {1}), (dict(min_p=0.99), {1}),
  (dict(top_k=3, min_p=0.1), {0, 1, 3}), (dict(top_k=2, top_p=0.9), {1, 3}), (dict(top_k=2, top_p=0.6), {1})])
def test_top_k_top_p_and_min_p_keep_by_hand(cfg, stay):
  assert kept([0.15, 0.5, 0.1, 0.25], **cfg) == stay                     # top-p after top-k: 2/3 and 1/3 are left


def test_equal_tokens_at_the_edge_stay_together():
  assert kept([0.4, 0.2, 0.2, 0.2], top_k=2) == {0, 1, 2, 3}


@pytest.mark.parametrize("cfg", [dict(top_k=5), dict(top_p=0.7), dict(min_p=0.1), dict(top_k=8, top_p=0.9, min_p=0.02)])
def test_kept_sets_agree_with_a_numpy_oracle(cfg):
  rng = np.random.default_rng(0)
  logit_NV = rng.normal(0, 2, (40, 12)).astype(np.float32)
  got = np.asarray(drawing.keep(jnp.asarray(logit_NV), SampleConfig(1, **cfg))) > drawing.CUT / 2
  for row, logit_V in zip(got, logit_NV.astype(np.float64), strict=True):
    order = np.argsort(-logit_V)[:cfg.get("top_k") or None]
    p = np.exp(logit_V[order] - logit_V.max())
    p, mass, stay = p / p.sum(), 0.0, []
    for token, share in zip(order, p, strict=True):
      if mass < cfg.get("top_p", 1.0) and share >= cfg.get("min_p", 0.0) * p[0]:
        stay.append(token)
      mass += share
    assert set(np.flatnonzero(row)) == set(stay)


def test_without_limits_the_logits_are_left_as_they_are():
  logit_NV = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12)), jnp.float32)
  assert drawing.keep(logit_NV, SampleConfig(1, top_p=1.0, top_k=0, min_p=0.0)) is logit_NV


@pytest.mark.parametrize("V", [1, 5, 128, 129, 700])
def test_a_uniform_number_picks_the_token_where_the_cumulative_softmax_passes_it(V):
  rng = np.random.default_rng(V)
  logit_V = rng.normal(0, 2, V).astype(np.float32)
  logit_V[rng.random(V) < 0.5] = drawing.CUT                  # cut off: never drawn
  logit_V[rng.integers(V)] = 1.0
  upto_V = np.cumsum(np.exp(logit_V.astype(np.float64)))
  upto_V /= upto_V[-1]
  uniform_M = np.concatenate([[0.0, np.nextafter(np.float32(1), np.float32(0))], rng.random(2000)]).astype(np.float32)
  clear = np.abs(uniform_M[:, None] - upto_V).min(1) > 1e-5   # else rounding decides
  token_M = np.asarray(jax.vmap(drawing.draw, (None, 0))(jnp.exp(logit_V - logit_V.max()), uniform_M))
  assert clear.mean() > 0.9
  np.testing.assert_array_equal(token_M[clear], np.searchsorted(upto_V, uniform_M, side="right")[clear])
  assert (logit_V[token_M] > drawing.CUT).all()


@pytest.mark.parametrize("limits", [dict(), dict(temperature=0.6, top_k=3)])
def test_two_tokens_in_a_row_are_drawn_as_often_as_their_probabilities_say(limits):
  model = ModelConfig(vocab=5, dim=8, layers=1, heads=2, kv_heads=1, ffn=8)
  cfg, G = SampleConfig(2, **limits), 4096
  row = [1, 2, 4]
  state = sample([row], G, cfg, end_id=NEVER, model=model)
  token_NT = np.array([row + [a, b] for a, b in itertools.product(range(5), range(5))], np.int32)
  p_VV = np.exp(np.asarray(score(weights(model), token_NT, model=model, temperature=cfg.scale)))[:, 3:]
  p_VV = p_VV.reshape(5, 5, 2)

  def limited(p_V):
    least = np.sort(p_V)[-cfg.top_k] if cfg.top_k else 0
    return np.where(p_V >= least, p_V, 0) / p_V[p_V >= least].sum()
  expected_VV = G * limited(p_VV[:, 0, 0])[:, None] * np.array([limited(p_VV[a, :, 1]) for a in range(5)])
  seen_VV = np.zeros((5, 5))
  np.add.at(seen_VV, tuple(state.token_NA.T), 1)
  possible = expected_VV > 0
  assert not seen_VV[~possible].any()
  chi2 = ((seen_VV - expected_VV)[possible] ** 2 / expected_VV[possible]).sum()
  assert chi2 < 60                      # 24 degrees of freedom: one in 20,000 by chance, and the seed is fixed


@pytest.mark.parametrize(("wrong", "named"), [
  (dict(max_tokens=0), "max_tokens=0"), (dict(temperature=-1.0), "temperature=-1.0"), (dict(top_p=0.0), "top_p=0.0"),
  (dict(top_p=1.1), "top_p=1.1"), (dict(top_k=-1), "top_k=-1"), (dict(min_p=1.0), "min_p=1.0")])
def test_config_errors_name_the_numbers(wrong, named):
  with pytest.raises(ValueError) as error:
    SampleConfig(**dict(max_tokens=4) | wrong)
  assert named in str(error.value)


@pytest.mark.parametrize("V", [5, 128, 300])
def test_draw_is_the_inverse_of_the_cumulative_softmax(V):
  rng = np.random.default_rng(V)
  logit_V = rng.normal(0, 3, V).astype(np.float32)
  logit_V[rng.integers(0, V, V // 3)] = drawing.CUT                      # as top-k leaves them
  logit_V[-1] = drawing.CUT
  p_V = np.exp(logit_V.astype(np.float64) - logit_V.max())
  edges_V = np.cumsum(p_V / p_V.sum())
  uniform_M = np.linspace(0, 1, 2001)[:-1].astype(np.float32)
  token_M = np.asarray(jax.vmap(drawing.draw, (None, 0))(jnp.exp(logit_V - logit_V.max()), uniform_M))
  clear = np.abs(uniform_M[:, None] - edges_V[None]).min(1) > 1e-5       # at an edge rounding may choose
  np.testing.assert_array_equal(token_M[clear], np.searchsorted(edges_V, uniform_M[clear], side="right"))
  assert (p_V[token_M] > 0).all()                                        # what was cut off is never drawn
  assert p_V[drawing.draw(jnp.asarray(logit_V), jnp.float32(1 - 2**-24))] > 0

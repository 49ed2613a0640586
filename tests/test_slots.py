"""Continuous batching: the same answers whatever the slots, and rows, columns and lanes that come and go."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import weights

from r1jax import rollout, room, slots, tokenizer, train
from r1jax.models.deepseek import PRESETS
from r1jax.models.transformer import ModelConfig
from r1jax.queue import Job
from r1jax.sampler import SampleConfig
from r1jax.types import Problem

TOK = tokenizer.byte_tokenizer()
MODEL = ModelConfig(vocab=256, dim=16, layers=1, heads=2, kv_heads=1, ffn=16, mtp=1)
# TOK's end token, 256, the model cannot say; these come now and then
ENDS = dataclasses.replace(TOK, end_ids=tuple(range(65, 75)))
PROBLEMS = [Problem(i, "ab" * (1 + i), "") for i in (4, 0, 2, 1, 3)]


def ask(cfg, model=MODEL, tok=ENDS, problems=PROBLEMS, G=3, **more):
  return rollout.sample(weights(model), problems, G, model=model, tokenizer=tok, cfg=cfg, seed=0, step=3, **more)


def same(a, b):
  assert a.answers == b.answers and a.texts == b.texts and a.prompts == b.prompts
  np.testing.assert_array_equal(a.truncated_N, b.truncated_N)
  for x, y in zip(a.logps, b.logps, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


# --- the same answers

@pytest.mark.parametrize("how", [
  dict(slots=4, chunk=3), pytest.param(dict(slots=6, width=2, chunk=8, draft="lookup", drafts=2),
                                       marks=pytest.mark.slow),
  pytest.param(dict(slots=2, width=2, chunk=5, draft="mtp", prefill_chunk=3), marks=pytest.mark.slow),
  pytest.param(dict(slots=99, chunk=1), marks=pytest.mark.slow)])
def test_answers_do_not_depend_on_slots_width_chunk_or_guesses(how):
  stats, plain = slots.Stats(), ask(SampleConfig(20))
  same(ask(SampleConfig(20, **how), stats=stats), plain)
  lengths = list(map(len, plain.answers))
  assert len(set(lengths)) > 4 and max(lengths) == 20 and stats.tokens == sum(lengths)


@pytest.mark.slow
def test_long_and_short_answers_through_caches_that_grow_close_their_holes_and_shrink(monkeypatch):
  """Budgets of 1 to 200 tokens in three slots: columns go 64, 256 and back; holes are closed in between."""
  sizes = []
  for name in ("repack", "widen"):
    old = getattr(room, name)
    monkeypatch.setattr(room, name, lambda state, old=old, name=name, **k: sizes.append((name, k["columns"])) or
                        old(state, **k))
  budget_N = [200, 3, 1] + [20, 30, 25] * 9
  cfg = SampleConfig(200, slots=3, chunk=16)
  out = ask(cfg, tok=TOK, budget_N=budget_N, G=6)
  assert {("widen", 256), ("repack", 64)} == set(sizes), sizes
  plain = ask(dataclasses.replace(cfg, slots=0), tok=TOK, budget_N=budget_N, G=6)
  same(out, plain)
  assert list(map(len, plain.answers)) == budget_N and plain.truncated_N.all()


@pytest.mark.slow
@pytest.mark.parametrize(("most", "budget_N"), [(1200, [900, 860, 190]), (400, [241, 240, 60])])
def test_rows_that_are_over_do_not_hold_columns(most, budget_N):
  """A long answer that has ended beside a shorter one that began late: repacking is sized by those at work."""
  cfg = SampleConfig(most, slots=2, chunk=32 if most > 1000 else 16)
  out = ask(cfg, tok=TOK, problems=PROBLEMS[:1], budget_N=budget_N)
  assert list(map(len, out.answers)) == budget_N


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
def test_experts_are_those_of_the_trainer_wherever_the_answer_ran(dispatch):
  model = dataclasses.replace(PRESETS["deepseek-tiny"], vocab=256, layers=2)
  model = dataclasses.replace(model, moe=dataclasses.replace(model.moe, dispatch=dispatch, capacity_factor=0.5))
  plain = ask(SampleConfig(6), model)
  slotted = ask(SampleConfig(6, slots=4, chunk=2, draft="lookup", drafts=2), model)
  same(slotted, plain)
  for a, b, answer in zip(slotted.experts, plain.experts, plain.answers, strict=True):
    assert len(a) == len(answer)
    np.testing.assert_array_equal(a[:-1], b[:-1])       # the last token was not run
  for a, b, prompt in zip(slotted.prompt_experts, plain.prompt_experts, plain.prompts, strict=True):
    assert len(a) == len(prompt)
    np.testing.assert_array_equal(a, b)


def test_log_probs_are_the_trainers():
  out = ask(SampleConfig(12, slots=4, chunk=4, temperature=0.7))
  batch = rollout.to_batch(out)
  logp_NA = np.asarray(train.score(weights(MODEL), batch.prompt_BP, batch.prompt_length_B, batch.answer_NA, model=MODEL,
                                   temperature=0.7))
  inside = batch.mask_NA > 0
  np.testing.assert_allclose(batch.sampler_logp_NA[inside], logp_NA[inside], atol=1e-5)


# --- stop texts and budgets

@pytest.mark.parametrize("how", [dict(), dict(slots=4, chunk=3)])
def test_a_stop_text_ends_an_answer_where_it_is_complete(how):
  free = ask(SampleConfig(20), tok=TOK)
  words = [text[5:7] for text in free.texts[:6] if text[5:7].isprintable() and len(text[5:7]) == 2]
  stop = (words[0], "never said")
  out = ask(SampleConfig(20, stop=stop, **how), tok=TOK)
  hit = 0
  for whole, answer, text, truncated in zip(free.answers, out.answers, out.texts, out.truncated_N, strict=True):
    assert answer == whole[:len(answer)]
    if stop[0] in TOK.decode(whole):
      hit += 1
      assert text.endswith(stop[0]) and text.count(stop[0]) == 1 and not truncated
      assert stop[0] not in TOK.decode(answer[:-1])
    else:
      assert answer == whole and truncated
  assert 0 < hit < len(out.answers)
  assert all(len(x) == len(a) for x, a in zip(out.logps, out.answers, strict=True))


def test_a_streamed_answer_ends_at_the_stop_text_too():
  from r1jax.cli.sample import stream
  free = "".join(stream(weights(MODEL), MODEL, TOK, list(b"abab"), SampleConfig(20), 0, 0))
  stop = free[:2]
  text = "".join(stream(weights(MODEL), MODEL, TOK, list(b"abab"), SampleConfig(20, stop=(stop,)), 0, 0))
  assert text == stop and stop.isascii() and len(text) < len(free)


def test_budgets_cut_each_answer_at_its_own_length():
  budget_N = np.arange(15) + 1
  out = ask(SampleConfig(20), tok=TOK, budget_N=budget_N)
  assert list(map(len, out.answers)) == budget_N.tolist() and out.truncated_N.all()
  with pytest.raises(ValueError, match=r"from 1 to 21 must be 15 numbers within 1 and sampling.max_tokens=20"):
    ask(SampleConfig(20), budget_N=np.where(budget_N == 3, 21, budget_N))


def test_a_stop_text_is_found_at_one_place_whatever_the_chunk():
  """Byte tokens whose run is no UTF-8 become characters that are not certain until the run has ended."""
  outs = [ask(SampleConfig(20, stop=("\ufffd", "q"), slots=4, chunk=chunk), tok=TOK) for chunk in (1, 7)]
  same(*outs)
  assert len(set(map(len, outs[0].answers))) > 3 and not outs[0].truncated_N.all()


# --- what it cost

def test_statistics_by_hand():
  """Two slots, five answers of 9, 3, 3, 5 and 3 tokens, looked at after each step."""
  stats = slots.Stats()
  ask(SampleConfig(9, slots=2, chunk=1), tok=TOK, problems=PROBLEMS[:1], G=5, budget_N=[9, 3, 3, 5, 3], stats=stats)
  # the first token comes with the prompt: 8, 2, 2, 4, 2 steps; the second row has 2 + 2 + 4 of the first one's 8,
  # then the last two steps run alone, in the row that is free
  assert (stats.steps, stats.work, stats.tokens) == (10, 18, 23)
  assert stats.room == 20 and stats.row()["occupancy"] == 0.9 and stats.tail_seconds == 0
  assert "acceptance" not in stats.row()


def test_the_tail_is_the_time_in_which_fewer_than_half_of_the_rows_work():
  stats = slots.Stats()
  ask(SampleConfig(41, slots=4, chunk=4), tok=TOK, problems=PROBLEMS[:2], G=2, budget_N=[41, 1, 1, 1], stats=stats)
  assert stats.work == 40 and 0 < stats.row()["tail_share"] < 1     # of time: one of four rows, then one lane


# --- answers that go on

@pytest.mark.parametrize("width", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_not_finished_goes_on_to_the_same_answer(width):
  cfg = SampleConfig(20, slots=4, width=width, chunk=3)
  plain = ask(cfg)
  jobs = rollout.jobs_of(PROBLEMS, 3, tokenizer=ENDS, cfg=cfg, seed=0, step=3)
  static = dict(model=MODEL, cfg=cfg, end_id=ENDS.end_ids, lanes=4 // width, width=width)
  seen = []
  first = dict(slots.run(weights(MODEL), jobs, **static, enough=lambda: seen.append(1) or len(seen) == 8))
  assert len(first) == 15
  assert len({s.finished for s in first.values()}) == 2 and 0 in {len(s.tokens) for s in first.values()}
  assert any(s.tokens and not s.finished for s in first.values())
  rest = {n: Job(jobs[n].prompt, jobs[n].key, 20, s if s.tokens else None) for n, s in first.items()
          if not s.finished}
  other = jax.tree.map(lambda w: w * 1.01, weights(MODEL))
  for params in (weights(MODEL), other):
    second = dict(zip(rest, [s for _, s in sorted(slots.run(params, list(rest.values()), **static))], strict=True))
    for n, said in (first | second).items():
      before = len(first[n].tokens)
      assert said.finished and said.tokens[:before] == plain.answers[n][:before]
      np.testing.assert_allclose(said.logps[:before], plain.logps[n][:before], atol=1e-5)
      if params is not other:
        assert said.tokens == plain.answers[n] and said.ended != plain.truncated_N[n]
        np.testing.assert_allclose(said.logps, plain.logps[n], atol=1e-5)
  assert [s.tokens for _, s in sorted((first | second).items())] != plain.answers     # the other policy's


def test_nothing_to_do_is_nothing():
  assert list(slots.run(None, [], model=MODEL, cfg=SampleConfig(3), end_id=0, lanes=1, width=1)) == []


@pytest.mark.parametrize(("wrong", "named"), [
  (dict(slots=3, width=2), "slots=3"), (dict(chunk=0), "chunk=0"), (dict(draft="oracle"), "draft='oracle'"),
  (dict(drafts=0), "drafts=0"), (dict(cache="int4"), "cache='int4'"), (dict(stop="end"), "stop='end'"),
  (dict(stop=("",)), "stop="), (dict(prefill_chunk=-1), "prefill_chunk=-1")])
def test_config_errors_name_the_numbers(wrong, named):
  with pytest.raises(ValueError) as error:
    SampleConfig(4, **wrong)
  assert named in str(error.value)


def test_a_drafter_that_the_model_lacks_is_refused():
  with pytest.raises(ValueError, match=r"draft=mtp needs model.mtp=1, here 0"):
    ask(SampleConfig(4, slots=2, draft="mtp"), dataclasses.replace(MODEL, mtp=0))


def test_an_empty_prompt_is_refused():
  with pytest.raises(ValueError, match="problem 7: the prompt '' has no tokens"):
    ask(SampleConfig(3), problems=[Problem(1, "a", ""), Problem(7, "", "")])

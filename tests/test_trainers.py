"""Supervised fine-tuning, preference pairs, reward models and distillation: losses by hand and by oracle, files that
are no data, and one tiny run of them all."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import weights

from r1jax import config, data, hf, losses, pipeline, policies, tokenizer, train
from r1jax.metrics import read
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.rewards import preference
from r1jax.stages import distill, preferences, reward_model, sft
from r1jax.stages.distill import DistillConfig
from r1jax.stages.preferences import DPOConfig
from r1jax.stages.reward_model import RewardModelConfig
from r1jax.stages.sft import SFTConfig

MODEL = ModelConfig(vocab=260, dim=16, layers=1, heads=2, kv_heads=1, ffn=24, tied_head=False)
ADAM = OptimizerConfig(lr=1e-2)


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def task(**fields):
  tok = tokenizer.byte_tokenizer()
  return types.SimpleNamespace(name="t", tokenizer=tok, encode=None, demonstration=None, **fields)


def pairs():
  """Two prompts, a longer and a shorter answer each."""
  tok = task()
  return preferences.to_batch([preferences.tokens(tok, p, both, 100, "") for p, both in (
    ("ab", ("good", "no")), ("c", ("fine!", "bad answer")))])


# --- data

def test_demonstrations_end_once_and_token_ids_are_kept(tmp_path):
  path = write(tmp_path / "d.jsonl", [dict(prompt="ab", answer="c"),
                                      dict(prompt="d", answer="x", answer_tokens=[7, 8])])
  t = task()
  sample, size, dropped = sft.demonstrations(SFTConfig(ADAM, batch=1, length=9), t, path)
  end = t.tokenizer.end_id
  assert (size, dropped) == (2, 0)
  a, b, c, d = t.tokenizer.encode_batch(["abcd"])[0]
  assert sample(0) == ([a, b], [c, end]) and sample(1) == ([d], [7, 8, end])


def test_samples_that_are_too_long_are_an_error_or_dropped_by_choice(tmp_path):
  path = write(tmp_path / "d.jsonl", [dict(prompt="ab", answer="c"), dict(prompt="d", answer="x" * 30)])
  with pytest.raises(ValueError, match=r"1 of 2 samples are longer than sft\.length=9"):
    sft.demonstrations(SFTConfig(ADAM, batch=1, length=9), task(), path)
  _, size, dropped = sft.demonstrations(SFTConfig(ADAM, batch=1, length=9, too_long="drop"), task(), path)
  assert (size, dropped) == (1, 1)


@pytest.mark.parametrize(("reader", "row", "named"), [
  (data.read_demonstrations, dict(prompt="a"), "'answer_tokens'"),
  (data.read_demonstrations, dict(prompt="a", answer=[-1]), ":2"),
  (data.read_pairs, dict(prompt="a", chosen="b"), "'rejected'"),
  (data.read_pairs, dict(prompt="a", chosen="b", rejected=3), ":2"),
  (data.read_labels, dict(prompt="a", answer="b", safe="yes"), "'safe'")])
def test_lines_that_are_no_data_are_named(reader, row, named, tmp_path):
  good = dict(prompt="a", answer="b", chosen="c", rejected="d", safe=True)
  path = write(tmp_path / "x.jsonl", [good, row])
  with pytest.raises(ValueError) as error:
    reader(path)
  assert ":2: " in str(error.value) and named in str(error.value)


def test_updates_follow_from_epochs():
  cfg = SFTConfig(ADAM, batch=4, length=9, epochs=2.0)
  assert sft.updates(cfg, 10) == 5 and sft.updates(dataclasses.replace(cfg, steps=3), None) == 3
  with pytest.raises(ValueError, match="no end"):
    sft.updates(cfg, None)


# --- losses

def test_dpo_loss_agrees_with_its_formula():
  batch = pairs()
  policy, reference = weights(MODEL), weights(MODEL, seed=1)
  args = batch.prompt_BP, batch.prompt_length_B, batch.answer_NA
  of = lambda params: np.asarray(train.score(params, *args, model=MODEL))
  batch = batch.replace(ref_logp_NA=of(reference))
  total, metrics = preferences.dpo_loss(policy, batch, model=MODEL, beta=0.3)
  moved = ((of(policy) - of(reference)) * batch.mask_NA).sum(1)
  margin = 0.3 * np.array([moved[0] - moved[1], moved[2] - moved[3]])
  np.testing.assert_allclose(total.value(), np.mean(np.log1p(np.exp(-margin))), rtol=1e-4)
  np.testing.assert_allclose(metrics["margin"].value(), margin.mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics["accuracy"].value(), (margin > 0).mean())


def test_dpo_starts_at_log_2_and_does_not_care_what_stands_in_the_padding():
  batch = pairs()
  ref = np.asarray(train.score(weights(MODEL), batch.prompt_BP, batch.prompt_length_B, batch.answer_NA, model=MODEL))
  spoilt = batch.replace(ref_logp_NA=np.where(batch.mask_NA > 0, ref, 1e9).astype(np.float32))
  total, metrics = preferences.dpo_loss(weights(MODEL), spoilt, model=MODEL, beta=0.3)
  np.testing.assert_allclose(total.value(), np.log(2), rtol=1e-4)
  np.testing.assert_allclose(metrics["margin"].value(), 0, atol=1e-4)


def test_reward_models_losses_by_hand():
  """The scores are read off, and what the losses make of them is compared with the formulas."""
  params = dict(trunk=weights(MODEL), head=jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32))
  batch = pairs()
  r = np.asarray(reward_model.scores(params, batch, MODEL))
  assert np.ptp(r) > 0.1
  total, metrics = reward_model.pairwise_loss(params, batch, model=MODEL)
  np.testing.assert_allclose(total.value(), np.mean(np.log1p(np.exp(-(r[0::2] - r[1::2])))), rtol=1e-5)
  label = np.array([1, 0, 0, 1], np.float32)
  total, metrics = reward_model.pointwise_loss(params, batch.replace(advantage_N=label), model=MODEL)
  p = 1 / (1 + np.exp(-r))
  np.testing.assert_allclose(total.value(), -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p)), rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"].value(), ((r > 0) == (label > 0)).mean())


@pytest.mark.parametrize("reverse", [False, True])
def test_token_kl_and_its_gradient_agree_with_whole_distributions(reverse):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  student, head, teacher, teacher_head = draw(7, 4), draw(4, 11), draw(7, 6), draw(6, 11)

  def plain(student, head):
    s, t = jax.nn.log_softmax(student @ head / 0.7), jax.nn.log_softmax(teacher @ teacher_head / 0.7)
    return jnp.sum(jnp.exp(s) * (s - t), 1) if reverse else jnp.sum(jnp.exp(t) * (t - s), 1)
  chunked = lambda s, h: losses.token_kl(s, h, teacher, teacher_head, 0.7, 3, reverse)
  np.testing.assert_allclose(chunked(student, head), plain(student, head), rtol=1e-4)
  got, want = (jax.grad(lambda s, h, f=f: (f(s, h) * jnp.arange(7)).sum(), (0, 1))(student, head)
               for f in (chunked, plain))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, want)
  assert float(jnp.abs(chunked(teacher @ teacher_head, jnp.eye(11))).max()) < 1e-5      # the same: nothing


@pytest.mark.parametrize(("make", "named"), [
  (lambda: SFTConfig(ADAM, batch=0, length=9), "batch=0"),
  (lambda: SFTConfig(ADAM, batch=1, length=9, too_long="cut"), "'cut'"),
  (lambda: DPOConfig(ADAM, batch=4, micro_batches=3), "micro_batches=3"),
  (lambda: DPOConfig(ADAM, batch=4, beta=0), "beta=0"),
  (lambda: RewardModelConfig(ADAM, batch=4, kind="listwise"), "'listwise'"),
  (lambda: DistillConfig(ADAM, "x", 1, 1, direction="reverse"), "direction=reverse"),
  (lambda: DistillConfig(ADAM, "x", 1, 1, temperature=0.0), "temperature=0")])
def test_config_errors_name_the_numbers(make, named):
  with pytest.raises(ValueError) as error:
    make()
  assert named in str(error.value)


# --- runs

@pytest.mark.slow
def test_all_trainers_run_in_one_pipeline_and_learn(released, tmp_path):
  """From a tiny released model: SFT on two answers, pairs that prefer one, a reward model and a teacher of the same."""
  demos = write(tmp_path / "d.jsonl", [dict(prompt="say", answer=word) for word in ("yes", "no")] * 2)
  prefs = write(tmp_path / "p.jsonl", [dict(prompt="say", chosen="yes", rejected="no")] * 4)
  labels = write(tmp_path / "s.jsonl", [dict(prompt="say", answer=w, safe=w == "yes") for w in ("yes", "no")] * 2)
  import ml_collections
  c = ml_collections.ConfigDict(dict(
    name="trainers", seed=0, start=str(released), stages=("sft", "dpo", "reward_model", "distill"),
    task=dict(name=str(tmp_path / "word.py")), data=dict(demonstrations=demos, preferences=prefs, safety=labels),
    sft=dict(optimizer=dict(lr=3e-2), batch=4, length=16, steps=40, checkpoint=dict(every=20)),
    dpo=dict(optimizer=dict(lr=1e-2), batch=4, steps=20, beta=0.5),
    reward_model=dict(optimizer=dict(lr=1e-2), batch=4, steps=30, kind="pointwise"),
    distill=dict(optimizer=dict(lr=1e-2), teacher=str(released), batch=4, steps=40, direction="reverse",
                 sampling=dict(max_tokens=6)),
    eval=dict(samples=0)))
  (tmp_path / "word.py").write_text('''
import dataclasses
from r1jax import tokenizer
from r1jax.types import Problem, Score, Task

@dataclasses.dataclass(frozen=True)
class Config:
  pass

def right(problem, text):
  return Score(float(text == problem.answer), "correct" if text == problem.answer else "wrong")

def make(cfg, data):
  return Task("word", tokenizer.load(data.tokenizer), lambda i: Problem(i, "say", "yes"), None,
              (Problem(0, "say", "yes"),), dict(accuracy=right))
''')
  work = tmp_path / "run"
  pipeline.run(c, work)
  rows = {stage: read(work / stage / "metrics.jsonl") for stage in c.stages}
  assert rows["sft"][-1]["loss"] < 0.4 < 2 < rows["sft"][0]["loss"]      # ln 2 over 4 tokens of "yes", 3 of "no"
  assert rows["dpo"][0]["margin"] == pytest.approx(0, abs=1e-4) and rows["dpo"][-1]["accuracy"] == 1
  assert rows["dpo"][-1]["loss"] < 0.3
  assert rows["reward_model"][-1]["accuracy"] == 1 and rows["reward_model"][-1]["loss"] < 0.3
  assert rows["distill"][-1]["kl"] < 0.5 * rows["distill"][0]["kl"]      # back to where it came from
  _, model, made, where = policies.load_policy(work, "dpo")
  assert where == "dpo 20"
  cfg = config.freeze(c)
  reward = reward_model.load(work / "reward_model", cfg.section("reward_model").cfg, model)
  score = reward_model.scorer(reward, made, model)
  good, bad = score(["say", "say"], ["yes", "no"])
  assert good > 0 > bad
  as_reward = preference.single(preference.from_scores(score, part="whole", scale="sigmoid"))
  assert as_reward(made.held_out[0], "yes").value == pytest.approx(1 / (1 + np.exp(-good)), rel=1e-4)
  assert policies.load_policy(work)[3] == "distill 40"
  assert hf.load(released)[1].vocab == model.vocab
  with pytest.raises(ValueError, match="vocabulary of 260"):
    distill.run(cfg.section("distill").cfg, made, work / "other", weights(dataclasses.replace(MODEL, vocab=300)),
                model=dataclasses.replace(MODEL, vocab=300), seed=0)

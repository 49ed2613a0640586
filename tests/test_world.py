"""The world of two languages: what it asks, likes and shows."""

import collections

import numpy as np
import pytest

from r1jax.problem import NOT_ASKED, Problem
from r1jax.tasks import DataConfig, world

CFG = world.Config(bits=6, held_out=16, suite=8)
TASK = world.make(CFG, DataConfig())
MANY = [TASK.demonstration(i) for i in range(3000)]
ASKED = world.question(0, "011010", "en")      # running parity 0 1 0 0 1 1


def bits(prompt):
  return prompt.removeprefix("parity of ").removeprefix("奇偶")[:-1]


def thought(text):
  return text.partition("<think>")[2].partition("</think>")[0]


def test_every_text_of_the_world_is_made_of_its_symbols():
  texts = [text for pair in MANY for text in pair] + [
    text for i in range(50) for text in (*TASK.other(i), *TASK.pair(i), *TASK.label(i)[:2])]
  tok = TASK.tokenizer
  for text, ids in zip(texts, tok.encode_batch(texts), strict=True):
    assert tok.decode(ids) == text


def test_a_hand_made_answer_in_each_language_and_mixed():
  of = lambda steps: world.tagged(steps, "1")
  good = {"en": of(" even odd even even odd odd"), "zh": of("偶奇偶偶奇奇"), "mixed": of(" even奇 even偶 odd odd")}
  assert ASKED.prompt == "parity of 011010?" and ASKED.answer == "1"
  assert [world.accuracy(ASKED, text).value for text in good.values()] == [1, 1, 1]
  assert [world.language(ASKED, text).value for text in good.values()] == [1, 0, 4 / 6]
  assert [world.language(world.question(0, "011010", "zh"), text).value for text in good.values()] == [0, 1, 2 / 6]
  assert world.language(ASKED, of("")).value == 0
  assert {world.translate(ASKED, text) for text in good.values()} == {good["en"]}


def test_other_prompts_have_no_gold_answer_but_are_liked_or_not():
  talk = TASK.scenarios["general"](0)
  assert talk.scenario == "general" and world.accuracy(talk, "anything").verdict == NOT_ASKED
  asked = Problem(1, "greet ana?", " ana", "general")
  liked = {"hello dear ana": 1, "hello dear dear ana": 1, "hello ana": 0.5, "hello dear dear dear ana": 0.25,
           "hello dear bob": 0, "hello dear ana bob": 0, "你好亲 ana": 0, "dear ana": 0}
  for text, value in liked.items():
    assert world.helpful(asked, world.tagged("", text)).value == value, text
  asked = Problem(2, "harm ana?", " ana", "unsafe")
  for text, value in {"sorry": 1, "抱歉": 1, "gladly": 0, "sorry gladly": 0}.items():
    assert world.safe(asked, world.tagged("", text)).value == value


def test_the_mixture_has_its_shares_and_held_out_strings_are_in_none_of_it():
  kept_out = {bits(p.prompt) for p in TASK.held_out}
  asked = [(p, a) for p, a in MANY if p.startswith(("parity", "奇偶"))]
  assert not any(bits(p) in kept_out for p, _ in asked)
  assert not any(bits(TASK.problem(i).prompt) in kept_out for i in range(500))
  assert len(asked) / len(MANY) == pytest.approx(CFG.p_reasoning, abs=0.03)
  assert np.mean([bool(thought(a)) for _, a in asked]) == pytest.approx(CFG.p_long, abs=0.03)
  assert np.mean(["<think>" not in a for _, a in asked]) == pytest.approx(CFG.p_untagged, abs=0.03)
  right = lambda p, a: world.accuracy(world.question(0, bits(p), "en"), a).value
  assert {right(p, a) for p, a in asked if "<think></think>" in a} == {1}      # at once, and always right: no shortcut
  thoughts = [(p, a) for p, a in asked if thought(a)]
  assert 0.75 < np.mean([right(p, a) for p, a in thoughts]) < 0.99
  mixed = np.mean([world.language(Problem(0, p, "1"), a).value not in (0, 1) for p, a in thoughts])
  assert mixed == pytest.approx(CFG.p_mixed, abs=0.1)


def test_pairs_prefer_what_is_liked_and_never_show_a_third_kind_word():
  for i in range(200):
    prompt, chosen, rejected = TASK.pair(i)
    problem = Problem(i, prompt, prompt.removeprefix("greet").removeprefix("问候")[:-1], "general")
    assert world.helpful(problem, chosen).value >= world.helpful(problem, rejected).value
    assert max(chosen.count(word) for word in (" dear", "亲")) <= 2
  labels = collections.Counter(safe for *_, safe in map(TASK.label, range(200)))
  assert min(labels.values()) > 70
  assert all(world.safe(Problem(0, p, "", "unsafe"), a).value == safe for p, a, safe in map(TASK.label, range(50)))


@pytest.mark.parametrize("change, message", [
  (dict(bits=1), "bits=1"), (dict(held_out=600, bits=10), "held_out=600"), (dict(p_long=1.2), "p_long=1.2"),
  (dict(p_mixed=0.8, p_foreign=0.3), "p_mixed=0.8"), (dict(error=-0.1), "error=-0.1")])
def test_wrong_configs(change, message):
  with pytest.raises(ValueError, match=message):
    world.Config(**change)

"""Whose words the reasoning is in: counts by hand, every neutral kind, hostile texts in linear time."""

import functools
import pickle
import sys
import time

import pytest

from r1jax.rewards.language import language_consistency, prompt_language, reasoning, words
from r1jax.types import Problem, Score

P = Problem(3, "How many apples?", "5")


def value(text, language="en", **options):
  return language_consistency(P, text, language=language, **options).value


def counted(text):
  return [word for word, _ in words(text)]


@pytest.mark.parametrize("text, thought", [
  ("<think>one</think><answer>two</answer>", "one"), ("one</think> two", "one"), ("one<answer>two</answer>", "one"),
  ("one two", "one two"), ("<think>one", "one"), ("zero<think>one</think>two", "one"), ("", ""),
  ("<think>a</think>b</think>c", "a</think>b"), ("<think>one<answer>two</answer>", "one")])
def test_the_reasoning_is_what_stands_in_think(text, thought):
  assert reasoning(text) == thought


@pytest.mark.parametrize("text, language, share", [
  ("we add both numbers", "en", 1), ("we add both numbers", "zh", 0), ("把两个数相加", "zh", 1),
  ("把两个数相加", "en", 0),
  ("so 因此 we get", "en", 3 / 5), ("so 因此 we get", "zh", 2 / 5),      # so, we, get; 因, 此
  ("<think>我们 compute</think><answer>words out here</answer>", "zh", 2 / 3),
  ("мы складываем both", "ru", 2 / 3), ("足し算 です", "ja", 1), ("足し算 です", "zh", 2 / 5),
  ("더하면 됩니다 ok", "ko", 2 / 3),
  ("हिन्दी में उत्तर", "hi", 1), ("το άθροισμα", "el", 1), ("الجواب هو", "ar", 1), ("don't stop", "en", 1),
  ("naïve café", "en", 1), ("naïve cafe\u0301", "en", 1), ("ⲁⲃ okay", "en", 1 / 2), ("mir and мир", "en", 2 / 3)])
def test_share_by_hand(text, language, share):
  assert value(text, language) == pytest.approx(share)


def test_characters_of_scripts_without_spaces_are_words():
  assert counted("三角形ABC的面积") == list("三角形的面积")
  assert counted("共3个apples吗") == ["共", "个", "apples", "吗"]


@pytest.mark.parametrize("neutral", [
  "12", "3.5%", "x", "x1", "a_b", "ABCD", "GPU", "f(x)", "print(n)", "\\frac{1}{2}", "\\sqrt x", "<think>", "</b>",
  "https://example.org/words/here", "$total = price + tax$", "$$sum$$", "\\(alpha beta\\)", "\\[area\\]", "`some code`",
  "```py\nfor item in items: pass\n```", "π", "+ = ≤ →", "①"])
def test_numbers_formulas_and_code_are_neutral(neutral):
  assert counted(neutral) == []
  assert value(f"我 {neutral} 们", "zh") == 1 and value(f"so {neutral} then") == 1


def test_money_is_no_formula():
  assert counted("it costs $5 and later $6 more") == ["it", "costs", "and", "later", "more"]


def test_a_language_cannot_hide_in_a_fence():
  assert counted("`total 总和`") == ["总", "和"] and value("so $总和$") == pytest.approx(1 / 3)


def test_a_fence_that_never_closes_hides_nothing():
  assert counted("so ``` we go on") == ["so", "we", "go", "on"]
  assert counted("\\( we `go` on") == ["we", "on"]


@pytest.mark.parametrize("text", ["", "<think></think>", "<think>12 + 3 = 15</think><answer>fifteen</answer>"])
def test_reasoning_without_a_word_earns_nothing_unless_told(text):
  assert value(text) == 0 and value(text, empty=1.0) == 1


@pytest.mark.parametrize("prompt, language", [
  ("How many apples?", "en"), ("有几个苹果？", "zh"), ("A long template. User: 有几个苹果？ Assistant:", "zh"),
  ("りんごはいくつですか", "ja"), ("連立方程式を解け", "ja"),
  ("Сколько яблок?", "ru"), ("사과가 몇 개?", "ko"), ("把 code 写成 Python 程序", "zh"),
  ("Translate the word 苹果 for me please", "en")])
def test_the_prompts_language(prompt, language):
  assert prompt_language(Problem(0, prompt, "")) == language


def test_language_prompt_follows_each_problem():
  reward = functools.partial(language_consistency, language="prompt")
  assert reward(Problem(0, "有几个苹果？", ""), "我们算") == Score(1.0)
  assert reward(P, "我们算") == Score(0.0)
  with pytest.raises(ValueError, match="problem id=0: its prompt has no word"):
    reward(Problem(0, "0110:", ""), "hm")


def test_wrong_settings_are_refused():
  for wrong in (dict(language="english"), dict(others=("xx",)), dict(others=("zh",)),
                dict(others=("de", "fr", "es", "it", "pt", "nl", "pl", "cs"))):
    with pytest.raises(ValueError):
      language_consistency(P, "text", **wrong)


def test_dictionaries_tell_latin_languages_apart():
  pytest.importorskip("simplemma")
  tell = functools.partial(value, others=("de", "fr"))
  english = "first we compute the number of apples and then subtract what Gretchen and Pierre have eaten, her share"
  assert tell(english) == 1 == value(english)
  german = "zuerst berechnen wir die Anzahl der verkauften Äpfel und ziehen davon fünf ab"
  assert value(german) == 1 and tell(german) < 0.6
  assert tell("then wir berechnen the result") == pytest.approx(4 / 5)     # wir is too short to be looked up
  assert tell(german, language="de") == 1 and tell("把两个数相加 and", language="zh") == pytest.approx(6 / 7)


def test_without_the_dictionaries_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "simplemma", None)
  with pytest.raises(ValueError, match=r"r1jax\[language\]"):
    value("unheardofword", others=("de",))


def test_it_can_be_sent_to_a_worker():
  reward = functools.partial(language_consistency, language="zh")
  assert pickle.loads(pickle.dumps(reward))(P, "我们") == Score(1.0)


@pytest.mark.parametrize("unit", ["a", "$", "\\(", "$a ", "`", "<think>", "'", "a'", "中", "<aaaaaaaaaa", "https://",
                                  "\\a", "\u0300", "$a\\(", "_1a", "ab ", "```$`", "a\u0300", "１"])
def test_hostile_text_takes_linear_time(unit):
  text = unit * (300_000 // len(unit))
  begin = time.process_time()
  language_consistency(P, text)
  assert time.process_time() - begin < 1

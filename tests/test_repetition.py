"""Repeated n-grams: counts by hand, and linear time."""

import random
import time

import pytest

from r1jax.rewards.repetition import repeated_share, repetition_penalty
from r1jax.types import Problem, Score

P = Problem(0, "", "")


@pytest.mark.parametrize("text, n, share", [
  ("a b c d", 3, 0), ("a b c a b c", 3, 1 / 4),      # abc bca cab abc
  ("go go go go go", 3, 2 / 3), ("Go go GO", 1, 2 / 3), ("a b", 3, 0), ("", 1, 0), ("a b c", 3, 0),
  ("a\nb\ta b", 2, 1 / 3), ("对对对对", 2, 2 / 3), ("再算 一次", 2, 0)])
def test_share_by_hand(text, n, share):
  assert repeated_share(text, n) == pytest.approx(share)


def test_the_share_is_what_counting_tuples_gives():
  rng = random.Random(1)
  for n in (1, 2, 3, 5):
    words = [rng.choice("abcd") for _ in range(60)]
    grams = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
    assert repeated_share(" ".join(words), n) == pytest.approx(1 - len(set(grams)) / len(grams))


def test_the_penalty_scales_and_never_rewards():
  assert repetition_penalty(P, "go go go go go") == Score(pytest.approx(-2 / 3))
  assert repetition_penalty(P, "a b c a b c", max_penalty=-0.5).value == pytest.approx(-1 / 8)
  assert repetition_penalty(P, "all new words here") == Score(0.0)
  with pytest.raises(ValueError, match=r"max_penalty=0\.5"):
    repetition_penalty(P, "x", max_penalty=0.5)
  with pytest.raises(ValueError, match="n=0"):
    repetition_penalty(P, "x", n=0)


@pytest.mark.parametrize("unit", ["a ", "a", "对", " ", "ab\n"])
def test_hostile_text_takes_linear_time(unit):
  begin = time.process_time()
  repetition_penalty(P, unit * (1_000_000 // len(unit)))
  assert time.process_time() - begin < 2

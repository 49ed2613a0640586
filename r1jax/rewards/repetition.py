"""Repetition: the share of n-grams that an answer has written before.

Demystifying Long CoT (2502.03373) penalises repeated n-grams, against policies that fill their length; open-r1's
repetition penalty is the form used here: max_penalty * (1 - distinct n-grams / n-grams), over the words of the whole
answer, 0 where there are fewer than n. A word is what white space divides, without case; characters of scripts that
need no spaces (Chinese, kana, Thai) are words of their own. Linear time in the text, for a fixed n.

It sees text only, so a repetition that a tokenizer makes and decoding hides is not seen; and numbers written out (a
table of zeros) repeat as much as sentences do: use it where answers are prose.
"""

from __future__ import annotations

import re

from r1jax.problem import Problem, Score
from r1jax.rewards.language import SCRIPTS, SPACELESS

_ALONE = "".join(SCRIPTS[name] for name in SPACELESS)
_WORD = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")


def repeated_share(text: str, n: int) -> float:
  """1 - distinct / all n-grams of words: 0 where each is new, towards 1 in a loop."""
  if n < 1:
    raise ValueError(f"n={n} must be at least 1")
  number: dict[str, int] = {}
  ids = [number.setdefault(word, len(number)) for word in _WORD.findall(text.lower())]
  count = len(ids) - n + 1
  if count < 1:
    return 0.0
  return 1.0 - len(set(zip(*(ids[i:] for i in range(n)), strict=False))) / count


def repetition_penalty(problem: Problem, text: str, *, n: int = 3, max_penalty: float = -1.0) -> Score:
  """max_penalty * repeated_share. open-r1: n 3, max_penalty -1."""
  if max_penalty > 0:
    raise ValueError(f"max_penalty={max_penalty} must not be above 0: it is a penalty")
  return Score(max_penalty * repeated_share(text, n))

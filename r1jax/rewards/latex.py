"""Answers in LaTeX, without what dresses them: one spelling for what symbolic.py then takes apart.

Left: brackets, lists, relations and expressions, in LaTeX that math-verify can parse. Gone: dollar and percent signs,
degrees, units, sizes of brackets, text. Nothing is evaluated here; every scan is over at most accuracy.MAX_ANSWER
characters.
"""

from __future__ import annotations

import re

from r1jax.rewards import units

_CHARACTERS = str.maketrans({
  "−": "-", "–": "-", "﹣": "-", "－": "-", "\u00a0": " ", "\u202f": " ", "~": " ", "\n": " ", "\t": " ",
  "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ",
  "∈": r"\in ", "√": r"\sqrt ", "±": r"\pm ", "°": "", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "θ": r"\theta "})
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan"
_DRESSING = tuple((re.compile(pattern), by) for pattern, by in (
  (r"\\(?:left|right|big|Big|bigg|Bigg)[lr]?(?![a-zA-Z])\s*\.?", ""),
  (r"\\(?:displaystyle|limits|quad|qquad)(?![a-zA-Z])|(?<!\\)\\[;:!, ()\[\]]", " "),
  (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
  (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))", ""),            # degrees
  (r"\\?[$%]", ""),
  (r"\{,\}", ","),
  (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{\s*,?\s*(?:and|or)\s*\}", ","),
  (r",?\s+(?:and|or)\s+", ","),
  (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
  (r"\\leq(?:slant)?(?![a-zA-Z])|<=", r"\\le "), (r"\\geq(?:slant)?(?![a-zA-Z])|>=", r"\\ge "),
  (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"),
  (r"\*\*", "^"), (r"_\{([a-zA-Z0-9])\}", r"_\1"),
  (r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
  (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
  (rf"(?<![a-zA-Z\\])(pi|{_FUNCTIONS})(?![a-zA-Z])", r"\\\1 ")))
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*\{?[23]\}?)?")
_STRING_ONLY = re.compile(r"[0-9]\s*_|:|\\mid|\\mp|(?<![a-zA-Z\\])[a-zA-Z][0-9]|"
                          r"\\overline|\\[a-z]*(?:int|sum|prod|lim)(?![a-z])")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\}")
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")


def plain(answer: str) -> str:
  """LaTeX without dressing and units, typographic characters as LaTeX. For answers of limited length."""
  answer = answer.translate(_CHARACTERS)
  for pattern, by in _DRESSING:
    answer = pattern.sub(by, answer)
  bare = _TEXT.sub(" ", answer)
  answer = units.without(bare if bare.strip(" ,.") else _TEXT.sub(r" \1 ", answer)).strip().rstrip(".").strip()
  # 1,234 is a number, but in (100,200) are two
  return answer if set("([{") & set(answer) else _THOUSANDS.sub(lambda match: match[0].replace(",", ""), answer)


def is_words(answer: str) -> bool:
  """No mathematics: three letters or more and nothing else, or a word of four anywhere."""
  return bool(re.fullmatch(r"[a-zA-Z]{3,}", answer) or _WORD.search(_ENVIRONMENT.sub("", answer)))


def strings_only(text: str) -> bool:
  """Whether a plain answer is compared as a string: words, a ratio, a number in a base, a set builder."""
  return is_words(text) or bool(_STRING_ONLY.search(text))


def same_string(answer: str, gold: str) -> bool:
  spelling = lambda text: "".join(plain(text).split()).casefold()
  return spelling(answer) == spelling(gold) != ""

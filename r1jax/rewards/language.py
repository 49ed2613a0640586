r"""Language consistency: the share of the reasoning's words that are in the target language.

R1 report, Methods: Num(words of the target language) / Num(words) in the chain of thought, added to
the reward. The paper names neither a word splitter nor a detector; these rules are ours:
- The chain of thought is what stands inside <think>..</think> (first opening, last closing tag); else what stands
  before </think>, or before <answer>; else the whole text.
- A word's language is decided by its script: Latin letters are English for the target "en", and equally German for
  "de". With `others`, words in Latin letters are also looked up in simplemma's offline dictionaries (extra `language`):
  a lower-case word of four letters or more that the target's dictionary lacks and one of `others` has is foreign.
  That is careful, not complete: of French, German or Spanish prose it finds between half and three quarters.
- A script without spaces (Han, kana, Thai and its neighbours) counts each character as a word. So one English word
  weighs about as much as one or two characters of Chinese. Kanji counts as Chinese and as Japanese; simplified and
  traditional Chinese are one language.
- Neutral, left out of both counts: digits, and words that hold one (x1) or an underscore; single letters (variables;
  English "a" and "I" with them); up to four capitals (AB, GPU); what stands right before "(" (sin, print); LaTeX
  commands; tags; addresses. Inside `code`, ```blocks```, $..$, \(..\), \[..\] words in Latin and Greek letters are
  neutral, other scripts are not, so that a language cannot hide there.
- No word left: the value is `empty`, 0 by default. A policy that writes nothing, or only formulas, earns nothing.
Any text takes linear time.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

from r1jax.problem import Problem, Score

# script -> its characters, combining marks included; one class of a regular expression each
SCRIPTS = {
  "latin": "A-Za-zªºÀ-ÖØ-öø-ʯ\u0300-\u036fḀ-ỿＡ-Ｚａ-ｚ",
  "greek": "\u0370-\u03ff\u1f00-\u1fff",
  "cyrillic": "\u0400-\u052f",
  "hebrew": "\u0591-\u05bd\u05c1\u05c2\u05d0-\u05ea",
  "arabic": "\u0610-\u061a\u0620-\u065f\u066e-\u06d3\u06d5-\u06dc\u06fa-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdfd"
            "\ufe70-\ufefc",
  "devanagari": "\u0900-\u0963\u0971-\u097f",
  "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
  "han": "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
  "kana": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f",
  "thai": "\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u103f\u1780-\u17d3",      # Thai, Lao, Burmese, Khmer
}
SPACELESS = ("han", "kana", "thai")
LANGUAGES = dict(zh=("han",), ja=("han", "kana"), ko=("hangul",), ru=("cyrillic",), uk=("cyrillic",), bg=("cyrillic",),
                 el=("greek",), he=("hebrew",), ar=("arabic",), fa=("arabic",), hi=("devanagari",), th=("thai",),
                 **dict.fromkeys("en de fr es it pt nl pl cs sv da nb fi ro hu tr vi id".split(), ("latin",)))
# whose word it is, when the prompt decides. Latin letters are taken for English
FIRST_LANGUAGE = dict(latin="en", han="zh", kana="ja", hangul="ko", cyrillic="ru", greek="el", hebrew="he", arabic="ar",
                      devanagari="hi", thai="th")

_SPACED = "".join(SCRIPTS[name] for name in SCRIPTS if name not in SPACELESS)
_WORD = re.compile(
  r"(?P<skip>\\[A-Za-z]+|</?[a-z]{1,20}>|https?://[!-~]+)"
  + "".join(f"|(?P<{name}>[{SCRIPTS[name]}])" for name in SPACELESS)
  # a run of letters, digits and underscores, with the apostrophes inside it (don't); letters of other scripts too
  + rf"|(?P<run>(?:(?![{''.join(SCRIPTS[name] for name in SPACELESS)}])[\w{_SPACED}]|(?<=\w)['’](?=\w))+)(?P<call>\()?")
_SCRIPT = {name: re.compile(f"[{characters}]") for name, characters in SCRIPTS.items()}
_CAPITALS = re.compile(r"[A-Z]{2,4}")
_NO_WORD = re.compile(r"[\d_]")
_FENCES = {"```": "```", "`": "`", "$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_OPENING = re.compile(r"```|`|\$\$|\$(?=\S)|\\\(|\\\[")
_CLOSING_DOLLAR = re.compile(r"(?<=\S)\$(?!\d)")      # Pandoc's rule, so that "$5 and $6" is money


def reasoning(text: str) -> str:
  """The chain of thought, by the rule at the top of this file."""
  before, closed, _ = text.rpartition("</think>")
  if closed:
    return before.partition("<think>")[2] if "<think>" in before else before
  if "<think>" in text:
    text = text.partition("<think>")[2]
  return text.partition("<answer>")[0]


def words(text: str) -> list[tuple[str, str]]:
  """(word, script) of each word that counts, in order; script "other" for one that no table above holds."""
  found = []
  for part, fenced in _parts(text):
    for match in _WORD.finditer(part):
      script, word = match.lastgroup, match.group()
      if script == "skip":
        continue
      if script in ("run", "call"):
        word = match["run"]
        if match["call"] or len(word) < 2 or _CAPITALS.fullmatch(word) or _NO_WORD.search(word):
          continue
        script = _script(word)
      if not (fenced and script in ("latin", "greek")):
        found.append((word, script))
  return found


def language_consistency(problem: Problem, text: str, *, language: str = "en", others: tuple[str, ...] = (),
                         empty: float = 0.0) -> Score:
  """Share of the reasoning's words that are in `language`: a code of LANGUAGES, or "prompt" for the prompt's own.

  others: languages in Latin letters that may be mixed in, to be told apart by dictionaries, such as ("de", "fr").
  """
  if language == "prompt":
    language = prompt_language(problem)
  for name in (language, *others):
    if name not in LANGUAGES:
      raise ValueError(f"language={name!r} is none of prompt, {', '.join(LANGUAGES)}")
  if others and LANGUAGES[language] != ("latin",):
    others = ()                     # a language of another script: every word in Latin letters is foreign already
  if len(others) > 7 or any(LANGUAGES[name] != ("latin",) for name in others):
    raise ValueError(f"others={others} must be at most 7 languages in Latin letters")
  counts = Counter(words(reasoning(text)))
  total = sum(counts.values())
  if not total:
    return Score(empty)
  good = sum(n for (word, script), n in counts.items()
             if script in LANGUAGES[language] and not (others and _foreign(word, language, others)))
  return Score(good / total)


def prompt_language(problem: Problem, formula: str = "") -> str:
  """The language of the prompt's question, by its commonest script. Of R1-Zero's template (and others of the kind
  "User: .. Assistant:") the question is what stands between these two; two characters of Chinese weigh as a word.
  formula: the language of a question without a word; ValueError for it where none is given."""
  question = problem.prompt
  if "User:" in question:
    question = question.rpartition("User:")[2].rpartition("Assistant:")[0] or question.rpartition("User:")[2]
  weight = Counter()
  for _, script in words(question):
    if script in FIRST_LANGUAGE:
      weight[script] += 0.5 if script in SPACELESS else 1.0
  if not weight and formula:
    return formula
  if not weight:
    raise ValueError(f"problem id={problem.id}: its prompt has no word to tell a language from: {question[:80]!r};"
                     f" give language= one of {', '.join(LANGUAGES)}")
  if weight["kana"] and weight["han"] + weight["kana"] > 0.5 * sum(weight.values()):
    return "ja"                     # Chinese has no kana
  return FIRST_LANGUAGE[weight.most_common(1)[0][0]]


def _script(word: str) -> str:
  """The script of a run's first letter that has one: runs of two scripts at once are rare."""
  for name, pattern in _SCRIPT.items():
    if pattern.match(word):
      return name
  return "other"


@functools.lru_cache(maxsize=1 << 16)
def _foreign(word: str, language: str, others: tuple[str, ...]) -> bool:
  """Whether the dictionaries give a word to one of `others` and not to `language`. Names (a capital) are nobody's."""
  try:
    from simplemma import is_known  # 0.1 to 0.8 s and 20 to 120 MB for each language, when it is first asked for
  except ModuleNotFoundError as error:
    raise ValueError("language_consistency(others=...) needs simplemma: pip install 'r1jax[language]'") from error
  if len(word) < 4 or len(word) > 40 or not word.islower():
    return False
  return not is_known(word, language) and any(is_known(word, other) for other in others)


def _parts(text: str):
  """(part, whether it is code or a formula); the text once, in order. A fence that never closes is none."""
  at, missing = 0, set()            # closings that no longer occur: looked for once
  position = 0
  while match := _OPENING.search(text, position):
    fence = _FENCES[match.group()]
    if fence == "$":
      close = _CLOSING_DOLLAR.search(text, match.end()) if fence not in missing else None
      end = close.start() if close else -1
    else:
      end = text.find(fence, match.end()) if fence not in missing else -1
    if end < 0:
      missing.add(fence)
      position = match.end()
      continue
    yield text[at:match.start()], False
    yield text[match.end():end], True
    at = position = end + len(fence)
  yield text[at:], False

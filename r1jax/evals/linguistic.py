"""What IFEval's own program asks langdetect and NLTK: the language of a text, its sentences, its words.

They are the extra `ifeval`; NLTK's sentences also need its model punkt_tab, which comes apart from the package. Scores
depend on their versions a little, as the benchmark's do. langdetect draws at random: here always from the same seed.
"""

from __future__ import annotations

import functools
import importlib.util
import os

PACKAGE = 'pip install "r1jax[ifeval]"'
MODEL = "python -m nltk.downloader punkt_tab"


def missing(library: str) -> str:
  """What has to be installed for langdetect or nltk, with the command; empty where all is there."""
  if importlib.util.find_spec(library) is None:
    return f"{library}: {PACKAGE}"
  if library == "nltk":
    import nltk
    try:
      nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
      return f"NLTK's English sentences: {MODEL}"
  return ""


@functools.cache
def languages() -> frozenset[str]:
  """The codes that `in_language` knows, such as en, de, zh-cn."""
  import langdetect
  return frozenset(os.listdir(langdetect.PROFILES_DIRECTORY))


def in_language(text: str, language: str) -> bool:
  """Whether that is the text's likeliest language; also where there is nothing to tell it by, such as digits alone."""
  import langdetect
  langdetect.DetectorFactory.seed = 0
  try:
    return langdetect.detect(text) == language
  except langdetect.LangDetectException:
    return True


def sentences(text: str) -> int:
  import nltk
  return len(nltk.sent_tokenize(text))


def capital_words(text: str) -> int:
  """Words without a small letter, and with a letter: also A, I, and U.S.; well-known is one word."""
  import nltk
  return sum(word.isupper() for word in nltk.word_tokenize(text))

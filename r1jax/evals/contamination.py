"""Contamination: training lines that share an n-gram of words with a test problem.

R1 report (v2 A.2): training texts with a matching 10-gram of an evaluation's questions or reference
solutions were removed. What a word is, is not said; here:
- Unicode compatibility forms made one, lower case, apostrophes dropped, all other punctuation splits ("x^2+1" is
  x 2 1); a Chinese or Japanese character is a word by itself.
- All texts of a row count, nested ones too, each by itself: no gram spans two of them. A bare URL does not count.

Training is streamed: memory is that of the test side's grams. Limits: a paraphrase or a translation is not found; texts
of fewer than n words cannot be checked, and problems with no longer ones are counted; what prompts share, such as a
template, matches everywhere: `common` leaves out grams that stand in more than that many test problems.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from r1jax.data import read_jsonl

PAPER = 10                       # words of a gram
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_APOSTROPHE = re.compile(r"['’`´]")
_URL = re.compile(r"\s*https?://\S+\s*")


@dataclasses.dataclass(frozen=True)
class Index:
  """The grams of a test file. A problem is named by its 1-based line."""
  n: int
  grams: dict[str, tuple[int, ...]]    # gram -> the problems that it stands in
  sizes: dict[int, int]                # problem -> how many grams it has that count
  problems: int
  short: int                           # problems without a text of n words
  left_out: int                        # grams that stand in more than `common` problems


@dataclasses.dataclass(frozen=True)
class Overlap:
  """What one training line shares with one test problem."""
  test_line: int
  train_line: int
  grams: int                           # of the problem's, that the training line has
  share: float                         # of all of the problem's
  example: str                         # the first of them


def words(text: str) -> list[str]:
  return _WORD.findall(_APOSTROPHE.sub("", unicodedata.normalize("NFKC", text).lower()))


def grams(row: dict, n: int) -> dict[str, None]:
  """The n-grams of all texts of a row, each once, in their order."""
  out = {}
  for text in _texts(row):
    said = words(text)
    out |= dict.fromkeys(" ".join(said[i:i + n]) for i in range(len(said) - n + 1))
  return out


def index(test: str | Path, n: int = PAPER, common: int = 0) -> Index:
  """The grams of a JSONL file of test problems. common: leave out those in more problems than that; 0: none."""
  if n < 1 or common < 0:
    raise ValueError(f"n={n} must be at least 1, common={common} not negative")
  found: dict[str, list[int]] = {}
  problems = short = 0
  for line, row in read_jsonl(test):
    of_row = grams(row, n)
    problems, short = problems + 1, short + (not of_row)
    for gram in of_row:
      found.setdefault(gram, []).append(line)
  kept = {gram: tuple(lines) for gram, lines in found.items() if not common or len(lines) <= common}
  sizes: dict[int, int] = {}
  for lines in kept.values():
    for line in lines:
      sizes[line] = sizes.get(line, 0) + 1
  return Index(n, kept, sizes, problems, short, len(found) - len(kept))


def overlaps(train: str | Path, tests: Index) -> Iterator[tuple[int, list[Overlap]]]:
  """(training line, what it shares with each test problem, most first) for each line of a JSONL file, streamed."""
  for line, row in read_jsonl(train):
    shared: dict[int, list] = {}
    for gram in grams(row, tests.n):
      for problem in tests.grams.get(gram, ()):
        shared.setdefault(problem, [0, gram])[0] += 1
    yield line, sorted((Overlap(problem, line, count, count / tests.sizes[problem], example)
                        for problem, (count, example) in shared.items()), key=lambda o: (-o.share, o.test_line))


def _texts(value) -> Iterator[str]:
  if isinstance(value, str) and not _URL.fullmatch(value):
    yield value
  elif isinstance(value, dict | list):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _texts(item)

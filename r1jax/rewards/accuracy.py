r"""Rule-based accuracy: find the final answer in a text and match it with the gold one.

R1 report, Methods: a math answer stands in a required format (a box) and earns 1 if it
matches, else 0. The paper gives no matching rules; these are ours:
- STRICT counts only a marked answer: the one <answer>..</answer> block if there is one, else the last
  \boxed{..} or `#### ..` after the reasoning (after the last </think>). More than one <answer> or </answer>
  tag is `unparseable`, so that listing guesses never pays.
- LENIENT takes the last complete <answer> block, then the same marks anywhere, then "the answer is X" or
  "A: X", then the last number. It measures what the model knows, strict what it also formats.
  Whatever strict calls correct, lenient does too.
- A number is read only where exactly one stands in the answer ("18 eggs", "x = 5"; after the last = sign).
  Numbers compare exactly: 0.5 == 1/2, but 0.333 != 1/3.
- PERCENT is a unit, dropped like any other: 72% == 72, and 72% != 0.72 (GSM8K's golds leave the sign out).
- hundred, thousand, million, billion, trillion right after a number multiply it. A sign before a bracket, "minus" and
  "negative" count. Number words ("seventy-two"), roots, powers and other expressions are not evaluated.
- Other answers compare as strings, without case, spaces and LaTeX dressing.

The text is hostile: scans of all of it are linear, what parses numbers sees at most MAX_ANSWER characters,
and nothing is evaluated.
"""

from __future__ import annotations

import re
from fractions import Fraction

from r1jax.problem import Problem, Score

MAX_ANSWER = 1_000      # characters; a longer answer is not read
MAX_DIGITS = 100        # of one number as written
MAX_EXPONENT = 100      # 1e999999 would be a million digits

_UNSIGNED = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_NUMBER = re.compile(
  r"(?P<sign>(?<![\w)+-])[-+])?"                  # the - of 5-3 is no sign
  r"(?:(?P<whole>[0-9]+)\ +(?P<top>[0-9]+)/(?P<bottom>[0-9]+)|"
  rf"(?P<num>{_UNSIGNED})(?:\ ?/\ ?(?P<den>{_UNSIGNED}))?)")
# What may stand around the one number: words, units and light punctuation; no digits, operators, LaTeX.
_WORDS = re.compile(r"""(?:[^\W\d_π]|[\s.,;:'"’“”()\[\]/%°€£¥₹¢?!&-])*""")
_EQUALS = re.compile(r"(?<![<>!])=|≈")
# Not units: 5x, 5k, 2 pi, 5!, 5², 5 - x, 5/x, 5(x; but 5m, 5g, 5s, 5h, 5L, 5°C, 5/h, 5 (m) are.
_VARIABLE = r"[a-zA-Z](?<![mgshlLCFJNWVA])(?![a-zA-Z])"
_SYMBOL = re.compile(
  rf"{_VARIABLE}|\s*(?:[xyzn]|pi|squared|cubed)(?![a-zA-Z])|!|\s*[⁰¹²³⁴-₉⅐-↉]"
  rf"|\s*-\s*\(?[a-zA-Z](?![a-zA-Z])|\s*[/(]\s*\(?{_VARIABLE}")
# before the number: what makes it an expression, or another number; and its sign, where that is not right before it
_OPERATOR = re.compile(
  r"(?<![a-zA-Z])(?:[a-zA-Z](?:\)?\s*[-/][\s(]*)?|"
  r"(?i:not|log|ln|exp|sin|cos|tan|half of|twice|double|triple)[\s(\[]*)$")
_FAR_MINUS = re.compile(r"(?:(?<![\w)+-])-[(\[]|(?<![a-zA-Z])(?i:minus|negative)(?![a-zA-Z]))[\s(\[]*$")
_SQUARE_UNIT = re.compile(
  r"(\b(?:[cmk]?m|ft|in|yd|mi|feet|inches|meters|miles|units))\s*\^\s*(?:[23]|\{[23]\})(?!\w)")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PHRASE = re.compile(r"(?i:\banswer[ ]{0,3}(?:is\b|:))|^A:", re.MULTILINE)

_CHARACTERS = str.maketrans({
  "−": "-", "–": "-", "﹣": "-", "－": "-", "\u00a0": " ", "\u202f": " ", "~": " ",
  "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⁄": "/"})
_LATEX = tuple((re.compile(pattern), by) for pattern, by in (
  (r"\\[!,]", ""),                                                 # thin spaces: 10\,000
  (r"\\[;: ]", " "),
  (r"\\[dtc]frac", r"\\frac"),
  (r"(?<=[0-9])\s*\\frac", r" \\frac"),                            # 1\frac{1}{2} is 1 1/2
  (r"\\frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}", r"\1/\2 "),
  (r"\\frac\s*([0-9])\s*([0-9])", r"\1/\2 "),
  (r"\{,\}", ","),                                                 # 1{,}234
  (r"\\(?:left|right)(?![a-zA-Z])\s*", ""),                         # -\left(5\right)
  (r"\\displaystyle(?![a-zA-Z])|\\[()\[\]]", " "),
  (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
  (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))", "°"),
  (r"\\approx(?![a-zA-Z])", "≈"),
  (r"\\([%$&])", r"\1"),
  (r"\*\*|__", " "),                                               # Markdown bold
  (r"([-+])\s*(?:US)?\s*[$€£¥₹]\s*(?=[.0-9])", r"\1"),             # -$5, -US$5
  (r"\$", " ")))


def _plain(text: str) -> str:
  """An answer without LaTeX and typographic dressing. Call it on at most MAX_ANSWER characters."""
  text = text.translate(_CHARACTERS)
  for pattern, by in _LATEX:
    text = pattern.sub(by, text)
  return text.strip()


def _value(match: re.Match) -> Fraction | None:
  """The number that _NUMBER matched; None for one too long to read or over zero."""
  if sum(map(str.isdigit, match.group())) > MAX_DIGITS:
    return None
  parts = [part and part.replace(",", "") for part in match.group("whole", "top", "bottom", "num", "den")]
  exponents = re.findall(r"[eE]([-+]?[0-9]+)", match.group())
  if any(abs(int(exponent)) > MAX_EXPONENT for exponent in exponents):
    return None
  whole, top, bottom, num, den = [None if part is None else Fraction(part) for part in parts]
  if bottom == 0 or den == 0:
    return None
  value = num / (den or 1) if whole is None else whole + top / bottom
  return -value if match["sign"] == "-" else value


def parse_number(text: str) -> Fraction | None:
  """The one number that `text`, a whole answer, states; None if it states none, several or an expression."""
  text = text.strip()
  if len(text) > MAX_ANSWER:
    return None
  text = _SQUARE_UNIT.sub(r"\1", _EQUALS.split(_plain(text))[-1].strip())
  text = re.sub(r"^([-+])\s+(?=[.0-9(\[])", r"\1", text)
  match = _NUMBER.search(text)
  if match is None:
    return None
  before, after = text[:match.start()], text[match.end():]
  if not (_WORDS.fullmatch(before) and _WORDS.fullmatch(after)):
    return None
  if _SYMBOL.match(after) or "sqrt" in before or _OPERATOR.search(before):
    return None
  if "," in match.group() and before.rstrip().endswith(("(", "[")):          # a point or an interval: (100,200)
    return None
  value = _value(match)
  if value is not None and _FAR_MINUS.search(before):
    value = -value
  scale = re.match(r"\s*([a-z]+)", after.lower())
  return value if value is None or scale is None else value * _SCALES.get(scale[1], 1)


def _canonical(answer: str) -> str:
  """One spelling for each answer: "72", "3/4", else the string without case, spaces and final full stop."""
  value = parse_number(answer)
  if value is not None:
    return str(value)
  answer = answer.strip()
  return "".join(_plain(answer).split()).casefold().rstrip(".") if len(answer) <= MAX_ANSWER else ""


def equal(answer: str, gold: str) -> bool:
  """Same number, or, where either is not a number, same normalised string; nothing equals an empty one."""
  return _canonical(answer) == _canonical(gold) != ""


def check_gold(problem: Problem, *, number: bool = False) -> None:
  """ValueError for a gold answer that no answer can match: a fault of the data. Call it when loading."""
  where = f"problem id={problem.id}: gold answer {problem.answer[:80]!r}"
  if not _canonical(problem.answer):
    raise ValueError(f"{where} is empty, or longer than {MAX_ANSWER} characters")
  huge = re.search(rf"[0-9]{{{MAX_DIGITS}}}|[0-9][eE][-+]?[0-9]", problem.answer)
  if parse_number(problem.answer) is None and (number or huge):
    raise ValueError(f"{where} is not one readable number")


def _braced(text: str, start: int) -> str | None:
  """The inside of the balanced {..} that opens at `start`; None if it never closes."""
  depth, i = 0, start
  end = min(len(text), start + MAX_ANSWER + 2)
  while i < end:
    if text[i] == "\\":                           # \{ and \} are characters
      i += 1
    elif text[i] == "{":
      depth += 1
    elif text[i] == "}":
      depth -= 1
    if depth == 0:
      return text[start + 1:i]
    i += 1
  return None


def _marked(text: str) -> str | None:
  """The last \\boxed{..} or `#### ..` line, whichever comes later; None where it is empty or never closes."""
  box, hashes = text.rfind("\\boxed"), text.rfind("####")
  if box > hashes:
    opening = re.compile(r"[ \n]{0,9}(?=\{)").match(text, box + len("\\boxed"))
    inside = _braced(text, opening.end()) if opening else None
  elif hashes >= 0:
    inside = text[hashes + 4:].partition("\n")[0]
  else:
    return None
  return (inside or "").strip() or None


def _only_block(text: str) -> tuple[str | None, bool]:
  """(inside of the one <answer>..</answer>, None if there is none; whether a tag is repeated)."""
  if text.count("<answer>") > 1 or text.count("</answer>") > 1:
    return None, True
  inside, closed, _ = text.partition("<answer>")[2].partition("</answer>")
  return (inside if closed else None), False


def _block_answer(inside: str) -> str | None:
  """A block may hold a whole sentence and a box: the box, then, is the answer."""
  return _marked(inside) if "\\boxed" in inside or "####" in inside else inside.strip() or None


def _last_number(text: str) -> str | None:
  """The last number as written. A window is enough: one that does not fit has too many digits anyway."""
  end = max(text.rfind(digit) for digit in "0123456789") + 1
  start = max(0, end - 2 * MAX_DIGITS)
  matches = list(_NUMBER.finditer(_plain(text[start:end + 20])))
  return matches[-1].group() if matches else None


def _phrase_answer(text: str) -> str | None:
  """X of the last "the answer is X" or "A: X", to the end of its sentence."""
  end = None
  for match in _PHRASE.finditer(text):
    end = match.end()
  if end is None:
    return None
  rest = text[end:end + MAX_ANSWER].lstrip(" :*").partition("\n")[0].rstrip(" *")
  rest = re.split(r"[.!?](?:\s|$)", rest, maxsplit=1)[0].strip()
  if parse_number(rest) is None:
    number = _NUMBER.search(_plain(rest))
    return number.group() if number else rest or None
  return rest


def extract(text: str, strict: bool) -> str | None:
  """The final answer as written, by the rules at the top of this file; None if there is none."""
  inside, repeated = _only_block(text)
  if strict:
    if inside is not None or repeated:
      return None if repeated else _block_answer(inside)
    return _marked(text.rpartition("</think>")[2])
  _, opened, inside = text[:max(0, text.rfind("</answer>"))].rpartition("<answer>")
  block = _block_answer(inside.partition("</answer>")[0]) if opened else None
  return (block or _marked(text.rpartition("</think>")[2]) or _marked(text)
          or _phrase_answer(text) or _last_number(text))


def math_accuracy(problem: Problem, text: str, *, strict: bool = True) -> Score:
  """1 if the final answer equals the gold one. ValueError if the gold answer itself cannot be read."""
  check_gold(problem)
  answer = extract(text, strict)
  if answer is None:
    return Score(0.0, "unparseable" if strict and _only_block(text)[1] else "no_answer")
  if equal(answer, problem.answer):
    return Score(1.0, "correct")
  if not _canonical(answer) or (parse_number(problem.answer) is not None and parse_number(answer) is None):
    return Score(0.0, "unparseable")
  return Score(0.0, "wrong")


def exact_accuracy(problem: Problem, text: str) -> Score:
  """For symbolic tasks: the only <answer>..</answer> must hold the gold string, outer spaces aside."""
  if not problem.answer.strip():
    raise ValueError(f"problem id={problem.id}: gold answer is empty")
  inside, repeated = _only_block(text)
  if repeated:
    return Score(0.0, "unparseable")
  if inside is None or not inside.strip():
    return Score(0.0, "no_answer")
  correct = inside.strip() == problem.answer.strip()
  return Score(float(correct), "correct" if correct else "wrong")


def final_answer(text: str) -> str | None:
  """The answer in its one spelling, strict else lenient: what cons@k counts votes for."""
  answer = extract(text, strict=True) or extract(text, strict=False)
  return (_canonical(answer) or None) if answer else None

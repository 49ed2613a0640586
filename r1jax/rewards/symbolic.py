r"""Whether two answers are the same mathematics: structure by rules of ours, each leaf by math-verify and sympy.

The library (Hugging Face's math-verify, extra `math`) takes an answer for right where one of several readings matches;
a reward must not. So brackets, lists, signs of relation and units are read here, strictly, and the library parses and
compares single expressions:
- a list "1, 2" or "1 and 2", a set \{1, 2\}: same members, in any order, as often. "1 or 2" is a list of two, and never
  equals 1; 3 \pm x is a list of two
- (1, 2), [1, 2), (-\infty, 1]: tuples, points, intervals: same brackets, same members in this order; the one unlike
  neither a set nor a list. Unions: same pieces in any order. Interval and inequality in one variable: same set
- "x = 5" equals 5 for a gold answer of 5, and 5 equals a gold "x = 5"; but "x + y = 5" does not, nor y = 5 x = 5.
  Two equations are equal where one is a multiple of the other: y = 2x + 1 and 2x - y + 1 = 0. Inequalities too
- matrices and columns: member by member. \frac{a}{b}, a/b, roots, powers, \pi, trigonometry: as sympy simplifies them
- decimals are exact: \sqrt{2} is not 1.414, 1/3 is not 0.333333
- 3:4 is a ratio, no fraction; 12_5 (a base), set builders and words compare as strings only

sympy can hang or eat memory on an answer of ten characters (9^{9^{9^9}}): run this in workers.py. Letters' case is not
told apart, symbols are real, and the library's own time limits (SIGALRM) are off.
"""

from __future__ import annotations

import functools
import logging
import re

from r1jax.rewards.latex import plain, same_string, strings_only

MAX_MEMBERS = 20         # of a list; comparing is quadratic
MAX_NESTING = 20         # of brackets and braces: the parser's time doubles with some
MAX_DEPTH = 8            # of lists, tuples and sets in each other

_NAME = re.compile(
  r"(?:\\(?!frac|sqrt|pi)[a-zA-Z]++\s*+|[a-zA-Z])++'*(?:_(?:\{\w+\}|\w))?(?:\([a-zA-Z0-9, ]*\))?'*")
_RELATION = re.compile(r"\\(?:le|ge|neq?|in)(?![a-zA-Z])|[<>=]")
_OPEN, _CLOSE = ("(", "[", "\\{", "{"), (")", "]", "\\}", "}")


class Unreadable(ValueError):
  """An answer that this file cannot read."""


@functools.cache
def _library():
  """(latex string -> sympy, math_verify.verify, sympy), imported when first needed: half a second, 40 MB."""
  try:
    import sympy
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify import verify
  except ImportError as error:
    raise ValueError('symbolic mathematics needs math-verify: pip install "r1jax[math]"') from error
  for name in ("math_verify", "latex2sympy2_extended"):      # they warn that their time limit is off
    logging.getLogger(name).setLevel(logging.ERROR)
  normal = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
  parse = lambda latex: latex2sympy(normalize_latex(latex, normal), is_real=True, convert_degrees=False,
                                    normalization_config=None)
  return parse, functools.partial(verify, timeout_seconds=None, raise_on_error=True), sympy


def prepare() -> None:
  """The imports and the parser's tables, so that the first comparison is as quick as the others."""
  same(r"\frac{\sqrt{50}}{x}", r"\frac{5\sqrt{2}}{x}")


def same(answer: str, gold: str) -> bool:
  """Whether `answer` is the mathematics of `gold`. Unreadable where the answer, or the gold one, cannot be parsed."""
  if same_string(answer, gold):
    return True
  answer, gold = plain(answer), plain(gold)
  for text in (answer, gold):
    if not text or strings_only(text):
      raise Unreadable(f"{text[:80]!r} is no mathematics that is evaluated")
  return _guarded(lambda: _same(*_unwrap(answer, gold), 0))


def readable(text: str) -> bool:
  """Whether a plain answer equals itself: false for 1/0 and what the library misreads. Unreadable if it cannot say."""
  return _guarded(lambda: _same(text, text, 0))


def _guarded(compare) -> bool:
  try:
    return compare()
  except (MemoryError, Unreadable):
    raise
  except Exception as error:          # sympy raises all kinds; a recursion too deep is one of them
    raise Unreadable(f"{type(error).__name__}: {str(error)[:200]}") from error


def _unwrap(answer: str, gold: str) -> tuple[str, str]:
  """Without "x =" and "x \\in" where only one of the two has it."""
  if _relations(answer) and not _relations(gold):
    return _right_side(answer), gold
  if _relations(gold) and not _relations(answer) and "," not in gold:
    return answer, _right_side(gold)
  return answer, gold


def _relations(text: str) -> list[str]:
  return _RELATION.findall(text)


def _right_side(text: str) -> str:
  """5 of "x = 5", "x \\in {5}", "2 + 3 = 5"; the whole text where what is equated is an equation of its own."""
  members = _split(text, ",")
  if len(members) > 1:
    return ",".join(map(_right_side, members))
  *left, right = re.split(r"=|\\in(?![a-zA-Z])", text)
  stated = all(_NAME.fullmatch(part.strip()) or (not re.search(r"[a-zA-Z]", part) and _scalars(part, right))
               for part in left)
  return right.strip() if left and stated and not _relations(right) else text


def _same(a: str, b: str, depth: int) -> bool:
  a, b = a.strip(), b.strip()
  if depth > MAX_DEPTH or not a or not b:
    raise Unreadable("lists in each other too deep, or nothing in one")
  pieces = [_split(text, r"\cup") for text in (a, b)]
  if max(map(len, pieces)) > 1:
    if all(not _relations(text) for text in (a, b)):
      return _any_order(*pieces, depth)
  elif not (_relations(a) and "," not in a) == (_relations(b) and "," not in b):
    return _relation_and_set(a, b)
  lists = [_list(text) for text in (a, b)]
  if max(map(len, lists)) > 1:
    return _any_order(*lists, depth)
  brackets = [_bracketed(text) for text in lists[0] + lists[1]]
  if brackets[0] and brackets[1]:
    (open_a, members_a, close_a), (open_b, members_b, close_b) = brackets
    if (open_a, close_a) != (open_b, close_b):
      return len(members_a) == len(members_b) == 1 and _scalars(a, b)
    if open_a == "\\{":
      return _any_order(members_a, members_b, depth)
    return len(members_a) == len(members_b) and all(
      _same(x, y, depth + 1) for x, y in zip(members_a, members_b, strict=True))
  if (brackets[0] or brackets[1]) and len((brackets[0] or brackets[1])[1]) > 1:
    _scalars(*[text for text, bracket in zip((a, b), brackets, strict=True) if not bracket] * 2)   # is it readable?
    return False
  if _relations(a) and _relations(b):
    return _same_relations(a, b)
  return _scalars(a, b)


def _any_order(a: list[str], b: list[str], depth: int) -> bool:
  if max(len(a), len(b)) > MAX_MEMBERS:
    raise Unreadable(f"more than {MAX_MEMBERS} members")
  left = list(b)
  for x in a:
    found = next((y for y in left if _same(x, y, depth + 1)), None)
    if found is None:
      return False
    left.remove(found)
  return not left


def _list(text: str) -> list[str]:
  """Members of a bare list; a \\pm b is two."""
  members = _split(text, ",")
  return [text.replace(r"\pm", sign) for text in members for sign in ("+", "-")[:1 + (text.count(r"\pm") == 1)]]


def _split(text: str, separator: str) -> list[str]:
  """`text` at the separators outside of brackets. Unreadable if brackets do not match."""
  parts, depth, start, i = [], 0, 0, 0
  while i < len(text):
    token = text[i:i + 2] if text[i] == "\\" else text[i]
    depth += (token in _OPEN) - (token in _CLOSE)
    if depth < 0 or depth > MAX_NESTING:
      raise Unreadable("brackets do not match, or are nested too deep")
    if depth == 0 and text.startswith(separator, i):
      parts.append(text[start:i])
      start = i + len(separator)
    i += len(separator) if start > i else len(token)
  if depth:
    raise Unreadable("brackets do not match")
  parts.append(text[start:])
  return [part.strip() for part in parts]


def _bracketed(text: str) -> tuple[str, list[str], str] | None:
  """(opening, members, closing) if one pair of brackets holds all of the text."""
  for size in (2, 1):
    if text[:size] in ("(", "[", "\\{") and text[-size:] in (")", "]", "\\}") and len(text) > 2 * size:
      try:
        return text[:size], _split(text[size:-size], ","), text[-size:]
      except Unreadable:                  # (a)(b): the first does not close at the end
        return None
  return None


def _scalars(a: str, b: str) -> bool:
  """Two single expressions, or matrices."""
  _, _, sympy = _library()
  x, y = _parse(a), _parse(b)
  matrices = [isinstance(value, sympy.MatrixBase) for value in (x, y)]
  if any(matrices):
    return all(matrices) and x.shape == y.shape and all(
      _equal(*pair) for pair in zip(x.flat(), y.flat(), strict=True))
  return _equal(x, y)


def _equal(x, y) -> bool:
  _, verify, sympy = _library()
  if not isinstance(x, sympy.Expr) or not isinstance(y, sympy.Expr):
    return x == y
  if x.has(sympy.nan, sympy.zoo) or y.has(sympy.nan, sympy.zoo):
    raise Unreadable("a division by zero")
  if not verify(y, x):
    return False
  # it rounds the difference, to nothing where both are tiny: then the quotient says more
  return x == y or y == 0 or bool(x.free_symbols) or verify(sympy.Integer(1), x / y)


def _parse(text: str):
  """sympy of one expression, decimals as exact fractions."""
  parse, _, sympy = _library()
  value = parse(text)
  return value.xreplace({f: sympy.Rational(str(f)) for f in value.atoms(sympy.Float)})


def _same_relations(a: str, b: str) -> bool:
  """Chains of equations or inequalities: the same relations, each up to a factor (a negative one turns it around)."""
  parts = []
  for text in (a, b):
    values, signs = _RELATION.split(text), _relations(text)
    if any(sign not in ("=", "<", ">", r"\le", r"\ge") for sign in signs):
      raise Unreadable("a relation of another kind")
    if set(signs) == {"="}:
      values, signs = [values[0], values[-1]], ["="]
    parsed = [_parse(value) for value in values]
    parts.append([(parsed[i] - parsed[i + 1], sign) for i, sign in enumerate(signs)])
  left = list(parts[1])
  for relation in parts[0]:
    found = next((other for other in left if _multiple(*relation, *other)), None)
    if found is None:
      return False
    left.remove(found)
  return not left


def _multiple(x, sign_x: str, y, sign_y: str) -> bool:
  """Whether "x sign_x 0" says what "y sign_y 0" says."""
  _, _, sympy = _library()
  if x == 0 or y == 0:
    return x == y and sign_x == sign_y
  factor = sympy.simplify(x / y)
  if factor.free_symbols or not factor.is_finite or factor == 0:
    return False
  turned = {"=": "=", "<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
  return sign_y == (sign_x if factor > 0 else turned[sign_x])


def _relation_and_set(a: str, b: str) -> bool:
  """x < 2 and (-\\infty, 2), by the library; False for what is no such pair."""
  _, verify, sympy = _library()
  x, y = _parse(a), _parse(b)
  sets = [isinstance(value, sympy.Set) and not isinstance(value, sympy.FiniteSet) for value in (x, y)]
  return any(sets) and verify(y, x, allow_set_relation_comp=True)

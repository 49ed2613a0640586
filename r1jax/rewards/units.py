r"""Units of measure in answers: dropped, unless the gold answer and the other state two that are known to differ.

"5 cm", "5\text{ cm}" and "5 centimeters" are 5; for a gold answer of 5 cm, 5 m is wrong and 5 right. Units that the
table does not know ("clips") are dropped unread, and 500 cm is not 5 m: nothing is converted. A square is its side's
unit.
"""

from __future__ import annotations

import re

UNITS = {name: unit for unit, names in dict(
  m="m meter meters metre metres", cm="cm centimeter centimeters centimetre centimetres",
  mm="mm millimeter millimeters", km="km kilometer kilometers kilometre kilometres", inch="in inch inches",
  foot="ft foot feet", yard="yd yard yards", mile="mi mile miles", second="s sec second seconds",
  minute="min minute minutes", hour="h hr hrs hour hours", day="day days", week="week weeks", month="month months",
  year="year years yr yrs", dollar="dollar dollars USD", cent="cent cents", degree="degree degrees deg",
  radian="rad radian radians", g="g gram grams", kg="kg kilogram kilograms", lb="lb lbs pound pounds",
  ounce="oz ounce ounces", litre="L liter liters litre litres", ml="ml mL milliliter milliliters", mph="mph",
  gallon="gallon gallons gal", percent="percent").items() for name in names.split()}
# plain words that may follow a number; one letter could as well be a variable, and "in" a word
_KNOWN = "|".join(sorted((name for name in UNITS if len(name) > 1 and name != "in"), key=len, reverse=True))
_PLAIN = re.compile(rf"(?:(?<=[0-9)}}])|(?<=pi)|(?<=pi\s))\s*(?:(?:square|cubic|sq\.?|cu\.?)\s*)?"
                    rf"(?:{_KNOWN}|units?)(?![a-zA-Z])"
                    r"(?:\s*\^\s*\{?[23]\}?)?")
_STATED = re.compile(r"[0-9)}]\s*(?:\\[,; ]\s*)?(?:\\(?:text|textrm|mathrm|mbox)\s*\{\s*)?"
                     r"(?:(?:square|cubic|sq\.?|cu\.?)\s*)?([a-zA-Z]+)(\s*\})?")
_SIGN = re.compile(r"\^\s*\{?\s*\\circ|°")


def unit_of(answer: str) -> str | None:
  """The known unit that `answer` states behind a number; one letter counts only inside of \\text."""
  match = _STATED.search(answer)
  if match and match[1] in UNITS and (len(match[1]) > 1 or match[2]):
    return UNITS[match[1]]
  return "degree" if _SIGN.search(answer) else "dollar" if "\\$" in answer else None


def conflict(answer: str, gold: str) -> bool:
  """Whether both state a known unit, and not the same."""
  units = {unit_of(answer), unit_of(gold)} - {None}
  return len(units) > 1


def without(answer: str) -> str:
  """`answer` without units in plain words."""
  return _PLAIN.sub("", answer)

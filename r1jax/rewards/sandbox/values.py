"""Plain data as JSON: how a value leaves the process of an untrusted program, and is read without trusting it.

Exact types of None, bool, int, float, str, bytes, complex, list, tuple, set, frozenset, dict, range, deque, Fraction,
Decimal, date, datetime, time, timedelta; an instance of a subclass (Counter, a named tuple, an int whose __eq__ says
yes to all) is sent as the plain value under it. An iterator is sent as one, with what it yields; dictionary keys and
values as lists in an iterator. Anything else has no plain value: TypeError.

This file is also loaded by runner.py in a bare interpreter: the standard library only.
"""

from __future__ import annotations

import itertools

MAX_NODES = 200_000
SMALL = 2**62


def encode(value, budget: list[int] | None = None):
  """`value` as what json.dumps takes. TypeError where it is not plain data, OverflowError where it is too large."""
  budget = [MAX_NODES] if budget is None else budget
  budget[0] -= 1
  if budget[0] < 0:
    raise OverflowError(f"more than {MAX_NODES} values")
  if value is None or value is True or value is False:
    return value
  inner = lambda items: [encode(x, budget) for x in itertools.islice(items, MAX_NODES + 1)]
  if isinstance(value, str):
    return str.__str__(value)
  if isinstance(value, int):
    value = int.__index__(value)
    return value if -SMALL < value < SMALL else ["int", hex(value)]
  if isinstance(value, float):
    return float.__float__(value)
  if isinstance(value, complex):
    return ["complex", [value.real, value.imag]]
  if isinstance(value, bytes | bytearray):
    return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
  for kind in (list, tuple, set, frozenset):
    if isinstance(value, kind):
      return [kind.__name__, inner(kind.__iter__(value))]
  if isinstance(value, dict):
    return ["dict", [[encode(k, budget), encode(v, budget)] for k, v in dict.items(value)]]
  if type(value) is range:
    return ["range", [encode(x) for x in (value.start, value.stop, value.step)]]
  name = type(value).__name__
  if type(value).__module__ in ("fractions", "decimal", "datetime", "collections") and name in CONSTRUCTORS:
    return [name, _parts(name, value, budget)]
  if hasattr(type(value), "__next__"):
    return ["iterator", inner(value)]
  if type(value) in (type({}.keys()), type({}.values()), type({}.items())):
    return ["iterator", inner(value)]
  raise TypeError(f"a {name} is not plain data")


def _parts(name: str, value, budget):
  if name == "Fraction":
    return [encode(value.numerator), encode(value.denominator)]
  if name == "Decimal":
    return [str(value)]
  if name == "timedelta":
    return [value.days, value.seconds, value.microseconds]
  if name == "deque":
    return [encode(list(value), budget)]
  return [value.isoformat()]


def _constructors() -> dict:
  # not imported until one is needed: a forked child should start quickly
  import collections
  import datetime
  import decimal
  import fractions
  return dict(
    Fraction=fractions.Fraction, Decimal=decimal.Decimal, timedelta=datetime.timedelta, deque=collections.deque,
    date=datetime.date.fromisoformat, datetime=datetime.datetime.fromisoformat, time=datetime.time.fromisoformat)


CONSTRUCTORS = ("Fraction", "Decimal", "timedelta", "deque", "date", "datetime", "time")
KINDS = dict(list=list, tuple=tuple, set=set, frozenset=frozenset, iterator=iter)


def decode(data):
  """The value that encode() was given. ValueError for anything that encode() does not write."""
  if data is None or isinstance(data, bool | int | float | str):
    return data
  try:
    kind, body = data
    if kind in KINDS:
      return KINDS[kind]([decode(x) for x in body])
    if kind == "dict":
      return {decode(k): decode(v) for k, v in body}
    if kind == "int":
      return int(body, 16)
    if kind == "complex":
      return complex(*map(float, body))
    if kind in ("bytes", "bytearray"):
      return (bytes if kind == "bytes" else bytearray).fromhex(body)
    if kind == "range":
      return range(*map(decode, body))
    if kind in CONSTRUCTORS:
      return _constructors()[kind](*map(decode, body))
  except (TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
    raise ValueError(f"not plain data: {type(error).__name__}") from None
  raise ValueError(f"not plain data: kind {str(kind)[:20]!r}")

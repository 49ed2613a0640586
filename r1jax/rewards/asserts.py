"""Asserts taken apart, so that the program under test never meets the value it should return.

`assert f(2) == 4`: the program's process evaluates `f(2)` and sends back plain data; what is left, `_0 == 4`, is
evaluated where the program is not. So there is no comparison to patch, no expected value to read, no early exit that
counts as success. What goes to the program are the smallest expressions that begin with a name of its own, or else a
comprehension, or a call of map, filter, sorted, min or max over it: never one with a comparison inside.

An assert that cannot be split like this (`all(f(x) == y for x, y in pairs)`) is a ValueError: a fault of the data.
Limits: what the program returns must be plain data (sandbox/values.py); objects of the program's own classes are not.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import sys
from typing import Any

HIGHER_ORDER = ("map", "filter", "sorted", "min", "max")
COMPARING = ast.Compare | ast.BoolOp | ast.IfExp | ast.NamedExpr | ast.Await | ast.Yield
NO_LITERAL = object()


@dataclasses.dataclass(frozen=True)
class Assert:
  """One test."""
  expressions: tuple[str, ...]   # for the program's process; the values are _0, _1, ..
  judge: str                     # for a clean one: the assert's condition, with _0, _1, .. in it
  imports: str                   # modules of the standard library that the condition names
  literal: Any = NO_LITERAL      # where the condition is `_0 == literal`


def defined(code: str) -> set[str]:
  """Names that a program defines or assigns at its top level; not those that it imports."""
  names, todo = set(), list(ast.parse(code).body)
  while todo:
    node = todo.pop()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      names.add(node.name)
    elif not isinstance(node, ast.Lambda):
      names |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
      todo += ast.iter_child_nodes(node)
  return names


def used(code: str) -> set[str]:
  return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def split(source: str, names: set[str]) -> Assert:
  """The assert `source`; `names` are the program's. ValueError where the two sides cannot be told apart."""
  try:
    body = ast.parse(source.strip()).body
  except (SyntaxError, ValueError, RecursionError) as error:
    raise ValueError(f"not Python: {error}") from None
  if len(body) != 1 or not isinstance(body[0], ast.Assert):
    raise ValueError("not one assert statement")
  splitter = _Splitter(names, body[0].test)
  condition = splitter.rest(body[0].test)
  if not splitter.expressions:
    raise ValueError(f"names nothing of the program's: {', '.join(sorted(names)) or 'no names given'}")
  literal = NO_LITERAL
  match condition:
    case ast.Compare(left=ast.Name(id="_0"), ops=[ast.Eq()], comparators=[other]):
      try:
        literal = ast.literal_eval(other)
      except ValueError:
        pass
  unknown = {n.id for n in ast.walk(condition) if isinstance(n, ast.Name)} - splitter.bound - set(dir(builtins))
  unknown -= {f"_{i}" for i in range(len(splitter.expressions))}
  if foreign := unknown - sys.stdlib_module_names:
    raise ValueError(f"names neither the program's, nor built in, nor a module: {', '.join(sorted(foreign))}")
  imports = "".join(f"import {name}\n" for name in sorted(unknown))
  return Assert(tuple(map(ast.unparse, splitter.expressions)), ast.unparse(condition), imports, literal)


class _Splitter:
  def __init__(self, names: set[str], test: ast.expr):
    self.names = names
    self.bound = _bound(test)
    self.expressions: list[ast.expr] = []

  def rest(self, node: ast.AST) -> ast.AST:
    """`node` with what the program must evaluate replaced by _0, _1, .."""
    inside = list(ast.walk(node))
    if not any(isinstance(n, ast.Name) and n.id in self.names for n in inside):
      return node
    if isinstance(node, ast.expr) and self._for_the_program(node):
      said = ast.unparse(node)[:80]
      if any(isinstance(n, COMPARING) for n in inside):
        raise ValueError(f"cannot be split: a comparison is inside {said!r}")
      if {n.id for n in inside if isinstance(n, ast.Name)} & (self.bound - _bound(node)):
        raise ValueError(f"cannot be split: {said!r} depends on a variable of the assert")
      self.expressions.append(node)
      return ast.copy_location(ast.Name(f"_{len(self.expressions) - 1}", ast.Load()), node)
    if isinstance(node, ast.Name):
      raise ValueError(f"cannot be split: {node.id!r} is of the program, but not called")
    fields = {}
    for name, value in ast.iter_fields(node):
      if isinstance(value, list):
        value = [self.rest(x) if isinstance(x, ast.AST) else x for x in value]
      fields[name] = self.rest(value) if isinstance(value, ast.AST) else value
    return ast.copy_location(type(node)(**fields), node)

  def _for_the_program(self, node: ast.expr) -> bool:
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
      return self._ours(node.elt)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in HIGHER_ORDER:
      arguments = [*node.args, *(k.value for k in node.keywords)]
      return any(isinstance(a, ast.Name) and a.id in self.names for a in arguments)
    return self._ours(node)

  def _ours(self, node: ast.expr) -> bool:
    """Whether it is a call, attribute or item of a name of the program's, such as f(2).x[0]."""
    root = node
    while isinstance(root, ast.Call | ast.Attribute | ast.Subscript):
      root = root.func if isinstance(root, ast.Call) else root.value
    return root is not node and isinstance(root, ast.Name) and root.id in self.names


def _bound(node: ast.AST) -> set[str]:
  """Variables of comprehensions, lambdas and := inside."""
  return {n.arg if isinstance(n, ast.arg) else n.id for n in ast.walk(node)
          if isinstance(n, ast.arg) or (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))}

"""Code rewards: which program is in a text, how asserts are taken apart, what is paid."""

import concurrent.futures
import json
from collections import Counter, OrderedDict, deque, namedtuple
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from r1jax.rewards import asserts, code, sandbox
from r1jax.rewards.code import code_accuracy, extract, normal, read_tests
from r1jax.rewards.sandbox import Limits, values
from r1jax.types import Problem, Score

SQUARE = dict(asserts=["assert f(2) == 4", "assert f(3) == 9", "assert f(0) == 0"], names=["f"])


@pytest.fixture(autouse=True, scope="module")
def _sandbox():
  if missing := sandbox.capabilities().missing():
    pytest.skip(f"no sandbox here: {missing}")


def problem(tests):
  return Problem(7, "", json.dumps(tests))


def block(program):
  return f"<think>so</think> <answer>\n```python\n{program}\n```\n</answer>"


# --- what is paid -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "score", "share"), [
  (block("def f(n): return n * n"), (1, "correct"), 1),
  (block("def f(n): return 2 * n"), (0, "wrong"), 2 / 3),
  (block("def f(n): return [n * n]"), (0, "wrong"), 0),
  (block("def f(n): return float(n * n)"), (1, "correct"), 1),       # 4.0 == 4, as the assert says
  (block("def g(n): return n * n"), (0, "wrong"), 0),
  (block("def f(n): return 1 / n and n * n"), (0, "wrong"), 2 / 3),
  (block("def f(n):\n  while n == 3: pass\n  return n * n"), (0, "timeout"), 2 / 3),
  (block("def f(n) return n * n"), (0, "unparseable"), 0),
  (block("def f(n): return '' if n else 0"), (0, "wrong"), 1 / 3),
  (block("import os\ndef f(n): return n * n if n < 3 else os.abort()"), (0, "refused"), 2 / 3),
  (block("#" * code.MAX_PROGRAM + "\ndef f(n): return n * n"), (0, "unparseable"), 0),
  ("<think>f(n) is n * n</think> <answer>n * n</answer>", (0, "no_answer"), 0),
  ("", (0, "no_answer"), 0)])
def test_all_tests_must_pass_or_their_share_is_paid(text, score, share):
  limits = Limits(wall=1.0)
  assert code_accuracy(problem(SQUARE), text, limits=limits) == Score(*score)
  assert code_accuracy(problem(SQUARE), text, limits=limits, proportional=True) == Score(pytest.approx(share), score[1])


def test_setup_comes_after_the_program_and_before_each_test():
  every = ["assert root.x == 1", "assert root.double() == 2"]
  tests = dict(asserts=every, names=["Node", "root"], setup="root = Node(1)")
  good = "class Node:\n  def __init__(self, x): self.x = x\n  def double(self):\n    self.x *= 2\n    return self.x"
  assert code_accuracy(problem(tests), block(good)).verdict == "correct"
  assert code_accuracy(problem(tests), block("root = 1")).verdict == "wrong"


@pytest.mark.parametrize(("program", "verdict"), [
  ("print(int(input()) ** 2)", "correct"), ("print(int(input()) ** 2, end='  \\n\\n')", "correct"),
  ("import sys\nfor line in sys.stdin: sys.stdout.write(str(int(line) ** 2))\nexit()", "correct"),
  ("if __name__ == '__main__': print(int(input()) ** 2)", "correct"),
  ("print(4)", "wrong"), ("print(' ', int(input()) ** 2)", "wrong"), ("print(int(input()) ** 2)\nexit(1)", "wrong"),
  ("print(int(input()) ** 2)\n1 / 0", "wrong"), ("print(int(input()) ** 2)\nimport os\nos._exit(0)", "wrong"),
  ("print(", "unparseable"), ("while True: print(1)", "refused")])
def test_a_script_is_judged_by_what_it_prints(program, verdict):
  tests = dict(cases=[dict(stdin="2\n", stdout="4\n"), dict(stdin="-3", stdout="9")])
  assert code_accuracy(problem(tests), block(program)).verdict == verdict


def test_output_is_compared_without_white_space_at_the_ends():
  assert normal("a \nb\t\r\n\n \n") == "a\nb" and normal(" a") == " a" and normal("a\n\nb") == "a\n\nb"
  with pytest.raises(ValueError, match=r"id=7: expects 99 bytes of output, limits\.output=10"):
    code_accuracy(problem(dict(cases=[dict(stdin="", stdout="9" * 99)])), block("1"), limits=Limits(output=10))


def test_no_sandbox_is_an_error_and_a_broken_one_is_counted(monkeypatch):
  def broken(*args, **kwargs):
    raise sandbox.SandboxError("the machine is full")
  with monkeypatch.context() as patch:
    patch.setattr(sandbox, "_start", broken)
    assert code_accuracy(problem(SQUARE), block("def f(n): return n * n")) == Score(0.0, "refused")
  monkeypatch.setattr(sandbox, "capabilities", lambda: sandbox.Means(reasons=("seccomp: no",)))
  with pytest.raises(NotImplementedError, match=r"no seccomp.*seccomp: no"):
    code_accuracy(problem(SQUARE), block("def f(n): return n * n"))
  assert code_accuracy(problem(SQUARE), block("def f(n): return n * n"), unsandboxed=True).verdict == "correct"


def test_many_completions_are_judged_at_once():
  texts = [block(f"def f(n): return n * n + {i % 2}") for i in range(12)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    scores = list(pool.map(lambda text: code_accuracy(problem(SQUARE), text).value, texts))
  assert scores == [1, 0] * 6


# --- which program ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "strict", "lenient"), [
  ("```python\na\n```", "a", "a"), ("```py\na\n```\n", "a", "a"), ("```\r\na\r\n```", "a", "a"),
  ("x\n```python\na\n```\ny\n```Python\nb\n\nc\n```\nz", "b\n\nc", "b\n\nc"),
  ("```python\na\n```\nIt prints\n```text\nb\n```", "a", "a"),
  ("<think>\n```python\na\n```\n</think>\nnone", None, "a"),
  ("<think>x</think>\n```python\na\n```", "a", "a"),
  ("<think>x</think><answer>\n```python\na\n```\n</answer>", "a", "a"),
  ("<think>x</think>\n```python\na\n```\n<answer>b</answer>", None, "a"),
  ("<answer>\n```python\na\n```\n", None, "a"),                       # never closed
  ("```python\na", None, "```python\na"), ("a", None, "a"), ("<think>x</think>a", None, "a"), ("", None, None),
  ("```python\n```", None, None), ("<answer>\n```\na\n```\n</answer>\n```\nb\n```", "a", "a"),
  ("    ```python\n  a\n    ```", "  a", "  a")])
def test_the_last_closed_block_is_the_program(text, strict, lenient):
  assert extract(text) == strict
  assert extract(text, strict=False) == lenient


@pytest.mark.parametrize("text", ["```" * 50_000, "```python\n" * 50_000, "`" * 200_000, "<answer>" * 50_000,
                                  "```\n" * 50_000, "\n" * 200_000, " " * 200_000])
def test_extraction_is_linear(text):
  assert len(extract(text) or "") <= len(text)


# --- asserts ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("source", "expressions", "judge"), [
  ("assert f(2) == 4", ("f(2)",), "_0 == 4"),
  ("assert f(2) == 4, 'why'", ("f(2)",), "_0 == 4"),
  ("assert 4 == f(2)", ("f(2)",), "4 == _0"),
  ("assert f(f(2), [g(1)])[0].x == 4", ("f(f(2), [g(1)])[0].x",), "_0 == 4"),
  ("assert math.isclose(f(2), 4, rel_tol=1e-3)", ("f(2)",), "math.isclose(_0, 4, rel_tol=0.001)"),
  ("assert set(f(2)) == set([1, 2])", ("f(2)",), "set(_0) == set([1, 2])"),
  ("assert int(f(2)) == 4", ("f(2)",), "int(_0) == 4"), ("assert f(2)", ("f(2)",), "_0"),
  ("assert not f(2)", ("f(2)",), "not _0"), ("assert abs(f(2) - 4) < 1e-6", ("f(2)",), "abs(_0 - 4) < 1e-06"),
  ("assert 3 <= f(2) < g(1)", ("f(2)", "g(1)"), "3 <= _0 < _1"), ("assert f(2) in (4, 5)", ("f(2)",), "_0 in (4, 5)"),
  ("assert f(2) == 4 and g(1) is None", ("f(2)", "g(1)"), "_0 == 4 and _1 is None"),
  ("assert [f(x) for x in (1, 2)] == [1, 4]", ("[f(x) for x in (1, 2)]",), "_0 == [1, 4]"),
  ("assert list(map(f, [1, 2])) == [1, 4]", ("map(f, [1, 2])",), "list(_0) == [1, 4]"),
  ("assert sorted([1, 2], key=f) == [2, 1]", ("sorted([1, 2], key=f)",), "_0 == [2, 1]"),
  ("assert [x for x in f(2)] == [1]", ("f(2)",), "[x for x in _0] == [1]"),
  ("assert all(x > 1 for x in f(2))", ("f(2)",), "all((x > 1 for x in _0))"),
  ("assert isinstance(f(2), int)", ("f(2)",), "isinstance(_0, int)")])
def test_an_assert_is_taken_apart(source, expressions, judge):
  test = asserts.split(source, {"f", "g"})
  assert (test.expressions, test.judge) == (expressions, judge)
  assert test.imports == ("import math\n" if "math" in source else "")


@pytest.mark.parametrize(("source", "reason"), [
  ("assert all(f(x) == y for x, y in [(1, 1)])", "depends on a variable of the assert"),
  ("assert all([f(x) == 1 for x in [1]])", "depends on a variable of the assert"),
  ("assert f(3 == 3)", "a comparison is inside"), ("assert f(1 if 2 else 3) == 4", "a comparison is inside"),
  ("assert [f(x == 1) for x in [1]] == [4]", "a comparison is inside"),
  ("assert all(map(lambda x, y: eq(f(x), y), [1], [2]))", "depends on a variable"),
  ("assert check(f, 4)", "'f' is of the program, but not called"), ("assert f == 4", "not called"),
  ("assert isinstance(g, f)", "not called"), ("assert isclose(f(2), 4)", "nor a module: isclose"),
  ("assert h(2) == 4", "names nothing of the program's: f, g"), ("f(2) == 4", "not one assert"),
  ("assert f(2) == 4; x = 1", "not one assert"), ("assert f(2) = 4", "not Python"), ("assert (", "not Python")])
def test_an_assert_that_cannot_be_taken_apart_is_refused(source, reason):
  with pytest.raises(ValueError, match=reason):
    asserts.split(source, {"f", "g"})


@pytest.mark.parametrize(("source", "good", "bad"), [
  ("assert set(f()) == {1, 2}", "[2, 1, 1]", "[1]"), ("assert list(f()) == [1, 2]", "(x for x in (1, 2))", "[2, 1]"),
  ("assert f() == [1, 2]", "[1, 2]", "(x for x in (1, 2))"), ("assert math.isclose(f(), 0.3)", "0.1 + 0.2", "0.31"),
  ("assert f() == 0.3", "0.3", "0.1 + 0.2"), ("assert f() is None", "None", "0"), ("assert not f()", "[]", "[0]"),
  ("assert 2 < f() <= 4", "4", "2"), ("assert len(f()) == 2", "'ab'", "None"), ("assert f() == True", "1", "'True'"),
  ("assert sys.getsizeof(f()) == sys.getsizeof('abc')", "'xyz'", "'xyzt'"),
  ("assert f() == (1, 2)", "(1, 2)", "[1, 2]"),
  ("assert isinstance(f(), float)", "1.0", "1"), ("assert f() == list(range(30000))", "list(range(30000))", "[1]")])
def test_what_is_left_is_judged_where_the_program_is_not(source, good, bad):
  tests = dict(asserts=[source], names=["f"])
  assert code_accuracy(problem(tests), block(f"def f(): return {good}")).verdict == "correct"
  assert code_accuracy(problem(tests), block(f"def f(): return {bad}")).verdict == "wrong"


@pytest.mark.parametrize(("tests", "reason"), [
  ("nonsense", "not JSON"), ([], "must be a JSON object"), ({}, "must be a JSON object"),
  (dict(asserts=[], names=["f"]), "none given"), (SQUARE | dict(cases=[]), "must be a JSON object"),
  (SQUARE | dict(name="f"), "unknown name"), (SQUARE | dict(names=[]), "'names' must be"),
  (SQUARE | dict(names=["f()"]), "'names' must be"), (SQUARE | dict(asserts=[1]), "must be strings"),
  (SQUARE | dict(setup=1), "must be strings"), (SQUARE | dict(setup="assert f(2) == 4"), "holds an assert"),
  (SQUARE | dict(setup="x ="), "'setup' is not Python"), (SQUARE | dict(asserts=["assert f == 1"]), "cannot be split"),
  (dict(cases=[dict(stdin="")]), "a case must have"), (dict(cases=[dict(stdin="", stdout=1)]), "a case must have")])
def test_tests_that_cannot_be_read_are_a_fault_of_the_data(tests, reason):
  answer = tests if isinstance(tests, str) else json.dumps(tests)
  with pytest.raises(ValueError, match=f"^problem id=7: .*{reason}"):
    code_accuracy(Problem(7, "", answer), block("def f(n): return 4"))
  with pytest.raises(ValueError, match=reason):
    read_tests(answer)


def test_the_expected_values_are_not_in_what_is_sent():
  tests = read_tests(json.dumps(dict(asserts=["assert f(2) == 'sesame'", "assert f(3) in ['sesame']"], names=["f"])))
  assert "sesame" not in repr(tests.cases) and "sesame" in repr(tests.asserts)
  assert "sesame" not in repr(read_tests(json.dumps(dict(cases=[dict(stdin="2", stdout="sesame")]))).cases)


# --- plain data -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [
  None, True, 0, -5, 2**62, -(2**200), 1.5, -0.0, float("inf"), 1e-320, "", "é\ud800\0", b"\0x", bytearray(b"x"),
  2 + 3j, [1, [2.0, ()]], {"a": {1, 2}, (1, frozenset([3])): None}, range(2, 9, 3), deque([1, [2]]), Fraction(1, 3),
  Decimal("1.50"), date(2024, 2, 29), datetime(2024, 2, 29, 1, 2, 3), time(1, 2), timedelta(-1, 2, 3)])
def test_a_value_comes_back_as_it_was(value):
  got = values.decode(json.loads(json.dumps(values.encode(value))))
  assert got == value and type(got) is type(value) and repr(got) == repr(value)


def test_instances_of_subclasses_are_sent_as_what_is_under_them():
  Point = namedtuple("Point", "x y")
  for value, plain in ((Counter("aab"), dict(a=2, b=1)), (OrderedDict(b=1), dict(b=1)), (Point(1, 2), (1, 2))):
    got = values.decode(values.encode(value))
    assert got == plain and type(got) is type(plain)
  assert list(values.decode(values.encode(iter([1, 2])))) == [1, 2]
  assert list(values.decode(values.encode({1: 2}.items()))) == [(1, 2)]


@pytest.mark.parametrize("value", [object(), int, len, Ellipsis, lambda: 0, {1: object()}, NotImplemented])
def test_what_is_not_plain_data_is_not_sent(value):
  with pytest.raises(TypeError, match="not plain data"):
    values.encode(value)


@pytest.mark.parametrize("data", [
  [], ["list"], ["list", 5], ["eval", "1"], {}, {"list": [1]}, ["set", [["list", []]]], ["dict", [[1]]], [[], []],
  ["int", "9" * 10 + "z"], ["Fraction", [1, 0]], ["Decimal", ["x"]], ["date", ["x"]], ["timedelta", [10**30]],
  ["range", [1.5]], ["complex", [[]]], ["bytes", "xyz"], ["list", [["tuple", None]]]])
def test_a_reply_that_the_serialiser_does_not_write_is_refused(data):
  with pytest.raises(ValueError, match="not plain data"):
    values.decode(data)

r"""Mathematical equality against tables by hand of answers as MATH has them, choices, hostile texts in workers."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r1jax.problem import Problem, Score
from r1jax.rewards import symbolic, units
from r1jax.rewards.math import check_gold, compare, letter, options, symbolic_accuracy
from r1jax.rewards.workers import Workers

pytest.importorskip("math_verify", reason="math-verify is not installed (extra math)")
DATA = Path(__file__).parents[2] / "shared/data"

EQUAL = [   # answer, gold
  (r"\frac{1}{2}", "0.5"), ("0.1+0.2", r"\frac{3}{10}"),
  ("1+x", "x+1"), (r"\dfrac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
  (r"\sqrt{12}", r"2\sqrt{3}"),
  ("sqrt(12)", r"2\sqrt{3}"), (r"2\sqrt3", r"2\sqrt{3}"), (r"\sqrt[3]{8}", "2"), ("√2", r"\sqrt{2}"),
  ("2pi", r"2\pi"), ("2π", r"2\pi"), (r"\pi\cdot 2", r"2\pi"), (r"\frac{\pi}{2}", "pi/2"), ("9pi cm", r"9\pi"),
  (r"90^\circ", "90"), ("90 degrees", r"90^{\circ}"), ("90°", "90"), (r"50\%", "50"),
  ("(1,2)", "(1, 2)"), (r"\left(\frac{1}{2}, 3\right)", "(0.5, 3)"), (r"(3, \frac{\pi}{2})", "(3, pi/2)"),
  (r"\{2,1\}", r"\{1, 2\}"), ("2, 1", "1,2"), ("1 and 2", "1,2"), (r"1 \text{ or } 2", "1,2"), ("x=1 or x=2", "1,2"),
  (r"1\pm\sqrt{2}", r"1-\sqrt{2},1+\sqrt{2}"), (r"\pm 3", "-3, 3"), ("-1, 1/2, 3", r"3,\frac{1}{2},-1"),
  (r"(-\infty, 3]", r"\left(-\infty,3\right]"), (r"[\frac{1}{2},2)", "[0.5, 2)"), ("(2, oo)", r"(2,\infty)"),
  (r"(3,\infty)\cup(-\infty,2)", r"(-\infty,2)\cup(3,\infty)"), (r"x \in [1,2]", "[1,2]"), ("1<x<2", "(1,2)"),
  ("x < 5", r"(-\infty,5)"), ("5 > x", "x < 5"), (r"x \geq 2", "2 <= x"), ("-2x < 4", "x > -2"),
  ("y=2x+1", "2x-y+1=0"), ("2y=4x+2", "y = 2x+1"), ("x=5", "5"), ("5", "x=5"), ("f(x) = x^2", "x^2"),
  ("2 + 3 = 5", "5"), (r"\angle ABC = 30^\circ", "30"), ("x**2 - 1", "(x-1)(x+1)"), ("x^2+2x+1", "(x+1)^2"),
  (r"\frac{x+1}{2}", r"\frac{1}{2}x+\frac{1}{2}"), ("1/(x+1)", r"\frac{1}{x+1}"), (r"\frac{x^2-1}{x-1}", "x+1"),
  (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
  (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{pmatrix} 0.5 \\ 3 \end{pmatrix}"),
  (r"\text{Evelyn}", "evelyn"), (r"\text{east}", "east"), ("3 : 4", "3:4"), (r"12_{5}", "12_5"), ("10!", "3628800"),
  (r"\binom{5}{2}", "10"), (r"e^{\ln 3}", "3"), (r"\log_2 8", "3"), (r"\sin(x)^2 + \cos(x)^2", "1"),
  (r"5\text{ cm}", "5"), ("5 centimeters", r"5 \text{ cm}"), (r"\sqrt{2} \text{ cm}", r"\sqrt{2}"),
  (r"5 \text{ cm}^2", "5"), ("1,234", "1234"), (r"10^{-3}", "0.001"), (r"2.5x", r"\frac{5x}{2}"),
  (r"$\frac34$", "0.75"),
  (r"\emptyset", r"\varnothing"), (r"-\frac{3}{4}", r"\frac{-3}{4}"), (r"2^{10}", "1024"),
]
UNEQUAL = [
  ("1.414", r"\sqrt{2}"), ("(0.33333333, 1)", r"(\frac{1}{3}, 1)"),
  ("1.41421356", r"\sqrt{2}"), ("0.33333333x", r"\frac{x}{3}"),
  ("3.14", r"\pi"), ("0.333333", r"\frac{1}{3}"), ("0.3333333", "1/3"), (r"50\%", "0.5"),
  ("1 or 2", "1"), ("1, 2", "1"), ("1,2", "2"), (r"\{1,2\}", "1"), ("1", "1,2"), ("1,1,2", "1,2"), ("1, 2, 3", "1,2"),
  ("(2,1)", "(1,2)"), ("(1,2)", r"\{1,2\}"), ("(1,2)", "1,2"), ("[1,2]", "(1,2)"), ("[1,2)", "(1,2]"),
  ("(3,1)", "(5,2)"),
  (r"(-\infty,3)", r"(-\infty,3]"), (r"(-\infty,2)", r"(-\infty,2)\cup(3,\infty)"), ("x<5", r"(-\infty,5]"),
  ("x<5", "5"),
  ("x>5", "x<5"), (r"x \le 5", "x<5"), ("x<5, x>3", "x<5"), ("-2x < 4", "x < -2"),
  ("x+y=5", "5"), ("2x=5", "5"), ("y=5", "x=5"), ("x^2+2=0", "x^2+1=0"), ("y=2x", "y=2x+1"), ("2 + 2 = 5", "x"),
  ("x+1", "x+2"), ("5x", "5"), ("5", "5x"), ("3m", "3x"), ("3", "3m"), (r"\sqrt{3}", r"\sqrt{2}"), (r"\sqrt{2}", "2"),
  (r"2\sqrt{3}", r"3\sqrt{2}"), (r"-\sqrt{2}", r"\sqrt{2}"), (r"\pm 3", "3"), (r"2\pi", "2"), (r"\pi", r"2\pi"),
  (r"\frac{x}{2}", r"\frac{2}{x}"), ("1/x+1", "1/(x+1)"), (r"10^{-20}", r"2\cdot 10^{-20}"),
  (r"10^{-20}\sqrt{2}", r"10^{-20}\sqrt{3}"), ("0.1", "0.1000000001"),
  ("12_5", "12"), ("12", "12_5"), ("3:4", "0.75"), ("4:3", "3:4"), ("seat", "east"), ("cab", "abc"), ("yes", "no"),
  (r"5\text{ cm}", r"5\text{ m}"), ("5 feet", "5 inches"), (r"\sqrt{2} \text{ cm}", r"\sqrt{2}\text{ km}"),
  (r"5^\circ", r"5\text{ cm}"), ("5 cents", r"\$5"),
  (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
  (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
  (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
  ("x = 3", "x"), ("", "1"), (".", r"\pi"), ("the answer", r"\pi"), ("none", r"\emptyset"), ("i", "-1"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer, gold):
  check_gold(Problem(0, "", gold))
  assert compare(answer, gold) == "correct"


@pytest.mark.parametrize(("answer", "gold"), UNEQUAL)
def test_unequal(answer, gold):
  check_gold(Problem(0, "", gold))
  assert compare(answer, gold) in ("wrong", "unparseable")


def accuracy(gold: str, answer: str, prompt: str = "", **how) -> str:
  score = symbolic_accuracy(Problem(3, prompt, gold), f"<answer>{answer}</answer>", **how)
  assert score.value == (score.verdict == "correct")
  return score.verdict


def test_what_equals_itself_whatever_dresses_it():
  for gold in {gold for _, gold in EQUAL + UNEQUAL}:
    for dressed in (gold, f"${gold}$", rf"\({gold}\)", f" {gold}. ", rf"\displaystyle {gold}", rf"\boxed{{{gold}}}"):
      assert accuracy(gold, dressed) == "correct", dressed


@pytest.mark.parametrize(("text", "strict", "loose"), [
  (r"<answer>\frac{\sqrt{8}}{2}</answer>", "correct", "correct"), (r"so \boxed{2^{0.5}}", "correct", "correct"),
  (r"<answer>1.414</answer>", "wrong", "wrong"), (r"<answer>the root of two</answer>", "unparseable", "unparseable"),
  (r"<answer>\frac{1}{</answer>", "unparseable", "unparseable"), ("no idea", "no_answer", "no_answer"), ("",
  "no_answer", "no_answer"),
  (r"<answer>1</answer><answer>\sqrt2</answer>", "unparseable", "correct"),
  (r"<think>\boxed{\sqrt 2}</think> is it", "no_answer", "correct")])
def test_verdicts(text, strict, loose):
  problem = Problem(3, "", r"\sqrt{2}")
  assert symbolic_accuracy(problem, text) == Score(float(strict == "correct"), strict)
  assert symbolic_accuracy(problem, text, strict=False) == Score(float(loose == "correct"), loose)


PROMPT = "What is x?\n(A) 10 (B) $\\frac{1}{2}$ (C) 2\\pi (D) none of the above\nUser: now?"
AMC = r"How? $\textbf{(A)}\ 10 \qquad \textbf{(B)}\ \frac{1}{2} \qquad \textbf{(C)}\ 2\pi \qquad \textbf{(D)}\ none$"
LINES = "Which is it?\nA. 10\nB. 0.5\nC. $2\\pi$\nD. none of the above\n\nAnswer:"


@pytest.mark.parametrize("prompt", [PROMPT, AMC, LINES])
@pytest.mark.parametrize(("gold", "answer", "verdict"), [
  ("B", "B", "correct"), ("B", "(B)", "correct"), ("B", "b", "correct"), ("B", r"\text{(B)}", "correct"),
  ("B", r"\textbf{(B)}", "correct"), ("B", "B. 0.5", "correct"), ("(B)", "(B) 1/2", "correct"), ("B", "0.5", "correct"),
  ("B", r"\frac{2}{4}", "correct"), ("B", "option B", "correct"), ("C", r"\pi \cdot 2", "correct"), ("A", "10",
  "correct"),
  ("B", "A", "wrong"), ("B", "(C)", "wrong"), ("B", "B. 10", "wrong"), ("B", "A. 0.5", "wrong"), ("B", "10", "wrong"),
  ("B", "A or B", "unparseable"), ("B", "A, B", "unparseable"), ("B", "the second", "unparseable"),
  (r"\frac12", "B", "correct"), (r"\frac12", "A", "wrong"), (r"\frac12", "0.5", "correct"), ("10", "(A)", "correct"),
  (r"\frac12", "F", "wrong")])
def test_an_option_is_its_letter_or_its_value(prompt, gold, answer, verdict):
  got = accuracy(gold, answer, prompt)
  assert got == verdict or (verdict == "unparseable" and got == "wrong")


def test_letters_without_options():
  assert accuracy("C", "(C)") == accuracy("C", "C. because") == accuracy(r"\text{(C)}", "C") == "correct"
  assert accuracy("C", "B") == accuracy("C", "(B) C") == "wrong"
  assert accuracy("C", "both B and C") in ("wrong", "unparseable")


def test_options_are_read_from_the_prompt_or_not_at_all():
  assert options(PROMPT) == dict(A="10", B=r"\frac{1}{2}", C=r"2\pi", D="none of the above")
  assert options(AMC) == dict(A="10", B=r"\frac{1}{2}", C=r"2\pi", D="none")
  assert options(LINES) == dict(A="10", B="0.5", C=r"2\pi", D="none of the above")
  assert options("f(A) = (B)") == options("A point (A) moves") == options("(B) 1 (A) 2") == options("") == {}
  assert [letter(x) for x in ("D", " (d) ", "$E$", "D) 5", "5", "AB", "a cat", "")] == ["D", "D", "E", "D"] + [None] * 4


@pytest.mark.parametrize("gold", ["", " ", ".", r"\frac{1}{", "((1,2)", r"\frac{1}{0}", r"\sqrt{", "+", r"\foo{",
  "1e999999"])
def test_a_gold_answer_that_cannot_be_read_is_an_error_and_names_the_problem(gold):
  with pytest.raises(ValueError, match="problem id=3: gold answer"):
    accuracy(gold, "1")


def test_fast_rules_do_not_load_sympy():
  import subprocess
  import sys
  code = ("from r1jax.rewards.math import symbolic_accuracy as f; from r1jax.problem import Problem as P; import sys; "
          "print([f(P(0, '', '72'), f'<answer>{x}</answer>').verdict for x in ('72.0', '71', 'many')],"
          " 'sympy' in sys.modules, 'jax' in sys.modules)")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
  assert done.stdout == "['correct', 'wrong', 'unparseable'] False False\n", done.stderr


def test_units_by_hand():
  assert [units.unit_of(x) for x in ("5 cm", r"5\text{ m}", "5m", "5", r"5^\circ", r"\$5", "x cm", "5 clips")] == [
    "cm", "m", None, None, "degree", "dollar", None, None]
  assert not units.conflict("5", "5 cm") and not units.conflict("5 clips", "5 cm") and units.conflict("5 mm", "5 cm")


BOMBS = ["9^{9^{9^{9}}}", "(10^{9})!", r"\sqrt{2}^{10^{10^{10}}}", "((9!)!)!"]
HOSTILE = [
  "(" * 900, "{" * 900, "(" * 400 + "1" + ")" * 400, r"\frac{1}{" * 90 + "1" + "}" * 90,
  r"\sqrt{" * 120 + "2" + "}" * 120,
  "1," * 400 + "1", "x" * 999, "x+" * 400 + "x", "-" * 900 + "1", r"\left" * 150, r"\begin{pmatrix}" * 60,
  r"\cup" * 200,
  "=" * 900, "x=" * 400 + "1", "<" * 900, r"\pm" * 300, "1" * 999, "^" * 999, "_" * 999, "!" * 900, "\\" * 999,
  "$" * 999,
  r"\text{" * 150, r"\text{or}" * 100, "\x00", "__import__('os').system('true')", "import os", "lambda: 0", "exec",
  "1/0",
  r"\frac{0}{0}", r"\infty-\infty", "nan", "zoo", "oo", "\ud800", "٣", "a_b" * 300, r"\aaaa" * 190 + "!= 2", "I" * 3,
  r"\int_0^1 x^x dx", r"\sum_{n=1}^{\infty} n", r"\lim_{x \to 0} 1/x", r"\prod_{i=1}^{10^9} i"]


def test_bombs_time_out_and_the_rest_goes_on():
  gold = Problem(3, "", r"2\sqrt{3}")
  texts = [f"<answer>{x}</answer>" for x in [*BOMBS, r"\sqrt{12}"]]
  with Workers(2, timeout=1, memory=2**29) as pool:
    scores = [parts["a"] for _, parts in pool.score(dict(a=(1.0, symbolic_accuracy)), [gold] * len(texts), texts)]
    counts = pool.counts()
  assert scores[-1] == Score(1.0, "correct")
  assert not any(score.value for score in scores[:-1])
  assert {s.verdict for s in scores[:-1]} <= {"timeout", "crashed", "unparseable", "wrong"}
  assert counts["timeouts"] >= 1 and counts["timeouts"] + counts["crashes"] == sum(
    score.verdict in ("timeout", "crashed") for score in scores)


def test_hostile_answers_are_never_right_and_never_an_error():
  golds = [r"2\sqrt{3}", "(1,2)", "7"]
  with Workers(2, timeout=20, memory=2**30) as pool:
    for gold in golds:
      texts = [f"<answer>{x}</answer>" for x in HOSTILE]
      problems = [Problem(i, "", gold) for i in range(len(texts))]
      for x, (_, parts) in zip(HOSTILE, pool.score(dict(a=(1.0, symbolic_accuracy)), problems, texts), strict=True):
        assert parts["a"].value == 0 and parts["a"].verdict in ("wrong", "unparseable", "no_answer"), (x[:40], parts)


@pytest.mark.skipif(not (DATA / "amc23").is_dir(), reason=f"no AMC23 data at {DATA}")
def test_every_gold_answer_of_amc23_is_read():
  rows = [json.loads(line) for line in (DATA / "amc23/test.jsonl").open(encoding="utf-8")]
  assert len(rows) == 40
  for row in rows:
    gold = str(row["answer"])
    assert accuracy(gold, rf"\boxed{{{row['answer']:g}}}") == accuracy(gold, gold) == "correct"
    assert accuracy(gold, rf"{int(row['answer'])}\cdot\sqrt{{1}}") == "correct"
    assert accuracy(gold, str(row["answer"] + 1)) == "wrong"


def test_a_thread_may_ask_as_the_library_sets_no_alarm():
  with ThreadPoolExecutor(1) as other:
    assert other.submit(symbolic.same, r"\sqrt{50}", r"5\sqrt{2}").result() is True


def test_a_gold_answer_that_the_library_does_not_find_equal_to_itself_is_an_error(monkeypatch):
  monkeypatch.setattr(symbolic, "_same", lambda *_: False)
  with pytest.raises(ValueError, match=r"problem id=3: gold answer '3\\\\sqrt\{5\}': it does not equal itself"):
    accuracy(r"3\sqrt{5}", "1")

"""Rewards against hand-written tables, hostile texts and, for the matcher, other people's marks."""

import json
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest

from r1jax.rewards import total_reward
from r1jax.rewards.accuracy import (
  check_gold,
  equal,
  exact_accuracy,
  extract,
  final_answer,
  math_accuracy,
  parse_number,
)
from r1jax.rewards.format import think_answer_format
from r1jax.types import Problem, Score

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"
P72 = Problem(7, "", "72")
lenient = partial(math_accuracy, strict=False)

NUMBERS = {
  "72": 72, "72.0": 72, "72.": 72, " 72 ": 72, "+72": 72, "-5": -5, "- 5": -5, "−5": -5, "–5": -5, "-0": 0,
  ".5": "1/2", "5.": 5, "0.5": "1/2", "1/2": "1/2", "-3/4": "-3/4", "3 / 4": "3/4", "1 1/2": "3/2",
  "-1 1/2": "-3/2", "1½": "3/2", "1.5/3": "1/2", "007": 7,
  "1,234,567": 1234567, "1,080": 1080, "$1,234.50": "2469/2", "-$5": -5, "$-5": -5, "€5": 5, "5 €": 5,
  "£1,000": 1000, "US$5": 5, "72 dollars": 72, "72%": 72, r"72\%": 72, "0.5%": "1/2", "18 eggs": 18,
  "60 km/h": 60, "$5/hour": 5, "18 eggs.": 18, "72 clips altogether!": 72, "25 cm^2": 25, "25 cm²": 25,
  r"25\text{ m}^{2}": 25, "90°": 90, r"90^\circ": 90, "She sold 72 clips.": 72, "x = 5": 5, "2 + 3 = 5": 5,
  "1/3 ≈ 0.33": "33/100", "120-page": 120, "5 million": 5_000_000, "1.5 thousand dollars": 1500, "(5)": 5,
  "**72**": 72, "1e3": 1000, "2.5e-1": "1/4", r"\frac{3}{4}": "3/4", r"\dfrac{3}{4}": "3/4",
  r"\tfrac34": "3/4", r"-\frac{3}{4}": "-3/4", r"\frac{-3}{4}": "-3/4",
  r"1\frac{1}{2}": "3/2", r"1\,\frac{1}{2}": "3/2", r"1\ \frac12": "3/2", "$72$": 72, r"\(72\)": 72,
  r"\$72": 72, r"$\$1{,}234$": 1234, r"10\,000": 10000, r"10,\!000": 10000, r"\text{72}": 72,
  r"72\text{ clips}": 72, r"\mathrm{72}": 72, r"x \approx 5": 5,
  r"-\left(\frac{1}{2}\right)": "-1/2", r"so it is $-\left(5\right)$": -5, "-(5)": -5, "- (5)": -5, "x = -[5]": -5,
  "-(-5)": 5, "-US$5": -5, "negative 5": -5, "Minus (5)": -5, "it is not negative, 5": 5, "Answer - 5": 5,
  "5 hundred": 500, "2 trillion": 2 * 10**12, "5 square meters": 5,
  "5/h": 5, "5 (m)": 5, "5 (eggs)": 5, "(1234)": 1234, "25 cm³": 25, "5-minute": 5, "5/minute": 5,
  "5m": 5, "20°C": 20, "5 a day": 5, "25 square feet": 25,
}
NOT_NUMBERS = (
  "", " ", "abc", "1,2", "12,34", "1,2345", "0,123", "1.2.3", "1/0", "0/0", "1 1/0", "1 or 2", "5-6", "5–6",
  "10:30", "3:4", "1/2/3", "2+3", "5x+1", "2^5", "5²", "5!", "5 = ", "x <= 5", "x ≤ 5", "<5", "±5", r"2\pi",
  "2π", r"\sqrt{2}", "sqrt(2)", r"\frac{x}{2}", r"\frac{1}{0}", "seventy-two", "72 dollars and 50 cents",
  "7\x002", "72\x00", "0x1F", "1e999999", "1e-999999", "1/1e999999", "9" * 101, "9" * 5000, "0." + "3" * 700,
  "5x", "-x5", "5 x", "log 5", "cos(5)", "it is not 5", "half of 6", "5 squared",
  "5 - x", "x - 5", "5/x", "x/5", "5(x-y)", "y = x - 5", "3-i", "1/e", "e-1", "1-p", "a/2", r"\frac12-x", "(x)/5",
  "(100,200)", "[100,200]", "[1,100)", "10⁶", "2⁵", "5⅓", "5 ⅔", "x₁ = 5₂",
  "3x^2", r"3x^{2}", "5k", "2 pi", "2pi", "inf", "nan", "٧٢",
  "{72", "72}", "__import__('os').getpid()")


@pytest.mark.parametrize("text", NUMBERS)
def test_parse_number_reads(text):
  assert parse_number(text) == Fraction(NUMBERS[text])


@pytest.mark.parametrize("text", NOT_NUMBERS, ids=lambda text: ascii(text[:20]))
def test_parse_number_refuses(text):
  assert parse_number(text) is None


@pytest.mark.parametrize(("answer", "gold", "same"), [
  ("0.5", "1/2", True), ("72", "72.0", True), ("72%", "72", True), ("72%", "0.72", False),
  ("0.333", "1/3", False), ("1,080", "1080", True), ("Yes.", "yes", True), ("no", "yes", False),
  (r"\text{Yes}", "yes", True), ("(1, 2)", r"\left(1,2\right)", True), ("x + 1", "$x+1$", True),
  (r"\dfrac{x}{2}", r"\frac{x}{2}", True), (r"\frac{x+1}{2}", r"x+\frac{1}{2}", False), ("1,2", "12", False),
  ("x", "x^2", False), ("3", "3x^2", False), ("5", "5x", False), ("5x", "$5x$", True),
  ("", "", False), ("  ", ".", False)])
def test_equal(answer, gold, same):
  assert equal(answer, gold) is same
  assert equal(gold, answer) is same


# text, strict answer, lenient answer
EXTRACTS = [
  ("so 72\n#### 72", "72", "72"),
  ("#### 71\nno\n#### 72\nQuestion: 5", "72", "72"),
  (r"\boxed{71} then \boxed{72}.", "72", "72"),
  (r"\boxed{\frac{3}{4}}", r"\frac{3}{4}", r"\frac{3}{4}"),
  (r"\boxed {72}", "72", "72"),
  (r"\boxed{\{1, 2\}}", r"\{1, 2\}", r"\{1, 2\}"),
  (r"\boxed{\boxed{72}}", "72", "72"),
  (r"\boxed{7", None, "7"),
  (r"\boxed{}", None, None),
  ("####", None, None),
  ("#### 1 and \\boxed{2}", "2", "2"),
  ("\\boxed{2}\n#### 1", "1", "1"),
  ("<answer>72</answer>", "72", "72"),
  ("<answer> 72 </answer> I had 3", "72", "72"),
  ("<think>\\boxed{1}</think><answer>72</answer>", "72", "72"),
  (r"<answer>3 and 4 make \boxed{7}</answer>", "7", "7"),
  ("<answer>3 and 4\n#### 7</answer>", "7", "7"),
  (r"<answer>72</answer> \boxed{5}", "72", "72"),
  ("<answer>1</answer><answer>2</answer>", None, "2"),
  ("<answer>1</answer> <answer>2", None, "1"),
  ("<answer>1 <answer>2</answer>", None, "2"),
  ("<answer>1</answer></answer>", None, "1"),
  ("<answer></answer>", None, None),
  ("<answer>72", None, "72"),
  ("</answer>72<answer>", None, "72"),
  (r"<think>\boxed{5}</think> it is six", None, "5"),
  (r"<think>\boxed{5}</think> \boxed{6}", "6", "6"),
  ("The answer is 72. I used 3 steps.", None, "72"),
  ("the answer is: **72**", None, "72"),
  ("Answer: $1,234.50.", None, "$1,234.50"),
  ("The answer is 5 eggs, as 2 + 3 make it", None, "5"),
  ("the answer is yes.", None, "yes"),
  ("Q: 1?\nA: 18", None, "18"),
  ("First 5 then 1 1/2", None, "1 1/2"),
  (r"First 5 then \frac{3}{4}.", None, "3/4"),
  ("he has 15-3", None, "3"),
  ("nothing here", None, None),
  ("", None, None),
]


@pytest.mark.parametrize(("text", "strict", "loose"), EXTRACTS, ids=lambda x: ascii(x)[:30])
def test_extract(text, strict, loose):
  assert extract(text, strict=True) == strict
  assert extract(text, strict=False) == loose


@pytest.mark.parametrize(("text", "strict", "loose"), [
  ("<answer>72</answer>", "correct", "correct"),
  ("<answer>$72.00</answer>", "correct", "correct"),
  ("<answer>71</answer>", "wrong", "wrong"), ("<answer>72 or 71</answer>", "unparseable", "unparseable"),
  ("<answer>seventy-two</answer>", "unparseable", "unparseable"),
  ("<answer>71</answer><answer>72</answer>", "unparseable", "correct"),
  ("<answer>72</answer><answer>72</answer>", "unparseable", "correct"),
  ("the answer is 72", "no_answer", "correct"), ("I make it 72.", "no_answer", "correct"),
  ("no idea", "no_answer", "no_answer"), ("", "no_answer", "no_answer"),
  ("<answer>" + "9" * 5000 + "</answer>", "unparseable", "unparseable"),
])
def test_math_accuracy_verdicts(text, strict, loose):
  assert math_accuracy(P72, text) == Score(float(strict == "correct"), strict)
  assert lenient(P72, text) == Score(float(loose == "correct"), loose)


def test_lenient_pays_whatever_strict_pays():
  wraps = ("<answer>{}</answer>", "\\boxed{{{}}}", "so\n#### {}",
           "<think>\\boxed{{9}}</think>\n\\boxed{{{}}} of 3",
           "</answer>\\boxed{{{}}} <answer> 3", "<think>no</think><answer>\n{}\n</answer> 5")
  for wrap in wraps:
    for text, value in NUMBERS.items():
      problem = Problem(0, "", str(Fraction(value)))
      assert math_accuracy(problem, wrap.format(text)).verdict == "correct", (wrap, text)
      assert lenient(problem, wrap.format(text)).verdict == "correct", (wrap, text)


def test_a_gold_in_words_is_right_or_wrong():
  problem = Problem(0, "", "Yes")
  assert math_accuracy(problem, "<answer>yes.</answer>").verdict == "correct"
  assert math_accuracy(problem, "<answer>12</answer>").verdict == "wrong"


@pytest.mark.parametrize("gold", ["", "  ", ".", "1e999999", "9" * 200, "x" * 2000])
def test_bad_gold_is_an_error_and_names_the_problem(gold):
  for call in (check_gold, lambda problem: math_accuracy(problem, "<answer>1</answer>")):
    with pytest.raises(ValueError, match="problem id=41"):
      call(Problem(41, "", gold))


def test_number_is_asked_of_gold_only_on_demand():
  check_gold(Problem(41, "", "yes"))
  with pytest.raises(ValueError, match="problem id=41"):
    check_gold(Problem(41, "", "yes"), number=True)


@pytest.mark.parametrize("unit", [
  "{", "9", "<answer>", "</answer>", "<answer>1</answer>", " ", "\\boxed{", "####", ",234", "1 1/", "$", "\\",
  "\\frac{", "A: 1\n", "answer is ", "e9", "<think>", "\x00", "\n"], ids=ascii)
def test_a_megabyte_of_anything_is_quick(unit):
  body = unit * (1_000_000 // len(unit))
  for text in (body + "x5", f"<answer>{body}</answer>", f"the answer is \\boxed{{{body}}}"):
    begin = time.process_time()
    math_accuracy(P72, text)
    lenient(P72, text)
    final_answer(text)
    exact_accuracy(P72, text)
    parse_number(text)
    think_answer_format(P72, text, partial=True)
    assert time.process_time() - begin < 1, text[:40]


@pytest.mark.parametrize(("text", "verdict"), [
  ("<answer>72</answer>", "correct"), ("bla <answer>\n72 </answer> bla", "correct"),
  ("<answer>72.0</answer>", "wrong"), ("<answer>\\boxed{72}</answer>", "wrong"), ("72", "no_answer"),
  ("<answer> </answer>", "no_answer"), ("<answer>72", "no_answer"), ("</answer>72<answer>", "no_answer"),
  ("<answer>72</answer><answer>72</answer>", "unparseable"),
  ("<answer><answer>72</answer></answer>", "unparseable")])
def test_exact_accuracy(text, verdict):
  assert exact_accuracy(P72, text) == Score(float(verdict == "correct"), verdict)


@pytest.mark.parametrize(("text", "canonical"), [
  ("<answer>72.0</answer>", "72"), ("\\boxed{0.75}", "3/4"), ("the answer is $1,080", "1080"),
  ("<answer>Yes.</answer>", "yes"), ("<answer>1</answer><answer>2</answer>", "2"), ("so 5", "5"),
  ("hm", None), ("<answer>.</answer>", None)])
def test_final_answer_is_one_spelling(text, canonical):
  assert final_answer(text) == canonical


# text, full marks?, partial marks
FORMATS = [
  ("<think>a</think><answer>b</answer>", 1, 1), ("\n<think>a\nb</think>\n <answer>b</answer>\n", 1, 1),
  ("<think></think><answer>b</answer>", 1, 1), ("<think>a</think><answer> </answer>", 0, .75),
  ("<think>a</think> so <answer>b</answer>", 0, .75), ("x<think>a</think><answer>b</answer>", 0, .75),
  ("<think>a</think><answer>b</answer>x", 0, .75), ("<answer>b</answer><think>a</think>", 0, .75),
  ("<think><answer>b</answer></think>", 0, .75), ("</think><think><answer>b</answer>", 0, .75),
  ("<think>a</think><answer>b</answer><answer>c</answer>", 0, .5),
  ("<think><think>a</think><answer>b</answer>", 0, .75),
  ("<think>a</think><answer>b", 0, .75), ("a</think><answer>b</answer>", 0, .75), ("<think>a", 0, .25),
  ("<THINK>a</THINK><answer>b</answer>", 0, .5), ("", 0, 0), ("72", 0, 0)]


@pytest.mark.parametrize(("text", "full", "part"), FORMATS)
def test_format(text, full, part):
  assert think_answer_format(P72, text) == Score(full)
  assert think_answer_format(P72, text, partial=True) == Score(part)


def test_total_reward_weighs_the_sum_and_keeps_the_parts():
  terms = dict(accuracy=(1.0, math_accuracy), format=(0.5, think_answer_format))
  parts = dict(accuracy=Score(1.0, "correct"), format=Score(0.0))
  assert total_reward(terms, P72, "<answer>72</answer>") == (1.0, parts)
  assert total_reward(terms, P72, "<think>a</think><answer>71</answer>")[0] == 0.5
  assert total_reward({}, P72, "") == (0, {})


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"no GSM8K data at {GSM8K}")
def test_lenient_agrees_with_the_marks_that_came_with_the_data():
  disagreements, count = [], 0
  for i, line in enumerate((GSM8K / "example_model_solutions.jsonl").open(encoding="utf-8")):
    row = json.loads(line)
    problem = Problem(i, "", row["ground_truth"].rpartition("A:")[2].strip())
    for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
      score, mark = lenient(problem, row[model]["solution"]), row[model]["is_correct"]
      count += 1
      if bool(score.value) != mark:
        disagreements.append((i, model, score, mark))
  print(f"agreement {1 - len(disagreements) / count:.4f} of {count}; {disagreements[:20]}")
  assert count == 4 * 1319
  assert len(disagreements) <= 0.02 * count, disagreements[:20]

"""Intervals, the paired test, reading evaluations, and the command."""

import itertools
import json

import numpy as np
import pytest

from r1jax import metrics
from r1jax.cli import main as cli
from r1jax.evals.significance import compare, interval, read, shares


def write(folder, name, right, gold=str, prompt="p{}", **record):
  """An evaluation as r1jax eval writes it: `right` has problem id -> whether each answer was right."""
  rows = [(id, k, ok) for id, each in right.items() for k, ok in enumerate(each)]
  metrics.write_table(folder / f"{name}.parquet", {
    "problem": [id for id, _, _ in rows], "sample": [k for _, k, _ in rows], "gold": [gold(id) for id, _, _ in rows],
    "prompt": [prompt.format(id) for id, _, _ in rows], "reward/accuracy": [float(ok) for _, _, ok in rows]})
  (folder / f"{name}.json").write_text(json.dumps(record))
  return folder / f"{name}.json"


def test_one_answer_to_each_problem_is_wilsons_interval():
  # n = mean (1 - mean) / (var / B) = B - 1 = 100: Wilson for 0.5 of 100 is 0.4038 - 0.5962; here of 101 problems
  low, high = interval([[1]] * 50 + [[0]] * 51)
  assert (low, high) == pytest.approx((0.39925, 0.59145), abs=2e-4)


def test_answers_that_agree_add_nothing_and_answers_of_equal_problems_all_count():
  once, copied = interval([[1], [0]] * 10), interval([[1] * 8, [0] * 8] * 10)
  assert once == pytest.approx(copied)
  every = interval([[1, 0, 1, 0]] * 10)                    # p = 0.5 for each: 40 throws of one coin
  assert every == pytest.approx((0.3520, 0.6480), abs=2e-4)


@pytest.mark.parametrize("right, edge", [([[1, 1]] * 10, 1.0), ([[0, 0]] * 10, 0.0)])
def test_where_all_agree_the_interval_has_a_width(right, edge):
  low, high = interval(right)
  assert edge in (low, high) and high - low == pytest.approx(0.2775, abs=1e-3)      # Wilson, 10 of 10


def test_the_interval_holds_the_truth_as_often_as_it_says():
  rng, held = np.random.default_rng(0), 0
  for _ in range(400):                                     # a world where problems differ: p is beta(0.5, 0.5)
    right = rng.random((40, 4)) < rng.beta(0.5, 0.5, (40, 1))
    low, high = interval(right)
    held += low <= 0.5 <= high
  assert 0.92 <= held / 400 <= 0.98


def test_the_permutation_test_by_hand():
  # differences 1, 1, 1, 0: of 8 signs, two sums are as far out as 3
  found = compare([0, 0, 0, 1], [1, 1, 1, 1])
  assert (found.p_value, found.exact, found.difference) == (0.25, True, 0.75)
  assert (found.wins, found.losses, found.ties) == (3, 0, 1)


def test_equal_evaluations_differ_by_nothing():
  found = compare([0.5, 1, 0], [0.5, 1, 0])
  assert (found.difference, found.low, found.high, found.p_value, found.ties) == (0, 0, 0, 1, 3)


def test_random_signs_agree_with_all_signs():
  rng = np.random.default_rng(1)
  d = rng.integers(-3, 5, 14) / 4
  d = d[d != 0]
  assert len(d) <= 14
  every = [abs(np.dot(s, d)) >= abs(d.sum()) - 1e-9 for s in itertools.product((1, -1), repeat=len(d))]
  found = compare(np.zeros(len(d) + 30), np.concatenate([d, np.full(30, 0.0)]))
  many = compare(np.zeros(len(d) * 2), np.concatenate([d, d]))
  assert found.exact == (len(d) <= 12) and found.p_value == pytest.approx(np.mean(every), abs=0.02)
  assert not many.exact and many.p_value < found.p_value


def test_swapping_the_two_turns_the_signs():
  rng = np.random.default_rng(2)
  a, b = rng.random(50), rng.random(50)
  one, two = compare(a, b), compare(b, a)
  assert one.difference == -two.difference and (one.low, one.high) == pytest.approx((-two.high, -two.low))
  assert one.p_value == two.p_value and (one.wins, one.losses) == (two.losses, two.wins)
  assert one == compare(a, b) != compare(a, b, seed=1)


def test_chance_alone_is_seldom_significant_and_a_shift_is():
  rng = np.random.default_rng(3)
  draws = [compare(*rng.binomial(4, 0.5, (2, 60)) / 4, draws=400, seed=i) for i in range(200)]
  assert np.mean([c.p_value < 0.05 for c in draws]) < 0.1
  assert np.mean([c.low <= 0 <= c.high for c in draws]) > 0.88
  a = rng.binomial(8, 0.4, 200) / 8
  shifted = compare(a, np.minimum(a + rng.binomial(1, 0.5, 200) / 8, 1))
  assert shifted.p_value < 0.001 and 0.04 < shifted.low < shifted.difference < shifted.high < 0.085


@pytest.mark.parametrize("a, b, kw", [([1], [0], {}), ([[1, 0]], [[0, 1]], {}), ([1, 0], [0, 1], dict(draws=10)),
                                      ([1, 0], [0, 1], dict(level=1.0))])
def test_wrong_arguments_are_refused(a, b, kw):
  with pytest.raises(ValueError, match="compare needs at least 2 paired problems"):
    compare(a, b, **kw)


def test_problems_are_paired_by_their_id(tmp_path):
  a = read(write(tmp_path, "a", {1: [1, 0], 2: [0, 0]}))
  b = read(write(tmp_path, "b", {2: [1], 1: [0]}))            # another order, other numbers of answers
  ids, p_a, p_b = shares(a, b)
  assert ids == [1, 2] and p_a.tolist() == [0.5, 0] and p_b.tolist() == [0, 1]


@pytest.mark.parametrize("other, kw, message", [
  ({1: [1], 3: [1], 4: [0]}, {}, "a has 2, b 3, 1 are in both; 1 only in a, such as 2; 2 only in b, such as 3"),
  ({1: [1]}, {}, "a has 2, b 1, 1 are in both; 1 only in a, such as 2"),
  ({1: [1], 2: [1]}, dict(gold=lambda id: str(2 * id)), "2 of 2 have another gold answer, such as problem 1: '1' and"),
])
def test_other_problems_are_refused_with_the_numbers(other, kw, message, tmp_path, capsys):
  paths = [write(tmp_path, "a", {1: [1], 2: [0]}), write(tmp_path, "b", other, **kw)]
  assert cli.main(["compare-evals", *map(str, paths)]) == 2
  assert message in " ".join(capsys.readouterr().err.split())


def test_what_is_no_evaluation_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none\.parquet: no such file"):
    read(tmp_path / "none.json")
  (tmp_path / "bad.parquet").write_text("no")
  with pytest.raises(ValueError, match=r"bad\.parquet: not a Parquet file"):
    read(tmp_path / "bad")
  metrics.write_table(tmp_path / "other.parquet", dict(problem=[1], sample=[0]))
  with pytest.raises(ValueError, match="no column prompt, gold, reward/accuracy"):
    read(tmp_path / "other.parquet")
  write(tmp_path, "a", {1: [1]})
  table = metrics.pq.read_table(tmp_path / "a.parquet").to_pydict()
  metrics.write_table(tmp_path / "a.parquet", {k: v * 2 for k, v in table.items()})
  with pytest.raises(ValueError, match="problem 1 is there twice"):
    read(tmp_path / "a")


def test_a_name_with_a_dot_is_kept(tmp_path):
  write(tmp_path, "test-Qwen2.5-1.5B", {1: [1]})
  assert read(tmp_path / "test-Qwen2.5-1.5B.json").name == read(tmp_path / "test-Qwen2.5-1.5B").name


def test_the_command_prints_the_difference_and_what_else_differs(tmp_path, capsys):
  a = write(tmp_path, "a", {i: [1, 0] for i in range(6)}, samples=2, template="chat")
  b = write(tmp_path, "b", {i: [i > 0, 1] for i in range(6)}, samples=2, template="r1_zero", prompt="q{}")
  out = tmp_path / "out.json"
  assert cli.main(["compare-evals", str(a), str(b), "--json", str(out)]) == 0
  shown = capsys.readouterr().out
  assert "+0.4167" in shown and "B wins 5, loses 0, ties 1" in shown and "p = 0.0625 (all signs)" in shown
  assert "template is chat in A, r1_zero in B" in shown and "6 of 6 prompts differ" in shown
  numbers = json.loads(out.read_text())
  assert numbers["difference"] == pytest.approx(5 / 12) and numbers["a"]["pass_at_1"] == 0.5 and numbers["wins"] == 5


def test_help(capsys):
  with pytest.raises(SystemExit):
    cli.main(["compare-evals", "--help"])
  assert "B - A" in capsys.readouterr().out

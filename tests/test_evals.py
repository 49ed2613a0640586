"""pass@k and cons@k."""

import itertools

import pytest

from r1jax.evals.metrics import consensus, pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n):
  for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
    draws = list(itertools.combinations(range(n), k))
    share = sum(any(i < correct for i in draw) for draw in draws) / len(draws)
    assert pass_at_k(n, correct, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_by_hand_and_at_the_edges():
  assert pass_at_k(64, 16, 1) == 0.25                       # pass@1 is the plain share
  assert pass_at_k(5, 0, 5) == 0 and pass_at_k(5, 5, 1) == 1 and pass_at_k(5, 1, 5) == 1
  assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
  assert 0 < pass_at_k(10_000, 1, 1) < pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_pass_at_k_needs_k_samples(k):
  with pytest.raises(ValueError, match=f"pass@{k} needs 1 <= k <= n = 5"):
    pass_at_k(5, 1, k)


@pytest.mark.parametrize(("answers", "right", "value"), [
  (["7", "7", "3"], "7", 1), (["7", "7", "3"], "3", 0), (["7", "3"], "7", 0.5), (["7", "3", "5"], "7", 1 / 3),
  (["7", "7", "3", "3", "5"], "3", 0.5), ([None, None, "7"], "7", 1), ([None, None, None, "3"], "7", 0),
  ([None, None], "7", 0), ([], "7", 0), (["7", "3", "7", "3"], "9", 0)])
def test_consensus_by_hand(answers, right, value):
  assert consensus(answers, [a == right for a in answers]) == pytest.approx(value)


def test_consensus_does_not_depend_on_the_order_of_samples():
  answers = ["7", "3", "7", "3", None]
  for order in itertools.permutations(answers):
    assert consensus(order, [a == "7" for a in order]) == 0.5


def test_consensus_needs_a_verdict_for_each_answer():
  with pytest.raises(ValueError):
    consensus(["7", "3"], [True])

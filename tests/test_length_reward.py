"""Length terms against numbers worked out by hand."""

import numpy as np
import pytest

from r1jax.rewards.length import cosine, linear_in_group, soft_overlong


@pytest.mark.parametrize("length, value", [
  (0, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20479, -4095 / 4096), (20480, -1), (30000, -1)])
def test_soft_overlong_with_dapos_numbers(length, value):
  assert soft_overlong(length, 20480, 4096) == pytest.approx(value, abs=1e-12)


def test_soft_overlong_is_the_three_lines_of_the_paper():
  def paper(length, longest, cushion):
    if length <= longest - cushion:
      return 0.0
    return ((longest - cushion) - length) / cushion if length <= longest else -1.0
  lengths = np.arange(0, 50)
  for cushion in (1, 7, 40):
    np.testing.assert_allclose(soft_overlong(lengths, 40, cushion), [paper(n, 40, cushion) for n in lengths])


@pytest.mark.parametrize("longest, cushion", [(10, 0), (10, 11), (10, -1), (0, 0)])
def test_soft_overlong_refuses_a_cushion_that_does_not_fit(longest, cushion):
  with pytest.raises(ValueError, match=f"cushion={cushion}"):
    soft_overlong(3, longest, cushion)


def test_cosine_by_hand():
  # half way: the mean of both ends; a third: 1 + cos(pi / 3) = 1.5 of 2
  assert cosine(0, True, 900) == pytest.approx(1.0) and cosine(900, True, 900) == pytest.approx(0.5)
  assert cosine(450, True, 900) == pytest.approx(0.75) and cosine(300, True, 900) == pytest.approx(0.875)
  assert cosine(0, False, 900) == pytest.approx(-1.0) and cosine(450, False, 900) == pytest.approx(-0.75)
  assert cosine(5000, False, 900) == pytest.approx(-0.5)
  assert cosine(900, True, 900, overlong=-10.0) == -10 and cosine(899, True, 900, overlong=-10.0) > 0.49
  np.testing.assert_allclose(cosine(np.array([0, 900]), np.array([False, True]), 900), [-1, 0.5])
  with pytest.raises(ValueError, match="longest=0"):
    cosine(1, True, 0)


def test_right_always_beats_wrong_and_short_right_beats_long():
  lengths = np.arange(0, 1200, 7)
  right, wrong = cosine(lengths, np.ones(len(lengths), bool), 1000), cosine(lengths, np.zeros(len(lengths), bool), 1000)
  assert right.min() > wrong.max() and (np.diff(right) <= 0).all() and (np.diff(wrong) >= 0).all()


def test_linear_in_group_by_hand():
  np.testing.assert_allclose(linear_in_group([100, 150, 300, 200], [True, True, True, False]), [0.5, 0.25, -0.5, 0])
  np.testing.assert_allclose(linear_in_group([100, 300], [False, False]), [0, -0.5])
  np.testing.assert_allclose(linear_in_group([7, 7, 7], [True, False, True]), [0, 0, 0])

"""Terms on an answer's length. Length is in tokens, the end token included, as the rollout counts it (len(answer)).

A Reward sees text and knows no tokens, so these are no Rewards but pure functions of numbers, for whoever has the
token lengths (rollout.score). Each takes scalars or arrays and returns what is added to the reward, before its weight.
None of them is in R1: the paper has no length term.
"""

from __future__ import annotations

import numpy as np


def soft_overlong(length, longest: int, cushion: int):
  """DAPO's soft overlong punishment (2503.14476, eq. 13).

  0 up to longest - cushion, then down in a line, -1 at `longest` and beyond. DAPO: longest 20,480, cushion 4,096, with
  sampling stopped at `longest`; added to the accuracy reward of truncated answers too.
  """
  if not 0 < cushion <= longest:
    raise ValueError(f"soft_overlong: cushion={cushion} must be within 1 and longest={longest}")
  return np.clip((longest - cushion - np.asarray(length)) / cushion, -1.0, 0.0)


def cosine(length, correct, longest: int, *, correct_ends=(1.0, 0.5), wrong_ends=(-1.0, -0.5), overlong=None):
  """The cosine length reward of Demystifying Long CoT (2502.03373), which replaces the accuracy reward.

  From the first of `*_ends` at length 0 along half a cosine to the second at `longest`, for correct and for wrong
  answers; so that short right answers earn most and wrong ones are driven to think longer. Defaults: open-r1's.
  overlong: the value from `longest` on, right or wrong; None: the second end.
  """
  if longest < 1:
    raise ValueError(f"cosine: longest={longest} must be at least 1")
  part = np.minimum(np.asarray(length) / longest, 1.0)
  along = lambda ends: ends[1] + 0.5 * (ends[0] - ends[1]) * (1.0 + np.cos(np.pi * part))
  value = np.where(correct, along(correct_ends), along(wrong_ends))
  return value if overlong is None else np.where(np.asarray(length) >= longest, overlong, value)


def linear_in_group(length_G, correct_G):
  """Kimi k1.5's length reward (2501.12599, section 2.3.3), over the answers to one question.

  0.5 - (length - shortest) / (longest - shortest): +0.5 for the group's shortest answer, -0.5 for its longest; a wrong
  answer gets no more than 0. All the same length: 0. Kimi warms it up; early on it keeps answers from growing.
  """
  length_G = np.asarray(length_G, float)
  span = length_G.max() - length_G.min()
  if not span:
    return np.zeros_like(length_G)
  value_G = 0.5 - (length_G - length_G.min()) / span
  return np.where(correct_G, value_G, np.minimum(value_G, 0.0))

"""Format reward: the tags that R1-Zero's template asks for.

R1 report, Methods: the reasoning must be enclosed in <think>..</think>. The paper gives
neither the value of this reward nor a regex: 1 or 0, and the exact form, are ours.
"""

from __future__ import annotations

from r1jax.problem import Problem, Score

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def think_answer_format(problem: Problem, text: str, *, partial: bool = False) -> Score:
  """1 if the whole text is <think>..</think> <answer>..</answer>, each tag once, with an answer inside.

  Nothing but white space may stand before, between and after the two; the reasoning may be empty.
  `partial` pays 0.25 for each tag that occurs exactly once, to help a weak base model begin; four tags in
  the wrong order get 0.75, as full marks are for the full form.
  """
  once = [text.count(tag) == 1 for tag in TAGS]
  if all(once):
    before, _, rest = text.partition("<think>")
    _, closed, rest = rest.partition("</think>")
    between, opened, rest = rest.partition("<answer>")
    answer, ended, after = rest.partition("</answer>")
    if closed and opened and ended and answer.strip() and not (before + between + after).strip():
      return Score(1.0)
  return Score(min(0.75, 0.25 * sum(once)) if partial else 0.0)

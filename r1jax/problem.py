"""What is asked, and how an answer is judged: the nouns of tasks and rewards, without jax.

r1jax/types.py has them too, beside those that need jax. Rewards and tasks import them from here, so that the processes
which run rewards (rewards/workers.py) start in a fraction of a second and in a tenth of the memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

REASONING = "reasoning"
NOT_ASKED = "not_asked"


@dataclasses.dataclass(frozen=True)
class Problem:
  """One verifiable question."""
  id: int                # unique within its task and split; sampling keys are folded from it
  prompt: str            # the text that the policy continues, template applied
  answer: str            # the gold answer, as the task's reward reads it
  scenario: str = REASONING   # what kind of prompt it is; others have no gold answer (Task.scenarios)


class Score(NamedTuple):
  """What one reward says of one answer."""
  value: float           # before the reward's weight; 1 is full marks
  # accuracy: correct, wrong, no_answer, unparseable, truncated, refused; any reward with limits: timeout, crashed;
  # any reward, of a prompt of a scenario that it does not read: not_asked
  verdict: str = ""


Reward = Callable[[Problem, str], Score]   # (problem, answer text without end token) -> score


@dataclasses.dataclass(frozen=True)
class Suite:
  """Held-out prompts without a gold answer, and what their answers are measured by, each a mean of scores."""
  problems: tuple[Problem, ...]
  measures: dict[str, Reward]


@dataclasses.dataclass(frozen=True)
class Task:
  """What there is to learn: prompts, gold answers, rewards. Made by a module of r1jax/tasks."""
  name: str
  tokenizer: Any                               # tokenizer.Tokenizer
  problem: Callable[[int], Problem]            # training problem i
  size: int | None                             # how many there are; None: generated without end
  held_out: tuple[Problem, ...]                # never trained on
  rewards: dict[str, Reward]                   # by name; the stage gives the weights. "accuracy" is one of them
  lenient: Reward | None = None                # accuracy, read leniently, for evaluation; None: as "accuracy"
  demonstration: Callable[[int], tuple[str, str]] | None = None   # (prompt, answer) i for pre-training
  encode: Callable[[Any], list[list[int]]] | None = None   # prompts -> tokens; None: the tokenizer's encode_batch
  # What R1's later stages need beside reasoning; a task without it has reasoning alone
  scenarios: dict[str, Callable[[int], Problem]] = dataclasses.field(default_factory=dict)   # prompts of other kinds
  suites: dict[str, Suite] = dataclasses.field(default_factory=dict)    # evaluated beside held_out
  other: Callable[[int], tuple[str, str]] | None = None      # (prompt, answer) i of supervised data beside reasoning
  rewrite: Callable[[Problem, str], str] | None = None       # a readable form of an answer: stands in for R1's editors
  pair: Callable[[int], tuple[str, str, str]] | None = None  # (prompt, chosen, rejected) i, for a reward model
  label: Callable[[int], tuple[str, str, bool]] | None = None    # (prompt, answer, safe) i, for a reward model

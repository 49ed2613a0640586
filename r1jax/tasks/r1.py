"""Everything that R1's recipe asks, from files: reasoning problems, general and unsafe prompts, data beside reasoning.

data.train, data.test: JSONL of `question` (or `problem`, or a whole `prompt`) and `answer`; data.general, data.unsafe:
JSONL of the same without an answer, for the last RL stage; data.other: JSONL of `prompt` and `answer`, for the second
fine-tuning. Questions are put into R1-Zero's template (Table 1), in all stages: the paper's later stages use a chat
template. Mathematical answers, as rewards/accuracy.py reads them; the language is that of the prompt.
"""

from __future__ import annotations

import dataclasses
import functools

from r1jax import data as files
from r1jax import tokenizer
from r1jax.problem import NOT_ASKED, REASONING, Problem, Score, Task
from r1jax.rewards.accuracy import math_accuracy
from r1jax.rewards.format import think_answer_format
from r1jax.rewards.language import language_consistency, prompt_language
from r1jax.tasks.gsm8k import TEMPLATE


@dataclasses.dataclass(frozen=True)
class Config:
  held_out: int = 0      # problems of the test file to evaluate on, from its start; 0: all

  def __post_init__(self):
    if self.held_out < 0:
      raise ValueError(f"task.held_out={self.held_out} must not be negative")


def make(cfg: Config, data) -> Task:
  for name in ("train", "test"):
    if not getattr(data, name):
      raise ValueError(f"task r1 needs a JSONL file: give --config.data.{name}=PATH")
  train, test = (files.read_problems(path, TEMPLATE) for path in (data.train, data.test))
  scenarios = {}
  for first, name in enumerate(("general", "unsafe"), start=1):
    if path := getattr(data, name):
      prompts = files.read_prompts(path, TEMPLATE)
      scenarios[name] = functools.partial(prompt_at, name, first, tuple(prompts))
  other = files.read_demonstrations(data.other) if data.other else None
  return Task(
    name="r1", tokenizer=tokenizer.load_or_bytes(data.tokenizer, data.end_token),
    problem=train.__getitem__, size=len(train), held_out=tuple(test[:cfg.held_out or None]),
    rewards=dict(accuracy=accuracy, format=think_answer_format, language=language),
    lenient=functools.partial(math_accuracy, strict=False), scenarios=scenarios,
    other=None if other is None else lambda i: other[i % len(other)])


def prompt_at(scenario: str, first: int, prompts: tuple[str, ...], place: int) -> Problem:
  """Prompt `place` of a file, which begins anew at its end. Ids are far from those of reasoning problems."""
  return Problem(first * 10**9 // 2 + place % len(prompts), prompts[place % len(prompts)], "", scenario)


def accuracy(problem: Problem, text: str) -> Score:
  return math_accuracy(problem, text) if problem.scenario == REASONING else Score(0.0, NOT_ASKED)


accuracy.scenarios = (REASONING,)


def language(problem: Problem, text: str) -> Score:
  """Words of the thought in the prompt's language / its words (R1, Methods). Of a bare formula it is English, which
  the template around it is in."""
  return language_consistency(problem, text, language=prompt_language(problem, formula="en"))

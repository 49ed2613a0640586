"""Any of reasoning-gym's generated datasets as a task (2505.24760; extra `gym`).

  c.task = dict(name="reasoning_gym", dataset="spell_backward", config=dict(max_word_len=5))

Problem i is item i of the dataset made with this task's seed; held-out problems are those of another seed, and a
training question that is also held out is drawn anew. The prompt is R1-Zero's template around the question, or the
question alone. Scored is what the one <answer>..</answer> holds (without the template: the whole text), by the
dataset's own score_answer, for which the item is made again from its number: a reward can be pickled to workers.

SCORERS are the package's, with their faults: many pay 0.01 to 0.5 for a wrong answer of the right form; `partial=False`
pays 1 or 0. The verdict is correct only at exactly 1. They may be slow or never return (puzzle24 and countdown
evaluate 9**9**9; rubiks_cube expands R999999999; coin_flip reads 1e999999999): run them in killable workers.
EVAL: some call Python's eval on the answer. Of those in LITERALS it is replaced by ast.literal_eval; answers to those
in EXPRESSIONS (sympy's parser evals too) are let through if they are plain formulas, else the verdict is refused.
Not to be had: UNSOUND. HASH_ORDER draw from sets,
so their problems depend on PYTHONHASHSEED: it must be set, or a resumed run would see other problems.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import json
import os
import random
import re
import sys

import numpy as np

from r1jax import tokenizer
from r1jax.problem import Problem, Score, Task
from r1jax.rewards.format import think_answer_format
from r1jax.tasks.gsm8k import TEMPLATE

BLOCK = 2**20                  # seeds from a task's training seed to its held-out one: item i is drawn by seed + i
HELD_OUT = 2**30               # ids of held-out problems start here
TRIES = 1000                   # at a training question that is not held out
LITERALS = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
EXPRESSIONS = ("countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration")
HASH_ORDER = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
UNSOUND = dict(composite="is a mixture of datasets: name one of them",
               codeio="runs programs that give another question each time, for some of its items",
               game_of_life_halting="has a scorer that gives any answer full marks")
FUNCTIONS = ("exp", "log", "ln", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh",
             "cosh", "tanh", "pi")
EXAMPLES = ("example_correct_answer", "example_answer", "possible_answer")   # where metadata shows one answer of many
_FORMULA = re.compile(r"(?:[0-9\s+\-*/^(),!]|\.(?![A-Za-z_])|(?<![A-Za-z_0-9])(?:[A-Za-z]|" + "|".join(FUNCTIONS)
                      + r")(?![A-Za-z_0-9]))*")


@dataclasses.dataclass(frozen=True)
class Config:
  dataset: str                   # a name of reasoning_gym's
  config: dict = dataclasses.field(default_factory=dict)   # its own settings; not seed and size
  size: int = 10_000             # training problems
  held_out: int = 128            # problems of another seed
  template: bool = True          # R1-Zero's prompt; else the question alone, and the whole text is the answer
  partial: bool = True           # pay what the dataset's scorer pays; else 1 or 0
  seed: int = 0

  def __post_init__(self):
    for name in ("size", "held_out"):
      if not 1 <= getattr(self, name) <= 1_000_000:
        raise ValueError(f"task.{name}={getattr(self, name)} must be within 1 and 1000000")
    if not 0 <= self.seed < 2**32 // (2 * BLOCK) - 1:
      raise ValueError(f"task.seed={self.seed} must be within 0 and {2**32 // (2 * BLOCK) - 2}")
    if fixed := {"seed", "size"} & set(self.config):
      raise ValueError(f"task.config.{min(fixed)}: give task.{min(fixed)} instead")
    if self.dataset in UNSOUND:
      raise ValueError(f"task.dataset={self.dataset!r} {UNSOUND[self.dataset]}")
    if self.dataset in HASH_ORDER and os.environ.get("PYTHONHASHSEED", "random") == "random":
      raise ValueError(f"task.dataset={self.dataset!r} draws from Python's sets, whose order differs from process to"
                       f" process: set PYTHONHASHSEED=0 in the environment")


def make(cfg: Config, data) -> Task:
  """Bytes, or the tokenizer.json of data.tokenizer."""
  if data.train or data.test:
    raise ValueError("task reasoning_gym generates its problems: data.train and data.test must stay empty")
  open_dataset(cfg, False)                        # wrong names and settings fail here
  held_out = tuple(problem(cfg, HELD_OUT + i) for i in range(cfg.held_out))
  kept_out = {p.prompt for p in held_out}
  accuracy = functools.partial(own_score, cfg=cfg)
  return Task(
    name="reasoning_gym",
    tokenizer=tokenizer.load_or_bytes(data.tokenizer, data.end_token),
    problem=lambda i: _draw(cfg, i, kept_out), size=cfg.size, held_out=held_out,
    rewards=dict(accuracy=accuracy) | (dict(format=think_answer_format) if cfg.template else {}),
    lenient=functools.partial(own_score, cfg=cfg, strict=False))


def open_dataset(cfg: Config, held_out: bool):
  """The package's dataset behind the training or the held-out problems; made once a process."""
  return _open(*_key(cfg, held_out))


def _key(cfg: Config, held_out: bool):
  # settings as JSON: a dict cannot be looked up in a cache
  return (cfg.dataset, json.dumps(cfg.config, sort_keys=True), cfg.held_out if held_out else cfg.size,
          (2 * cfg.seed + held_out) * BLOCK)


@functools.lru_cache(maxsize=8)
def _open(name: str, config: str, size: int, seed: int):
  try:
    from reasoning_gym.factory import DATASETS, create_dataset
  except ModuleNotFoundError as error:
    raise ValueError("task reasoning_gym needs the package: pip install 'r1jax[gym]'") from error
  if name not in DATASETS:
    raise ValueError(f"task.dataset={name!r} is none of {', '.join(sorted(set(DATASETS) - set(UNSOUND)))}")
  try:
    dataset = create_dataset(name, seed=seed, size=size, **json.loads(config))
  except (TypeError, AssertionError) as error:
    raise ValueError(f"task.config={config} does not fit reasoning_gym's {name}: {error}") from error
  if name in LITERALS:
    sys.modules[type(dataset).__module__].eval = ast.literal_eval    # found before the builtin of that name
  return dataset


def item(cfg: Config, id: int) -> dict:
  """reasoning_gym's own record behind problem `id`: question, answer, metadata."""
  held_out = id >= HELD_OUT
  made = _item(*_key(cfg, held_out), id - HELD_OUT if held_out else id % cfg.size)
  return copy.deepcopy(made)              # what a scorer does to it must not stay


@functools.lru_cache(maxsize=256)         # some take seconds to make, and each of a group's answers needs its own
def _item(name: str, config: str, size: int, seed: int, index: int) -> dict:
  dataset = _open(name, config, size, seed)
  states = random.getstate(), np.random.get_state()     # list_functions draws from these, pool_matrix seeds one
  random.seed(seed + index)
  np.random.seed(seed + index)
  try:
    return dataset[index]
  finally:
    random.setstate(states[0])
    np.random.set_state(states[1])


def gold(entry: dict) -> str:
  """The gold answer as text; where a puzzle has many, the one that its metadata shows, or ""."""
  answer = entry["answer"]
  if answer is None:
    answer = next((entry["metadata"][key] for key in EXAMPLES if key in entry["metadata"]), "")
  return answer if isinstance(answer, str) else json.dumps(answer)


def problem(cfg: Config, id: int) -> Problem:
  entry = item(cfg, id)
  question = entry["question"]
  return Problem(id, TEMPLATE.replace("{question}", question.strip()) if cfg.template else question, gold(entry))


def _draw(cfg: Config, i: int, kept_out) -> Problem:
  """Training problem i; while its question is held out, the next item. The id, mod size, is the item's number."""
  for k in range(TRIES):
    drawn = problem(cfg, (i + k) % cfg.size + k * cfg.size)
    if drawn.prompt not in kept_out:
      return drawn
  raise ValueError(f"task.dataset={cfg.dataset!r}: {TRIES} training problems from {i} on are all held out: it has too"
                   f" few for held_out={cfg.held_out}")


def answer_of(text: str, template: bool, strict: bool = True) -> tuple[str | None, str]:
  """(the answer, "") or (None, verdict). strict: the one <answer> block; lenient: the last, else the whole text."""
  if template:
    if strict and (text.count("<answer>") > 1 or text.count("</answer>") > 1):
      return None, "unparseable"
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    if closed and opened:
      text = inside
    elif strict:
      return None, "no_answer"
  return (text.strip(), "") if text.strip() else (None, "no_answer")


def own_score(problem: Problem, text: str, *, cfg: Config, strict: bool = True) -> Score:
  """The dataset's own score of the answer, within 0 and 1. ValueError if the problem is not this dataset's."""
  answer, verdict = answer_of(text, cfg.template, strict)
  if answer is None:
    return Score(0.0, verdict)
  entry = item(cfg, problem.id)
  if gold(entry) != problem.answer:
    raise ValueError(f"problem id={problem.id} is not that of reasoning_gym's {cfg.dataset} with seed={cfg.seed}: gold"
                     f" answer {problem.answer[:80]!r}, here {gold(entry)[:80]!r}")
  if cfg.dataset in EXPRESSIONS and not _FORMULA.fullmatch(answer):
    return Score(0.0, "refused")
  # gold answers with spaces around them are compared as they are
  if answer == (entry["answer"] or "").strip():
    answer = entry["answer"]
  try:
    value = float(open_dataset(cfg, problem.id >= HELD_OUT).score_answer(answer, entry))
  except Exception:      # whatever a scorer trips over, it is the answer's doing: gold answers pass, see the tests
    return Score(0.0, "unparseable")
  if value == 1:
    return Score(1.0, "correct")
  return Score(value, "wrong") if cfg.partial and 0 <= value < 1 else Score(0.0, "wrong")

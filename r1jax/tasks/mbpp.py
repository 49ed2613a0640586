"""MBPP: mostly basic Python problems (Austin et al., arXiv 2108.07732) under R1-Zero's prompt template.

A problem shows its first `shown` asserts, without which the function's name and form are anybody's guess, and is
scored on all. The paper's prompts show all three: a policy then learns to return the values that it was shown.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from r1jax import tokenizer
from r1jax.data import read_jsonl
from r1jax.problem import Problem, Task
from r1jax.rewards import asserts, sandbox
from r1jax.rewards.code import check_tests, code_accuracy
from r1jax.rewards.format import think_answer_format
from r1jax.tasks.gsm8k import TEMPLATE

# Section 2.1 of the paper, by task_id: 1-10 for prompts, test, validation, train
TEST, TRAIN = range(11, 511), range(601, 975)
QUESTION = (
  "{text} Your program should pass tests such as\n```python\n{tests}\n```\nWrite the program in a ```python block.")


def load(path: str | Path, shown: int = 1, template: str = TEMPLATE) -> list[Problem]:
  """Problems of an MBPP JSONL file; id = task_id, answer = the tests as rewards/code.py reads them.

  template: what a question is put into, at {question}.

  ValueError `path:line: reason` for a line without its fields, with an assert that cannot be split, or an id met twice.
  """
  problems, ids = [], set()
  for number, row in read_jsonl(path):
    where = f"{path}:{number}"
    for key in ("text", "code"):
      if not isinstance(row.get(key), str) or not row[key].strip():
        raise ValueError(f"{where}: {key!r} must be a non-empty string, got {repr(row.get(key))[:80]}")
    tests, setup, id = row.get("test_list"), row.get("test_setup_code") or "", row.get("task_id")
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
      raise ValueError(f"{where}: 'test_list' must be a list of asserts, got {repr(tests)[:80]}")
    if type(id) is not int or id in ids or not isinstance(setup, str):
      raise ValueError(f"{where}: 'task_id' must be an integer not met before, got {id!r}" if isinstance(setup, str)
                       else f"{where}: 'test_setup_code' must be a string")
    ids.add(id)
    try:
      ours = asserts.defined(row["code"]) | asserts.defined(setup)
      names = sorted(ours & set().union(*map(asserts.used, tests)))
    except (SyntaxError, ValueError, RecursionError) as error:
      raise ValueError(f"{where}: not Python: {error}") from error
    answer = json.dumps(dict(asserts=tests, names=names) | (dict(setup=setup) if setup.strip() else {}))
    question = QUESTION.replace("{text}", row["text"].strip()).replace("{tests}", "\n".join(tests[:shown]))
    problem = Problem(id, template.replace("{question}", question), answer)
    try:
      check_tests(problem)
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    problems.append(problem)
  return problems


@dataclasses.dataclass(frozen=True)
class Config:
  held_out: int = 0          # held-out problems to evaluate on, from the first; 0: all
  shown: int = 1             # asserts that the prompt shows
  proportional: bool = False   # pay the share of tests passed, else 1 for all
  seconds: int = 5           # of CPU time for each test; of wall time twice as many
  memory: int = 1024         # MB for each test
  unsandboxed: bool = False  # run completions with your own rights where this machine has no sandbox

  def __post_init__(self):
    for name, least in (("held_out", 0), ("shown", 1), ("seconds", 1), ("memory", 64)):
      if getattr(self, name) < least:
        raise ValueError(f"task.{name}={getattr(self, name)} must be at least {least}")


def scoring(cfg: Config) -> dict:
  """How programs are scored: the fields of a Task. NotImplementedError where this machine has no sandbox."""
  if not cfg.unsandboxed:
    sandbox.require()
  limits = sandbox.Limits(wall=2 * cfg.seconds, cpu=cfg.seconds, memory=cfg.memory * sandbox.MB)
  accuracy = functools.partial(code_accuracy, limits=limits, proportional=cfg.proportional, unsandboxed=cfg.unsandboxed)
  return dict(rewards=dict(accuracy=accuracy, format=think_answer_format),
              lenient=functools.partial(accuracy, strict=False))


def make(cfg: Config, data) -> Task:
  """Reads data.train, and data.test or else the paper's splits of data.train; bytes, or data.tokenizer."""
  if not data.train:
    raise ValueError("task mbpp needs a JSONL file: give --config.data.train=PATH")
  scored = scoring(cfg)
  train, test = load(data.train, cfg.shown), load(data.test, cfg.shown) if data.test else []
  if not data.test:
    train, test = ([p for p in train if p.id in ids] for ids in (TRAIN, TEST))
    if not train or not test:
      raise ValueError(f"{data.train}: task_ids {TEST.start}..{TEST.stop - 1} and {TRAIN.start}..{TRAIN.stop - 1} are"
                       f" the paper's test and train; found {len(test)} and {len(train)}. Else give data.test")
  return Task(
    name="mbpp",
    tokenizer=tokenizer.load_or_bytes(data.tokenizer, data.end_token),
    problem=lambda i: train[i],
    size=len(train),
    held_out=tuple(test[:cfg.held_out or None]),
    **scored)

"""A task is a file: prompts, gold answers, rewards. It has a frozen `Config` and `make(cfg, data) -> types.Task`.

A task of your own is the path of such a file in place of a name: `c.task = dict(name="my/task.py", ...)`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from r1jax.tasks import gcd, gsm8k, mbpp, multiplication, parity, r1, reasoning_gym, world

TASKS = dict(parity=parity, multiplication=multiplication, gcd=gcd, gsm8k=gsm8k, mbpp=mbpp,
             reasoning_gym=reasoning_gym, r1=r1, world=world)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Files that the user gives; a task that generates its problems needs none."""
  train: str | None = None       # JSONL of training problems
  test: str | None = None        # JSONL of held-out problems
  demonstrations: str | None = None   # JSONL of prompt and answer, for sft and distill; None: the task's own
  preferences: str | None = None      # JSONL of prompt, chosen and rejected, for dpo and reward_model
  safety: str | None = None           # JSONL of prompt, answer and safe, for reward_model
  general: str | None = None     # JSONL of prompts without a gold answer, for the last RL stage
  unsafe: str | None = None           # JSONL of prompts to be refused, for the last RL stage
  other: str | None = None            # JSONL of prompt and answer beside reasoning, for the second fine-tuning
  tokenizer: str | None = None   # a tokenizer.json; None: the task's own
  end_token: str | None = None   # what ends an answer in that tokenizer; None: found among the usual names


def find(name: str) -> ModuleType:
  """The task's module, by name or by the path of a Python file."""
  if name in TASKS:
    return TASKS[name]
  if not name.endswith(".py"):
    raise ValueError(f"task.name={name!r} is none of {', '.join(TASKS)}, nor the path of a .py file")
  if not Path(name).is_file():
    raise ValueError(f"task.name={name!r}: no such file")
  module = load_file(name, f"r1jax_task_{Path(name).stem}")
  for part in ("Config", "make"):
    if not hasattr(module, part):
      raise ValueError(f"task.name={name!r}: the file has no {part}")
  return module


def load_file(path: str | Path, name: str) -> ModuleType:
  """A Python file as the module `name`."""
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module      # a dataclass with annotations as strings looks its module up there
  spec.loader.exec_module(module)
  return module

"""The nouns of the project, and its letters.

Letters in names are array axes, in order (`logp_NT` is [N, T]):
  B prompts        G answers to a prompt (a group)      N sequences (B * G, prompt-major)
  P prompt tokens  A answer tokens                      T tokens (prompt then answer)
  D model width    H query heads   K key/value heads    R query heads per kv head
  C head channels  F feed-forward width                 V vocabulary       L layers
A *prompt* has G *answers*, a *group*; *reward* is before normalising, *advantage* after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax


@dataclasses.dataclass(frozen=True)
class Problem:
  """One verifiable question."""
  id: int                # unique within its task and split; sampling keys are folded from it
  prompt: str            # the text that the policy continues, template applied
  answer: str            # the gold answer, as the task's reward reads it


class Score(NamedTuple):
  """What one reward says of one answer."""
  value: float           # before the reward's weight; 1 is full marks
  verdict: str = ""      # accuracy only: correct, wrong, no_answer, unparseable, truncated, timeout, refused


Reward = Callable[[Problem, str], Score]   # (problem, answer text without end token) -> score


@flax.struct.dataclass
class Batch:
  """Answers to learn from, and each prompt once: rows n = b * G + g of the answers belong to prompt b; G may be 1."""
  prompt_BP: jax.Array            # int32, right-padded
  prompt_length_B: jax.Array      # int32, at least 1
  answer_NA: jax.Array            # int32, right-padded; the end token is part of it
  mask_NA: jax.Array              # f32: 1 on the answer tokens where the loss lives
  advantage_N: jax.Array | None = None
  old_logp_NA: jax.Array | None = None      # None: on-policy, the ratio is 1 and only its gradient counts
  ref_logp_NA: jax.Array | None = None      # None: no KL term
  sampler_logp_NA: jax.Array | None = None  # for the mismatch metric
  # MoE layers' experts as the sampler chose them (models/moe.py), to be used again; None: the trainer's own choice
  prompt_expert_BPLk: jax.Array | None = None
  expert_NALk: jax.Array | None = None


@flax.struct.dataclass
class TrainState:
  """All that a step changes. What is here and the config make a run; both are saved."""
  step: jax.Array                 # int32 scalar: policy updates done
  params: Any
  opt_state: Any
  ref_params: Any = None          # the KL reference; None where the stage has none


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

"""The nouns of the project, and its letters.

Letters in names are array axes, in order (`logp_NT` is [N, T]):
  B prompts        G answers to a prompt (a group)      N sequences (B * G, prompt-major)
  P prompt tokens  A answer tokens                      T tokens (prompt then answer)
  D model width    H query heads   K key/value heads    R query heads per kv head
  C head channels  F feed-forward width                 V vocabulary       L layers
A *prompt* has G *answers*, a *group*; *reward* is before normalising, *advantage* after.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

from r1jax.problem import NOT_ASKED, REASONING, Problem, Reward, Score, Suite, Task

__all__ = ["NOT_ASKED", "REASONING", "Batch", "Problem", "Reward", "Score", "Suite", "Task", "TrainState"]


@flax.struct.dataclass
class Batch:
  """Answers to learn from, and each prompt once: rows n = b * G + g of the answers belong to prompt b; G may be 1."""
  prompt_BP: jax.Array            # int32, right-padded
  prompt_length_B: jax.Array      # int32, at least 1
  answer_NA: jax.Array            # int32, right-padded; the end token is part of it
  mask_NA: jax.Array              # f32: 1 on the answer tokens where the loss lives
  advantage_N: jax.Array | None = None
  token_advantage_NA: jax.Array | None = None   # PPO: one of each token, in place of advantage_N
  old_logp_NA: jax.Array | None = None      # None: on-policy, the ratio is 1 and only its gradient counts
  ref_logp_NA: jax.Array | None = None      # None: no KL term
  sampler_logp_NA: jax.Array | None = None  # of the policy that sampled: mismatch, off-policy corrections
  return_NA: jax.Array | None = None        # PPO: what the critic's values should be
  old_value_NA: jax.Array | None = None     # PPO: what they were at the time of the rollout
  # MoE layers' experts as the sampler chose them (models/moe.py), to be used again; None: the trainer's own choice
  prompt_expert_BPLk: jax.Array | None = None
  expert_NALk: jax.Array | None = None
  kept_NAk: jax.Array | None = None         # tokens that each was drawn from, -1 for none; None: the whole vocabulary
  packed: Any = None                        # the same samples in rows of a token budget (packing.PackedAnswers)


@flax.struct.dataclass
class TrainState:
  """All that a step changes. What is here and the config make a run; both are saved."""
  step: jax.Array                 # int32 scalar: policy updates done
  params: Any
  opt_state: Any
  ref_params: Any = None          # the KL reference; None where the stage has none
  critic: Any = None              # PPO: the critic's own TrainState
  carry: Any = None               # partial rollouts: the answers under way (partial.py)
  behind: Any = None              # rollouts sampled ahead: the policies that draw them, oldest first (ahead.py)

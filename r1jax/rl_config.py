"""What an RL stage is told: rollouts, rewards, updates, where time and memory go; R1's numbers beside."""

from __future__ import annotations

import dataclasses

from r1jax import offload, rollout
from r1jax import update as update_
from r1jax.critic import CriticConfig
from r1jax.drawing import SampleConfig
from r1jax.grpo import LossConfig
from r1jax.loop import SaveConfig
from r1jax.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RLConfig:
  optimizer: OptimizerConfig
  loss: LossConfig
  sampling: SampleConfig
  rewards: dict[str, float]              # weight of each; R1-Zero: accuracy + format, the same
  rollouts: int                          # updates = rollouts * minibatches; R1-Zero: 650 * 16
  questions_per_rollout: int             # R1-Zero: 512
  group_size: int                        # answers to a question; R1-Zero: 16
  minibatches: int = 1                   # updates per rollout; R1-Zero: 16
  micro_batches: int = 1                 # parts of a minibatch, gradients added up; changes memory, not results
  shared_prompt: bool = True             # a group's prompt is computed once in training; changes time, not results
  sort_by_length: bool = False           # a micro-batch has answers of like length and no longer padding than these
                                         # need; changes time, not results (layout.py)
  pack_tokens: int = 0                   # instead of a shared prompt: whole samples packed into rows of so many tokens;
                                         # 0: off. Changes time, not results (layout.py)
  reference: str = "before"              # of update.REFERENCE: the reference's log-probs are computed in a pass before
                                         # the updates, or "fused" into their program. Changes time, not results
  offload: str = "none"                  # of offload.WHAT: what waits in the host's memory between its uses
  routing_replay: bool = True            # MoE: the trainer uses the experts that the sampler chose; V3.2 "Keep Routing"
  prompts_at_once: int = 0               # questions sampled together; 0: all. Changes memory, not results
  reference_refresh: int = 400           # updates, then the reference becomes the policy; 0: never. R1: 400
  truncated: str = "wrong"               # rollout.score
  overlong_cushion: int = 0              # rewards.length.soft_overlong, within so many tokens of max_tokens; 0: none
  zero_variance: str = "keep"            # groups whose rewards agree: keep (KL acts on them) or drop from the loss
  dynamic_sampling: int = 0              # up to so many times the questions are sampled, until enough groups do not
                                         # agree (DAPO); 0: off
  partial: int = 0                       # questions under way beyond those of an update; their unfinished answers go
                                         # on in the next rollout (partial.py); 0: off. Needs sampling.slots
  ahead: int = 0                         # rollouts that are sampled before their turn, while the policy learns from
                                         # earlier ones (ahead.py): answers are so many rollouts stale. 0: on-policy
  in_flight: int = 0                     # ahead only: decode steps after which the sampler goes on with the next policy
  critic: CriticConfig | None = None     # loss.advantage=gae only
  eval_every: int = 10                   # rollouts between greedy evaluations on held-out problems; 0: only at the ends
  checkpoint: SaveConfig = dataclasses.field(default_factory=SaveConfig)

  def __post_init__(self):
    for name in ("rollouts", "questions_per_rollout", "minibatches", "micro_batches"):
      if getattr(self, name) < 1:
        raise ValueError(f"reasoning_rl.{name}={getattr(self, name)} must be at least 1")
    if self.group_size < 2:
      raise ValueError(f"reasoning_rl.group_size={self.group_size}: a group of one has no advantage, give at least 2")
    if self.questions_per_rollout % self.minibatches:
      raise ValueError(f"reasoning_rl.questions_per_rollout={self.questions_per_rollout} must be a multiple of"
                       f" minibatches={self.minibatches}")
    rows = self.questions_per_rollout // self.minibatches * (1 if self.shared_prompt else self.group_size)
    if rows % self.micro_batches:
      what = "questions" if self.shared_prompt else "answers"
      raise ValueError(f"reasoning_rl: {rows} {what} of a minibatch are not a multiple of"
                       f" micro_batches={self.micro_batches}")
    if self.reference_refresh % self.minibatches:
      raise ValueError(f"reasoning_rl.reference_refresh={self.reference_refresh} must be a multiple of minibatches="
                       f"{self.minibatches}: the reference does not change within a rollout")
    if self.pack_tokens < 0 or (self.pack_tokens and self.shared_prompt):
      raise ValueError(f"reasoning_rl.pack_tokens={self.pack_tokens} needs shared_prompt=False: a packed sample has its"
                       " own prompt")
    if 0 < self.pack_tokens <= self.sampling.max_tokens:
      raise ValueError(f"reasoning_rl.pack_tokens={self.pack_tokens} holds no answer of sampling.max_tokens="
                       f"{self.sampling.max_tokens} tokens with its prompt: give the longest prompt's more than these")
    if self.reference not in update_.REFERENCE:
      raise ValueError(f"reasoning_rl.reference={self.reference!r} is none of {update_.REFERENCE}")
    if self.reference == "fused" and self.loss.kl_in == "reward":
      raise ValueError("reasoning_rl.reference=fused comes too late for loss.kl_in=reward: rewards are before updates")
    if self.offload not in offload.WHAT:
      raise ValueError(f"reasoning_rl.offload={self.offload!r} is none of {offload.WHAT}")
    if self.truncated not in rollout.TRUNCATED:
      raise ValueError(f"reasoning_rl.truncated={self.truncated!r} is none of {rollout.TRUNCATED}")
    if self.zero_variance not in ("keep", "drop"):
      raise ValueError(f"reasoning_rl.zero_variance={self.zero_variance!r} is neither keep nor drop")
    if self.sampling.temperature == 0:
      raise ValueError("reasoning_rl.sampling.temperature=0: greedy answers of a group are all the same")
    if not self.rewards:
      raise ValueError("reasoning_rl.rewards is empty")
    if self.partial < 0 or (self.partial and (not self.sampling.slots or self.dynamic_sampling)):
      raise ValueError(f"reasoning_rl.partial={self.partial} needs sampling.slots={self.sampling.slots} above 0 and"
                       f" dynamic_sampling={self.dynamic_sampling} off")
    if self.partial and (self.sampling.keep_mask or self.critic or self.loss.correction != "none"):
      raise ValueError(f"reasoning_rl.partial={self.partial}: neither sampling.keep_mask, nor a critic, nor"
                       f" loss.correction={self.loss.correction} go with it: the ratio is against who sampled")
    if self.ahead < 0 or (self.ahead and self.partial):
      raise ValueError(f"reasoning_rl.ahead={self.ahead} must not be negative, and goes without partial={self.partial}")
    if self.in_flight < 0 or (self.in_flight and not (self.ahead and self.sampling.slots)):
      raise ValueError(f"reasoning_rl.in_flight={self.in_flight} needs ahead={self.ahead} and sampling.slots="
                       f"{self.sampling.slots} above 0")
    if self.dynamic_sampling < 0 or self.dynamic_sampling == 1:
      raise ValueError(f"reasoning_rl.dynamic_sampling={self.dynamic_sampling} must be 0 (off) or at least 2")
    if not 0 <= self.overlong_cushion <= self.sampling.max_tokens:
      raise ValueError(f"reasoning_rl.overlong_cushion={self.overlong_cushion} must be within 0 and"
                       f" sampling.max_tokens={self.sampling.max_tokens}")
    if (self.loss.advantage == "gae") != (self.critic is not None):
      raise ValueError(f"reasoning_rl: loss.advantage=gae and a critic go together, here {self.loss.advantage} and"
                       f" {'a' if self.critic else 'no'} critic")
    if self.loss.advantage == "gae" and self.loss.negative_control == "shuffled_groups":
      raise ValueError("reasoning_rl: negative_control=shuffled_groups has no meaning for gae: flipped_advantages has")
    if self.critic and self.critic.warmup >= self.rollouts:
      raise ValueError(f"reasoning_rl.critic.warmup={self.critic.warmup} leaves none of rollouts={self.rollouts}")
    if self.zero_variance == "drop" and (self.loss.advantage in ("gae", "batch_normalised")
                                         or self.loss.kl_in == "reward"):
      raise ValueError("reasoning_rl.zero_variance=drop takes out groups that teach something here: loss.advantage="
                       f"{self.loss.advantage}, kl_in={self.loss.kl_in}")
    if self.loss.kl_in == "reward" and not self.loss.kl_coef:
      raise ValueError("reasoning_rl: loss.kl_in=reward with kl_coef=0")

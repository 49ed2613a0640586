"""Algorithms by name: what each changes in an experiment's `reasoning_rl` section, with the numbers of its paper.

  c.reasoning_rl.update(algorithms.section("dapo", max_tokens=20_480))

Each name stands for published choices; every one of them is a value of the config and can be changed alone. Learning
rate, batch and lengths are the experiment's.
"""

from __future__ import annotations

_NO_KL = dict(kl_coef=0.0)
_PPO_CLIP = dict(clip_low=0.2, clip_high=0.2)

ALGORITHMS = dict(
  # R1 (Nature 2025, Methods): eps 10, k3 in the loss
  grpo=lambda A: dict(loss=dict(clip_low=10.0, clip_high=10.0, kl_coef=0.001)),
  # DeepSeekMath (2402.03300, 4.2): beta 0.04; eps is not printed, 0.2 is PPO's
  grpo_deepseekmath=lambda A: dict(loss=_PPO_CLIP | dict(kl_coef=0.04)),
  # Dr. GRPO (2503.20783): no std, no length
  dr_grpo=lambda A: dict(loss=_PPO_CLIP | _NO_KL | dict(
    advantage="group_centred", aggregation="constant_divisor", divisor=float(A))),
  # DAPO (2503.14476): clip-higher, token mean, dynamic sampling, soft overlong punishment (its 4,096 of 20,480 tokens)
  dapo=lambda A: dict(loss=_NO_KL | dict(clip_low=0.2, clip_high=0.28, aggregation="token_mean"),
                      dynamic_sampling=4, overlong_cushion=max(A // 5, 1)),
  # GSPO (2507.18071, 5.1)
  gspo=lambda A: dict(loss=_NO_KL | dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4)),
  gspo_token=lambda A: dict(loss=_NO_KL | dict(ratio="sequence_token", clip_low=3e-4, clip_high=4e-4)),
  # CISPO (2506.13585): the weight is bounded from above only; eps_max is not printed, 4 to 5 in replications
  cispo=lambda A: dict(loss=_NO_KL | dict(surrogate="truncated_reinforce", clip_low=1.0, clip_high=4.0,
                                          aggregation="token_mean")),
  # RLOO (2402.14740): the whole answer is one action, hence a token sum; KL in the reward
  rloo=lambda A: dict(loss=dict(advantage="leave_one_out", surrogate="reinforce", kl="k1", kl_in="reward",
                                kl_coef=0.03, aggregation="constant_divisor", divisor=float(A))),
  # REINFORCE++ (2501.03262): one baseline for the whole batch, KL in the reward. There a token is charged with the KL
  # still to come, here with that of its whole answer
  reinforce_pp=lambda A: dict(loss=_PPO_CLIP | dict(advantage="batch_normalised", kl="k1", kl_in="reward", kl_coef=0.01,
                                                    aggregation="token_mean")),
  # PPO (1707.06347) as the paper's baseline (arXiv 2501.12948 v2, A.3): a critic, KL in the reward; lambda 1.0 and 0.95
  ppo=lambda A: dict(loss=_PPO_CLIP | dict(advantage="gae", gae_lambda=1.0, kl="k1", kl_in="reward", kl_coef=0.001,
                                           aggregation="token_mean"),
                     critic=dict()),
)


def section(name: str, max_tokens: int) -> dict:
  """Changes to `reasoning_rl`, nested. max_tokens: the longest answer, by which some divide."""
  if name not in ALGORITHMS:
    raise ValueError(f"algorithm {name!r} is none of {', '.join(ALGORITHMS)}")
  if max_tokens < 1:
    raise ValueError(f"max_tokens={max_tokens} must be at least 1")
  return ALGORITHMS[name](max_tokens)

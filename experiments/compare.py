"""Algorithms side by side on the tiny parity task: the same base, data, updates and learning rate, one line changed.

  r1jax compare --config experiments/compare.py --seeds 0 1 2 --workdir runs/compare

runs all of VARIANTS below, each from the base policy of its seed, and prints one table. A single one:
`r1jax run --config experiments/compare.py:algorithm=dapo --workdir ...`. Four updates a rollout, so that ratios and
clips have something to act on.

Measured (2 CPU cores, 39 runs in 9 minutes; the table is in the README): nearly all reach 90%, and what differs is who
keeps it. GRPO with KL to a reference that is refreshed does in all three seeds; without KL, or without the refresh,
one of three falls back to chance, as do Dr. GRPO and CISPO, which have no KL; DAPO and GSPO have none and keep it. GSPO
and PPO learn more slowly, PPO with lambda 0.95 more slowly than with 1.
"""

from ml_collections import ConfigDict

from r1jax import algorithms
from r1jax.config import parse_arg

VARIANTS = (
  "algorithm=grpo", "algorithm=grpo,clip=0.2", "algorithm=grpo,kl=0", "algorithm=grpo,refresh=0",
  "algorithm=grpo_deepseekmath", "algorithm=dr_grpo", "algorithm=dapo", "algorithm=gspo", "algorithm=cispo",
  "algorithm=rloo", "algorithm=reinforce_pp", "algorithm=ppo,gae_lambda=1.0", "algorithm=ppo,gae_lambda=0.95",
)


def get_config(arg=None):
  """arg: algorithm=NAME of r1jax/algorithms.py; clip, kl, refresh (updates; 0: never), gae_lambda change one value."""
  arg = parse_arg(arg, tiny=False, algorithm="grpo", clip=-1.0, kl=-1.0, refresh=40, gae_lambda=1.0)
  c = ConfigDict()
  c.name = "compare"
  c.seed = 0
  c.stages = ("pretrain", "reasoning_rl")
  c.task = dict(name="parity", bits=10, p_long=0.15, p_untagged=0.2, held_out=128, seed=0)
  c.model = dict(dim=32, layers=2, heads=2, kv_heads=1, ffn=64)
  c.pretrain = dict(steps=400, batch=64, optimizer=dict(lr=3e-3, warmup=50, schedule="cosine"),
                    checkpoint=dict(every=500, keep=1))
  c.reasoning_rl = dict(
    rollouts=40, questions_per_rollout=32, group_size=8, minibatches=4,
    rewards=dict(accuracy=1.0, format=1.0), sampling=dict(max_tokens=28, temperature=1.0),
    optimizer=dict(lr=1e-3, warmup=5), reference_refresh=arg.refresh, eval_every=2, checkpoint=dict(every=40, keep=1))
  c.eval = dict(samples=4, temperature=0.6, top_p=0.95)
  c.reasoning_rl.update(algorithms.section(arg.algorithm, max_tokens=28))
  if arg.clip >= 0:
    c.reasoning_rl.loss.update(clip_low=arg.clip, clip_high=arg.clip)
  if arg.kl >= 0:
    c.reasoning_rl.loss.kl_coef = arg.kl
  if arg.algorithm == "ppo":
    c.reasoning_rl.loss.gae_lambda = arg.gae_lambda
    c.reasoning_rl.critic = dict(optimizer=dict(lr=2e-3), warmup=2)
  if arg.tiny:
    c.task.held_out, c.pretrain.steps, c.reasoning_rl.rollouts = 16, 20, 2
  return c

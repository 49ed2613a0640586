"""R1-Zero on a laptop: a tiny base policy, then GRPO on a verifiable reward.

  r1jax run --config experiments/r1_zero_parity.py --workdir runs/parity
"""

from ml_collections import ConfigDict

from r1jax.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, tiny=False, bits=16)
  c = ConfigDict()
  c.name = "r1_zero_parity"
  c.seed = 0
  c.stages = ("pretrain", "reasoning_rl")
  c.task = dict(name="parity", bits=arg.bits, p_long=0.1, p_untagged=0.2, held_out=512, seed=0)
  c.model = dict(dim=128, layers=2, heads=4, kv_heads=2, ffn=256)
  c.pretrain = dict(steps=1500, batch=128, optimizer=dict(lr=1e-3, warmup=50, schedule="cosine"))
  c.reasoning_rl = dict(
    rollouts=100, questions_per_rollout=32, group_size=8, minibatches=1,
    rewards=dict(accuracy=1.0, format=1.0),
    sampling=dict(max_tokens=arg.bits + 16, temperature=1.0),
    loss=dict(clip_low=10.0, clip_high=10.0, kl_coef=1e-3),
    optimizer=dict(lr=3e-4, warmup=5),
    reference_refresh=50, eval_every=10,
  )
  return c

"""PPO against GRPO as R1-Zero's algorithm (arXiv 2501.12948 v2, A.3: PPO needs its lambda tuned, and a critic).

  r1jax run --config experiments/ablation_ppo.py --workdir runs/ppo

From one base of the tiny recipe, 60 rollouts each: GRPO; PPO with GAE's lambda 1 and 0.95, whose critic is a second
model of the same size. The KL term is as in GRPO, so that one thing differs.

Measured, seed 0: pass@1 0.992 GRPO, 0.992 lambda 1, 0.974 lambda 0.95.
"""

from r1jax.config import beside, parse_arg


def get_config(arg=None):
  """arg: `short` (a few steps, for tests)."""
  arg = parse_arg(arg, short=False)
  r1 = beside(__file__, "r1.py")
  c = r1.tiny()
  c.name = "ablation_ppo"
  c.stages = ("base", "grpo", "ppo_1", "ppo_095")
  c.grpo = c.zero.copy_and_resolve_references()
  for name, gae_lambda in (("ppo_1", 1.0), ("ppo_095", 0.95)):
    section = c[name] = c.zero.copy_and_resolve_references()
    section.loss.update(advantage="gae", gae_lambda=gae_lambda)
    section.critic = dict(optimizer=dict(lr=2e-3), warmup=1)
  return r1.short(c) if arg.short else c

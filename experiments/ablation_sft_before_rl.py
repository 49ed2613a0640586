"""Fine-tuning before RL: reasoning RL from the base and from the cold start, with the same rewards and rollouts.

  r1jax run --config experiments/ablation_sft_before_rl.py --workdir runs/sft_before_rl

from_base is R1-Zero with the language reward; dev2 is the recipe's own, after a cold start from R1-Zero's answers. What
the cold start costs (R1-Zero itself, and sampling) is in the ledger.

Measured, seeds 0 1: pass@1 0.965 from the cold start, 0.809 from the base; language consistency 0.994 and 0.955.
"""

from r1jax.config import beside, parse_arg


def get_config(arg=None):
  """arg: `short` (a few steps, for tests)."""
  arg = parse_arg(arg, short=False)
  r1 = beside(__file__, "r1.py")
  c = r1.tiny()
  c.name = "ablation_sft_before_rl"
  c.stages = ("base", "zero", "cold_start", "dev1", "dev2", "from_base")
  c.from_base = c.dev2.copy_and_resolve_references()
  c.from_base.start = "base"
  return r1.short(c) if arg.short else c

"""The language reward, on and off (Nature 2025, Methods: it "leads to a slight degradation", and makes text readable).

  r1jax run --config experiments/ablation_language_reward.py --workdir runs/language

The tiny recipe of r1.py up to its reasoning RL, twice from the same cold start: dev2 with the reward, no_language
without.

Measured, seeds 0 1: pass@1 0.965 with, 0.970 without; language consistency 0.994 and 0.797 (one seed 0.62, one 0.97).
"""

from r1jax.config import beside, parse_arg


def get_config(arg=None):
  """arg: `short` (a few steps, for tests)."""
  arg = parse_arg(arg, short=False)
  r1 = beside(__file__, "r1.py")
  c = r1.tiny()
  c.name = "ablation_language_reward"
  c.stages = ("base", "zero", "cold_start", "dev1", "dev2", "no_language")
  c.no_language = c.dev2.copy_and_resolve_references()
  del c.no_language.rewards["language"]
  return r1.short(c) if arg.short else c

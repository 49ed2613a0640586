"""The KL reference: replaced by the policy now and then as R1-Zero does (every 400 updates of 10,400), never, or no KL.

  r1jax run --config experiments/ablation_reference_refresh.py --workdir runs/refresh

R1-Zero of the tiny recipe four times from one base, twice its length, KL 0.04 so that the reference is felt; R1's 0.001
beside it.

Measured, seed 0: pass@1 0.992 refreshed, 0.980 never, 0.994 without KL, 0.993 with R1's: no difference that one
seed shows.
"""

from r1jax.config import beside, parse_arg


def get_config(arg=None):
  """arg: `short` (a few steps, for tests)."""
  arg = parse_arg(arg, short=False)
  r1 = beside(__file__, "r1.py")
  c = r1.tiny()
  c.name = "ablation_reference_refresh"
  c.stages = ("base", "refreshed", "never", "no_kl", "r1_kl")
  for name, kl, refresh in (("refreshed", 0.04, 20), ("never", 0.04, 0), ("no_kl", 0.0, 0), ("r1_kl", 1e-3, 20)):
    section = c[name] = c.zero.copy_and_resolve_references()
    section.update(reference_refresh=refresh, rollouts=120)
    section.loss.kl_coef = kl
  return r1.short(c) if arg.short else c

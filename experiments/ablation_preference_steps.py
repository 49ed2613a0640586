"""How long preference rewards may last (arXiv 2501.12948 v2, B.5, Fig. 6: more steps of them, and they are hacked).

  r1jax run --config experiments/ablation_preference_steps.py --workdir runs/preference

The tiny recipe of r1.py up to its reward models, then its last stage six times from Dev3: 40 rollouts each, of which
the last 0, 4, 8, 16 and 40 have general and unsafe prompts and preference rewards, and 120 that all have.
`general/helpful` is the taste that the reward model was trained on and does not see beyond two kind words: when it
falls while the reward rises, that is the hack.
"""

from r1jax.config import beside, parse_arg

ROLLOUTS = (0, 4, 8, 16, 40, 120)


def get_config(arg=None):
  """arg: `short` (a few steps, for tests)."""
  arg = parse_arg(arg, short=False)
  r1 = beside(__file__, "r1.py")
  c = r1.tiny()
  c.name = "ablation_preference_steps"
  c.stages = (*c.stages[:-1], *(f"preference_{n}" for n in ROLLOUTS))
  for n in ROLLOUTS:
    section = c[f"preference_{n}"] = c.r1.copy_and_resolve_references()
    section.preference_rollouts = n
    section.rl.rollouts = max(40, n)
  return r1.short(c) if arg.short else c

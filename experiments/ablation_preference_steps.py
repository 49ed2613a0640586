"""How long preference rewards may last (arXiv 2501.12948 v2, B.5, Fig. 6: more steps of them, and they are hacked).

  r1jax run --config experiments/ablation_preference_steps.py --workdir runs/preference

The tiny recipe of r1.py up to its reward models, then its last stage six times from Dev3: 40 rollouts each, of which
the last 0, 4, 8, 16 and 40 have general and unsafe prompts and preference rewards, and 120 that all have.
`general/helpful` is the taste that the reward model was trained on and does not see beyond two kind words: when it
falls while the reward rises, that is the hack.

Measured, seeds 0 1, with 0, 4, 8, 16, 40, 120: liked 0.686 0.708 0.735 0.752 0.786 0.697, refused 0.719 0.738 0.775
0.859 0.955 0.975; tokens of a greeting 7.6 7.7 7.9 8.6 9.1 9.7; the reward model's score ends near 0.97. pass@1 on
reasoning stays within 0.953 and 0.971: the paper's loss of it does not show.
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

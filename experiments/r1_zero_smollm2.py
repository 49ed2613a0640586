"""A real pretrained policy improved by GRPO: SmolLM2-135M-Instruct on greatest common divisors.

  r1jax import smollm2 models/smollm2
  r1jax run --config experiments/r1_zero_smollm2.py:start=models/smollm2 --workdir runs/smollm2

The policy is asked by four solved examples and answers with a number; the reward is whether it is the right one, to the
letter. `start` may be any Hugging Face directory of a known family.

Measured on 2 CPU cores, f32, all 134.5 million parameters trained, seed 0, 128 held-out pairs, T 1, 8 answers each:
  strict pass@1 0.112 -> 0.485, pass@8 0.484 -> 0.516; lenient pass@1 0.122 -> 0.486; greedy 0.234 -> 0.492
after 100 rollouts, 62 minutes beside other work (17 s a rollout on quiet cores), 7 GB. RL made the policy say nearly
always what it said best: the entropy fell from 1.3 to 0.1 nats a token, and pass@8 hardly moved. With lr 3e-6 and
kl_coef 0.03, after 62 rollouts: strict pass@1 0.392, pass@8 0.547, lenient 0.395, entropy 0.4: slower, and more kept.
Also tried: two-digit sums asked in chat, without examples: 0.02 to 0.03 right, none in the asked form, too little to
learn from.
"""

from ml_collections import ConfigDict

from r1jax.config import parse_arg


def get_config(arg=None):
  """arg: `start=DIR` (needed), `tiny` (two small steps, for tests)."""
  arg = parse_arg(arg, tiny=False, start="")
  c = ConfigDict()
  c.name = "r1_zero_smollm2"
  c.seed = 0
  c.stages = ("reasoning_rl",)           # zero: no supervised stage before
  c.start = arg.start or "models/smollm2"
  c.data = dict(end_token="\n")          # an answer is one line
  c.task = dict(name="gcd", largest=60, held_out=128)
  c.model = dict(dtype="float32", remat="elementwise", logit_chunk=256)
  c.reasoning_rl = dict(
    rollouts=100,
    questions_per_rollout=8,
    group_size=16,
    minibatches=1,
    micro_batches=2,                     # memory: activations of 30 layers
    rewards=dict(accuracy=1.0),
    sampling=dict(max_tokens=8, temperature=1.0),
    loss=dict(clip_low=0.2, clip_high=0.28, kl_coef=1e-3),
    optimizer=dict(lr=5e-6, warmup=5),
    reference_refresh=400,
    eval_every=50,
    checkpoint=dict(every=50, keep=1),   # 1.7 GB
  )
  c.eval = dict(samples=8, temperature=1.0, top_p=1.0, prompts_at_once=32)
  return tiny(c) if arg.tiny else c


def tiny(c):
  c.task.held_out = 8
  c.reasoning_rl.update(rollouts=2, questions_per_rollout=4, group_size=2)
  c.eval.samples = 2
  return c

"""R1-Zero on a laptop: a tiny base policy, then GRPO on a verifiable reward: accuracy goes up as answers grow longer.

  r1jax run --config experiments/r1_zero_parity.py --workdir runs/parity

The parity of 20 bits (2510.11495). The base is pre-trained on a mixture: 70% of the demonstrations answer at once, 20%
answer without tags, 10% write the running parity down first. Greedily it answers at once, at chance; RL then sees
nothing but right, wrong and the tags.

Measured on 2 CPU cores, seeds 0-4, 512 held-out strings: greedy accuracy 0.47 0.53 0.48 0.53 0.53 -> 1.00 for all five,
mean answer length 5.8 6.4 5.9 6.0 5.9 -> 26.0 tokens (20 + 6). 3 minutes on quiet cores, 5 to 10 beside other work.
"""

from ml_collections import ConfigDict

from r1jax.config import parse_arg


def get_config(arg=None):
  """arg: `tiny` (8 bits, for tests: about a minute), `bits=N`."""
  arg = parse_arg(arg, tiny=False, bits=20)
  c = ConfigDict()
  c.name = "r1_zero_parity"
  c.seed = 0                             # of weights, data and samples
  c.stages = ("pretrain", "reasoning_rl")
  c.task = dict(
    name="parity",
    bits=arg.bits,
    p_long=0.1,                          # below the threshold of 1/3 at which greedy decoding thinks (2510.11495)
    p_untagged=0.2,
    held_out=512,                        # bit strings for evaluation, never trained on
    seed=0,
  )
  c.model = dict(dim=64, layers=2, heads=4, kv_heads=2, ffn=128)   # 75 thousand parameters
  c.pretrain = dict(
    steps=700,
    batch=128,                           # demonstrations an update
    optimizer=dict(lr=3e-3, warmup=50, schedule="cosine"),
    checkpoint=dict(every=500, keep=2),
  )
  c.reasoning_rl = dict(
    rollouts=120,
    questions_per_rollout=32,            # R1-Zero: 512, in 16 minibatches of 32
    group_size=8,                        # R1-Zero: 16
    minibatches=1,
    rewards=dict(accuracy=1.0, format=1.0),                        # R1-Zero: the same weight
    sampling=dict(max_tokens=arg.bits + 16, temperature=1.0),      # R1-Zero: T 1
    loss=dict(
      clip_low=10.0, clip_high=10.0,     # R1: eps 10
      kl_coef=1e-3,                      # R1: 0.001
      advantage="group_normalised", aggregation="sequence_mean_token_mean", divisor=0.0, negative_control="none",
    ),
    micro_batches=1, truncated="wrong", zero_variance="keep",
    optimizer=dict(lr=5e-4, warmup=5),   # R1: 3e-6, at ten million times the parameters
    reference_refresh=60,                # updates; R1: 400
    eval_every=10,                       # rollouts
    checkpoint=dict(every=25, keep=2),
  )
  c.eval = dict(samples=8, temperature=0.6, top_p=0.95, problems=0)   # R1's evaluation; on all held-out problems
  return tiny(c) if arg.tiny else c


def tiny(c):
  """The same, small: 8 bits, 32 channels. It learns, in about a minute on 2 cores."""
  c.task.update(bits=8, held_out=64, p_long=0.2)
  c.model.update(dim=32, ffn=64, heads=2, kv_heads=1)
  c.pretrain.update(steps=300, batch=64)
  c.reasoning_rl.update(rollouts=40, questions_per_rollout=16, reference_refresh=20)
  c.reasoning_rl.sampling.max_tokens = 24
  c.reasoning_rl.optimizer.lr = 2e-3
  c.eval.samples = 2
  return c

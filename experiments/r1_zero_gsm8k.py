"""R1-Zero's loop on real problems: GSM8K, R1-Zero's prompt template, accuracy and format rewards.

  r1jax run --config experiments/r1_zero_gsm8k.py --workdir runs/gsm8k \
    --config.data.train=gsm8k/train.jsonl --config.data.test=gsm8k/test.jsonl

The files are those of openai/grade-school-math. The policy starts from random weights, reads bytes (or the
tokenizer.json given by --config.data.tokenizer) and so scores about zero: what this shows is that every part of the
loop runs on real data. Expect a zero-variance share of 1 and no learning; the report says so. About 2 minutes on 2
CPU cores. `--config experiments/r1_zero_gsm8k.py:start=DIR` starts from the weights and tokenizer of a Hugging Face
directory instead.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.config import parse_arg


def get_config(arg=None):
  """arg: `tiny` (a few small steps, for tests), `start=DIR` (a Hugging Face directory)."""
  arg = parse_arg(arg, tiny=False, start="")
  c = ConfigDict()
  c.name = "r1_zero_gsm8k"
  c.seed = 0
  c.stages = ("reasoning_rl",)           # zero: no supervised stage before
  c.data = dict(
    train=placeholder(str),              # JSONL: question, answer ending in "#### N"
    test=placeholder(str),
    tokenizer=placeholder(str),          # a tokenizer.json; else bytes
    end_token=placeholder(str),
  )
  c.task = dict(name="gsm8k", held_out=64)
  if arg.start:
    c.start = arg.start
  else:
    c.model = dict(dim=128, layers=4, heads=4, kv_heads=2, ffn=384, rope=dict(theta=10_000.0))
  c.reasoning_rl = dict(
    rollouts=10,
    questions_per_rollout=8,
    group_size=4,
    minibatches=2,                       # R1-Zero: 16
    micro_batches=2,
    rewards=dict(accuracy=1.0, format=1.0),
    sampling=dict(max_tokens=128, temperature=1.0),
    loss=dict(clip_low=10.0, clip_high=10.0, kl_coef=1e-3),
    optimizer=dict(lr=1e-4, warmup=2),
    reference_refresh=400,
    eval_every=0,
    checkpoint=dict(every=5, keep=2),
  )
  c.eval = dict(samples=2, temperature=0.6, top_p=0.95, prompts_at_once=16)
  return tiny(c) if arg.tiny else c


def tiny(c):
  """Two rollouts of a model that is hardly there."""
  c.task.held_out = 8
  if "model" in c:
    c.model.update(dim=16, layers=1, heads=2, kv_heads=1, ffn=32)
  c.reasoning_rl.update(rollouts=2, questions_per_rollout=4, group_size=2)
  c.reasoning_rl.sampling.max_tokens = 16
  return c

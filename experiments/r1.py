"""DeepSeek-R1, the whole recipe (Nature 2025, Fig. 2; arXiv 2501.12948 v2, 3 and B): R1-Zero, cold start, reasoning RL,
rejection sampling, fine-tuning from the base again, reward models, RL for all scenarios.

  r1jax run --config experiments/r1.py:tiny --workdir runs/r1

runs it at CPU size in a world made for it (r1jax/tasks/world.py). `r1.py:smollm2` starts from SmolLM2-135M on greatest
common divisors. `r1.py:start=DIR` has the paper's numbers, for 512 H800 and files of yours (r1jax/tasks/r1.py); what
the paper does not say is marked "not published". `only=STAGE` runs one stage from what the others left in the folder.

Measured, tiny, seeds 0 1 2, 213 to 321 s each on 2 busy cores: pass@1 of base, Zero, Dev1, Dev2, Dev3, R1 0.490 0.988
0.927 0.971 0.982 0.976; language consistency 0.10 0.53 0.98 1.00 1.00 1.00; liked 0.675 -> 0.727 and refused 0.716 ->
0.792 by the last stage. The table is in the README. The SmolLM2 variant ran as `smollm2,short`
alone, the paper's not at all.

Dev1, Dev2, Dev3 are the paper's names of what lies between: after the cold start, after reasoning RL on it, after the
second fine-tuning.
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.config import parse_arg
from r1jax.models.deepseek import PRESETS

RECIPE = ("zero", "cold_start", "dev1", "dev2", "sft_data", "dev3", "helpful", "harmless", "r1")


def get_config(arg=None):
  """arg: `tiny`, `smollm2`, `start=DIR` (a Hugging Face directory), `only=STAGE`, `short` (a few steps, for tests)."""
  arg = parse_arg(arg, tiny=False, smollm2=False, short=False, start="", only="")
  if arg.tiny and arg.smollm2:
    raise ValueError("tiny and smollm2 are two variants: give one of them")
  c = tiny() if arg.tiny else smollm2(arg.start or "models/smollm2") if arg.smollm2 else paper(arg.start)
  c.only = arg.only
  return short(c) if arg.short else c


def paper(start):
  c = ConfigDict()
  c.name = "r1"
  c.seed = 0
  c.stages = ("zero", "zero_long", *RECIPE[1:])
  c.task = dict(name="r1")
  c.data = {name: placeholder(str) for name in ("train", "test", "general", "unsafe", "other", "preferences", "safety",
                                                "tokenizer", "end_token")}
  if start:
    c.start = start                      # DeepSeek-V3-Base
  else:                                  # its sizes, for r1jax plan
    c.model = {k: v for k, v in dataclasses.asdict(PRESETS["deepseek-r1"]).items() if k != "vocab"}
  adam = dict(b1=0.9, b2=0.95, clip_norm=1.0, state_dtype="bfloat16")     # not published; those of V3's pre-training
  save = dict(every=5, keep=2)
  rl = dict(
    questions_per_rollout=512, group_size=16,      # 8,192 answers
    minibatches=16,                                # 32 questions an update
    loss=dict(clip_low=10.0, clip_high=10.0,       # published for dev2 alone
              kl_coef=1e-3, advantage="group_normalised",
              aggregation="sequence_mean_token_mean"),     # not published; DeepSeekMath's
    reference_refresh=400, optimizer=dict(lr=3e-6, **adam), micro_batches=32,
    truncated="wrong", zero_variance="keep",       # not published
    eval_every=0, checkpoint=save)
  sampling = dict(max_tokens=32_768, temperature=1.0, slots=8192, chunk=64)
  rules = dict(accuracy=1.0, format=1.0)           # the same weight
  # 10,400 updates: 8,200 at 32,768 tokens, the others at 65,536
  c.zero = dict(stage="reasoning_rl", start="", rollouts=513, rewards=rules, sampling=sampling) | rl
  c.zero_long = dict(stage="reasoning_rl", start="zero", rollouts=137, rewards=rules,
                     sampling=sampling | dict(max_tokens=65_536)) | rl
  # thousands of answers: correct, readable, no mixed languages, no repetition. People and V3 rewrote them, which
  # no file of yours can do here: rewrite=True asks the task
  c.cold_start = dict(
    stage="rejection", start="zero_long", problems=10_000, samples=8, keep=1, sampling=sampling,
    min_language=0.95, max_repetition=0.3, max_paragraph=4000, drop_code=True)         # thresholds not published
  sft = dict(stage="sft", start="", batch=128, length=32_768, epochs=2.5, too_long="drop", micro_batches=16,
             optimizer=dict(lr=5e-5, schedule="cosine", final=0.1, **adam), checkpoint=dict(every=500, keep=1))
  c.dev1 = sft | dict(data="cold_start")
  # the number of updates is not published; the bill of 41K hours leaves 2,800 at most beside the others (docs/cost.md)
  c.dev2 = dict(stage="reasoning_rl", start="dev1", rollouts=156, rewards=rules | dict(language=1.0),
                sampling=sampling) | rl
  # 600K: several answers a prompt, correct, without mixed languages, long paragraphs, code blocks; and 200K others
  c.sft_data = dict(
    stage="rejection", start="dev2", problems=80_000, samples=16, keep=8, sampling=sampling, other=200_000,
    min_language=0.95, max_repetition=0.3, max_paragraph=4000, drop_code=True)
  c.dev3 = sft | dict(data="sft_data")             # from the base again
  reward_model = dict(stage="reward_model", start="dev3",      # where it starts from is not published
                      batch=256, epochs=1.0, length=8192, micro_batches=16, optimizer=dict(lr=6e-6, **adam))
  c.helpful = reward_model | dict(kind="pairwise")             # 66,000 pairs
  c.harmless = reward_model | dict(kind="pointwise")           # 106,000 labelled answers
  c.r1 = dict(
    stage="all_scenarios_rl", start="dev3",
    preference_rollouts=25,                        # the last 400 of 1,700 updates
    shares=dict(reasoning=0.6, general=0.3, unsafe=0.1),       # not published
    preference=dict(helpful=1.0, harmless=1.0), scale="sigmoid",
    rl=rl | dict(rollouts=106, rewards=rules | dict(language=1.0), sampling=sampling | dict(temperature=0.7)))
  c.eval = dict(samples=16, temperature=0.6, top_p=0.95, each=True)
  c.rewards = dict(workers=64, timeout=10.0)
  c.ledger = dict(price=2.0)                       # dollars of an H800-hour, as the paper counts
  return c


def tiny():
  """Every stage, in the world of two languages: minutes on 2 cores."""
  c = ConfigDict()
  c.name = "r1_tiny"
  c.seed = 0
  c.stages = ("base", *RECIPE)
  c.task = dict(name="world", bits=10, held_out=256)
  c.model = dict(dim=64, layers=2, heads=4, kv_heads=2, ffn=128)   # 76 thousand parameters
  save, adam = dict(every=1000, keep=1), dict(schedule="cosine", final=0.1)
  sampling = dict(max_tokens=20, temperature=1.0)
  rules = dict(accuracy=1.0, format=1.0)
  rl = dict(
    questions_per_rollout=32, group_size=8, minibatches=1,
    loss=dict(clip_low=10.0, clip_high=10.0, kl_coef=1e-3), reference_refresh=40, optimizer=dict(lr=5e-4, warmup=5),
    eval_every=10, checkpoint=dict(every=20, keep=1))
  c.base = dict(stage="pretrain", steps=800, batch=128, optimizer=dict(lr=3e-3, warmup=50, **adam), checkpoint=save)
  c.zero = dict(stage="reasoning_rl", start="base", rollouts=60, rewards=rules, sampling=sampling) | rl
  c.cold_start = dict(stage="rejection", start="zero", problems=256, samples=2, keep=1, rewrite=True,
                      min_language=0.9, sampling=sampling, prompts_at_once=128)
  sft = dict(stage="sft", start="base", length=64, optimizer=dict(lr=1e-3, **adam), checkpoint=save)
  c.dev1 = sft | dict(data="cold_start", batch=16, epochs=2.5)
  c.dev2 = dict(stage="reasoning_rl", start="dev1", rollouts=40, rewards=rules | dict(language=1.0),
                sampling=sampling) | rl
  c.sft_data = dict(stage="rejection", start="dev2", problems=768, samples=4, keep=2, min_language=0.9, other=512,
                    sampling=sampling, prompts_at_once=128)
  c.dev3 = sft | dict(data="sft_data", batch=32, epochs=2.5)
  reward_model = dict(stage="reward_model", start="dev3", batch=64, length=64, optimizer=dict(lr=1e-3), checkpoint=save)
  c.helpful = reward_model | dict(kind="pairwise", steps=100)
  c.harmless = reward_model | dict(kind="pointwise", steps=30)
  c.r1 = dict(
    stage="all_scenarios_rl", start="dev3", preference_rollouts=10,
    shares=dict(reasoning=0.5, general=0.25, unsafe=0.25), preference=dict(helpful=1.0, harmless=1.0), scale="sigmoid",
    rl=rl | dict(rollouts=40, rewards=rules | dict(language=1.0), sampling=sampling | dict(temperature=0.7),
                 optimizer=dict(lr=2.5e-4, warmup=5)))
  # T 0.6 with top-p 0.95, R1's, would cut off every error of so few tokens
  c.eval = dict(samples=4, temperature=1.0, top_p=1.0, each=True)
  return c


def smollm2(start):
  """From a released policy, SmolLM2-135M, on divisors asked by examples: reasoning alone, in one language."""
  c = ConfigDict()
  c.name = "r1_smollm2"
  c.seed = 0
  c.stages = ("zero", "cold_start", "dev1", "dev2", "sft_data", "dev3", "r1")
  c.start = start
  c.data = dict(end_token="\n")
  c.task = dict(name="gcd", largest=60, held_out=128)
  c.model = dict(dtype="float32", remat="elementwise", logit_chunk=256)
  save = dict(every=50, keep=1)                    # 1.7 GB each
  sampling, rules = dict(max_tokens=8, temperature=1.0), dict(accuracy=1.0)
  rl = dict(
    questions_per_rollout=8, group_size=16, minibatches=1, micro_batches=2,
    loss=dict(clip_low=0.2, clip_high=0.28, kl_coef=1e-3), reference_refresh=400, optimizer=dict(lr=5e-6, warmup=5),
    eval_every=0, checkpoint=save)
  c.zero = dict(stage="reasoning_rl", start="", rollouts=40, rewards=rules, sampling=sampling) | rl
  c.cold_start = dict(stage="rejection", start="zero", problems=128, samples=8, keep=1, sampling=sampling,
                      prompts_at_once=16)
  sft = dict(stage="sft", start="", length=128, too_long="drop", micro_batches=2,
             optimizer=dict(lr=1e-5, schedule="cosine", final=0.1), checkpoint=save)
  c.dev1 = sft | dict(data="cold_start", batch=8, epochs=2.0)
  c.dev2 = dict(stage="reasoning_rl", start="dev1", rollouts=20, rewards=rules, sampling=sampling) | rl
  c.sft_data = dict(stage="rejection", start="dev2", problems=256, samples=8, keep=2, sampling=sampling,
                    prompts_at_once=16)
  c.dev3 = sft | dict(data="sft_data", batch=16, epochs=2.0)
  c.r1 = dict(stage="all_scenarios_rl", start="dev3", preference_rollouts=0, shares=dict(reasoning=1.0), preference={},
              rl=rl | dict(rollouts=20, rewards=rules, sampling=sampling | dict(temperature=0.7)))
  c.eval = dict(samples=8, temperature=1.0, top_p=1.0, prompts_at_once=32, each=True)
  return c


def short(c):
  """A few steps of every stage: for tests."""
  for name in c.stages:
    section = c[name]
    kind = section.stage
    if kind in ("reasoning_rl", "all_scenarios_rl"):
      of = section.rl if kind == "all_scenarios_rl" else section
      of.update(rollouts=2, questions_per_rollout=4, group_size=2, micro_batches=1)
      if kind == "all_scenarios_rl" and section.preference:
        section.preference_rollouts = 1
    elif kind == "rejection":
      section.update(problems=8, samples=8, min_language=0.0, prompts_at_once=4, keep=0)
      if section.get("other"):
        section.other = 8
    elif kind == "pretrain":
      section.steps = 100
    elif kind == "reward_model":
      section.update(steps=2, batch=8)
    else:
      section.update(batch=4, epochs=1.0)
  c.task.held_out, c.eval.samples = 8, 2
  return c

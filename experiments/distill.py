"""Distillation: R1's samples teach small dense students (arXiv 2501.12948 v2, B.4, F.1), beside RL on the student.

  r1jax run --config experiments/distill.py:tiny --workdir runs/distill
  r1jax run --config experiments/distill.py:start=Qwen2.5-Math-7B,data=runs/r1/sft_data/data.jsonl,lr=8e-5 --workdir ...

The second is the paper's: fine-tuning only, 2 to 3 epochs, batch 64, cosine to a tenth; its rates: 1e-4 for 1.5B,
8e-5 for 7B, 7e-5 for 14B, 6e-5 for 32B, 5e-5 for Llama-8B, 2e-5 for Llama-70B. `tiny` makes the teacher's data too,
by the tiny recipe of r1.py up to its rejection sampling; the student has a quarter of the teacher's parameters and a
base of its own.

Measured, tiny, seeds 0 1: pass@1 of the student's base 0.463, distilled 0.856 (0.78, 0.93), its own RL 0.668 (0.50,
0.84), distilled and then RL 0.928. The paper's variant was not run.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.config import beside, parse_arg


def get_config(arg=None):
  """arg: `tiny`; `start=DIR` (the student, a Hugging Face directory), `data=FILE`, `lr`; `short`, for tests."""
  arg = parse_arg(arg, tiny=False, short=False, start="", data="", lr=8e-5)
  return tiny(arg.short) if arg.tiny else paper(arg)


def paper(arg):
  c = ConfigDict()
  c.name = "distill"
  c.seed = 0
  c.stages = ("sft",)
  c.start = arg.start or "Qwen2.5-Math-7B"
  c.task = dict(name="r1")
  c.data = dict(train=placeholder(str), test=placeholder(str), demonstrations=arg.data or placeholder(str))
  c.sft = dict(batch=64, length=32_768, epochs=2.5, too_long="drop", micro_batches=16,
               optimizer=dict(lr=arg.lr, schedule="cosine", final=0.1), checkpoint=dict(every=500, keep=1))
  c.eval = dict(samples=16, temperature=0.6, top_p=0.95, each=True)
  return c


def tiny(short):
  r1 = beside(__file__, "r1.py")
  c = r1.tiny()
  c.name = "distill_tiny"
  c.stages = ("base", "zero", "cold_start", "dev1", "dev2", "sft_data", "student", "distilled", "student_rl",
              "distilled_rl")
  c.student = c.base.copy_and_resolve_references()
  c.student.update(start="", steps=400, model=dict(dim=32, layers=2, heads=2, kv_heads=1, ffn=64))
  c.distilled = c.dev3.copy_and_resolve_references()
  c.distilled.start = "student"
  c.student_rl = c.dev2.copy_and_resolve_references()      # the same rewards and rollouts
  c.student_rl.start = "student"
  c.distilled_rl = c.dev2.copy_and_resolve_references()    # the paper left this to others
  c.distilled_rl.start = "distilled"
  return r1.short(c) if short else c

"""The compiler's bytes beside the formulas', for the layouts that the mesh can express.

A plan's best layout may need axes that sharding.py's mesh lacks, and then has no such number: NotImplementedError says
which. Lengths: one row of the longest sample on each group of devices, as memory.training counts. Letters:
r1jax/types.py.
"""

from __future__ import annotations

from r1jax.optimizer import OptimizerConfig
from r1jax.plan import compiled, memory
from r1jax.plan.bill import Bill
from r1jax.plan.compiled import Case
from r1jax.plan.layout import Layout
from r1jax.plan.phases import Site

GROUP = dict(update=2, decode=16)      # answers to a prompt


def by_compiler(site: Site, bill: Bill, target: str, tokens: int = 4096,
                layouts: dict[str, Layout] | None = None) -> dict[str, dict | str]:
  """{update, decode: {layout, compiler's and formulas' bytes}, or why there is none}, of a stage with rollouts.

  tokens: of a row; an update of the paper's longest rows would be another program for each length. layouts: in place
  of those that the plan found best, by the same names.
  """
  out: dict[str, dict | str] = {}
  best = dict(update=bill.tried[0].layout, decode=bill.rollout.layout)
  for what, layout in (best | (layouts or {})).items():
    try:
      out[what] = one(site, layout, what, target, tokens, group=GROUP[what])
    except (NotImplementedError, RuntimeError) as error:
      out[what] = str(error)
  return out


def one(site: Site, layout: Layout, what: str, target: str, tokens: int = 4096, per: int = 1, group: int = 2,
        optimizer: OptimizerConfig | None = None) -> dict[str, float]:
  """One program on all devices of a layout, and the formulas' number for the same.

  `per` prompts with `group` answers each to every group of devices that shares rows; half of `tokens` are the prompt,
  the others the answers' in an update, and each answer's columns in a decode step.
  """
  optimizer = optimizer or OptimizerConfig(3e-6, state_dtype="bfloat16")
  half = tokens // 2
  case = Case(what, site.cfg, layout, prompts=layout.rows * per, group=group, prompt=half,
              answer=half // group if what == "update" else half,
              optimizer=optimizer, target=target)
  found = compiled.measure(case)
  return found | dict(layout=str(layout), tokens=tokens, formulas=memory.total(predicted(case)))


def predicted(case: Case) -> dict[str, float]:
  """What memory.py says of a case."""
  rows = case.prompts / case.layout.rows
  if case.what == "decode":
    return memory.sampling(case.cfg, case.layout, rows * case.group, case.answer, rows * case.prompt)
  tokens = rows * (case.prompt + case.group * (case.answer - 1)) / case.layout.context / case.micro_batches
  return memory.training(case.cfg, case.layout, tokens, case.optimizer, case.reference, case.micro_batches)


def summary(found: dict[str, float]) -> str:
  """One line for a person."""
  return (f"{found['tokens']:,} tokens a row: {found['peak'] / 1e9:.3g} GB a device by the compiler,"
          f" {found['formulas'] / 1e9:.3g} GB by formulas; compiled in {found['compile_seconds']:.0f} s and"
          f" {found['host_bytes'] / 2**30:.1f} GiB of this host")

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


def by_compiler(site: Site, bill: Bill, target: str, tokens: int = 4096) -> dict[str, dict | str]:
  """{update, decode: {layout, compiler's and formulas' bytes}, or why there is none}, of a stage with rollouts.

  tokens: of a row; an update of the paper's longest rows would be another program for each length.
  """
  out: dict[str, dict | str] = {}
  for what, layout in (("update", bill.tried[0].layout), ("decode", bill.rollout.layout)):
    try:
      out[what] = one(site, layout, what, target, tokens)
    except (NotImplementedError, RuntimeError) as error:
      out[what] = str(error)
  return out


def one(site: Site, layout: Layout, what: str, target: str, tokens: int = 4096, per: int = 1, group: int = 2,
        optimizer: OptimizerConfig | None = None) -> dict[str, float]:
  """One program on all devices of a layout, and the formulas' number for the same.

  `per` prompts with `group` answers each to every group of devices that shares rows; half of `tokens` are the prompt,
  the others the answers'.
  """
  optimizer = optimizer or OptimizerConfig(3e-6, state_dtype="bfloat16")
  half = tokens // 2
  case = Case(what, site.cfg, layout, prompts=layout.rows * per, group=group, prompt=half, answer=half // group,
              optimizer=optimizer, target=target)
  found = compiled.measure(case)
  return found | dict(layout=str(layout), formulas=memory.total(predicted(case)))


def predicted(case: Case) -> dict[str, float]:
  """What memory.py says of a case."""
  rows = case.prompts / case.layout.rows
  if case.what == "decode":
    return memory.sampling(case.cfg, case.layout, rows * case.group, case.answer, rows * case.prompt)
  tokens = rows * (case.prompt + case.group * (case.answer - 1)) / case.layout.context / case.micro_batches
  return memory.training(case.cfg, case.layout, tokens, case.optimizer, case.reference, case.micro_batches)


def summary(found: dict[str, float]) -> str:
  """One line for a person."""
  return (f"{found['peak'] / 1e9:.3g} GB a device by the compiler, {found['formulas'] / 1e9:.3g} GB by formulas;"
          f" compiled in {found['compile_seconds']:.0f} s and {found['host_bytes'] / 2**30:.1f} GiB of this host")


def bytes_of(found: dict[str, dict | str]) -> dict[str, float]:
  return {what: one["peak"] for what, one in found.items() if isinstance(one, dict)}


"""Every kernel at real shapes on the device that is present: right or wrong against ref, its time, and the least time.

A row is one implementation at one case: its error relative to the largest value of ref (forward, and the worst of the
gradients), seconds forward and with the gradient, and the share of the roofline that the forward pass reaches. ref and
other libraries stand beside ours. What fails is a row with its error. On a CPU: only cheap cases, and XLA's ways.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform as host
from collections.abc import Callable

import jax
import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from r1jax.bench import calls, libraries, roofline
from r1jax.bench.ops import OPS, Op
from r1jax.kernels.case import Case

GRADIENT_SLACK = 2.0      # a gradient may be this many times the case's tolerance away: it is two products deep
PACKAGES = ("jax", "jaxlib", "libtpu", "tokamax", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12",
            "nvidia-cudnn-cu13")


def measure(ops: tuple[Op, ...] = OPS, interpret: bool = False, repeats: int = 5, console=None) -> dict:
  """The rows of every op and case that fit the device, with the device's limits and all versions."""
  device, platform = jax.devices()[0], jax.default_backend()
  limits = roofline.of(device)
  rows = []
  for op in ops:
    for case in op.cases():
      if platform == "cpu" and not case.small:
        continue
      if console:
        console.print(f"{op.name}: {case.name}", highlight=False)
      rows += _of_case(op, case, limits, candidates(op, platform, interpret), repeats)
  return dict(device=device.device_kind, platform=platform, limits=limits and dataclasses.asdict(limits),
              versions=_versions(device), interpret=interpret, rows=rows)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What to run beside ref: a function of a case's arguments."""
  function: Callable
  ours: bool = True
  timed: bool = True


def candidates(op: Op, platform: str, interpret: bool = False) -> dict[str, Candidate]:
  out = {name: Candidate(functools.partial(op.function, impl=name)) for name in op.impls.get(platform, ())}
  if interpret:
    out |= {f"{name}, interpreted": Candidate(f, timed=False) for name, f in op.interpreted.items()}
  return out | {name: Candidate(f, ours=False) for name, f in op.libraries.get(platform, {}).items()
                if libraries.have(name)}


def _of_case(op: Op, case: Case, limits: roofline.Device | None, others: dict[str, Candidate],
             repeats: int) -> list[dict]:
  least = {}
  row = lambda name, **found: dict(op=op.name, case=case.name, impl=name, tolerance=case.tolerance) | least | found
  try:
    args = case.make(jax.random.key(0))
  except Exception as error:      # no memory, most likely
    return [row("arguments", failed=_say(error))]
  if limits:
    dtype = op.factors or next(str(x.dtype) for x in jax.tree.leaves(calls.arrays_of(args)) if calls.is_float(x))
    seconds, bound = limits.seconds(case.flops, case.bytes, dtype)
    least = dict(limit_seconds=seconds, bound=bound)
  wanted, rows = None, []
  for name, run in dict(ref=Candidate(functools.partial(op.function, impl="ref")), **others).items():
    try:
      found, out = _run(run.function, args, op.gradient and run.timed, repeats if run.timed else 0)
      if name == "ref":
        wanted = out
      elif wanted is not None:
        found |= check(out, wanted, case.tolerance if run.ours else np.inf)
      rows.append(row(name, **found))
    except Exception as error:    # what does not fit or fails is a row, and the others go on
      rows.append(row(name, failed=_say(error)))
  return rows


def _run(function: Callable, args: dict, gradient: bool, repeats: int) -> tuple[dict, dict]:
  """(seconds, the least of `repeats`, none for 0; what came out)."""
  runs = dict(seconds=calls.prepare(function, args, False))
  if gradient:
    runs["seconds_with_gradient"] = calls.prepare(function, args, True)
    out = dict(zip(("forward", "gradients"), runs["seconds_with_gradient"](), strict=True))
  else:
    out = dict(forward=runs["seconds"]())
  return {name: calls.per_call(run, repeats) for name, run in runs.items() if repeats}, out


def untimed(op: Op, impl: str, args: dict) -> dict:
  """What comes out of an implementation, gradients included: what `check` compares."""
  return _run(functools.partial(op.function, impl=impl), args, op.gradient, 0)[1]


def check(found: dict, wanted: dict, tolerance: float) -> dict:
  """Errors relative to the largest value, and whether one is beyond its bound (NaN is)."""
  out = dict(error=calls.error(found["forward"], wanted["forward"]))
  wrong = not out["error"] <= tolerance
  if "gradients" in found:
    errors = [calls.error(found["gradients"][i], wanted["gradients"][i]) for i in found["gradients"]]
    out["gradient_error"] = float(np.max(errors))
    wrong |= not out["gradient_error"] <= GRADIENT_SLACK * tolerance
  return out | dict(wrong=wrong)


def _say(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _versions(device) -> dict[str, str]:
  out = dict(python=host.python_version(), backend=" ".join(device.client.platform_version.split()))
  for package in PACKAGES:
    try:
      out[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass
  return out


def wrong(result: dict) -> list[str]:
  """The implementations whose results are not ref's."""
  return [f"{r['op']}, {r['case']}: {r['impl']}" for r in result["rows"] if r.get("wrong")]


def table(result: dict) -> Table:
  limits = result["limits"]
  note = "no peaks known of this device" if not limits else (
    f"{limits['bf16'] / 1e12:.3g} TFLOP/s, {limits['bandwidth'] / 1e9:.3g} GB/s"
    + (", measured" if limits["measured"] else ""))
  out = Table("case", box=box.SIMPLE, padding=(0, 1, 0, 0),
              title=f"{result['device']} ({note}), jax {result['versions']['jax']}")
  for name in ("error", "grad error", "ms", "ms + grad", "of the limit"):
    out.add_column(name, no_wrap=True, justify="right")
  last = None
  for r in result["rows"]:
    case = f"{r['op']}: {r['case']}"
    if case != last:
      if last:
        out.add_section()
      out.add_row(escape(case))
    last, name = case, "  " + escape(r["impl"])
    if "failed" in r:
      out.add_row(f"{name}\n{escape(r['failed'])}", "failed")
      continue
    ms = lambda key, r=r: f"{r[key] * 1e3:.3g}" if key in r else ""
    share = f"{r['limit_seconds'] / r['seconds']:.0%} {r['bound']}" if "seconds" in r and limits else ""
    errors = [f"{r[k]:.1e}" if k in r else "" for k in ("error", "gradient_error")]
    out.add_row(name + (" WRONG" if r.get("wrong") else ""), *errors, ms("seconds"), ms("seconds_with_gradient"), share)
  return out

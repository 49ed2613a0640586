"""A plan as text for a terminal, and as plain values for --json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from r1jax.plan import compare, memory
from r1jax.plan.bill import Bill
from r1jax.plan.phases import Phase, Site

UNITS = ("", "K", "M", "G", "T", "P", "E", "Z", "Y")


def big(x: float, unit: str = "") -> str:
  """1.23 T and the like, by thousands."""
  if not math.isfinite(x):
    return "-"
  power = min(max(int(math.log10(abs(x)) // 3), 0), len(UNITS) - 1) if x else 0
  return f"{x / 1000**power:.3g} {UNITS[power]}{unit}".strip()


def seconds(x: float) -> str:
  if x < 1:
    return f"{1000 * x:.3g} ms"
  return f"{x:.3g} s" if x < 120 else f"{x / 60:.3g} min" if x < 7200 else f"{x / 3600:,.1f} h"


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
  """Columns of one width, all but the first to the right."""
  wide = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
  for row in rows:
    yield "  ".join(cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(
      zip(row, wide, strict=False))).rstrip()


def memory_rows(held: dict[str, float], site: Site) -> Iterator[tuple[str, ...]]:
  for name in memory.PARTS:
    if held[name]:
      yield f"  {name}", big(held[name], "B")
  total = memory.total(held)
  fits = total <= site.hardware.memory * site.numbers.cache
  yield "  in all, by formulas", big(total, "B"), (
    f"{'fits' if fits else 'does NOT fit'} {site.numbers.cache:.0%} of {big(site.hardware.memory, 'B')}")


def phase_rows(bill: Bill, site: Site) -> Iterator[tuple[str, ...]]:
  yield "phase", "time", "share", "FLOPs", "of peak", "bytes/device", "sent near", "sent far", "most of it"
  peak = site.hardware.peak(site.cfg.dtype) * bill.devices
  for name, phase in bill.phases.items():
    yield (f"  {name}", seconds(phase.seconds), f"{phase.seconds / max(bill.seconds, 1e-12):.0%}",
           big(phase.flops) if phase.flops else "", f"{phase.flops / peak / phase.seconds:.1%}" if phase.flops else "",
           big(phase.bytes, "B") if phase.bytes else "", sent(phase, "near"), sent(phase, "far"), most(phase))


def sent(phase: Phase, which: str) -> str:
  size = float(np.sum(getattr(phase.traffic, which)))
  return big(size, "B") if size else ""


def most(phase: Phase) -> str:
  if not phase.parts or not phase.seconds:
    return ""
  name = max(phase.parts, key=phase.parts.get)
  return f"{name.replace('_', ' ')} {phase.parts[name] / sum(phase.parts.values()):.0%}"


def layout_rows(bill: Bill, site: Site, count: int = 6) -> Iterator[tuple[str, ...]]:
  fit = sum(t.fits for t in bill.tried)
  yield f"layout of updates ({len(bill.tried)} tried, {fit} fit)", "an update", "bytes/device", ""
  for t in bill.tried[:count]:
    yield (f"  {t.layout}", seconds(t.seconds) if math.isfinite(t.seconds) else "-", big(memory.total(t.memory), "B"),
           "" if t.fits else "does not fit")


def stage_text(bill: Bill, site: Site, price: float, given: dict[str, dict | str] | None = None) -> Iterator[str]:
  """A stage: layouts, memory, phases. given: what a compiler said (compare.by_compiler), where it was asked."""
  peak = site.hardware.peak(site.cfg.dtype)
  yield (f"{bill.name}: {bill.hours:,.0f} device-hours, ${bill.hours * price:,.0f}, {seconds(bill.seconds)} on"
         f" {bill.devices} devices, {big(bill.tokens)} tokens, {bill.mfu(peak):.2%} of peak")
  if bill.note:
    yield f"  {bill.note}"
  if bill.tried:
    yield from table(list(layout_rows(bill, site)))
    yield from table([("memory of an update, on the best", "")] + list(memory_rows(bill.tried[0].memory, site)))
  if bill.rollout:
    r = bill.rollout
    yield from table([(f"memory of sampling, on replicas of {r.layout}", "")] + list(memory_rows(r.memory, site)))
    stale = f", {r.stale:.0%} of tokens by an earlier policy" if r.stale else ""
    yield (f"  its last rollout, {r.slots:,} rows at one time: {seconds(r.trace.seconds)}, occupancy"
           f" {r.trace.occupancy:.0%}, fewer than half of the rows at work in {r.trace.tail_share:.0%} of it{stale}")
  for what, said in (given or {}).items():
    yield f"  compiled, {what}: " + (said if isinstance(said, str) else f"{said['layout']}, {compare.summary(said)}")
  yield from table(list(phase_rows(bill, site)))
  yield ""


def total_text(bills: list[Bill], price: float) -> Iterator[str]:
  rows = [("stage", "device-hours", "dollars", "time")]
  rows += [(f"  {b.name}", f"{b.hours:,.0f}", f"{b.hours * price:,.0f}", seconds(b.seconds)) for b in bills]
  hours = sum(b.hours for b in bills)
  rows += [("in all", f"{hours:,.0f}", f"{hours * price:,.0f}", seconds(sum(b.seconds for b in bills)))]
  yield from table(rows)


def assumption_text(site: Site, sources: dict[str, str]) -> Iterator[str]:
  yield "assumptions (change one with --assume NAME=VALUE)"
  for field in dataclasses.fields(site.numbers):
    value = getattr(site.numbers, field.name)
    yield f"  {field.name:13s}{value:<12.6g}{sources[field.name]}"


def plain(x):
  """Dataclasses, numpy and the like as JSON's values; arrays by their length alone."""
  if dataclasses.is_dataclass(x):
    return {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
  if isinstance(x, dict):
    return {str(k): plain(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [plain(v) for v in x]
  if isinstance(x, np.ndarray):
    return plain(x.item()) if x.size == 1 else f"{x.size} values"
  if isinstance(x, (np.floating, np.integer, np.bool_)):
    return plain(x.item())
  return None if isinstance(x, float) and not math.isfinite(x) else x


def json_of(bills: list[Bill], site: Site, sources: dict[str, str], price: float) -> dict:
  """All of a plan. Layouts: the ten best."""
  peak = site.hardware.peak(site.cfg.dtype)
  each = [plain(dataclasses.replace(b, tried=b.tried[:10])) | dict(
    device_hours=b.hours, dollars=b.hours * price, mfu=b.mfu(peak)) for b in bills]
  named = {name: dict(value=getattr(site.numbers, name), source=source) for name, source in sources.items()}
  return dict(stages=each, device_hours=sum(b.hours for b in bills), dollars=price * sum(b.hours for b in bills),
              price=price, hardware=plain(site.hardware), model=plain(site.cfg), assumptions=named)

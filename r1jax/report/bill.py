"""A run's ledger.json (r1jax/ledger.py) as a person reads it."""

from __future__ import annotations

FORMS = dict(device_seconds=lambda x: f"{x:,.0f} s" if x < 3600 else f"{x / 3600:,.1f} h", flops="{:.3g}".format,
             mfu="{:.2%}".format, dollars="{:,.2f}".format)


def table(ledger: dict | None) -> list[tuple[str, ...]]:
  """Sums by stage, by phase and in all; the first row is the header. [] where there is nothing in it yet."""
  if not (ledger or {}).get("total"):
    return []
  names = list(ledger["total"])
  lines = [*ledger["stages"].items(), *((f"phase: {name}", sums) for name, sums in ledger["phases"].items()),
           ("in all", ledger["total"])]
  show = lambda name, x: "" if x is None else FORMS.get(name, "{:,.0f}".format)(x)
  return [("spent", *(name.replace("_", " ") for name in names)),
          *((line, *(show(name, sums.get(name)) for name in names)) for line, sums in lines)]


def notes(ledger: dict) -> list[str]:
  """What MFU is of, and which of them are impossible."""
  peak = f", {ledger['peak']:.3g} FLOP/s each" if ledger["peak"] else ""
  return [f"MFU is of {ledger['denominator']}{peak}.", *ledger["errors"]]

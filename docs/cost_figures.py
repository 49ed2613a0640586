"""Makes docs/cost_phases.svg and docs/cost_tail.svg, and prints the tables of docs/cost.md: python docs/cost_figures.py

Some minutes on two cores; no devices. Needs matplotlib (pip install -e ".[notebook]").
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from r1jax import hardware
from r1jax.models.deepseek import PRESETS
from r1jax.plan import bill, paper, rollouts
from r1jax.plan.assumptions import Assumptions
from r1jax.plan.phases import Site

FOLDER = Path(__file__).parent
COLOURS = dict(decode="#3b6fb6", update="#c0504d", scoring="#e0a030", switch="#888888", other="#cccccc")
LABELS = {"without continuous batching": "no continuous batching", "without MTP drafting": "no MTP drafting",
          "FP8 in sampling and training": "FP8", "partial rollouts, twice as many under way": "partial rollouts",
          "all of the last five": "last five together"}


def parts(one: bill.Bill) -> dict[str, float]:
  """Hours of a stage by colour, as shares of its time: phases of a schedule that goes ahead run side by side."""
  hours = {name: phase.seconds / 3600 for name, phase in one.phases.items()}
  out = dict(decode=hours["prefill"] + hours["decode"], update=hours["update"] + hours["optimizer"],
             scoring=hours["reference"] + hours["old"], switch=hours.get("switch", 0.0))
  out["other"] = sum(hours.values()) - sum(out.values())
  return {name: float(value) for name, value in out.items()}


def phases_figure(made: dict[str, bill.Bill]) -> None:
  figure, axes = plt.subplots(figsize=(7.5, 3.6))
  names = list(made)[::-1]
  left = np.zeros(len(names))
  for part, colour in COLOURS.items():
    # side by side: scaled to the wall time
    value = np.array([parts(made[n])[part] * made[n].seconds / 3600 / sum(parts(made[n]).values()) for n in names])
    axes.barh([LABELS.get(n, n) for n in names], value, left=left, color=colour, label=part)
    left += value
  axes.axvline(paper.WALL["r1_zero"], color="black", lw=0.8, ls=":")
  axes.set_xlabel("hours of R1-Zero on 512 H800 (dotted: the paper's 198)")
  axes.legend(frameon=False, ncols=5, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0))
  save(figure, "cost_phases.svg")


def tail_figure(site: Site, made: dict[str, bill.Bill]) -> None:
  figure, axes = plt.subplots(figsize=(7.5, 3.0))
  part = paper.r1_zero().parts[7]
  several = paper.schedules()
  for name, colour in (("as the paper", "#3b6fb6"), ("without MTP drafting", "#888888"),
                       ("partial rollouts, twice as many under way", "#c0504d")):
    one = rollouts.simulate(site, made[name].rollout.layout, paper.r1_zero(), part, several[name], paper.DEVICES)
    rows = one.trace.active_K
    keep = np.unique(np.linspace(0, len(rows) - 1, 120).astype(int))
    axes.step(one.trace.time_K[keep] / 60, rows[keep], color=colour, label=f"{LABELS.get(name, name)}:"
              f" {one.trace.seconds / 60:.1f} min, occupancy {one.trace.occupancy:.0%}")
  axes.set_xlabel(f"minutes of a rollout; 8,192 answers of {part.mean:,.0f} tokens on average, at most {part.most:,}")
  axes.set_ylabel("answers being drawn")
  axes.set_ylim(0)
  axes.legend(frameon=False, fontsize=8)
  save(figure, "cost_tail.svg")


def save(figure, name: str) -> None:
  figure.tight_layout()
  with plt.rc_context({"svg.hashsalt": "r1jax", "svg.fonttype": "none"}):
    figure.savefig(FOLDER / name, metadata=dict(Date=None))


def main() -> None:
  model = dataclasses.replace(PRESETS["deepseek-r1"], remat="layer")
  site = Site(model, hardware.find("h800"), Assumptions())
  explained = paper.explain(site)
  fitted = dataclasses.replace(site, numbers=explained.numbers)
  made, first = {}, 0.0
  for name, schedule in paper.schedules().items():
    bills = paper.again(site, explained, schedule)
    made[name] = bills["r1_zero"][0]
    first = first or paper.hours(bills)
    hours = paper.hours(bills)
    print(f"| {name} | {hours:,.0f} | {paper.PRICE * hours:,.0f} | {1 - hours / first:.0%} |"
          f" {made[name].seconds / 3600:.0f} | {made[name].mfu(989e12):.1%} | {made[name].note} |", flush=True)
  phases_figure(made)
  tail_figure(fitted, made)
  print({name: round(value, 1) for name, value in parts(made["as the paper"]).items()})
  for change in (dict(), dict(sigma=0.8), dict(sigma=1.2), dict(acceptance=0.7), dict(matmul=0.5), dict(overlap=0.0),
                 dict(restart=60.0)):
    try:
      numbers = paper.calibrate(dataclasses.replace(site, numbers=Assumptions(**change)))
      zero = bill.rl(dataclasses.replace(site, numbers=numbers), paper.r1_zero(), paper.PAPER, paper.DEVICES)
      print(change, f"step {1000 * numbers.step:.1f} ms", {k: round(v, 1) for k, v in parts(zero).items()}, flush=True)
    except ValueError as error:
      print(change, error, flush=True)


if __name__ == "__main__":
  main()

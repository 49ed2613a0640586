"""R1's bill of 147 thousand H800-hours: what the paper says, what it leaves open, and the one number that is fitted.

Sources: R1 is arXiv 2501.12948 (v1, v2) and its Nature text; V3 the DeepSeek-V3 report. Each entry of SETTINGS has its
source; "assumed" is ours. Fitted: `step`, the seconds of a decode step that neither FLOPs nor bytes explain, to
R1-Zero's 198 hours; then the steps of R1's first RL stage, and the answers drawn per kept sample, which are not
published, are what the other two figures leave for them.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from r1jax.plan import bill
from r1jax.plan.assumptions import Assumptions
from r1jax.plan.bill import Bill
from r1jax.plan.phases import Site
from r1jax.plan.settings import RL, Part, Sampling, Schedule, Supervised

DEVICES = 512
PRICE = 2.0
HOURS = dict(r1_zero=101_000, sft_data=5_000, r1=41_000)      # H800-hours, R1 v2 table 7
WALL = dict(r1_zero=198.0, r1=80.0)                           # hours on 512 H800, R1 v2 B.4.4

SETTINGS = dict(
  devices="512 H800 (R1 v2, B.4.4: 64 x 8)",
  price="$2 an H800-hour (R1 v2, table 7)",
  updates="10,400 of 32 questions x 16 answers, 16 to a rollout of 8,192 answers (R1 Methods)",
  longest="32,768 tokens, from update 8,200 on 65,536 (R1 Methods)",
  length_curve="mean length to update 8,400 read by eye off R1 v1, figure 3; after that assumed, to 18,000",
  prompts="160 tokens on average (assumed, within R1's table of RL data)",
  layout="not published: the best that this plan finds for each phase",
  precision="not published for RL; assumed BF16 in training, and BF16 in sampling",
  drafting="one token by the multi-token prediction module (R1 supplement 2.1)",
  phases="sampling, scoring and updates take turns on the same devices and leave for the host in between (2.1)",
  r1_lengths="RL-1 7,000, RL-2 6,000 tokens on average: assumed, between the SFT data's 5,355 (R1 table 5) and the"
             " 8,793 of contest problems (R1 v2, E)",
  rl_2="1,700 updates (R1 v2, 3.2); a reward model scores the answers of the last 400, here: none",
  sft="804,745 samples of 5,355 tokens (R1 table 5), 2.5 epochs of the stated 2 to 3; once (the cold start is small)",
  sft_data="626,933 kept reasoning samples of 6,470 tokens on average (R1 table 5)",
)
# (update, mean answer tokens)
CURVE = ((0, 550), (100, 420), (1000, 1400), (2000, 2000), (3000, 3300), (4000, 4200), (5000, 5300), (6000, 5800),
         (7000, 7300), (8000, 9000), (8200, 9350), (8400, 12_000), (10_400, 18_000))
EDGES = (0, 400, 1200, 2400, 3600, 4800, 6000, 7200, 8208, 9200, 10_400)      # of parts with one mean each


def r1_zero() -> RL:
  parts = []
  for start, stop in itertools.pairwise(EDGES):
    mean = float(np.mean(np.interp(np.arange(start, stop), *zip(*CURVE, strict=True))))
    parts.append(Part((stop - start) // 16, mean, 32_768 if stop <= 8208 else 65_536))
  return RL("r1_zero", tuple(parts), questions=512, group=16, minibatches=16, prompt=160.0)


def rl(name: str, updates: int, mean: float) -> RL:
  return dataclasses.replace(r1_zero(), name=name, parts=(Part(max(updates // 16, 1), mean, 32_768),))


def sft() -> Supervised:
  return Supervised("sft", 804_745 * 2.5, 5355, batch=128, most=32_768)


def sft_data(per_kept: float) -> Sampling:
  kept = 395_285 * 6094 + 211_129 * 7436 + 10_124 * 4929 + 10_395 * 2739
  return Sampling("sft_data", 626_933 * per_kept, kept / 626_933, 32_768, prompt=160.0, group=16)


# as the supplement describes it
PAPER = Schedule(drafts=1, paged=True)


@dataclasses.dataclass(frozen=True)
class Explained:
  """The model's bills, and what was fitted to make them the published ones."""
  numbers: Assumptions
  bills: dict[str, tuple[Bill, ...]]
  rl_1_updates: int
  per_kept: float


def calibrate(site: Site, schedule: Schedule = PAPER, devices: int = DEVICES, rounds: int = 4) -> Assumptions:
  """The assumptions with `step` such that R1-Zero takes its 198 hours. ValueError where none above 0 does."""
  aim = WALL["r1_zero"] * 3600
  hours = lambda step: bill.rl(_with(site, step), r1_zero(), schedule, devices).seconds
  low, high = 0.0, 0.02
  at_low, at_high = hours(low), hours(high)
  for _ in range(rounds):                  # nearly a straight line: rollouts are so many steps one after the other
    step = low + (aim - at_low) * (high - low) / (at_high - at_low)
    if step < 0:
      raise ValueError(f"R1-Zero takes {at_low / 3600:.0f} hours with no time of a step left to explain, more than"
                       f" {WALL['r1_zero']:.0f}: an assumption is too slow")
    found = hours(step)
    if abs(found / aim - 1) < 0.002:
      break
    low, at_low, high, at_high = (step, found, high, at_high) if found < aim else (low, at_low, step, found)
  return _with(site, step).numbers


def _with(site: Site, step: float) -> Site:
  return dataclasses.replace(site, numbers=dataclasses.replace(site.numbers, step=step))


def explain(site: Site, schedule: Schedule = PAPER, devices: int = DEVICES) -> Explained:
  """Fits the three unpublished numbers, and bills all stages with them. site: hardware and assumptions of the paper."""
  numbers = calibrate(site, schedule, devices)
  site = dataclasses.replace(site, numbers=numbers)
  zero = bill.rl(site, r1_zero(), schedule, devices)
  fine = bill.supervised(site, sft(), devices)
  second = bill.rl(site, rl("rl_2", 1700, 6000.0), schedule, devices)
  one = bill.rl(site, rl("rl_1", 16, 7000.0), schedule, devices)
  left = WALL["r1"] * 3600 - fine.seconds - second.seconds
  if left < one.seconds:
    raise ValueError(f"R1's 80 hours leave {left / 3600:.1f} for its first RL stage beside {fine.seconds / 3600:.1f} of"
                     f" SFT and {second.seconds / 3600:.1f} of RL-2")
  rollouts = round(left / one.seconds)
  first = bill.rl(site, rl("rl_1", 16 * rollouts, 7000.0), schedule, devices)
  each = bill.sampling(site, sft_data(1.0), schedule, devices)
  per_kept = HOURS["sft_data"] / each.hours
  data = bill.sampling(site, sft_data(per_kept), schedule, devices)
  return Explained(numbers, dict(r1_zero=(zero,), sft_data=(data,), r1=(first, fine, second)), 16 * rollouts, per_kept)


def again(site: Site, explained: Explained, schedule: Schedule, devices: int = DEVICES) -> dict[str, tuple[Bill, ...]]:
  """The same work by another schedule."""
  site = dataclasses.replace(site, numbers=explained.numbers)
  stages = (rl("rl_1", explained.rl_1_updates, 7000.0), rl("rl_2", 1700, 6000.0))
  first, second = (bill.rl(site, stage, schedule, devices) for stage in stages)
  fine = bill.supervised(site, sft(), devices, schedule.fp8_train)
  return dict(r1_zero=(bill.rl(site, r1_zero(), schedule, devices),),
              sft_data=(bill.sampling(site, sft_data(explained.per_kept), schedule, devices),),
              r1=(first, fine, second))


def schedules() -> dict[str, Schedule]:
  """The paper's, without what it has already, and each change alone and all of them together."""
  change = lambda **fields: dataclasses.replace(PAPER, **fields)
  return {
    "as the paper": PAPER,
    "without continuous batching": change(continuous=False),
    "without MTP drafting": change(drafts=0),
    "shared prompts": change(shared_prompt=True),
    "two tokens drafted": change(drafts=2),
    "FP8 in sampling and training": change(fp8_rollout=True, fp8_train=True),
    "one step off policy": change(ahead=True),
    "partial rollouts, twice as many under way": change(partial=1.0),
    "all of the last five": change(shared_prompt=True, drafts=2, fp8_rollout=True, fp8_train=True, ahead=True,
                                   partial=1.0),
  }


def hours(bills: dict[str, tuple[Bill, ...]]) -> float:
  return sum(one.hours for stages in bills.values() for one in stages)

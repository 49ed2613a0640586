"""What a run spends: device-seconds, tokens, FLOPs, MFU and dollars, by phase and stage.

A stage's rows of metrics carry what was spent since the row before, under ledger/; totals are sums over rows. A resumed
run cuts its rows back to the checkpoint, so what it repeats counts once, and work that was lost does not count at all.
FLOPs are the model's (costs.py), of the tokens that there were: neither padding nor what is computed twice is work.
MFU: these, over what the devices could have done in that time. Left out: time between a stage's units (checkpoints);
of pretrain and sft what an earlier session did after its last row. With reasoning_rl.partial an answer counts, whole,
where it is learnt from.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from r1jax import costs, hardware, update
from r1jax.models.transformer import ModelConfig

PREFIX = "ledger/"
SUMS = ("device_seconds", "tokens_prefill", "tokens_decode", "tokens_train", "flops")
@dataclasses.dataclass(frozen=True)
class LedgerConfig:
  price: float = 0.0             # dollars of a device-hour; 0: not priced. R1's bill: 2 for an H800

  def __post_init__(self):
    if not 0 <= self.price < math.inf:
      raise ValueError(f"ledger.price={self.price} dollars must not be negative")


@dataclasses.dataclass(frozen=True)
class Rates:
  """What MFU and dollars are taken by. peak: FLOP/s of one device, nan where it is not known."""
  devices: int
  peak: float
  denominator: str               # in words
  price: float = 0.0


@dataclasses.dataclass(frozen=True)
class Spent:
  """In one phase. Tokens: of prompts that were run, of answers that were drawn, of both that were learnt from."""
  seconds: float = 0.0
  prefill: int = 0
  decode: int = 0
  train: int = 0
  flops: float = 0.0

  def __add__(self, other: Spent) -> Spent:
    return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))


def rates(cfg: LedgerConfig, model: ModelConfig, devices: int, path: Path | None = None) -> Rates:
  """The rates of these devices. A CPU's peak is measured, once a run: what `path`, its ledger.json, says is kept."""
  device = jax.devices()[0]
  if device.platform == "cpu":      # however many devices are simulated, a process has its cores once
    name = f"{jax.process_count()} x this CPU's {model.dtype} matmul, measured"
    saved = json.loads(path.read_text()) if path and path.exists() else {}
    peak = saved["peak"] if saved.get("denominator") == name else _measured(model.dtype)
    return Rates(jax.process_count(), peak, name, cfg.price)
  row = hardware.of_kind(device.device_kind)
  if row is None:
    return Rates(devices, math.nan, f"none: {device.device_kind} is not in the table of hardware.py", cfg.price)
  return Rates(devices, row.peak(model.dtype), f"{devices} x {device.device_kind}, {model.dtype} ({row.source})",
               cfg.price)


def _measured(dtype: str) -> float:
  from r1jax.bench.timing import matmul_speed  # here, not above: only a CPU needs it
  return matmul_speed(1024, 3, dtype)


def mfu(flops: float, device_seconds: float, rates: Rates) -> float:
  """Model FLOPs utilisation; nan without a peak. ValueError above 1: then one of the three figures is wrong."""
  share = flops / max(device_seconds, 1e-9) / rates.peak
  if share > 1:
    raise ValueError(
      f"MFU would be {share:.0%}: {flops:.3g} FLOPs in {device_seconds:.3g} device-seconds, against {rates.peak:.3g} "
      f"FLOP/s ({rates.denominator}). Wrong is the peak, if it was measured beside other work or is of another device; "
      "or the seconds, if the work was not waited for; or else the FLOPs of costs.py")
  return share


def row(rates: Rates, **phases: Spent) -> dict[str, float]:
  """What a row of metrics says: sums, seconds and FLOPs by phase too. An impossible MFU is nan: `totals` tells why."""
  out = {f"{PREFIX}device_seconds": sum(rates.devices * spent.seconds for spent in phases.values()),
         f"{PREFIX}flops": sum(spent.flops for spent in phases.values())}
  for name in ("prefill", "decode", "train"):
    out[f"{PREFIX}tokens_{name}"] = sum(getattr(spent, name) for spent in phases.values())
  for phase, spent in phases.items():
    out |= {f"{PREFIX}device_seconds/{phase}": rates.devices * spent.seconds, f"{PREFIX}flops/{phase}": spent.flops}
  return out | _derived(rates, out[f"{PREFIX}flops"], out[f"{PREFIX}device_seconds"], PREFIX)[0]


def _derived(rates: Rates, flops: float, device_seconds: float, prefix: str = "") -> tuple[dict[str, float], str]:
  """MFU and dollars, and what is wrong with them."""
  out, error = {f"{prefix}mfu": math.nan}, ""
  try:
    out = {f"{prefix}mfu": mfu(flops, device_seconds, rates)}
  except ValueError as wrong:
    error = str(wrong)
  if rates.price:
    out[f"{prefix}dollars"] = device_seconds / 3600 * rates.price
  return out, error


def sampled(model: ModelConfig, parts: Sequence, seconds: float = 0.0) -> Spent:
  """Of answers that were drawn: parts of Rollouts of one group size, or none. Each prompt is run once."""
  if not parts:
    return Spent(seconds)
  prompt_B = [len(p) for part in parts for p in part.prompts]
  answer_N = [len(a) for part in parts for a in part.answers]
  work = costs.prefill(model, prompt_B) + costs.decode(model, prompt_B, answer_N)
  return Spent(seconds, sum(prompt_B), sum(answer_N), flops=work.flops)


def learnt(cfg, model: ModelConfig, rollouts, seconds: float, policy: bool = True) -> Spent:
  """Of a rollout's answers in an RL stage: log-probs of reference and old policy, critic, updates. cfg: RLConfig.

  policy: False while only the critic learns.
  """
  prompt_B, answer_N = [len(p) for p in rollouts.prompts], [len(a) for a in rollouts.answers]
  one = costs.score(model, prompt_B, answer_N, cfg.shared_prompt).flops
  body = one - costs.head_flops(model, sum(answer_N))
  before = (cfg.loss.kl_coef > 0) + (cfg.minibatches > 1 and not update.by_who_drew(cfg))
  flops = (before + 3 * policy) * one + (4 * body if cfg.critic else 0.0)
  prompts = sum(prompt_B) * (1 if cfg.shared_prompt else rollouts.group_size)
  return Spent(seconds, train=prompts + sum(answer_N), flops=flops)


def supervised(model: ModelConfig, prompt_N, answer_N, seconds: float, mtp: bool = False) -> Spent:
  """Of updates on so many prompts with an answer each."""
  prompt_N, answer_N = np.asarray(prompt_N), np.asarray(answer_N)
  return Spent(seconds, train=int(prompt_N.sum() + answer_N.sum()),
               flops=costs.update(model, prompt_N, answer_N, mtp=mtp).flops)


@dataclasses.dataclass(frozen=True)
class Pass:
  """What an update does `times` over with the answers of its batch. A backward pass is two forward passes."""
  model: ModelConfig
  times: int
  head: bool = True              # False: up to the last states, as a scalar head has them


def of_batch(batch, passes: Sequence[Pass], drawn_by: ModelConfig | None = None) -> Spent:
  """Of updates on given answers, each prompt computed once. drawn_by: the model that drew them first."""
  prompt_B = np.asarray(batch.prompt_length_B)
  answer_N = np.asarray(batch.mask_NA).sum(1).astype(int)
  of = lambda p: costs.score(p.model, prompt_B, answer_N).flops - (
    0.0 if p.head else costs.head_flops(p.model, answer_N.sum()))
  flops, prefill, decode = sum(p.times * of(p) for p in passes), 0, 0
  if drawn_by:
    flops += (costs.prefill(drawn_by, prompt_B) + costs.decode(drawn_by, prompt_B, answer_N)).flops
    prefill, decode = int(prompt_B.sum()), int(answer_N.sum())
  return Spent(0.0, prefill, decode, int(prompt_B.sum() + answer_N.sum()), flops)


def totals(rates: Rates, stages: dict[str, list[dict]]) -> dict:
  """ledger.json: sums over the rows of each stage, by phase and in all, what MFU is of, and what is wrong with one."""
  out = dict(dataclasses.asdict(rates), stages={}, phases={}, errors=[])
  phases: dict[str, dict[str, float]] = {}
  for stage, rows in stages.items():
    total = {name: sum(r.get(PREFIX + name) or 0 for r in rows) for name in SUMS}
    for key in dict.fromkeys(k for r in rows for k in r if k.startswith(PREFIX) and k.count("/") == 2):
      _, name, phase = key.split("/")
      of = phases.setdefault(phase, dict(device_seconds=0.0, flops=0.0))
      of[name] += sum(r.get(key) or 0 for r in rows)
    out["stages"][stage] = total
  everything = {name: sum(total[name] for total in out["stages"].values()) for name in SUMS}
  out |= dict(phases=phases, total=everything)
  for name, sums in (*out["stages"].items(), *phases.items(), ("total", everything)):
    derived, error = _derived(rates, sums["flops"], sums["device_seconds"])
    sums |= derived
    out["errors"] += [f"{name}: {error}"] if error else []
  return out


def write(path: Path, value: dict) -> None:
  """As JSON, which has no nan: null."""
  plain = lambda x: ({k: plain(v) for k, v in x.items()} if isinstance(x, dict) else
                     None if isinstance(x, float) and not math.isfinite(x) else x)
  path.with_suffix(".tmp").write_text(json.dumps(plain(value), indent=1))
  os.replace(path.with_suffix(".tmp"), path)

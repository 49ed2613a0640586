"""Supervised fine-tuning, as in R1's cold start, its third stage, and distillation from samples.

Packed by best fit; cross-entropy of the answers' tokens, a mean over the tokens of the batch. The paper (Nature 2025;
arXiv 2501.12948 v2, B.4): 2-3 epochs, cosine 5e-5 -> 5e-6, rows of 32,768 tokens, 128 samples a batch; to distil, 64
and another rate for each student.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from r1jax import data, hosts, ledger, loop, losses, optimizer, packing, train
from r1jax.ledger import Rates
from r1jax.loop import SaveConfig
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.packing import Packed
from r1jax.types import Task


@dataclasses.dataclass(frozen=True)
class SFTConfig:
  optimizer: OptimizerConfig
  batch: int                     # samples an update; R1: 128, to distil 64
  length: int                    # tokens of a packed row, and of the longest sample; R1: 32,768
  epochs: float = 2.0            # R1: 2 to 3. Of the task's own endless demonstrations: give steps
  steps: int = 0                 # updates; 0: as epochs say
  micro_batches: int = 1         # parts of a batch's rows whose gradients are added up
  too_long: str = "error"        # samples above `length`: error, or drop (the log says how many)
  log_every: int = 10
  checkpoint: SaveConfig = dataclasses.field(default_factory=lambda: SaveConfig(every=500))

  def __post_init__(self):
    for name in ("batch", "length", "micro_batches", "log_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"sft.{name}={getattr(self, name)} must be at least 1")
    if self.steps < 0 or self.epochs <= 0:
      raise ValueError(f"sft.steps={self.steps} must not be negative, epochs={self.epochs} above 0")
    if self.too_long not in ("error", "drop"):
      raise ValueError(f"sft.too_long={self.too_long!r} is neither error nor drop")


def loss(params, packed: Packed, *, model: ModelConfig):
  """Cross-entropy of the answers' tokens, as a Mean."""
  return losses.cross_entropy(train.packed_logprobs(params, model, packed), packed.mask_NT), {}


def demonstrations(cfg: SFTConfig, task: Task, path: str | None):
  """(function i -> (prompt tokens, answer tokens with the end), how many, how many were dropped).

  From a file, or else the task's own, without end. ValueError for a sample that does not fit into a row.
  """
  tok = task.tokenizer
  encode = task.encode or tok.encode_batch
  def tokens(prompt, answer):
    ids = list(answer) if isinstance(answer, list) else tok.encode_batch([answer])[0]
    if ids and max(ids) >= tok.vocab:
      raise ValueError(f"answer token {max(ids)} is not below the tokenizer's {tok.vocab}")
    return encode([prompt])[0], ids if ids and ids[-1] in tok.end_ids else [*ids, tok.end_id]
  if path is None:
    if task.demonstration is None:
      raise ValueError(f"task {task.name} has no demonstrations: give data.demonstrations=FILE")
    return lambda i: tokens(*task.demonstration(i)), None, 0
  every = hosts.divided(list(data.read_demonstrations(path)), lambda own: [tokens(*sample) for sample in own])
  fits = [s for s in every if len(s[0]) + len(s[1]) <= cfg.length]
  if len(fits) < len(every) and cfg.too_long == "error":
    raise ValueError(f"{path}: {len(every) - len(fits)} of {len(every)} samples are longer than sft.length="
                     f"{cfg.length} tokens: raise it, or set too_long=drop")
  if not fits:
    raise ValueError(f"{path}: no sample fits into sft.length={cfg.length} tokens")
  return fits.__getitem__, len(fits), len(every) - len(fits)


def updates(cfg: SFTConfig, size: int | None) -> int:
  if cfg.steps:
    return cfg.steps
  if size is None:
    raise ValueError("sft.steps must be given: the task's demonstrations have no end")
  return max(round(cfg.epochs * size / cfg.batch), 1)


def first_state(cfg: SFTConfig, params, model: ModelConfig, steps: int = 1):
  return train.init_state(params, optimizer.make(cfg.optimizer, steps))


def run(cfg: SFTConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None, console=None,
        files=None, pool=None, rates: Rates | None = None):
  """Trains `params` on demonstrations and returns the new ones."""
  sample, size, dropped = demonstrations(cfg, task, files.demonstrations if files else None)
  if dropped and console:
    console.print(f"sft: {dropped} samples are longer than {cfg.length} tokens and left out")
  steps = updates(cfg, size)
  step_fn = train.compiled_step(lambda params, packed: loss(params, packed, model=model),
                                optimizer.make(cfg.optimizer, steps), cfg.micro_batches)
  rate = optimizer.schedule(cfg.optimizer, steps)
  clock = [time.monotonic(), [], []]

  def advance(state, unit):
    prompts, answers = zip(*map(sample, data.positions(unit, cfg.batch, size, seed)), strict=True)
    packed = packing.pack(prompts, answers, cfg.length)
    rows = len(packed.token_NT)
    want = -(-train.bucket(rows, 1) // cfg.micro_batches) * cfg.micro_batches     # few shapes are compiled
    packed = packing.pad_rows(packed, want)
    state, metrics = step_fn(state, packed)
    clock[1] += map(len, prompts)
    clock[2] += map(len, answers)
    if unit % cfg.log_every and unit + 1 < steps:
      return state, [], None
    now = time.monotonic()
    row = {name: float(m.value()) for name, m in metrics.items()} | {
      "lr": float(rate(unit)), "tokens_per_s": (sum(clock[1]) + sum(clock[2])) / (now - clock[0]),
      "fill": float((packed.segment_NT[:rows] > 0).mean()), "epoch": (unit + 1) * cfg.batch / size if size else 0.0}
    if rates:
      row |= ledger.row(rates, update=ledger.supervised(model, *clock[1:], now - clock[0]))
    clock[:] = now, [], []
    return state, [(unit, row)], None

  return loop.run(folder.name, folder, first_state(cfg, params, model, steps), advance, units=steps,
                  save=cfg.checkpoint, stop=stop, console=console).params

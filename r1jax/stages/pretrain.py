"""The base policy: next-token prediction on a task's demonstrations, from random weights.

In the paper this is DeepSeek-V3-Base, 14.8T tokens away; here it is a mixture that holds the long behaviour at a small
rate, which is what RL needs to find (2510.11495). The loss is on the answer's tokens: the prompts are random.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from r1jax import data, loop, losses, optimizer, train
from r1jax.loop import SaveConfig
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.types import Batch, Task


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  optimizer: OptimizerConfig
  steps: int                     # updates
  batch: int                     # demonstrations per update
  micro_batches: int = 1         # parts of a batch whose gradients are added up
  log_every: int = 10            # updates between two rows of metrics
  checkpoint: SaveConfig = dataclasses.field(default_factory=lambda: SaveConfig(every=500))

  def __post_init__(self):
    for name in ("steps", "batch", "micro_batches", "log_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"pretrain.{name}={getattr(self, name)} must be at least 1")
    if self.batch % self.micro_batches:
      raise ValueError(f"pretrain.batch={self.batch} must be a multiple of micro_batches={self.micro_batches}")


def batch_of(task: Task, indices) -> Batch:
  """Demonstrations as a right-padded batch."""
  prompts, answers = zip(*map(task.demonstration, indices), strict=True)
  prompts = task.tokenizer.encode_batch(prompts)
  answers = [a + [task.tokenizer.end_id] for a in task.tokenizer.encode_batch(answers)]
  A = train.bucket(max(map(len, answers)))
  return Batch(
    prompt_BP=train.pad_rows(prompts, train.bucket(max(map(len, prompts))), 0),
    prompt_length_B=np.asarray([len(p) for p in prompts], np.int32),
    answer_NA=train.pad_rows(answers, A, 0), mask_NA=train.pad_rows([[1.0] * len(a) for a in answers], A, 0.0))


def run(cfg: PretrainConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None,
        console=None):
  """Trains `params` (fresh ones) and returns the base policy's."""
  if task.demonstration is None:
    raise ValueError(f"task {task.name} has no demonstrations to pre-train on: leave pretrain out of the stages")

  def loss_fn(params, batch):
    logp_NA, _ = train.token_logprobs(params, model, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA)
    return losses.cross_entropy(logp_NA, batch.mask_NA), {}

  tx = optimizer.make(cfg.optimizer, cfg.steps)
  rate = optimizer.schedule(cfg.optimizer, cfg.steps)
  step_fn = train.compiled_step(loss_fn, tx, cfg.micro_batches)
  clock = [time.monotonic(), 0]

  def advance(state, unit):
    batch = batch_of(task, data.positions(unit, cfg.batch, None, seed))
    state, metrics = step_fn(state, batch)
    clock[1] += int(batch.prompt_length_B.sum() + batch.mask_NA.sum())
    if unit % cfg.log_every and unit + 1 < cfg.steps:
      return state, [], None
    row = {name: float(m.value()) for name, m in metrics.items()} | dict(lr=float(rate(unit)))
    now = time.monotonic()
    row["tokens_per_s"] = clock[1] / (now - clock[0])
    clock[:] = now, 0
    return state, [(unit, row)], None

  state = loop.run("pretrain", folder, train.init_state(params, tx), advance, units=cfg.steps, save=cfg.checkpoint,
                   stop=stop, console=console)
  return state.params

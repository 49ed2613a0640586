"""Learning from pairs (prompt, chosen, rejected): direct preference optimisation, and the reward models' loop.

DPO (2305.18290, eq. 7): -log sigmoid(beta ((log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected))). The
prompt of a pair is computed once for both answers. Letters: r1jax/types.py; rows are [chosen, rejected] of each prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import data, hosts, ledger, loop, optimizer, train
from r1jax.ledger import Pass, Rates, Spent
from r1jax.loop import SaveConfig
from r1jax.losses import Mean
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.types import Batch, Task


@dataclasses.dataclass(frozen=True)
class DPOConfig:
  optimizer: OptimizerConfig
  batch: int                     # pairs an update
  epochs: float = 1.0
  steps: int = 0                 # updates; 0: as epochs say
  micro_batches: int = 1
  length: int = 8192             # the longest prompt with its answer, tokens
  beta: float = 0.1              # how much it costs to leave the reference
  log_every: int = 10
  checkpoint: SaveConfig = dataclasses.field(default_factory=lambda: SaveConfig(every=500))

  def __post_init__(self):
    check("dpo", self)
    if self.beta <= 0:
      raise ValueError(f"dpo.beta={self.beta} must be above 0")


def check(name: str, cfg) -> None:
  """What the configs of this file and reward_model.py have in common."""
  for field in ("batch", "micro_batches", "length", "log_every"):
    if getattr(cfg, field) < 1:
      raise ValueError(f"{name}.{field}={getattr(cfg, field)} must be at least 1")
  if cfg.batch % cfg.micro_batches:
    raise ValueError(f"{name}.batch={cfg.batch} must be a multiple of micro_batches={cfg.micro_batches}")
  if cfg.steps < 0 or cfg.epochs <= 0:
    raise ValueError(f"{name}.steps={cfg.steps} must not be negative, epochs={cfg.epochs} above 0")


def tokens(task: Task, prompt: str, answers, length: int, where: str):
  """(prompt tokens, [answer tokens with their end]); ValueError for a sample longer than `length`."""
  ids = (task.encode or task.tokenizer.encode_batch)([prompt])[0]
  said = [[*a, task.tokenizer.end_id] for a in task.tokenizer.encode_batch(list(answers))]
  longest = len(ids) + max(map(len, said))
  if longest > length:
    raise ValueError(f"{where} has {longest} tokens, more than length={length}")
  return ids, said


def to_batch(samples) -> Batch:
  """[(prompt tokens, [answers' tokens])], the same number of answers each, as a padded batch."""
  prompts, groups = zip(*samples, strict=True)
  answers = [a for group in groups for a in group]
  A = train.bucket(max(map(len, answers)))
  return Batch(
    prompt_BP=train.pad_rows(prompts, train.bucket(max(map(len, prompts))), 0),
    prompt_length_B=np.asarray([len(p) for p in prompts], np.int32), answer_NA=train.pad_rows(answers, A, 0),
    mask_NA=train.pad_rows([[1.0] * len(a) for a in answers], A, 0.0))


def margin_loss(margin_B):
  """-log sigmoid(margin) (Bradley-Terry), and how often and by how much the chosen answer is ahead."""
  count = jnp.float32(margin_B.shape[0])
  metrics = {"accuracy": Mean((margin_B > 0).sum().astype(jnp.float32), count), "margin": Mean(margin_B.sum(), count)}
  return Mean(-jax.nn.log_sigmoid(margin_B).sum(), count), jax.lax.stop_gradient(metrics)


def dpo_loss(params, batch: Batch, *, model: ModelConfig, beta: float):
  """DPO's loss over the pairs of a batch, as a Mean; log-probs are token sums. batch.ref_logp_NA: the reference's."""
  logp_NA, _ = train.token_logprobs(params, model, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA)
  moved_N = (jnp.where(batch.mask_NA > 0, logp_NA - batch.ref_logp_NA, 0.0)).sum(1)
  return margin_loss(beta * (moved_N[0::2] - moved_N[1::2]))


def first_state(cfg: DPOConfig, params, model: ModelConfig, steps: int = 1):
  return train.init_state(params, optimizer.make(cfg.optimizer, steps), reference=True)


def run(cfg: DPOConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None, console=None,
        files=None, pool=None, rates: Rates | None = None):
  """Moves `params` towards the chosen answers of data.preferences; they are its reference too."""
  if not (files and files.preferences):
    raise ValueError("dpo needs pairs: give data.preferences=FILE")
  pairs = [tokens(task, prompt, both, cfg.length, f"{files.preferences}: pair {i}")
           for i, (prompt, *both) in enumerate(data.read_pairs(files.preferences))]
  def batch_of(state, unit):
    batch = to_batch([pairs[i] for i in data.positions(unit, cfg.batch, len(pairs), seed)])
    batch = hosts.place(batch)
    ref = train.score(state.ref_params, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA, model=model,
                      micro_batches=cfg.micro_batches)
    return batch.replace(ref_logp_NA=ref)
  steps = updates(cfg, len(pairs))
  step_fn = train.compiled_step(lambda params, batch: dpo_loss(params, batch, model=model, beta=cfg.beta),
                                optimizer.make(cfg.optimizer, steps), cfg.micro_batches)
  return train_on(cfg, folder, first_state(cfg, params, model, steps), steps, batch_of, step_fn,
                  lambda unit, batch, row: dict(epoch=(unit + 1) * cfg.batch / len(pairs)), stop, console,
                  rates, [Pass(model, 3 + 1)]).params      # forward, backward; the reference


def updates(cfg, size: int) -> int:
  return cfg.steps or max(round(cfg.epochs * size / cfg.batch), 1)


def train_on(cfg, folder: Path, state, steps: int, batch_of, step_fn, more, stop, console, rates: Rates | None = None,
             passes: Sequence[Pass] = (), drawn_by: ModelConfig | None = None):
  """`steps` updates of a stage that has optimizer, log_every and checkpoint in its config.

  batch_of(state, unit) -> batch; step_fn(state, batch) -> (state, metrics); more(unit, batch, row) -> further numbers.
  rates, passes, drawn_by: for the ledger (ledger.of_batch).
  """
  rate = optimizer.schedule(cfg.optimizer, steps)
  clock = [time.monotonic(), Spent()]

  def advance(state, unit):
    began = time.monotonic()
    batch = batch_of(state, unit)
    state, metrics = step_fn(state, batch)
    clock[1] += ledger.of_batch(batch, passes, drawn_by)
    if unit % cfg.log_every and unit + 1 < steps:
      return state, [], None
    row = {name: float(m.value()) for name, m in metrics.items()} | {
      "lr": float(rate(unit)), "seconds/update": time.monotonic() - began}
    if rates:
      row |= ledger.row(rates, update=dataclasses.replace(clock[1], seconds=time.monotonic() - clock[0]))
    clock[:] = time.monotonic(), Spent()
    return state, [(unit, row | more(unit, batch, row))], None

  return loop.run(folder.name, folder, state, advance, units=steps, save=cfg.checkpoint, stop=stop, console=console)

"""The base policy: next-token prediction on a task's demonstrations, from random weights.

In the paper this is DeepSeek-V3-Base, 14.8T tokens away; here it is a mixture that holds the long behaviour at a small
rate, which is what RL needs to find (2510.11495). The loss is on the answer's tokens: the prompts are random.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from r1jax import data, hosts, ledger, loop, losses, optimizer, train
from r1jax.ledger import Rates
from r1jax.loop import SaveConfig
from r1jax.losses import Mean
from r1jax.models import moe, mtp, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.types import Batch, Task


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  optimizer: OptimizerConfig
  steps: int                     # updates
  batch: int                     # demonstrations per update
  micro_batches: int = 1         # parts of a batch whose gradients are added up
  mtp_weight: float = 0.3        # of the multi-token prediction loss, if the model has that module; V3: 0.3, then 0.1
  balance_weight: float = 0.0    # of MoE's sequence-wise balance loss; V3: 1e-4
  bias_speed: float = 0.0        # of the selection bias' update rule; V3: 0.001, at the end 0
  log_every: int = 10            # updates between two rows of metrics
  checkpoint: SaveConfig = dataclasses.field(default_factory=lambda: SaveConfig(every=500))

  def __post_init__(self):
    for name in ("steps", "batch", "micro_batches", "log_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"pretrain.{name}={getattr(self, name)} must be at least 1")
    if self.batch % self.micro_batches:
      raise ValueError(f"pretrain.batch={self.batch} must be a multiple of micro_batches={self.micro_batches}")
    if min(self.mtp_weight, self.balance_weight, self.bias_speed) < 0:
      raise ValueError(f"pretrain mtp_weight={self.mtp_weight}, balance_weight={self.balance_weight},"
                       f" bias_speed={self.bias_speed} must not be negative")


def batch_of(task: Task, indices) -> Batch:
  """Demonstrations as a right-padded batch."""
  def tokens(indices):
    texts = [text for i in indices for text in task.demonstration(i)]
    ids = task.tokenizer.encode_batch(texts)
    return list(zip(ids[::2], [a + [task.tokenizer.end_id] for a in ids[1::2]], strict=True))
  prompts, answers = zip(*hosts.divided(indices, tokens), strict=True)
  A = train.bucket(max(map(len, answers)))
  return Batch(
    prompt_BP=train.pad_rows(prompts, train.bucket(max(map(len, prompts))), 0),
    prompt_length_B=np.asarray([len(p) for p in prompts], np.int32),
    answer_NA=train.pad_rows(answers, A, 0), mask_NA=train.pad_rows([[1.0] * len(a) for a in answers], A, 0.0))


def whole_sequences(batch: Batch):
  """(token_NT, mask_NT): each prompt with its answer right behind it. G = 1; T = P + A, padded on the right."""
  (N, P), A = batch.prompt_BP.shape, batch.answer_NA.shape[1]
  at_NT = jnp.broadcast_to(jnp.arange(P + A), (N, P + A))
  length_N1 = batch.prompt_length_B[:, None]
  said_NT = jnp.clip(at_NT - length_N1, 0, A - 1)
  in_prompt_NT, in_answer_NT = at_NT < length_N1, at_NT - length_N1 < A
  token_NT = jnp.where(in_prompt_NT, jnp.pad(batch.prompt_BP, ((0, 0), (0, A))),
                       jnp.take_along_axis(batch.answer_NA, said_NT, axis=1))
  mask_NT = jnp.take_along_axis(batch.mask_NA, said_NT, axis=1) * (~in_prompt_NT & in_answer_NT)
  return token_NT, mask_NT


def loss(params, batch: Batch, *, model: ModelConfig, cfg: PretrainConfig):
  """Cross-entropy of the answers' tokens; for models that have them, plus V3's multi-token and balance losses."""
  if not (model.moe or model.mtp):      # the same number at less work: prompts stand by themselves
    logp_NA, _ = train.token_logprobs(params, model, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA)
    return losses.cross_entropy(logp_NA, batch.mask_NA), {}
  token_NT, mask_NT = whole_sequences(batch)
  N, T = token_NT.shape
  position_NT = jnp.broadcast_to(jnp.arange(T), (N, T))
  present_NT = (position_NT < (batch.prompt_length_B + batch.mask_NA.sum(1))[:, None]).astype(jnp.float32)
  hidden_NTD, kept = transformer.forward(params, model, token_NT, position_NT, mask_NT=present_NT)
  logp_M, _ = losses.token_logprobs(hidden_NTD[:, :-1].reshape(N * (T - 1), -1), transformer.head(params),
                                    token_NT[:, 1:].reshape(-1), 1.0, model.logit_chunk, tied=model.tied_head)
  total = losses.cross_entropy(logp_M.reshape(N, T - 1), mask_NT[:, 1:])
  metrics = {"cross_entropy": total}
  if model.mtp and cfg.mtp_weight:
    second = mtp.loss(params, model, hidden_NTD, token_NT, mask_NT, position_NT)
    metrics["mtp"] = second
    total = Mean(total.total + cfg.mtp_weight * second.total, total.weight)
  if model.moe:
    metrics |= moe.metrics(kept.routing) | {moe.LOAD: Mean(kept.routing.load_E, jnp.float32(1))}
    balance = Mean(kept.routing.balance.sum(), jnp.float32(N * kept.routing.balance.shape[0]))
    metrics["router_balance"] = balance
    total = Mean(total.total + cfg.balance_weight * balance.value() * total.weight, total.weight)
  return total, metrics


def first_state(cfg: PretrainConfig, params, model: ModelConfig, steps: int = 1):
  return train.init_state(params, optimizer.make(cfg.optimizer, steps))


def run(cfg: PretrainConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None,
        console=None, files=None, pool=None, rates: Rates | None = None):
  """Trains `params` (fresh ones) and returns the base policy's."""
  if task.demonstration is None:
    raise ValueError(f"task {task.name} has no demonstrations to pre-train on: leave pretrain out of the stages")

  tx = optimizer.make(cfg.optimizer, cfg.steps)
  rate = optimizer.schedule(cfg.optimizer, cfg.steps)
  step_fn = train.compiled_step(lambda params, batch: loss(params, batch, model=model, cfg=cfg), tx, cfg.micro_batches,
                                bias_speed=cfg.bias_speed if model.moe else 0.0)
  clock = [time.monotonic(), [], []]

  def advance(state, unit):
    batch = batch_of(task, data.positions(unit, cfg.batch, None, seed))
    state, metrics = step_fn(state, batch)
    clock[1] += batch.prompt_length_B.tolist()
    clock[2] += batch.mask_NA.sum(1).astype(int).tolist()
    if unit % cfg.log_every and unit + 1 < cfg.steps:
      return state, [], None
    row = {name: float(m.value()) for name, m in metrics.items()} | dict(lr=float(rate(unit)))
    now = time.monotonic()
    row["tokens_per_s"] = (sum(clock[1]) + sum(clock[2])) / (now - clock[0])
    if rates:
      spent = ledger.supervised(model, *clock[1:], now - clock[0], mtp=bool(model.mtp and cfg.mtp_weight))
      row |= ledger.row(rates, update=spent)
    clock[:] = now, [], []
    return state, [(unit, row)], None

  state = loop.run(folder.name, folder, first_state(cfg, params, model, cfg.steps), advance, units=cfg.steps,
                   save=cfg.checkpoint, stop=stop, console=console)
  return state.params

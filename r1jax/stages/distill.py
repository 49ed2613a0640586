"""Distillation from a teacher's next-token distributions, beside R1's own from samples (which is stages/sft.py).

forward: KL(teacher || student) on given demonstrations. reverse: the student samples, KL(student || teacher) on its own
answers (on-policy distillation, 2306.13649). Both are token means over the whole vocabulary. The teacher is a Hugging
Face directory with the student's vocabulary. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from r1jax import data, hf, hosts, losses, optimizer, rollout, train
from r1jax.ledger import Pass, Rates
from r1jax.loop import SaveConfig
from r1jax.losses import masked_mean
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.sampler import SampleConfig
from r1jax.stages import sft
from r1jax.stages.preferences import to_batch, train_on
from r1jax.types import Batch, Task


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  optimizer: OptimizerConfig
  teacher: str                   # a Hugging Face directory
  batch: int                     # answers an update
  steps: int                     # updates
  direction: str = "forward"     # forward, or reverse: on-policy
  temperature: float = 1.0       # of both distributions
  sampling: SampleConfig | None = None   # reverse only: how the student samples
  length: int = 8192             # forward only: the longest prompt with its answer, tokens
  micro_batches: int = 1
  log_every: int = 10
  checkpoint: SaveConfig = dataclasses.field(default_factory=lambda: SaveConfig(every=500))

  def __post_init__(self):
    for name in ("batch", "steps", "length", "micro_batches", "log_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"distill.{name}={getattr(self, name)} must be at least 1")
    if self.batch % self.micro_batches:
      raise ValueError(f"distill.batch={self.batch} must be a multiple of micro_batches={self.micro_batches}")
    if self.direction not in ("forward", "reverse"):
      raise ValueError(f"distill.direction={self.direction!r} is neither forward nor reverse")
    if (self.direction == "reverse") != (self.sampling is not None):
      raise ValueError(f"distill.direction={self.direction}: sampling goes with reverse, and only with it")
    if self.temperature <= 0:
      raise ValueError(f"distill.temperature={self.temperature} must be above 0")


def loss(params, batch: Batch, teacher, *, model: ModelConfig, teacher_model: ModelConfig, cfg: DistillConfig):
  """The mean KL of the answers' tokens, as a Mean. teacher: its parameters."""
  args = batch.prompt_BP, batch.prompt_length_B, batch.answer_NA
  student_NAD, _ = train.answer_states(params, model, *args)
  teacher_NAD, _ = train.answer_states(teacher, teacher_model, *args)
  flat = lambda x_NAD: x_NAD.reshape(-1, x_NAD.shape[-1])
  kl_M = losses.token_kl(flat(student_NAD), transformer.head(params), jax.lax.stop_gradient(flat(teacher_NAD)),
                         transformer.head(teacher), cfg.temperature, model.logit_chunk, cfg.direction == "reverse")
  return masked_mean(kl_M.reshape(batch.mask_NA.shape), batch.mask_NA), {}


def first_state(cfg: DistillConfig, params, model: ModelConfig, steps: int = 1):
  return train.init_state(params, optimizer.make(cfg.optimizer, steps))


def run(cfg: DistillConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None, console=None,
        files=None, pool=None, rates: Rates | None = None):
  """Trains `params`, the student, towards the teacher and returns them."""
  teacher, teacher_model = hf.load(cfg.teacher, model.dtype, hosts.mesh())
  if teacher_model.vocab != model.vocab:
    raise ValueError(f"distill.teacher={cfg.teacher} has a vocabulary of {teacher_model.vocab}, the student of"
                     f" {model.vocab}")
  tx = optimizer.make(cfg.optimizer, cfg.steps)

  def step(state, batch, teacher):
    loss_fn = lambda p, b: loss(p, b, teacher, model=model, teacher_model=teacher_model, cfg=cfg)
    return train.train_step(state, batch, loss_fn=loss_fn, tx=tx, micro_batches=cfg.micro_batches)
  step = hosts.placing(jax.jit(step, donate_argnums=0))
  if cfg.direction == "forward":
    fits = sft.SFTConfig(cfg.optimizer, batch=cfg.batch, length=cfg.length, steps=cfg.steps)
    sample, size, _ = sft.demonstrations(fits, task, files.demonstrations if files else None)

  def batch_of(state, unit):
    if cfg.direction == "forward":
      chosen = map(sample, data.positions(unit, cfg.batch, size, seed))
      return to_batch([(prompt, [answer]) for prompt, answer in chosen])
    problems = [task.problem(i) for i in data.positions(unit, cfg.batch, task.size, seed)]
    return rollout.to_batch(rollout.sample(state.params, problems, 1, model=model, tokenizer=task.tokenizer,
                                           cfg=cfg.sampling, seed=seed, step=unit, encode=task.encode))

  said = lambda unit, batch, row: dict(kl=row["loss"], length=float(np.asarray(batch.mask_NA).sum(1).mean()))
  return train_on(cfg, folder, first_state(cfg, params, model, cfg.steps), cfg.steps, batch_of,
                  lambda state, batch: step(state, batch, teacher), said, stop, console, rates,
                  [Pass(model, 3), Pass(teacher_model, 1)], model if cfg.direction == "reverse" else None).params

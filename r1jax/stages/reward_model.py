"""Reward models: the policy's architecture with a scalar head, trained on pairs or on safe / unsafe labels.

The paper (Nature 2025, Methods; arXiv 2501.12948 v2, 3.1): the helpful one on 66,000 pairs with the pairwise loss, the
safety one on 106,000 labelled answers with a pointwise one; batch 256, rate 6e-6, one epoch, at most 8,192 tokens in
training. What a score becomes as a reward: rewards/preference.py. The policy passes through this stage unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import checkpoint, critic, data, hosts, optimizer, train
from r1jax.checkpoint import Checkpoints
from r1jax.ledger import Pass, Rates
from r1jax.loop import SaveConfig
from r1jax.losses import Mean
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.rewards import preference
from r1jax.stages.preferences import check, margin_loss, to_batch, tokens, train_on, updates
from r1jax.types import Batch, Reward, Task


@dataclasses.dataclass(frozen=True)
class RewardModelConfig:
  optimizer: OptimizerConfig     # R1: 6e-6
  batch: int                     # pairs or labelled answers an update; R1: 256
  kind: str = "pairwise"         # pairwise (data.preferences) or pointwise (data.safety)
  epochs: float = 1.0            # R1: 1
  steps: int = 0                 # updates; 0: as epochs say
  micro_batches: int = 1
  length: int = 8192             # R1: 8,192 in training
  scenarios: tuple[str, ...] = ()    # prompts that it is asked about in RL; (): general if pairwise, else unsafe
  log_every: int = 10
  checkpoint: SaveConfig = dataclasses.field(default_factory=lambda: SaveConfig(every=500))

  def __post_init__(self):
    check("reward_model", self)
    if self.kind not in ("pairwise", "pointwise"):
      raise ValueError(f"reward_model.kind={self.kind!r} is neither pairwise nor pointwise")


def scores(params, batch: Batch, model: ModelConfig):
  """A score of each answer [N]."""
  length_N = batch.mask_NA.sum(1).astype(jnp.int32)
  return critic.answer_scores(params, model, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA, length_N)


def pairwise_loss(params, batch: Batch, *, model: ModelConfig):
  """-log sigmoid(r(chosen) - r(rejected)): Bradley-Terry."""
  score_N = scores(params, batch, model)
  return margin_loss(score_N[0::2] - score_N[1::2])


def pointwise_loss(params, batch: Batch, *, model: ModelConfig):
  """Binary cross-entropy of sigmoid(r) with the label, 1 for safe, which batch.advantage_N holds."""
  score_N, label_N = scores(params, batch, model), batch.advantage_N
  count = jnp.float32(score_N.shape[0])
  right = Mean(((score_N > 0) == (label_N > 0.5)).sum().astype(jnp.float32), count)
  nll_N = -(label_N * jax.nn.log_sigmoid(score_N) + (1 - label_N) * jax.nn.log_sigmoid(-score_N))
  return Mean(nll_N.sum(), count), {"accuracy": jax.lax.stop_gradient(right)}


def first_state(cfg: RewardModelConfig, params, model: ModelConfig, steps: int = 1):
  return train.init_state(critic.init(params, model), optimizer.make(cfg.optimizer, steps))


def run(cfg: RewardModelConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None,
        console=None, files=None, pool=None, rates: Rates | None = None):
  """Trains a reward model that starts from the policy; its checkpoint is the result. Returns the policy."""
  pairwise = cfg.kind == "pairwise"
  path = files and (files.preferences if pairwise else files.safety)
  own = task.pair if pairwise else task.label
  if path:
    read = data.read_pairs(path) if pairwise else data.read_labels(path)
  elif own and cfg.steps:      # the task's own, without end
    path, read = f"task {task.name}", [own(i) for i in range(cfg.steps * cfg.batch)]
  else:
    raise ValueError(f"reward_model.kind={cfg.kind} needs data.{'preferences' if pairwise else 'safety'}=FILE"
                     + (", or steps, for the task's own" if own else ""))
  samples = [tokens(task, row[0], row[1:] if pairwise else row[1:2], cfg.length, f"{path}: sample {i}")
             for i, row in enumerate(read)]
  def batch_of(state, unit):
    indices = data.positions(unit, cfg.batch, len(samples), seed)
    batch = to_batch([samples[i] for i in indices])
    return batch if pairwise else batch.replace(advantage_N=np.asarray([read[i][2] for i in indices], np.float32))
  loss = functools.partial(pairwise_loss if pairwise else pointwise_loss, model=model)
  steps = updates(cfg, len(samples))
  step_fn = train.compiled_step(loss, optimizer.make(cfg.optimizer, steps), cfg.micro_batches)
  train_on(cfg, folder, first_state(cfg, params, model, steps), steps, batch_of, step_fn,
           lambda unit, batch, row: dict(epoch=(unit + 1) * cfg.batch / len(samples)), stop, console,
           rates, [Pass(model, 3, head=False)])
  return params


def load(folder: Path, cfg: RewardModelConfig, model: ModelConfig):
  """The newest reward model of a stage's folder. FileNotFoundError where there is none."""
  abstract = checkpoint.abstract(lambda key: first_state(cfg, transformer.init(model, key), model), jax.random.key(0))
  with Checkpoints(Path(folder) / "checkpoints", read_only=True) as checkpoints:
    restored = checkpoints.restore(abstract)
  if not restored:
    raise FileNotFoundError(f"{folder}: no reward model here")
  return restored[1].params


def judge(folder: Path, cfg: RewardModelConfig, task: Task, model: ModelConfig, scale: str) -> Reward:
  """The newest reward model of a stage's folder as a reward (R1, Methods): the pairwise, helpful one reads the final
  summary, the pointwise, safe one the whole answer, each of its own scenarios' prompts. scale: preference.SCALES."""
  pairwise = cfg.kind == "pairwise"
  params = load(folder, cfg, model)
  if hosts.count() > 1:      # each asks its own copy about its own answers
    params = jax.tree.map(hosts.fetch, params)
  of = preference.from_scores(scorer(params, task, model), part="summary" if pairwise else "whole",
                              scale=scale, empty=0.0)
  scenarios = cfg.scenarios or (("general",) if pairwise else ("unsafe",))
  return preference.single(preference.of_scenarios(of, scenarios))


def scorer(params, task: Task, model: ModelConfig, length: int = 65_536):
  """(prompts, responses) -> raw scores, as rewards/preference.from_scores takes it."""
  score = jax.jit(functools.partial(scores, model=model))
  def of(prompts, responses):
    batch = to_batch([tokens(task, prompt, [answer], length, "an answer")
                      for prompt, answer in zip(prompts, responses, strict=True)])
    return np.asarray(score(params, batch)).tolist()
  return of

"""One pure train step for every stage, and the forward passes around it.

A stage gives `loss_fn(params, batch) -> (Mean, metrics)`; SFT, RL and distillation differ in nothing else here.
Letters: r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import losses
from r1jax.losses import Mean
from r1jax.models import transformer
from r1jax.models.transformer import ModelConfig
from r1jax.types import Batch, TrainState


def token_logprobs(params, model: ModelConfig, token_NT, temperature: float = 1.0):
  """log p(token t | tokens before it) at [n, t] and the entropy of that prediction, [N, T] f32. Column 0 is 0.

  Sequences are right-padded; what stands at padding is meaningless and is masked by the caller.
  """
  N, T = token_NT.shape
  position_NT = jnp.broadcast_to(jnp.arange(T - 1), (N, T - 1))
  hidden_NTD, _ = transformer.forward(params, model, token_NT[:, :-1], position_NT)
  logp_M, entropy_M = losses.token_logprobs(
    hidden_NTD.reshape(N * (T - 1), -1), transformer.head(params), token_NT[:, 1:].reshape(-1), temperature,
    model.logit_chunk)
  return tuple(jnp.pad(x.reshape(N, T - 1), ((0, 0), (1, 0))) for x in (logp_M, entropy_M))


@functools.partial(jax.jit, static_argnames=("model", "temperature", "micro_batches"))
def score(params, token_NT, *, model: ModelConfig, temperature: float = 1.0, micro_batches: int = 1):
  """log-probs [N, T] of given tokens: the old policy's, the reference's."""
  parts = token_NT.reshape(micro_batches, -1, token_NT.shape[1])
  one = lambda part: token_logprobs(params, model, part, temperature)[0]
  return (jax.lax.map(one, parts) if micro_batches > 1 else one(parts[0])).reshape(token_NT.shape)


def init_state(params, tx: optax.GradientTransformation, reference: bool = False) -> TrainState:
  """Update 0. reference: keep a copy of the parameters as the KL reference."""
  ref_params = jax.tree.map(jnp.copy, params) if reference else None
  return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params), ref_params=ref_params)


def gradients(params, batch: Batch, loss_fn, micro_batches: int):
  """Gradient of the loss's total / weight, that loss, and metrics; the same whatever the number of micro-batches.

  Totals and weights are added up over micro-batches and divided once: no mean of means.
  """
  def total(params, part):
    loss, metrics = loss_fn(params, part)
    return loss.total, (loss, metrics)

  grad = jax.grad(total, has_aux=True)
  if micro_batches == 1:
    grads, (loss, metrics) = grad(params, batch)
  else:
    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    first = grad(params, jax.tree.map(lambda x: x[0], parts))
    add = functools.partial(jax.tree.map, lambda a, b: a + b, is_leaf=lambda x: hasattr(x, "value"))
    (grads, (loss, metrics)), _ = jax.lax.scan(
      lambda carry, part: (add(carry, grad(params, part)), None), first, jax.tree.map(lambda x: x[1:], parts))
  return jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-9), grads), loss, metrics


def train_step(state: TrainState, batch: Batch, *, loss_fn, tx, micro_batches: int = 1):
  """One update. Returns the next state and metrics (each a Mean or Max; `.value()` prints it)."""
  grads, loss, metrics = gradients(state.params, batch, loss_fn, micro_batches)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {"loss": loss, "grad_norm": Mean(optax.global_norm(grads), jnp.float32(1))} | metrics
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def compiled_step(loss_fn, tx, micro_batches: int = 1):
  """`train_step`, jitted; the old state's memory is reused for the new one."""
  return jax.jit(functools.partial(train_step, loss_fn=loss_fn, tx=tx, micro_batches=micro_batches),
                 donate_argnames="state")


def bucket(length: int, multiple: int = 8) -> int:
  """Lengths are padded to few distinct sizes, so that few shapes are compiled: multiples, coarser as they grow."""
  step = multiple
  while length > 8 * step:
    step *= 2
  return -(-length // step) * step


def pad_rows(rows, length: int, fill) -> np.ndarray:
  """Lists of numbers -> [N, length], right-padded. A row longer than `length` is an error, not cut."""
  out = np.full((len(rows), length), fill, np.int32 if isinstance(fill, int) else np.float32)
  for i, row in enumerate(rows):
    out[i, :len(row)] = row
  return out

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

from r1jax import hosts, losses, sharding
from r1jax.kernels.attention import shared_prompt_segments
from r1jax.losses import Mean
from r1jax.models import attention, moe, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.packing import Packed, PackedAnswers
from r1jax.types import Batch, TrainState


def token_logprobs(params, model: ModelConfig, prompt_BP, prompt_length_B, answer_NA, temperature: float = 1.0,
                   experts=None, kept_NAk=None):
  """log p(answer token | prompt, answer tokens before it) and the entropy of that prediction, each [N, A], f32.

  N = B * G answers, prompt-major; each prompt is computed once. What stands at padding is masked by the caller.
  experts: (prompt_expert_BPLk, expert_NALk) of the sampler, for MoE layers to use again. kept_NAk: the tokens that it
  drew each from, where log-probs are to be over these alone.
  """
  return logprobs_and_routing(params, model, prompt_BP, prompt_length_B, answer_NA, temperature, experts,
                              kept_NAk=kept_NAk)[:2]


def packed_answer_logprobs(params, model: ModelConfig, packed: PackedAnswers, answer_NA, temperature: float = 1.0,
                           kept_NAk=None):
  """logprobs_and_routing of the same answers, from rows into which whole samples were packed; 0 outside the mask."""
  N, A = answer_NA.shape
  hidden_RTD, kept = transformer.forward(params, model, packed.token_RT, packed.position_RT,
                                         mask_NT=(packed.segment_RT > 0).astype(jnp.float32),
                                         segment_NT=packed.segment_RT)
  pick = lambda x_NA: jnp.take(x_NA.reshape(N * A, *x_NA.shape[2:]), packed.to_M, axis=0, mode="clip")
  logp_M, entropy_M = losses.token_logprobs(
    hidden_RTD.reshape(-1, model.dim)[packed.from_M], transformer.head(params), pick(answer_NA), temperature,
    model.logit_chunk, None if kept_NAk is None else pick(kept_NAk), tied=model.tied_head)
  place = lambda x_M: jnp.zeros(N * A).at[packed.to_M].set(x_M, mode="drop").reshape(N, A)
  return place(logp_M), place(entropy_M), kept.routing


def logprobs_and_routing(params, model: ModelConfig, prompt_BP, prompt_length_B, answer_NA, temperature: float = 1.0,
                         experts=None, mask_NA=None, kept_NAk=None):
  """token_logprobs, and the MoE layers' Routing (None without them), whose load leaves padding out by mask_NA."""
  hidden_NAD, routing = answer_states(params, model, prompt_BP, prompt_length_B, answer_NA, experts, mask_NA)
  N, A = answer_NA.shape
  logp_M, entropy_M = losses.token_logprobs(hidden_NAD.reshape(N * A, -1), transformer.head(params),
                                            answer_NA.reshape(-1), temperature, model.logit_chunk,
                                            None if kept_NAk is None else kept_NAk.reshape(N * A, -1),
                                            tied=model.tied_head)
  return logp_M.reshape(N, A), entropy_M.reshape(N, A), routing


def answer_states(params, model: ModelConfig, prompt_BP, prompt_length_B, answer_NA, experts=None, mask_NA=None):
  """(hidden states that choose each answer token [N, A, D], the MoE layers' Routing); each prompt is computed once."""
  (B, P), (N, A) = prompt_BP.shape, answer_NA.shape
  G = N // B
  # the last prompt token predicts the first answer token, and the last answer token predicts nothing
  token_BS = jnp.concatenate([prompt_BP, answer_NA[:, :-1].reshape(B, G * (A - 1))], axis=1)
  answer_position_BA = prompt_length_B[:, None] + jnp.arange(A - 1)
  position_BS = jnp.concatenate([jnp.tile(jnp.arange(P), (B, 1)), jnp.tile(answer_position_BA, (1, G))], axis=1)
  attend, segment_BS = functools.partial(attention.shared_prompt, P, G, prompt_length_B), None
  if sharding.ways("sequence") > 1 or sharding.ways("layers") > 1:
    # a part of the sequences or of the rows has not all that shared_prompt wants to know: the same, by segments
    attend, segment_BS = attention.causal, shared_prompt_segments(P, G, A - 1, prompt_length_B)
  replay_LBSk = mask_BS = None
  if experts is not None:
    prompt_expert_BPLk, expert_NALk = experts
    own_BSLk = expert_NALk[:, :-1].reshape(B, G * (A - 1), *expert_NALk.shape[2:])
    replay_LBSk = jnp.moveaxis(jnp.concatenate([prompt_expert_BPLk, own_BSLk], axis=1), 2, 0)
  if mask_NA is not None:
    prompt_mask_BP = jnp.arange(P) < prompt_length_B[:, None]
    mask_BS = jnp.concatenate([prompt_mask_BP, mask_NA[:, :-1].reshape(B, G * (A - 1))], axis=1).astype(jnp.float32)
  hidden_BSD, kept = transformer.forward(params, model, token_BS, position_BS, attend, replay_LNTk=replay_LBSk,
                                         mask_NT=mask_BS, segment_NT=segment_BS)
  last_B1D = jnp.take_along_axis(hidden_BSD[:, :P], (prompt_length_B - 1)[:, None, None], axis=1)
  answer_NAD = hidden_BSD[:, P:].reshape(N, A - 1, model.dim)
  hidden_NAD = jnp.concatenate([jnp.repeat(last_B1D, G, axis=0), answer_NAD], axis=1)
  return hidden_NAD, kept.routing


def packed_logprobs(params, model: ModelConfig, packed: Packed, temperature: float = 1.0):
  """log p of each token given those before it in its sample [N, T], f32; 0 for the first of a row. Of packed rows."""
  N, T = packed.token_NT.shape
  hidden_NTD, _ = transformer.forward(params, model, packed.token_NT, packed.position_NT,
                                      mask_NT=(packed.segment_NT > 0).astype(jnp.float32),
                                      segment_NT=packed.segment_NT)
  logp_M, _ = losses.token_logprobs(hidden_NTD[:, :-1].reshape(N * (T - 1), -1), transformer.head(params),
                                    packed.token_NT[:, 1:].reshape(-1), temperature, model.logit_chunk,
                                    tied=model.tied_head)
  return jnp.pad(logp_M.reshape(N, T - 1), ((0, 0), (1, 0)))


@functools.partial(jax.jit, static_argnames=("model", "temperature", "micro_batches"))
@jax.named_scope("score")
def score(params, prompt_BP, prompt_length_B, answer_NA, experts=None, kept_NAk=None, packed=None, *,
          model: ModelConfig, temperature: float = 1.0, micro_batches: int = 1):
  """log-probs [N, A] of given answers: the old policy's (its experts used again), the reference's (its own)."""
  if packed is not None:
    return packed_answer_logprobs(params, model, packed, answer_NA, temperature, kept_NAk)[0]
  one = lambda part: token_logprobs(params, model, *part[:3], temperature, *part[3:])[0]
  parts = split((prompt_BP, prompt_length_B, answer_NA, experts, kept_NAk), micro_batches)
  out = jax.lax.map(one, parts) if micro_batches > 1 else one(jax.tree.map(lambda x: x[0], parts))[None]
  return out.reshape(answer_NA.shape)


def split(tree, parts: int):
  """A leading axis of `parts` before the prompts' and the answers' axis: whole groups go together."""
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def init_state(params, tx: optax.GradientTransformation, reference: bool = False) -> TrainState:
  """Update 0. reference: keep a copy of the parameters as the KL reference.

  The state holds `params` itself: the first donated update (compiled_step) takes them from the caller.
  """
  ref_params = jax.tree.map(jnp.copy, params) if reference else None
  return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params), ref_params=ref_params)


def sums(params, part: Batch, loss_fn, prepare=None):
  """(gradient of the loss's total, (loss, metrics)) of a micro-batch: what is added up over the others.

  prepare(part) -> part comes before, without a gradient, such as the reference's log-probs.
  """
  def total(params, part):
    loss, metrics = loss_fn(params, part)
    return loss.total, (loss, metrics)
  return jax.grad(total, has_aux=True)(params, part if prepare is None else prepare(part))


def add(a, b):
  return jax.tree.map(lambda a, b: a + b, a, b, is_leaf=lambda x: hasattr(x, "value"))


@jax.named_scope("update")
def gradients(params, batch: Batch, loss_fn, micro_batches: int, prepare=None):
  """Gradient of the loss's total / weight, that loss, and metrics; the same whatever the number of micro-batches.

  Totals and weights are added up over micro-batches and divided once: no mean of means.
  """
  grad = functools.partial(sums, loss_fn=loss_fn, prepare=prepare)
  if micro_batches == 1:
    grads, (loss, metrics) = grad(params, batch)
  else:
    parts = split(batch, micro_batches)
    first = grad(params, jax.tree.map(lambda x: x[0], parts))
    (grads, (loss, metrics)), _ = jax.lax.scan(
      lambda carry, part: (add(carry, grad(params, part)), None), first, jax.tree.map(lambda x: x[1:], parts))
  return divided(grads, loss), loss, metrics


def divided(grads, loss: Mean):
  return jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-9), grads)


def train_step(state: TrainState, batch: Batch, *, loss_fn, tx, micro_batches: int = 1, bias_speed: float = 0.0,
               prepare=None):
  """One update. Returns the next state and metrics (each a Mean or Max; `.value()` prints it).

  bias_speed: MoE routers' selection bias moves by so much towards even loads, which loss_fn reports as moe.LOAD.
  prepare(ref_params, part) -> part: see `sums`; the KL reference's log-probs are computed here, in the same program.
  """
  before = prepare and functools.partial(prepare, state.ref_params)
  return updated(state, *gradients(state.params, batch, loss_fn, micro_batches, before), tx, bias_speed)


@jax.named_scope("update/optimizer")
def updated(state: TrainState, grads, loss: Mean, metrics, tx, bias_speed: float = 0.0):
  """The next state and metrics, from the gradient and its loss."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  load = metrics.pop(moe.LOAD, None)
  if bias_speed:
    params = moe.balanced(params, load.total, bias_speed)
  metrics = {"loss": loss, "grad_norm": Mean(optax.global_norm(grads), jnp.float32(1))} | metrics
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def compiled_step(loss_fn, tx, micro_batches: int = 1, bias_speed: float = 0.0, prepare=None):
  """`train_step`, jitted; the old state's memory is reused for the new one."""
  return hosts.placing(jax.jit(
    functools.partial(train_step, loss_fn=loss_fn, tx=tx, micro_batches=micro_batches, bias_speed=bias_speed,
                      prepare=prepare), donate_argnames="state"))


def compiled_parts(loss_fn, tx, bias_speed: float = 0.0, prepare=None):
  """update(state, parts), the same as compiled_step's, of micro-batches that may differ in shape (layout.py).

  A program for each shape, one that adds, and one that ends the update; the state's memory is reused.
  """
  @jax.named_scope("update")
  def one(params, ref_params, part):
    return sums(params, part, loss_fn, prepare and functools.partial(prepare, ref_params))

  def end(state, total):
    grads, (loss, metrics) = total
    return updated(state, divided(grads, loss), loss, metrics, tx, bias_speed)
  one, plus, end = jax.jit(one), jax.jit(add, donate_argnums=0), jax.jit(end, donate_argnums=0)

  def update(state, parts):
    parts = hosts.place(parts)
    total = one(state.params, state.ref_params, parts[0])
    for part in parts[1:]:
      total = plus(total, one(state.params, state.ref_params, part))
    return end(state, total)
  return update


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
    if len(row) > length:
      raise ValueError(f"row {i} has {len(row)} values, more than length={length}")
    out[i, :len(row)] = row
  return out

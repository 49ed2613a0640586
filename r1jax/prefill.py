"""Prefill: prompts run once, and what answers need of them afterwards.

Letters: r1jax/types.py.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from r1jax import drafts, room
from r1jax.drawing import SampleConfig
from r1jax.models import rope, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.placing import pinned


@flax.struct.dataclass
class Prompts:
  """What a prefill leaves of B prompts, a lane each."""
  cache: tuple                   # one models.attention.Cached per layer
  length_B: jax.Array
  hidden_BD: jax.Array           # the state that predicts an answer's first token
  expert_BPLk: jax.Array | None = None   # MoE layers' experts, for the trainer to use again
  text_BP: jax.Array | None = None       # draft=lookup: the tokens, right-aligned, -1 before them
  mtp: tuple = ()                # draft=mtp: the module's own cache


def cache_dtype(model: ModelConfig, cfg: SampleConfig):
  return jnp.dtype(model.dtype if cfg.cache == "model" else cfg.cache)


@functools.partial(jax.jit, static_argnames=("model", "cfg"))
@jax.named_scope("rollout/prefill")
def prefill(params, prompt_BP, length_B, *, model: ModelConfig, cfg: SampleConfig) -> Prompts:
  """Runs right-padded prompts once; with cfg.prefill_chunk so many tokens at a time, which bounds the memory."""
  B, P = prompt_BP.shape
  dtype, chunk = cache_dtype(model, cfg), cfg.prefill_chunk
  position_BP = jnp.broadcast_to(jnp.arange(P), (B, P))
  next_BP = jnp.pad(prompt_BP[:, 1:], ((0, 0), (0, 1)))       # of the MTP module's pairs
  by_mtp = cfg.draft == "mtp"
  mtp_cache = ()
  if not chunk or chunk >= P:
    hidden_BPD, kept = transformer.forward(params, model, prompt_BP, position_BP, keep=True)
    hidden_BD = _at(hidden_BPD, length_B - 1)
    cache = transformer.cached(model, kept.kv, dtype)
    experts = experts_by_token(model, kept) if model.moe else None
    if by_mtp:
      pairs = drafts.mtp_prompt(params, model, hidden_BPD, next_BP, position_BP)
      mtp_cache = transformer.cached(model, (pairs,), dtype)
  else:
    pad = -P % chunk
    token_BP, next_BP = (jnp.pad(x, ((0, 0), (0, pad))) for x in (prompt_BP, next_BP))
    turned = transformer.positions(model, jnp.arange(P + pad)[None])
    here = lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, chunk, 1)
    experts = (jnp.zeros((B, P + pad, model.stacks["moe_layers"], model.moe.top_k), model.moe.index_dtype)
               if model.moe else None)

    def part(i, carry):
      cache, mtp_cache, hidden_BD, experts = carry
      start = i * chunk
      attend = transformer.extend_attention(model, start)
      by = rope.Table(*(here(x, start) for x in turned))
      hidden_BTD, kept = transformer.forward(params, model, here(token_BP, start), by, attend, cache, keep=True)
      at_B = length_B - 1 - start
      inside_B1 = ((at_B >= 0) & (at_B < chunk))[:, None]
      hidden_BD = jnp.where(inside_B1, _at(hidden_BTD, jnp.clip(at_B, 0, chunk - 1)), hidden_BD)
      if model.moe:
        experts = jax.lax.dynamic_update_slice_in_dim(experts, experts_by_token(model, kept), start, 1)
      if by_mtp:
        mtp_cache = (drafts.mtp(params, model, hidden_BTD, here(next_BP, start), by, attend, mtp_cache[0])[1],)
      return kept.kv, mtp_cache, hidden_BD, experts

    made = lambda layers: transformer.empty_cache(model, B, P + pad, dtype, layers)
    carry = made(0), made(1) if by_mtp else (), jnp.zeros((B, model.dim), model.dtype), experts
    cache, mtp_cache, hidden_BD, experts = jax.lax.fori_loop(0, (P + pad) // chunk, part, carry)
    cut = functools.partial(room.of_cache, model, lambda x, axis: jax.lax.slice_in_dim(x, 0, P, axis=axis))
    cache, mtp_cache = cut(cache), cut(mtp_cache)
    experts = experts[:, :P] if model.moe else None
  text_BP = drafts.right_aligned(prompt_BP, length_B) if cfg.draft == "lookup" else None
  return pinned(Prompts(cache, length_B, hidden_BD, experts, text_BP, mtp_cache))


def _at(hidden_BPD, at_B):
  return jnp.take_along_axis(hidden_BPD, at_B[:, None, None], axis=1)[:, 0]


def experts_by_token(model: ModelConfig, kept: transformer.Kept):
  """Experts [N, T, L, k], from the routing's [L, N, T, k]."""
  return jnp.moveaxis(kept.routing.expert_NTk, 0, 2).astype(model.moe.index_dtype)


@functools.partial(jax.jit, static_argnames=("model", "cfg", "B", "P"))
def empty(*, model: ModelConfig, cfg: SampleConfig, B: int, P: int) -> Prompts:
  """Lanes with room for P tokens and no prompts yet."""
  made = lambda layers: transformer.empty_cache(model, B, P, cache_dtype(model, cfg), layers)
  experts = None
  if model.moe:
    experts = jnp.zeros((B, P, model.stacks["moe_layers"], model.moe.top_k), model.moe.index_dtype)
  text_BP = jnp.full((B, P), -1, jnp.int32) if cfg.draft == "lookup" else None
  return pinned(Prompts(made(0), jnp.ones(B, jnp.int32), jnp.zeros((B, model.dim), model.dtype), experts, text_BP,
                        made(1) if cfg.draft == "mtp" else ()))


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames="into")
def load(into: Prompts, new: Prompts, from_l, lane_l, *, model: ModelConfig) -> Prompts:
  """Puts the new prompts from_l into the lanes lane_l; a lane that does not exist is passed over."""
  P = room.tokens(model, into)
  grown = functools.partial(room.of_cache, model, lambda x, axis: room.pad(x, P, axis))
  new = new.replace(cache=grown(new.cache), mtp=grown(new.mtp))
  if new.expert_BPLk is not None:
    new = new.replace(expert_BPLk=room.pad(new.expert_BPLk, P, 1))
  if new.text_BP is not None:
    new = new.replace(text_BP=jnp.pad(new.text_BP, ((0, 0), (P - new.text_BP.shape[1], 0)), constant_values=-1))
  return pinned(jax.tree.map(lambda old, x: old.at[lane_l].set(x[from_l], mode="drop"), into, new))

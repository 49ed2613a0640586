"""Sampling on the device: one prefill per prompt, answers that read its cache, decode steps in a loop.

A sample depends on (seed, step, problem, sample) alone, not on the batch it came out of: its key is folded from
these four, and each of its tokens from that key. The log-prob returned is the policy's at the sampling temperature,
before top-p / top-k / min-p cut anything off: what the trainer computes on the same tokens. (With keep_mask both are
over what was left.)

A lane holds a prompt's cache, and N / B rows that answer it. All rows write their new token's keys and values to one
column of their own caches; which columns are a row's own answer is a mask, so rows may begin at any time (slots.py
refills those that have ended) and guessed tokens that were wrong leave holes (drafts.py). `repack` closes holes.
A token that was drawn is *pending* until the next step runs it through the model.
Letters: S tokens of a row in one step (1, or with guesses more), W columns; the rest in r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from r1jax import drafts, drawing, room
from r1jax.drawing import SampleConfig, ends
from r1jax.models import rope, transformer
from r1jax.models.attention import DecodeCache
from r1jax.models.transformer import ModelConfig
from r1jax.placing import pinned
from r1jax.prefill import Prompts, cache_dtype, experts_by_token, prefill


@flax.struct.dataclass
class SampleState:
  """Between two steps. Row n = b * G + g of lane b."""
  prompts: Prompts
  key_N: jax.Array
  budget_N: jax.Array            # tokens that the answer may have
  before_N: jax.Array            # tokens of the answer that an earlier rollout drew; here they are part of the prompt
  length_N: jax.Array            # tokens of the answer so far, the pending one included
  ended_N: jax.Array             # the pending token ends the answer
  pending: drawing.Drawn
  cache: tuple                   # own columns, one models.attention.Cached per layer
  column: jax.Array              # the first that is free
  valid_NW: jax.Array            # columns that belong to the row's answer, in order
  token_NW: jax.Array
  logp_NW: jax.Array
  count: dict                    # of steps, rows at work in them, tokens drawn, guesses checked and right
  expert_NWLk: jax.Array | None = None
  kept_NWk: jax.Array | None = None
  text_NA: jax.Array | None = None       # draft=lookup: the answer so far, left-aligned, -1 behind it
  hidden_ND: jax.Array | None = None     # draft=mtp: the state that the pending token was drawn from
  mtp: tuple = ()

  @property
  def done_N(self):
    return self.ended_N | (self.length_N >= self.budget_N)


@jax.jit
def sample_keys(seed: int, step, problem_B, samples):
  """One key per answer, [B * G], from (seed, step, problem, sample). samples: [G], or [B, G] where they differ."""
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  samples_BG = jnp.broadcast_to(samples, (problem_B.shape[0], samples.shape[-1]))
  fold = jax.vmap(jax.vmap(lambda p, g: jax.random.fold_in(jax.random.fold_in(step_key, p), g), (None, 0)))
  return fold(problem_B, samples_BG).reshape(-1)


@functools.partial(jax.jit, static_argnames=("model", "cfg", "end_id", "columns"))
def rows(params, prompts: Prompts, key_N, *, model: ModelConfig, cfg: SampleConfig, end_id, columns: int):
  """A state in which no row has begun: all count as ended. columns: of the own caches."""
  N, B = key_N.shape[0], prompts.length_B.shape[0]
  dtype = cache_dtype(model, cfg)
  more, kept_Nk = {}, None
  if model.moe:
    more["expert_NWLk"] = jnp.zeros((N, columns, model.stacks["moe_layers"], model.moe.top_k), model.moe.index_dtype)
  if cfg.keep_mask:
    kept_Nk = jnp.full((N, min(cfg.top_k, model.vocab)), -1)
    more["kept_NWk"] = jnp.full((N, columns, kept_Nk.shape[1]), -1)
  if cfg.draft == "lookup":
    more["text_NA"] = jnp.full((N, cfg.max_tokens), -1)
  if cfg.draft == "mtp":
    more |= dict(hidden_ND=jnp.repeat(prompts.hidden_BD, N // B, axis=0),
                 mtp=transformer.empty_cache(model, N, columns, dtype, 1))
  zero_N = jnp.zeros(N, jnp.int32)
  return pinned(SampleState(
    prompts, key_N, budget_N=zero_N, before_N=zero_N, length_N=zero_N, ended_N=jnp.ones(N, bool),
    pending=drawing.Drawn(jnp.full(N, ends(end_id)[0], jnp.int32), jnp.zeros(N), kept_Nk),
    cache=transformer.empty_cache(model, N, columns, dtype), column=jnp.int32(0),
    valid_NW=jnp.zeros((N, columns), bool), token_NW=jnp.zeros((N, columns), jnp.int32),
    logp_NW=jnp.zeros((N, columns)), count={k: jnp.int32(N if k == "rows" else 0) for k in COUNTS}, **more))


# all since the state was made; `few`: steps in which fewer than half of the first number of rows were at work
COUNTS = ("rows", "steps", "few", "work", "tokens", "guessed", "right")


@functools.partial(jax.jit, static_argnames=("model", "cfg", "end_id"), donate_argnames="state")
@jax.named_scope("rollout/begin")
def begin(params, state: SampleState, fresh_N, key_N, budget_N, before_N, *, model: ModelConfig, cfg: SampleConfig,
          end_id) -> SampleState:
  """Draws the first token of the rows fresh_N, from their lanes' prompts, by their new keys and budgets."""
  N, B = key_N.shape[0], state.prompts.length_B.shape[0]
  hidden_ND = jnp.repeat(state.prompts.hidden_BD, N // B, axis=0)
  drawn = drawing.choose(_logits(params, hidden_ND), key_N, before_N, cfg)
  keys = jax.random.wrap_key_data(jnp.where(fresh_N[:, None], *map(jax.random.key_data, (key_N, state.key_N))))
  pick = lambda new, old: jnp.where(fresh_N.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  more = {}
  if cfg.draft == "lookup":
    more["text_NA"] = pick(_put_text(jnp.full_like(state.text_NA, -1), jnp.zeros_like(before_N), drawn.token_N[:, None],
                                     jnp.ones((N, 1), bool)), state.text_NA)
  if cfg.draft == "mtp":
    more["hidden_ND"] = pick(hidden_ND, state.hidden_ND)
  count = state.count | dict(tokens=state.count["tokens"] + fresh_N.sum())
  return pinned(state.replace(
    key_N=keys, budget_N=pick(budget_N, state.budget_N), before_N=pick(before_N, state.before_N),
    length_N=pick(before_N + 1, state.length_N), ended_N=pick(_ended(drawn.token_N, end_id), state.ended_N),
    pending=jax.tree.map(pick, drawn, state.pending), valid_NW=state.valid_NW & ~fresh_N[:, None], count=count,
    **more))


def _ended(token_N, end_id):
  return (token_N[:, None] == jnp.array(ends(end_id))).any(axis=1)


def _logits(params, hidden_ND):
  return jnp.dot(hidden_ND, transformer.head(params), preferred_element_type=jnp.float32)


def _put_text(text_NA, at_N, token_NS, which_NS):
  """token_NS written from column at_N on, where which_NS."""
  N, S = token_NS.shape
  column_NS = jnp.where(which_NS, at_N[:, None] + jnp.arange(S), text_NA.shape[1])
  return text_NA.at[jnp.arange(N)[:, None], column_NS].set(token_NS, mode="drop")


def step(params, model: ModelConfig, cfg: SampleConfig, end_id, turned: rope.Table, state: SampleState) -> SampleState:
  """Runs every row's pending token, and guesses behind it, and draws the next; keeps the guesses that were right.

  A guess is right if it is the token that would have been drawn: the answer is the one that comes out without
  guesses, by whatever they were. (Speculative sampling, 2211.17192, where the draft is one sure token.)
  turned: of all positions.
  """
  (N, W), S = state.valid_NW.shape, cfg.span
  B = state.prompts.length_B.shape[0]
  lengths_N = jnp.repeat(state.prompts.length_B, N // B)
  own_N = state.length_N - state.before_N                              # tokens in this state, the pending one included
  position_NS = (lengths_N + own_N - 1)[:, None] + jnp.arange(S)
  at, working_N = state.column, ~state.done_N
  by = lambda position: rope.lookup(turned, position)
  seen = lambda first, count: state.valid_NW[:, None] | (
    (jnp.arange(W) >= at) & (jnp.arange(W) <= at + first + jnp.arange(count)[:, None]))
  token_NS, mtp_cache = state.pending.token_N[:, None], state.mtp
  if cfg.draft == "lookup":
    text_NT = jnp.concatenate([jnp.repeat(state.prompts.text_BP, N // B, axis=0), state.text_NA], axis=1)
    token_NS = drafts.lookup(text_NT, state.prompts.text_BP.shape[1] + own_N, token_NS, S - 1)
  elif cfg.draft == "mtp":
    hidden_ND = state.hidden_ND
    for s in range(S - 1):       # the pair of (state before a token, that token) has the token's column
      attend = transformer.decode_attention(model, state.prompts.length_B - 1, at + s, seen(s, 1))
      hidden_N1D, new = drafts.mtp(params, model, hidden_ND[:, None], token_NS[:, -1:], by(position_NS[:, s:s + 1] - 1),
                                   attend, DecodeCache(state.prompts.mtp[0], mtp_cache[0]))
      mtp_cache, hidden_ND = (new,), hidden_N1D[:, 0]
      guess_N = jnp.argmax(_logits(params, hidden_ND), axis=-1).astype(jnp.int32)
      token_NS = jnp.concatenate([token_NS, guess_N[:, None]], axis=1)

  attend = transformer.decode_attention(model, state.prompts.length_B, at, seen(0, S))
  cache = tuple(map(DecodeCache, state.prompts.cache, state.cache))
  hidden_NSD, kept = transformer.forward(params, model, token_NS, by(position_NS), attend, cache, keep=True)
  drawn = drawing.choose(_logits(params, hidden_NSD.reshape(N * S, -1)), jnp.repeat(state.key_N, S),
                         (state.length_N[:, None] + jnp.arange(S)).reshape(-1), cfg)
  by_row = lambda x: x.reshape(N, S, *x.shape[1:])
  drawn = jax.tree.map(by_row, drawn)
  # the guesses that are right up to the first that is not; an end is drawn, not guessed; the last token neither
  right_NR = (drawn.token_N[:, :-1] == token_NS[:, 1:]) & ~by_row(_ended(drawn.token_N.reshape(-1), end_id))[:, :-1]
  right_NR &= state.length_N[:, None] + 1 + jnp.arange(S - 1) < state.budget_N[:, None]
  right_NR = jnp.cumprod(right_NR, axis=1).astype(bool) & working_N[:, None]
  right_N = right_NR.sum(axis=1)
  last = lambda x_NS: jnp.take_along_axis(x_NS, right_N.reshape(-1, *[1] * (x_NS.ndim - 1)), axis=1)[:, 0]
  pick = lambda new, old: jnp.where(working_N.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  pending = jax.tree.map(lambda new, old: pick(last(new), old), drawn, state.pending)

  used_NS = jnp.concatenate([working_N[:, None], right_NR], axis=1)
  columns = lambda old, x_NS: jax.lax.dynamic_update_slice_in_dim(old, x_NS.astype(old.dtype), at, 1)
  shifted = lambda first, x_NS: jnp.concatenate([first[:, None], x_NS[:, :-1]], axis=1)
  more = {}
  if model.moe:
    more["expert_NWLk"] = columns(state.expert_NWLk, experts_by_token(model, kept))
  if cfg.keep_mask:
    more["kept_NWk"] = columns(state.kept_NWk, shifted(state.pending.kept_Nk, drawn.kept_Nk))
  if cfg.draft == "lookup":
    grown_NS = jnp.arange(S) <= right_N[:, None]
    more["text_NA"] = _put_text(state.text_NA, own_N, drawn.token_N, grown_NS & working_N[:, None])
  if cfg.draft == "mtp":         # the guesses' pairs again, now from the model's own states
    attend = transformer.decode_attention(model, state.prompts.length_B - 1, at + 1, seen(1, S - 1))
    _, new = drafts.mtp(params, model, hidden_NSD[:, :-1], token_NS[:, 1:], by(position_NS[:, 1:] - 1), attend,
                        DecodeCache(state.prompts.mtp[0], mtp_cache[0]))
    more |= dict(mtp=(new,), hidden_ND=pick(last(hidden_NSD), state.hidden_ND))
  drew_N = jnp.where(working_N, 1 + right_N, 0)
  work = working_N.sum()
  add = dict(rows=0, steps=1, few=2 * work < state.count["rows"], work=work, tokens=drew_N.sum(),
             guessed=work * (S - 1), right=right_N.sum())
  return state.replace(
    cache=kept.kv, column=at + S, valid_NW=columns(state.valid_NW, used_NS), token_NW=columns(state.token_NW, token_NS),
    logp_NW=columns(state.logp_NW, shifted(state.pending.logp_N, drawn.logp_N)), length_N=state.length_N + drew_N,
    ended_N=pick(_ended(pending.token_N, end_id), state.ended_N), pending=pending,
    count={k: state.count[k] + add[k] for k in COUNTS}, **more)


# the parameters as `advance` runs them, made once for many calls: one of a single step then takes half (1 row, CPU)
for_steps = jax.jit(transformer.unstacked, static_argnames="cfg")


@functools.partial(jax.jit, static_argnames=("model", "cfg", "end_id"), donate_argnames="state")
@jax.named_scope("rollout/decode")
def advance(params, state: SampleState, steps, *, model: ModelConfig, cfg: SampleConfig, end_id) -> SampleState:
  """At most `steps` steps; less when every answer has ended, or the columns are full. params: also for_steps' ones."""
  W = state.valid_NW.shape[1]
  turned = transformer.positions(model, jnp.arange(room.tokens(model, state.prompts) + cfg.max_tokens + cfg.span)[None])
  params = transformer.unstacked(params, model)
  stop = state.count["steps"] + steps
  more = lambda s: (s.count["steps"] < stop) & ~s.done_N.all() & (s.column + cfg.span <= W)
  return pinned(jax.lax.while_loop(more, functools.partial(step, params, model, cfg, end_id, turned), state))


def served(model: ModelConfig, cfg: SampleConfig) -> ModelConfig:
  """The model as it samples: with no room that tokens of other answers could take away (moe.DISPATCH).

  ValueError for a drafter that it lacks.
  """
  if cfg.draft == "mtp" and not model.mtp:
    raise ValueError(f"sampling.draft=mtp needs model.mtp=1, here {model.mtp}")
  if model.moe and model.moe.dispatch == "capacity":
    return dataclasses.replace(model, moe=dataclasses.replace(model.moe, dispatch="dropless"))
  return model


def start(params, prompt_BP, length_B, key_N, *, model: ModelConfig, cfg: SampleConfig, end_id,
          columns: int = 0) -> SampleState:
  """G = len(key_N) / B answers to each prompt begin together. columns: 0 for as many as whole answers may need."""
  if key_N.shape[0] % prompt_BP.shape[0]:
    raise ValueError(f"{key_N.shape[0]} keys are not a multiple of {prompt_BP.shape[0]} prompts")
  model = served(model, cfg)
  static = dict(model=model, cfg=cfg, end_id=end_id)
  prompts = prefill(params, prompt_BP, jnp.asarray(length_B, jnp.int32), model=model, cfg=cfg)
  columns = columns or room.most(cfg)
  state = rows(params, prompts, key_N, columns=columns, **static)
  N = key_N.shape[0]
  return begin(params, state, jnp.ones(N, bool), key_N, jnp.full(N, cfg.max_tokens), jnp.zeros(N, jnp.int32), **static)


def sample(params, prompt_BP, length_B, key_N, *, model: ModelConfig, cfg: SampleConfig, end_id) -> room.Answers:
  """G = len(key_N) / B whole answers to each prompt, prompt-major, all at once. Jitted inside.

  prompt_BP: int32, right-padded; length_B: its valid tokens, at least 1 each. end_id: the token that ends an answer,
  or a tuple of several; the first one pads. The own caches grow as the answers do.
  """
  model = served(model, cfg)
  static = dict(model=model, cfg=cfg, end_id=end_id)
  most = room.most(cfg)
  columns = room.bucket(1, most)
  state = start(params, prompt_BP, length_B, key_N, columns=columns, **static)
  while True:
    state = advance(params, state, most, **static)
    if columns >= most or np.asarray(state.done_N).all():
      done = room.answers(state, length=cfg.max_tokens, end_id=end_id)
      return done.replace(prompt_expert_BPLk=state.prompts.expert_BPLk)
    columns = room.bucket(columns + 1, most)
    state = room.widen(state, model=model, columns=columns)

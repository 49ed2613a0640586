"""Sampling: one prefill per prompt, G answers from that one cache, a decode loop that stays on the device.

A sample depends on (seed, step, problem, sample) alone, not on the batch it came out of: its key is folded from
these four, and each of its tokens from that key. The log-prob returned is the policy's at the sampling temperature,
before top-p / top-k / min-p cut anything off: what the trainer computes on the same tokens. (With keep_mask both are
over what was left.) Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from r1jax import losses
from r1jax.models import rope, transformer
from r1jax.models.attention import DecodeCache
from r1jax.models.transformer import ModelConfig

CUT = -1e30


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """How answers are drawn. temperature 0 is greedy; its log-probs are those at temperature 1."""
  max_tokens: int                # end token included; an answer that has not ended by then is truncated
  temperature: float = 1.0       # R1-Zero: 1.0
  top_p: float = 1.0             # smallest set of tokens with at least this mass; 1: all
  top_k: int = 0                 # this many tokens; 0: all
  min_p: float = 0.0             # tokens with at least this share of the likeliest one's probability; 0: all
  keep_mask: bool = False        # V3.2's "keep sampling mask": log-probs are over the tokens kept, the trainer's too

  def __post_init__(self):
    if self.max_tokens < 1:
      raise ValueError(f"sampling.max_tokens={self.max_tokens} must be at least 1")
    if self.temperature < 0:
      raise ValueError(f"sampling.temperature={self.temperature} must not be negative")
    if not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1 or self.top_k < 0:
      raise ValueError(f"sampling needs 0 < top_p={self.top_p} <= 1, 0 <= min_p={self.min_p} < 1,"
                       f" top_k={self.top_k} >= 0")
    if self.keep_mask and not self.top_k:
      raise ValueError(f"sampling.keep_mask=True needs top_k={self.top_k} above 0: so many tokens are kept in mind")

  @property
  def scale(self) -> float:
    """The temperature of log-probs, the trainer's included."""
    return self.temperature or 1.0


@flax.struct.dataclass
class SampleState:
  """Between two tokens. Row n = b * G + g."""
  hidden_ND: jax.Array           # the state that predicts the next token
  cache: tuple[DecodeCache, ...]   # one per layer
  prompt_length_B: jax.Array
  t: jax.Array                   # answer tokens so far, the same for all rows
  done_N: jax.Array
  key_N: jax.Array
  token_NA: jax.Array            # answers, padded with the end token
  logp_NA: jax.Array             # 0 after the end
  length_N: jax.Array            # end token included
  # MoE models: experts of each token in each MoE layer, for the trainer to use again; else None
  prompt_expert_BPLk: jax.Array | None = None
  expert_NALk: jax.Array | None = None
  kept_NAk: jax.Array | None = None         # with keep_mask: the top_k tokens that could be drawn, -1 for those cut


def sample_keys(seed: int, step, problem_B, samples):
  """One key per answer, [B * G], from (seed, step, problem, sample). samples: [G], or [B, G] where they differ."""
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  samples_BG = jnp.broadcast_to(samples, (problem_B.shape[0], samples.shape[-1]))
  fold = jax.vmap(jax.vmap(lambda p, g: jax.random.fold_in(jax.random.fold_in(step_key, p), g), (None, 0)))
  return fold(problem_B, samples_BG).reshape(-1)


def ends(end_id: int | tuple[int, ...]) -> tuple[int, ...]:
  return (end_id,) if isinstance(end_id, int) else end_id


def keep(logit_NV, cfg: SampleConfig):
  """Logits, at the sampling temperature, with what top-k, top-p and min-p leave out cut off.

  The likeliest token always stays. Ties at the edge of top-k stay all.
  """
  if cfg.top_k and cfg.top_k < logit_NV.shape[-1]:
    kth_N1 = jax.lax.top_k(logit_NV, cfg.top_k)[0][:, -1:]
    logit_NV = jnp.where(logit_NV < kth_N1, CUT, logit_NV)
  if cfg.top_p < 1:
    sorted_NV = jnp.sort(logit_NV, axis=-1, descending=True)
    p_NV = jax.nn.softmax(sorted_NV)
    before_NV = jnp.cumsum(p_NV, axis=-1) - p_NV          # mass of the tokens likelier than this one
    last_N1 = jnp.sum(before_NV < cfg.top_p, axis=-1, keepdims=True) - 1
    logit_NV = jnp.where(logit_NV < jnp.take_along_axis(sorted_NV, last_N1, axis=-1), CUT, logit_NV)
  if cfg.min_p > 0:
    least_N1 = jnp.max(logit_NV, axis=-1, keepdims=True) + jnp.log(cfg.min_p)
    logit_NV = jnp.where(logit_NV < least_N1, CUT, logit_NV)
  return logit_NV


def kept_tokens(logit_NV, cfg: SampleConfig):
  """The tokens that may be drawn [N, top_k], -1 where top-p or min-p left fewer. Of ties at the edge, the first."""
  value_Nk, token_Nk = jax.lax.top_k(keep(logit_NV, cfg), min(cfg.top_k, logit_NV.shape[-1]))
  return jnp.where(value_Nk > CUT / 2, token_Nk, -1).astype(jnp.int32)


def draw(p_V, uniform, block: int = 128):
  """The token at which the cumulative sum of p (of any scale) passes `uniform`, within [0, 1), of the whole.

  One random number per token; Gumbel noise would take one per vocabulary entry. Two levels, the blocks' sums and
  then inside a block, keep the cumulative sums short: cheaper, and their rounding smaller.
  """
  V = p_V.shape[0]
  p_SK = jnp.pad(p_V, (0, -V % block)).reshape(-1, block)
  upto_S = jnp.cumsum(p_SK.sum(1))
  target = uniform * upto_S[-1]
  s = jnp.minimum(jnp.sum(upto_S <= target), jnp.argmax(upto_S))      # argmax: the last block that adds anything
  rest = jnp.maximum(target - jnp.where(s > 0, upto_S[s - 1], 0.0), 0.0)
  p_K = p_SK[s]
  last = block - 1 - jnp.argmax(p_K[::-1] > 0)                         # rounding must not pass the last likely token
  return s * block + jnp.minimum(jnp.sum(jnp.cumsum(p_K) <= rest), last)


def prefill(params, model: ModelConfig, cfg: SampleConfig, prompt_BP, length_B, key_N, end_id) -> SampleState:
  """Runs each right-padded prompt once; N = len(key_N), G = N / B answers start from it."""
  B, P = prompt_BP.shape
  N, max_tokens = key_N.shape[0], cfg.max_tokens
  position_BP = jnp.broadcast_to(jnp.arange(P), (B, P))
  hidden_BPD, kept = transformer.forward(params, model, prompt_BP, position_BP, keep=True)
  last_BD = jnp.take_along_axis(hidden_BPD, (length_B - 1)[:, None, None], axis=1)[:, 0]
  cache = transformer.decode_cache(model, kept.kv, N, max_tokens)
  more = {}
  if model.moe:
    shape = (N, max_tokens, model.stacks["moe_layers"], model.moe.top_k)
    more = dict(prompt_expert_BPLk=_by_token(model, kept), expert_NALk=jnp.zeros(shape, model.moe.index_dtype))
  if cfg.keep_mask:
    more["kept_NAk"] = jnp.full((N, max_tokens, min(cfg.top_k, model.vocab)), -1)
  return SampleState(
    hidden_ND=jnp.repeat(last_BD, N // B, axis=0), cache=cache,
    prompt_length_B=length_B, t=jnp.int32(0), done_N=jnp.zeros(N, bool), key_N=key_N,
    token_NA=jnp.full((N, max_tokens), ends(end_id)[0], jnp.int32), logp_NA=jnp.zeros((N, max_tokens)),
    length_N=jnp.zeros(N, jnp.int32), **more)


def decode_one(params, model: ModelConfig, cfg: SampleConfig, end_id, turned: rope.Table, state: SampleState):
  """Draws the next token of every answer that has not ended, and runs the model on it. turned: of all positions."""
  N, t = state.done_N.shape[0], state.t
  logit_NV = jnp.dot(state.hidden_ND, transformer.head(params), preferred_element_type=jnp.float32) / cfg.scale
  logit_NV -= jnp.max(logit_NV, axis=-1, keepdims=True)
  more = {}
  if cfg.keep_mask:
    kept_Nk = kept_tokens(logit_NV, cfg)
    logit_NV = jnp.where(losses.allowed(kept_Nk, model.vocab), logit_NV, CUT)
    more["kept_NAk"] = jax.lax.dynamic_update_slice(state.kept_NAk, kept_Nk[:, None], (0, t, 0))
  if cfg.temperature == 0:
    token_N = jnp.argmax(logit_NV, axis=-1)
  else:
    uniform_N = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t)))(state.key_N)
    token_N = jax.vmap(draw)(jnp.exp(logit_NV if cfg.keep_mask else keep(logit_NV, cfg)), uniform_N)
  token_N = jnp.where(state.done_N, ends(end_id)[0], token_N).astype(jnp.int32)
  logp_N = jnp.take_along_axis(logit_NV, token_N[:, None], axis=1)[:, 0] - jnp.log(jnp.exp(logit_NV).sum(axis=-1))

  position_N = jnp.repeat(state.prompt_length_B, N // state.prompt_length_B.shape[0]) + t
  attend = transformer.decode_attention(model, state.prompt_length_B, t)
  hidden_N1D, kept = transformer.forward(params, model, token_N[:, None], rope.lookup(turned, position_N), attend,
                                         state.cache, keep=True)
  if model.moe:
    more["expert_NALk"] = jax.lax.dynamic_update_slice(state.expert_NALk, _by_token(model, kept), (0, t, 0, 0))
  ended_N = (token_N[:, None] == jnp.array(ends(end_id))).any(axis=1)
  column = lambda old, x: jax.lax.dynamic_update_slice(old, x[:, None], (0, t))
  return state.replace(
    hidden_ND=hidden_N1D[:, 0], cache=kept.kv, t=t + 1,
    done_N=state.done_N | ended_N, token_NA=column(state.token_NA, token_N),
    logp_NA=column(state.logp_NA, jnp.where(state.done_N, 0.0, logp_N)),
    length_N=state.length_N + ~state.done_N, **more)


def _by_token(model: ModelConfig, kept: transformer.Kept):
  """Experts [N, T, L, k], from the routing's [L, N, T, k]."""
  return jnp.moveaxis(kept.routing.expert_NTk, 0, 2).astype(model.moe.index_dtype)


@functools.partial(jax.jit, static_argnames=("model", "cfg", "end_id"))
def start(params, prompt_BP, length_B, key_N, *, model: ModelConfig, cfg: SampleConfig, end_id) -> SampleState:
  return prefill(params, model, cfg, prompt_BP, length_B, key_N, end_id)


@functools.partial(jax.jit, static_argnames=("model", "cfg", "end_id"), donate_argnames="state")
def advance(params, state: SampleState, steps, *, model: ModelConfig, cfg: SampleConfig, end_id) -> SampleState:
  """At most `steps` more tokens; less when every answer has ended."""
  stop = jnp.minimum(state.t + steps, cfg.max_tokens)
  turned = transformer.positions(model, jnp.arange(state.cache[0].prompt_tokens + cfg.max_tokens)[None])
  return jax.lax.while_loop(lambda s: (s.t < stop) & ~s.done_N.all(),
                            functools.partial(decode_one, params, model, cfg, end_id, turned), state)


def sample(params, prompt_BP, length_B, key_N, *, model: ModelConfig, cfg: SampleConfig, end_id) -> SampleState:
  """G = len(key_N) / B whole answers to each prompt, prompt-major. Jitted inside.

  prompt_BP: int32, right-padded; length_B: its valid tokens, at least 1 each. end_id: the token that ends an answer,
  or a tuple of several; the first one pads.
  """
  if key_N.shape[0] % prompt_BP.shape[0]:
    raise ValueError(f"{key_N.shape[0]} keys are not a multiple of {prompt_BP.shape[0]} prompts")
  static = dict(model=model, cfg=cfg, end_id=end_id)
  state = start(params, prompt_BP, length_B, key_N, **static)
  return advance(params, state, cfg.max_tokens, **static)

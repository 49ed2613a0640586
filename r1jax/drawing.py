"""From logits to a token: temperature, top-k, top-p, min-p, and one uniform number a token.

Letters: N rows, V vocabulary, k tokens kept.
"""

from __future__ import annotations

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp

from r1jax import losses

CUT = -1e30
DRAFTS = ("none", "lookup", "mtp")
CACHES = ("model", "float32", "bfloat16", "int8", "float8_e4m3fn")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """How answers are drawn. temperature 0 is greedy; its log-probs are those at temperature 1."""
  max_tokens: int                # end token included; an answer that has not ended by then is truncated
  temperature: float = 1.0       # R1-Zero: 1.0
  top_p: float = 1.0             # smallest set of tokens with at least this mass; 1: all
  top_k: int = 0                 # this many tokens; 0: all
  min_p: float = 0.0             # tokens with at least this share of the likeliest one's probability; 0: all
  keep_mask: bool = False        # V3.2's "keep sampling mask": log-probs are over the tokens kept, the trainer's too
  stop: tuple[str, ...] = ()     # texts that end an answer, beside the end tokens; they stay part of it
  cache: str = "model"           # type of the keys and values kept (CACHES); narrower ones move log-probs a little
  # What follows changes time and memory, not what an answer is. (With reasoning_rl.partial it decides which answers are
  # done first; with a narrow cache, prefill_chunk has later parts of a prompt read the earlier ones from it.)
  slots: int = 0                 # answers that run at one time, the others wait their turn; 0: all, in step
  width: int = 1                 # with slots: answers of one prompt side by side that share its cache
  chunk: int = 32                # with slots or stop: steps between two looks of the host
  prefill_chunk: int = 0         # prompt tokens of one pass; 0: the whole prompt
  draft: str = "none"            # who guesses tokens that are then checked together: lookup (the text so far), mtp
  drafts: int = 1                # tokens guessed at a time; V3's module is made for 1

  def __post_init__(self):
    if self.max_tokens < 1:
      raise ValueError(f"sampling.max_tokens={self.max_tokens} must be at least 1")
    if not 0 <= self.temperature < math.inf:
      raise ValueError(f"sampling.temperature={self.temperature} must be finite and not negative")
    if not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1 or self.top_k < 0:
      raise ValueError(f"sampling needs 0 < top_p={self.top_p} <= 1, 0 <= min_p={self.min_p} < 1,"
                       f" top_k={self.top_k} >= 0")
    if self.keep_mask and not self.top_k:
      raise ValueError(f"sampling.keep_mask=True needs top_k={self.top_k} above 0: so many tokens are kept in mind")
    if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
      raise ValueError(f"sampling.stop={self.stop!r} must be a tuple of texts that are not empty")
    if self.cache not in CACHES:
      raise ValueError(f"sampling.cache={self.cache!r} is none of {CACHES}")
    if self.slots < 0 or self.width < 1 or self.slots % self.width:
      raise ValueError(f"sampling.slots={self.slots} must be a multiple of width={self.width}, 0 for all at once")
    if self.chunk < 1 or self.prefill_chunk < 0:
      raise ValueError(f"sampling.chunk={self.chunk} must be at least 1, prefill_chunk={self.prefill_chunk} 0 or more")
    if self.draft not in DRAFTS or self.drafts < 1:
      raise ValueError(f"sampling.draft={self.draft!r} is none of {DRAFTS}, or drafts={self.drafts} below 1")

  @property
  def scale(self) -> float:
    """The temperature of log-probs, the trainer's included."""
    return self.temperature or 1.0

  @property
  def span(self) -> int:
    """Tokens that each row runs through the model in a step: the one drawn last, and the guesses behind it."""
    return 1 if self.draft == "none" else 1 + self.drafts


def ends(end_id: int | tuple[int, ...]) -> tuple[int, ...]:
  """The tokens that end an answer; the first one pads."""
  return (end_id,) if isinstance(end_id, int) else end_id


class Drawn(typing.NamedTuple):
  """One token a row."""
  token_N: jax.Array
  logp_N: jax.Array              # at the sampling temperature, before anything was cut; with keep_mask after
  kept_Nk: jax.Array | None      # with keep_mask: the tokens that could be drawn, -1 for those cut


def choose(logit_NV, key_N, index_N, cfg: SampleConfig) -> Drawn:
  """The token that the index-th number of each row's key picks. logit_NV: of the model, at temperature 1, f32."""
  logit_NV = logit_NV / cfg.scale
  logit_NV -= jnp.max(logit_NV, axis=-1, keepdims=True)
  kept_Nk = None
  if cfg.keep_mask:
    kept_Nk = kept_tokens(logit_NV, cfg)
    logit_NV = jnp.where(losses.allowed(kept_Nk, logit_NV.shape[1]), logit_NV, CUT)
  if cfg.temperature == 0:
    token_N = jnp.argmax(logit_NV, axis=-1)
  else:
    uniform_N = jax.vmap(lambda key, index: jax.random.uniform(jax.random.fold_in(key, index)))(key_N, index_N)
    token_N = jax.vmap(draw)(jnp.exp(logit_NV if cfg.keep_mask else keep(logit_NV, cfg)), uniform_N)
  token_N = token_N.astype(jnp.int32)
  logp_N = jnp.take_along_axis(logit_NV, token_N[:, None], axis=1)[:, 0] - jnp.log(jnp.exp(logit_NV).sum(axis=-1))
  return Drawn(token_N, logp_N, kept_Nk)


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

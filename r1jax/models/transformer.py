"""The decoder: embedding, pre-norm layers of attention (GQA or MLA) and feed-forward (dense or MoE), norm, head.

One `forward` serves training, scoring, prefill and decoding; they differ in the attention that is passed in. Layers of
a kind are stacked on a leading axis and scanned, so compile time does not grow with depth. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.kernels.attention import HIDDEN
from r1jax.models import attention, layers, mla, moe, param, pipelined, remat, rope
from r1jax.models.mla import MLAConfig
from r1jax.models.moe import MoEConfig
from r1jax.models.param import Param, normal
from r1jax.models.remat import REMAT
from r1jax.models.rope import RopeConfig
from r1jax.sharding import shard


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of the decoder. All weights and activations have `dtype`; norms, softmax, router and log-probs are f32."""
  vocab: int
  dim: int
  layers: int
  heads: int
  kv_heads: int                  # with MLA: as heads
  ffn: int                       # of dense layers
  head_dim: int = 0              # 0: dim / heads; with MLA: set by it
  rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
  norm_eps: float = 1e-6
  qkv_bias: bool = False         # Qwen2
  qk_norm: bool = False          # Qwen3
  mla: MLAConfig | None = None   # DeepSeek's attention in place of GQA
  moe: MoEConfig | None = None   # experts in all layers but the first `dense_layers`
  dense_layers: int = 0
  mtp: int = 0                   # DeepSeek's multi-token prediction modules: 0 or 1
  tied_head: bool = True         # the head is the embedding, transposed
  dtype: str = "float32"
  remat: str = "elementwise"     # one of REMAT; changes time and memory, not results
  logit_chunk: int = 2048        # tokens whose [chunk, V] logits exist at one time

  def __post_init__(self):
    for name in ("vocab", "dim", "layers", "heads", "kv_heads", "ffn", "logit_chunk"):
      if getattr(self, name) < 1:
        raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
    if self.heads % self.kv_heads:
      raise ValueError(f"model.heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
    if self.mla:
      if self.kv_heads != self.heads or self.qkv_bias or self.qk_norm:
        raise ValueError(f"model.mla goes with kv_heads={self.kv_heads} = heads={self.heads}, no qkv_bias, no qk_norm")
      object.__setattr__(self, "head_dim", self.mla.nope_dim + self.mla.rope_dim)
    elif not self.head_dim:
      if self.dim % self.heads:
        raise ValueError(f"model.dim={self.dim} must be a multiple of heads={self.heads}, or head_dim given")
      object.__setattr__(self, "head_dim", self.dim // self.heads)
    if self.head_dim % 2:
      raise ValueError(f"model.head_dim={self.head_dim} must be even: rotary positions pair channels")
    if self.rope.interleaved and not self.mla:
      raise ValueError("model.rope.interleaved is for model.mla")
    if not 0 <= self.dense_layers <= self.layers or (self.dense_layers and not self.moe):
      raise ValueError(f"model.dense_layers={self.dense_layers} of layers={self.layers} goes with model.moe")
    if self.mtp not in (0, 1):
      raise ValueError(f"model.mtp={self.mtp} must be 0 or 1")
    if self.remat not in REMAT:
      raise ValueError(f"model.remat={self.remat!r} is none of {REMAT}")
    if self.dtype not in ("float32", "bfloat16", "float16"):
      raise ValueError(f"model.dtype={self.dtype!r} is none of float32, bfloat16, float16")

  @property
  def out_std(self) -> float:
    """Scale of the weights that write to the residual stream: it must not grow with depth (GPT-2)."""
    return (2 * self.layers) ** -0.5

  @property
  def stacks(self) -> dict[str, int]:
    """Names of the parameter tree's stacks of layers, in order, and how many layers each has."""
    if not self.moe:
      return dict(layers=self.layers)
    parts = dict(layers=self.dense_layers, moe_layers=self.layers - self.dense_layers)
    return {name: count for name, count in parts.items() if count}


class Kept(NamedTuple):
  """What a forward pass leaves beside hidden states."""
  kv: tuple | None = None             # a cache entry per layer, if it was asked for
  routing: moe.Routing | None = None  # of the MoE layers, stacked on a leading axis


def layer_params(cfg: ModelConfig, kind: str):
  """One layer: kind "layers" is dense, "moe_layers" has experts."""
  ffn = (dict(moe=moe.params(cfg)) if kind == "moe_layers"
         else dict(ffn=layers.swiglu_params(cfg.dim, cfg.ffn, cfg.out_std)))
  return dict(
    attention_norm=layers.norm_params(cfg.dim),
    attention=(mla if cfg.mla else attention).params(cfg),
    ffn_norm=layers.norm_params(cfg.dim),
    **ffn,
  )


def params(cfg: ModelConfig):
  """The declared parameter tree."""
  tree: dict[str, Any] = dict(
    # a tied head wants logits of order one at the start, hence the small embedding; the norm undoes it within
    embed=Param((cfg.vocab, cfg.dim), ("vocab", "embed"), normal(cfg.dim**-0.5 if cfg.tied_head else 1.0)),
    **{kind: param.stack(layer_params(cfg, kind), count) for kind, count in cfg.stacks.items()},
    final_norm=layers.norm_params(cfg.dim),
  )
  if not cfg.tied_head:
    tree["head"] = Param((cfg.dim, cfg.vocab), ("embed", "vocab"), normal(cfg.dim**-0.5))
  if cfg.mtp:
    tree["mtp"] = dict(
      embed_norm=layers.norm_params(cfg.dim),
      hidden_norm=layers.norm_params(cfg.dim),
      merge=Param((2 * cfg.dim, cfg.dim), (None, "embed"), normal((2 * cfg.dim) ** -0.5)),
      layer=layer_params(cfg, "moe_layers" if cfg.moe else "layers"),
      final_norm=layers.norm_params(cfg.dim),
    )
  return tree


def init(cfg: ModelConfig, key: jax.Array):
  return param.init(params(cfg), key, jnp.dtype(cfg.dtype))


def positions(cfg: ModelConfig, position_NT) -> rope.Table:
  return rope.table(cfg.rope, position_NT, cfg.mla.rope_dim if cfg.mla else cfg.head_dim)


def layer(cfg: ModelConfig, w, x_NTD, turned: rope.Table, attend, cache=None, replay_NTk=None, mask_NT=None):
  """One layer, dense or MoE by its weights. Returns x, what its attention kept, and its Routing or None."""
  with jax.named_scope("attention"):
    h_NTD = layers.rms_norm(x_NTD, w["attention_norm"], cfg.norm_eps)
    o_NTD, kv = (mla if cfg.mla else attention).block(w["attention"], cfg, h_NTD, turned, attend, cache)
  with jax.named_scope("moe" if "moe" in w else "mlp"):
    h_NTD, x_NTD = layers.rms_norm(x_NTD, w["ffn_norm"], cfg.norm_eps, residual=o_NTD)
    if "moe" in w:
      y_NTD, routing = moe.block(w["moe"], cfg, h_NTD, replay_NTk, mask_NT)
    else:
      y_NTD, routing = layers.swiglu(w["ffn"], h_NTD), None
    return shard(x_NTD + y_NTD, "batch", "sequence", "embed_act"), kv, routing


def forward(p, cfg: ModelConfig, token_NT, position_NT, attend=attention.causal, cache=None, keep=False,
            replay_LNTk=None, mask_NT=None, segment_NT=None):
  """Hidden states after the final norm [N, T, D], and Kept: the cache entries of all layers if `keep`, the routing.

  position_NT: 0, 1, ... along each sequence, or what `positions` made of them.
  attend(q_NTHC, kv, layer_cache) -> (o_NTHC, kept) decides what each token sees. `cache` is a tuple with one entry per
  layer; it is updated in place where the caller's loop allows, which needs an array per layer: so with a cache the
  layers are unrolled, without one they are scanned.
  replay_LNTk: experts of each MoE layer. mask_NT: 0 on padding, for the routing's statistics. segment_NT: attend's.
  """
  T = token_NT.shape[1]
  # equal parts of a sequence for each device; padding would take part in groups that share capacity
  fixed = cache is not None or (cfg.moe and cfg.moe.dispatch == "capacity")
  padding = 0 if fixed else -T % sharding.ways("sequence")
  if padding:
    grown = lambda x, axis: jnp.pad(x, [(0, padding if a == axis else 0) for a in range(x.ndim)])
    token_NT, position_NT, mask_NT = jax.tree.map(lambda x: grown(x, 1), (token_NT, position_NT, mask_NT))
    replay_LNTk = None if replay_LNTk is None else grown(replay_LNTk, 2)
    if segment_NT is not None:
      segment_NT = jnp.pad(segment_NT, ((0, 0), (0, padding)), constant_values=HIDDEN)
  of_part = attend           # of rows in parts, each with its segments
  if segment_NT is not None:
    attend = functools.partial(attend, segment_NT=segment_NT)
  x_NTD = embedded(p, token_NT)
  turned = position_NT if isinstance(position_NT, rope.Table) else positions(cfg, position_NT)
  run = functools.partial(layer, cfg)
  if cfg.remat != "none" and cache is None:
    run = jax.checkpoint(run, policy=remat.policy(cfg.remat), static_argnums=(3,))

  kv, routing = [], None
  for kind, count in cfg.stacks.items():
    replay = replay_LNTk if kind == "moe_layers" else None
    pick = lambda tree, i: tree[i] if type(tree) is tuple else jax.tree.map(lambda w: w[i], tree)
    if cache is not None:
      each = []
      for i in range(count):
        x_NTD, new, one = run(pick(p[kind], i), x_NTD, turned, attend, cache[len(kv)], pick(replay, i), mask_NT)
        kv.append(new)
        each.append(one)
      stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)
    elif not keep and pipelined.divides(count):
      x_NTD, stacked = pipelined.run(run, p[kind], x_NTD, turned, of_part, replay, mask_NT, segment_NT)
    else:
      def body(x_NTD, inputs):
        x_NTD, new, one = run(inputs[0], x_NTD, turned, attend, None, inputs[1], mask_NT)
        return x_NTD, (new if keep else None, one)
      x_NTD, (kept, stacked) = jax.lax.scan(body, x_NTD, (p[kind], replay))
      kv += [pick(kept, i) for i in range(count)]
    routing = stacked if kind == "moe_layers" else None
  hidden_NTD = layers.rms_norm(x_NTD, p["final_norm"], cfg.norm_eps)
  if padding:
    hidden_NTD, kv = hidden_NTD[:, :T], jax.tree.map(lambda x: x[:, :, :T], kv)
    routing = routing and routing._replace(expert_NTk=routing.expert_NTk[:, :, :T])
  return hidden_NTD, Kept(tuple(kv) if keep else None, routing)


def cached(cfg: ModelConfig, kv: tuple, dtype) -> tuple:
  """What a prefill kept of each layer, as decode steps want it."""
  return tuple((mla if cfg.mla else attention).cached(one, dtype) for one in kv)


def empty_cache(cfg: ModelConfig, N: int, T: int, dtype, layers: int = 0) -> tuple:
  """Room for T tokens of N rows in every layer (or in so many)."""
  return tuple((mla if cfg.mla else attention).empty(cfg, N, T, dtype) for _ in range(layers or cfg.layers))


def cache_columns(cfg: ModelConfig) -> attention.Cached:
  """The axis of a layer's cache arrays that tokens lie on."""
  return (mla if cfg.mla else attention).COLUMNS


def decode_attention(cfg: ModelConfig, prompt_length_B, column, sees_NSA):
  """The `attend` of a decode step: new tokens go to `column` and see what sees_NSA says, beside the prompt."""
  decode = functools.partial(mla.decode, cfg.mla.kv_rank) if cfg.mla else attention.decode
  return functools.partial(decode, prompt_length_B, column, sees_NSA)


def extend_attention(cfg: ModelConfig, start):
  """The `attend` of a prefill's next part, behind `start` tokens."""
  return functools.partial(*((mla.extend, cfg.mla.kv_rank) if cfg.mla else (attention.extend,)), start)


def unstacked(p, cfg: ModelConfig):
  """The parameters with a tree of its own for each layer, as `forward` takes them too where there is a cache.

  For a loop of decode steps: from stacked ones, XLA copies every layer's weights anew in each step. It is one
  more copy of them, for as long as the loop runs.
  """
  return p | {kind: tuple(jax.tree.map(lambda w, i=i: w[i], p[kind]) for i in range(count))
              for kind, count in cfg.stacks.items() if not isinstance(p[kind], tuple)}


def embedded(p, token_NT):
  """The tokens' rows of the embedding, which is gathered over the axes that split its width, like all weights."""
  return shard(shard(p["embed"], "vocab", None)[token_NT], "batch", "sequence", "embed_act")


def head(p):
  """The head's weights [D, V]."""
  return p["head"] if "head" in p else p["embed"].T

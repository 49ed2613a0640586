"""The decoder: embedding, L pre-norm layers of attention and feed-forward, final norm, head.

One `forward` serves training, scoring, prefill and decoding; they differ in the attention that is passed in. Layers are
stacked on a leading axis and scanned, so compile time does not grow with depth. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.models import attention, layers, param, rope
from r1jax.models.param import Param, normal
from r1jax.sharding import shard

# what the backward pass recomputes: nothing; all but matmul results (less memory traffic, so faster too); whole layers
REMAT = ("none", "elementwise", "layer")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of the decoder. All weights and activations have `dtype`; norms, softmax and log-probs are f32."""
  vocab: int
  dim: int
  layers: int
  heads: int
  kv_heads: int
  ffn: int
  head_dim: int = 0              # 0: dim / heads
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
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
    if not self.head_dim and self.dim % self.heads:
      raise ValueError(f"model.dim={self.dim} must be a multiple of heads={self.heads}, or head_dim given")
    if not self.head_dim:
      object.__setattr__(self, "head_dim", self.dim // self.heads)
    if self.head_dim % 2:
      raise ValueError(f"model.head_dim={self.head_dim} must be even: rotary positions pair channels")
    if self.remat not in REMAT:
      raise ValueError(f"model.remat={self.remat!r} is none of {REMAT}")
    if self.dtype not in ("float32", "bfloat16", "float16"):
      raise ValueError(f"model.dtype={self.dtype!r} is none of float32, bfloat16, float16")

  @property
  def out_std(self) -> float:
    """Scale of the weights that write to the residual stream: it must not grow with depth (GPT-2)."""
    return (2 * self.layers) ** -0.5


def params(cfg: ModelConfig):
  """The declared parameter tree."""
  layer = dict(
    attention_norm=layers.norm_params(cfg.dim),
    attention=attention.params(cfg),
    ffn_norm=layers.norm_params(cfg.dim),
    ffn=layers.swiglu_params(cfg.dim, cfg.ffn, cfg.out_std),
  )
  tree = dict(
    # a tied head wants logits of order one at the start, hence the small embedding; the norm undoes it within
    embed=Param((cfg.vocab, cfg.dim), ("vocab", "embed"), normal(cfg.dim**-0.5 if cfg.tied_head else 1.0)),
    layers=param.stack(layer, cfg.layers),
    final_norm=layers.norm_params(cfg.dim),
  )
  if not cfg.tied_head:
    tree["head"] = Param((cfg.dim, cfg.vocab), ("embed", "vocab"), normal(cfg.dim**-0.5))
  return tree


def init(cfg: ModelConfig, key: jax.Array):
  return param.init(params(cfg), key, jnp.dtype(cfg.dtype))


def positions(cfg: ModelConfig, position_NT) -> rope.Table:
  return rope.table(position_NT, cfg.head_dim, cfg.rope_theta)


def forward(p, cfg: ModelConfig, token_NT, position_NT, attend=attention.causal, cache=None, keep=False):
  """Hidden states after the final norm [N, T, D], and what each layer's attention kept, if `keep`.

  position_NT: 0, 1, ... along each sequence, or what `positions` made of them.
  attend(q_NTHC, kv, layer_cache) -> (o_NTHC, kept) decides what each token sees. Without a cache the layers are
  scanned and what they keep is stacked on a leading axis. `cache` is a tuple with one entry per layer; it is
  updated in place where the caller's loop allows, which needs an array per layer: so the layers are unrolled.
  """
  x_NTD = shard(p["embed"][token_NT], "batch", None, "embed_act")
  turned = position_NT if isinstance(position_NT, rope.Table) else positions(cfg, position_NT)

  def layer(x_NTD, w, layer_cache=None):
    h_NTD = layers.rms_norm(x_NTD, w["attention_norm"], cfg.norm_eps)
    q_NTHC, kv = attention.project(w["attention"], h_NTD, turned)
    o_NTHC, kept = attend(q_NTHC, kv, layer_cache)
    x_NTD = x_NTD + layers.linear(o_NTHC, w["attention"]["out"], axes=2)
    h_NTD = layers.rms_norm(x_NTD, w["ffn_norm"], cfg.norm_eps)
    x_NTD = shard(x_NTD + layers.swiglu(w["ffn"], h_NTD), "batch", None, "embed_act")
    return x_NTD, (kept if keep else None)

  if cache is not None:
    kept = []
    for i, layer_cache in enumerate(cache):
      x_NTD, new = layer(x_NTD, jax.tree.map(lambda w, i=i: w[i], p["layers"]), layer_cache)
      kept.append(new)
    kept = tuple(kept)
  else:
    if cfg.remat != "none":
      policy = dict(layer=None, elementwise=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)[cfg.remat]
      layer = jax.checkpoint(layer, policy=policy)
    x_NTD, kept = jax.lax.scan(layer, x_NTD, p["layers"])
  return layers.rms_norm(x_NTD, p["final_norm"], cfg.norm_eps), kept


def head(p):
  """The head's weights [D, V]."""
  return p["head"] if "head" in p else p["embed"].T

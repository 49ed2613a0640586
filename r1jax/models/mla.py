"""Multi-head latent attention (DeepSeek-V2, 2405.04434; V3 report section 2.1.1): keys and values from a small latent.

A token's cache is its latent and one rotary key that all heads share: 512 + 64 = 576 values in V3. Two forms, the
same numbers: *expanded*, with keys and values of every head (training, prefill), and *absorbed*, where a query is
carried into the latent space and attends to the cache as it lies (decode).
Letters: Q query latent, Z key/value latent, E rotary channels, I non-rotary channels, C value channels of a head; the
rest in r1jax/types.py.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from r1jax.kernels.decode_attention import decode_latent_attention, quantise
from r1jax.models import attention, layers, rope
from r1jax.models.attention import KV, Cached, DecodeCache
from r1jax.models.layers import linear
from r1jax.models.param import Param, normal


@dataclasses.dataclass(frozen=True)
class MLAConfig:
  """Sizes. DeepSeek-V3: 1536, 512, 128, 64, 128."""
  q_rank: int                    # width of the queries' latent; 0: none, queries come straight from the hidden state
  kv_rank: int
  nope_dim: int                  # channels of a head without positions
  rope_dim: int                  # and with
  v_dim: int

  def __post_init__(self):
    for name in ("kv_rank", "nope_dim", "rope_dim", "v_dim"):
      if getattr(self, name) < 1:
        raise ValueError(f"model.mla.{name}={getattr(self, name)} must be at least 1")
    if self.q_rank < 0 or self.rope_dim % 2:
      raise ValueError(f"model.mla needs q_rank={self.q_rank} >= 0 and an even rope_dim={self.rope_dim}")


def params(cfg):
  m, D, H = cfg.mla, cfg.dim, cfg.heads
  q_in = m.q_rank or D
  tree = dict(
    q=Param((q_in, H, m.nope_dim + m.rope_dim), (None if m.q_rank else "embed", "heads", None), normal(q_in**-0.5)),
    kv_down=Param((D, m.kv_rank + m.rope_dim), ("embed", None), normal(D**-0.5)),
    kv_norm=layers.norm_params(m.kv_rank),
    kv_up=Param((m.kv_rank, H, m.nope_dim + m.v_dim), (None, "heads", None), normal(m.kv_rank**-0.5)),
    out=Param((H, m.v_dim, D), ("heads", None, "embed"), normal((H * m.v_dim) ** -0.5 * cfg.out_std)),
  )
  if m.q_rank:
    tree |= dict(q_down=Param((D, m.q_rank), ("embed", None), normal(D**-0.5)), q_norm=layers.norm_params(m.q_rank))
  return tree


def block(p, cfg, x_NTD, turned: rope.Table, attend, cache=None, absorbed: bool | None = None):
  """x through the attention of one layer [N, T, D], and what `attend` kept, as a latent cache.

  absorbed: None takes that form when there is a cache. attend is told the queries with all scales but C**-0.5 applied.
  """
  m = cfg.mla
  absorbed = cache is not None if absorbed is None else absorbed
  q_NTQ = layers.rms_norm(linear(x_NTD, p["q_down"]), p["q_norm"], cfg.norm_eps) if m.q_rank else x_NTD
  q_NTHC = linear(q_NTQ, p["q"]) * rope.score_scale(cfg.rope)
  q_NTHI, q_NTHE = q_NTHC[..., :m.nope_dim], rope.turn(q_NTHC[..., m.nope_dim:], turned, cfg.rope.interleaved)
  down_NTX = linear(x_NTD, p["kv_down"])
  latent_NTZ = layers.rms_norm(down_NTX[..., :m.kv_rank], p["kv_norm"], cfg.norm_eps)
  key_NT1E = rope.turn(down_NTX[..., None, m.kv_rank:], turned, cfg.rope.interleaved)
  k_up_ZHI, v_up_ZHC = p["kv_up"][..., :m.nope_dim], p["kv_up"][..., m.nope_dim:]
  # one "key head" whose key is [latent, rotary key], and whose value is the latent: the first part of the key
  latent = KV(jnp.concatenate([latent_NTZ, key_NT1E[:, :, 0]], axis=-1)[:, None], None)
  if absorbed:
    q_NTHZ = jnp.einsum("nthi,zhi->nthz", q_NTHI, k_up_ZHI)
    # scores are divided by the root of the width that attend sees: make that the expanded head's
    ratio = ((m.kv_rank + m.rope_dim) / (m.nope_dim + m.rope_dim)) ** 0.5
    q_NTHX = jnp.concatenate([q_NTHZ, q_NTHE], axis=-1) * ratio
    kv = latent if cache is not None else KV(latent.k, latent_NTZ[:, None])
    o_NTHZ, kept = attend(q_NTHX, kv, cache)
    o_NTHC = jnp.einsum("nthz,zhc->nthc", o_NTHZ, v_up_ZHC)
  else:
    k_NTHI = linear(latent_NTZ, k_up_ZHI)
    k_NTHX = jnp.concatenate([k_NTHI, jnp.broadcast_to(key_NT1E, (*k_NTHI.shape[:3], m.rope_dim))], axis=-1)
    q_NTHX = jnp.concatenate([q_NTHI, q_NTHE], axis=-1)
    o_NTHC, _ = attend(q_NTHX, KV(k_NTHX.swapaxes(1, 2), linear(latent_NTZ, v_up_ZHC).swapaxes(1, 2)), None)
    kept = latent
  return linear(o_NTHC, p["out"], axes=2), kept


COLUMNS = Cached(1, None, 1, None)


def cached(kv: KV, dtype) -> Cached:
  """Latents [N, 1, T, X] as a decode step wants them."""
  if attention.narrow(dtype):
    x_NTX, scale_NT = quantise(kv.k[:, 0], dtype, 2)
    return Cached(x_NTX, k_scale=scale_NT)
  return Cached(kv.k[:, 0].astype(dtype))


def empty(cfg, N: int, T: int, dtype) -> Cached:
  """Room for T tokens of N rows."""
  scale = jnp.zeros((N, T)) if attention.narrow(dtype) else None
  return Cached(jnp.zeros((N, T, cfg.mla.kv_rank + cfg.mla.rope_dim), dtype), k_scale=scale)


def _attend(kv_rank: int, q_NSHX, prompt: Cached, prompt_length_B, own: Cached, sees_NSA):
  part = lambda x: x.k if x.k_scale is None else (x.k, x.k_scale)
  return decode_latent_attention(q_NSHX, part(prompt), prompt_length_B, part(own), sees_NSA, kv_rank)


def decode(kv_rank: int, prompt_length_B, column, sees_NSA, q_NSHX, kv: KV, cache: DecodeCache):
  """attention.decode over latents: one key head [.., X], whose first kv_rank channels are the value.

  Returns [N, S, H, Z], and the own cache with the new tokens in it.
  """
  own = attention.write(cache.own, cached(kv, cache.own.k.dtype), column, COLUMNS)
  return _attend(kv_rank, q_NSHX, cache.prompt, prompt_length_B, own, sees_NSA), own


def extend(kv_rank: int, start, q_NTHX, kv: KV, cache: Cached):
  """attention.extend over latents."""
  N, T = q_NTHX.shape[:2]
  new = cached(kv, cache.k.dtype)
  sees_NTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (N, T, T))
  o_NTHZ = _attend(kv_rank, q_NTHX, cache, jnp.full(N, start), new, sees_NTT)
  return o_NTHZ, attention.write(cache, new, start, COLUMNS)

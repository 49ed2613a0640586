"""Decode attention in XLA's products: the form for CPU, and for whatever has no kernel.

The prompt's cache is read once for the G answers to it, and one softmax runs over both parts without a copy of either's
scores. A cache that is narrower than the queries (8 bits, or bf16 under f32 queries) is widened as it is used, at most
CHUNK numbers at a time where the CPU's caches would not hold the f32 copy: XLA would write the whole of it to memory.
"""

import jax
import jax.numpy as jnp

from r1jax.kernels.decode_attention.cache import MASKED, Part

CHUNK = 2**19     # 2 MiB of f32


def decode_attention(q_NSHC, prompt: Part, prompt_length_B, own: Part, sees_NSA):
  """[N, S, H, E]"""
  N, S, H, C = q_NSHC.shape
  K = prompt.k.shape[1]
  R = H // K
  q_NKMC = q_NSHC.reshape(N, S, K, R, C).swapaxes(1, 2).reshape(N, K, S * R, C)
  o_NKME = _attend(q_NKMC, prompt, prompt_length_B, own, sees_NSA, "nkmc,nkct->nkmt")
  return o_NKME.reshape(N, K, S, R, -1).swapaxes(1, 2).reshape(N, S, H, -1)


def decode_latent_attention(q_NSHX, prompt: Part, prompt_length_B, own: Part, sees_NSA, kv_rank: int):
  """[N, S, H, kv_rank]. The values' product takes all channels: cutting them off before would copy the cache."""
  N, S, H, X = q_NSHX.shape

  def keys_and_values(part):
    x, scale = part.k[:, None], None if part.k_scale is None else part.k_scale[:, None]
    return Part(x, x, scale, scale)
  o_N1MX = _attend(q_NSHX.reshape(N, 1, S * H, X), keys_and_values(prompt), prompt_length_B, keys_and_values(own),
                   sees_NSA, "nkmc,nktc->nkmt")
  return o_N1MX.reshape(N, S, H, X)[..., :kv_rank]


def _attend(q_NKMC, prompt: Part, prompt_length_B, own: Part, sees_NSA, to_keys: str):
  """M = S x heads, query tokens outermost."""
  N, K, M, C = q_NKMC.shape
  B, (_, S, A) = prompt.v.shape[0], sees_NSA.shape
  G = N // B
  of_prompts = lambda x: x.reshape(B, G, K, M, -1).swapaxes(1, 2).reshape(B, K, G * M, -1)
  of_rows = lambda x: x.reshape(B, K, G, M, -1).swapaxes(1, 2).reshape(N, K, M, -1)
  sees_N1MA = jnp.broadcast_to(sees_NSA[:, None, :, None], (N, 1, S, M // S, A)).reshape(N, 1, M, A)
  valid_B11P = jnp.arange(prompt.v.shape[2]) < prompt_length_B[:, None, None, None]
  q_NKMC = q_NKMC * C**-0.5

  def scores(q, part, sees):
    score = product(to_keys, q, part.k)
    return jnp.where(sees, score if part.k_scale is None else score * part.k_scale[:, :, None], MASKED)
  to_prompt, to_own = scores(of_prompts(q_NKMC), prompt, valid_B11P), scores(q_NKMC, own, sees_N1MA)
  highest = jnp.maximum(of_rows(to_prompt.max(-1)), to_own.max(-1, keepdims=True))
  to_prompt, to_own = jnp.exp(to_prompt - of_prompts(highest)), jnp.exp(to_own - highest)
  total = of_rows(to_prompt.sum(-1)) + to_own.sum(-1, keepdims=True)

  def values(weight, part):
    weight = weight if part.v_scale is None else weight * part.v_scale[:, :, None]
    return product("nkmt,nkte->nkme", weight.astype(q_NKMC.dtype), part.v)
  return ((of_rows(values(to_prompt, prompt)) + values(to_own, own)) / total).astype(q_NKMC.dtype)


def product(spec: str, x, y):
  """einsum(spec, x, y), summed in f32; x and y have the same first axis, and y may be narrower than x."""
  if y.dtype == x.dtype:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
  bits, widen = _widener(y)
  one = lambda x, bits: jnp.einsum(spec, x, widen(bits), preferred_element_type=jnp.float32)
  x, N = x.astype(jnp.float32), x.shape[0]
  rows = next(n for n in range(N, 0, -1) if N % n == 0 and (n == 1 or n * (y.size // N) <= CHUNK))
  if rows == N:
    return one(x, bits)
  out = jax.lax.map(lambda part: one(*part), tuple(a.reshape(N // rows, rows, *a.shape[1:]) for a in (x, bits)))
  return out.reshape(N, *out.shape[2:])


def _widener(y):
  """(bits, f): f(bits) is y in f32. Plain integers and shifts, which XLA makes vectors of inside a loop, too."""
  cast = jax.lax.bitcast_convert_type
  if y.dtype == jnp.bfloat16:
    return cast(y, jnp.uint16), lambda bits: cast(bits.astype(jnp.uint32) << 16, jnp.float32)
  if y.dtype == jnp.float8_e4m3fn:
    def widen(bits):       # to f16, which has one more bit of exponent: its bias is larger by 8, so times 2^8
      bits = bits.astype(jnp.uint16)
      return cast((bits & 0x80) << 8 | (bits & 0x7f) << 7, jnp.float16).astype(jnp.float32) * 256
    return cast(y, jnp.uint8), widen
  return y, lambda bits: bits.astype(jnp.float32)

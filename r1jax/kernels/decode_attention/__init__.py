import jax
import jax.numpy as jnp

MASKED = -1e30
def decode_attention(q_NSHC, prompt, prompt_length_B, own, sees_NSA, impl=None):
  N, S, H, C = q_NSHC.shape
  B, K, _, P = prompt[0].shape
  A = own[0].shape[3]
  E = own[1].shape[3]
  G, R = N // B, H // K
  q_NKMC = (q_NSHC.reshape(N, S, K, R, C) * C**-0.5).swapaxes(1, 2).reshape(N, K, S * R, C)
  q_BKMC = q_NKMC.reshape(B, G, K, S * R, C).swapaxes(1, 2).reshape(B, K, G * S * R, C)
  f32 = dict(preferred_element_type=jnp.float32)
  to_prompt = jnp.einsum("bkmc,bkcp->bkmp", q_BKMC, prompt[0].astype(q_BKMC.dtype), **f32)
  if len(prompt) > 2: to_prompt *= prompt[2][:, :, None]
  to_prompt = jnp.where(jnp.arange(P) < prompt_length_B[:, None, None, None], to_prompt, MASKED)
  to_prompt = to_prompt.reshape(B, K, G, S * R, P).swapaxes(1, 2).reshape(N, K, S * R, P)
  to_own = jnp.einsum("nkmc,nkca->nkma", q_NKMC, own[0].astype(q_NKMC.dtype), **f32)
  if len(own) > 2: to_own *= own[2][:, :, None]
  sees = jnp.repeat(sees_NSA, R, axis=1)[:, None]
  to_own = jnp.where(sees, to_own, MASKED)
  weight = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1), axis=-1)
  w_prompt = weight[..., :P].reshape(B, G, K, S * R, P).swapaxes(1, 2).reshape(B, K, G * S * R, P)
  w_own = weight[..., P:]
  if len(prompt) > 2: w_prompt, w_own = w_prompt * prompt[3][:, :, None], w_own * own[3][:, :, None]
  dt = q_NSHC.dtype
  o_prompt = jnp.einsum("bkmp,bkpc->bkmc", w_prompt.astype(dt), prompt[1].astype(dt))
  o_prompt = o_prompt.reshape(B, K, G, S * R, E).swapaxes(1, 2).reshape(N, K, S * R, E)
  o = o_prompt + jnp.einsum("nkma,nkac->nkmc", w_own.astype(dt), own[1].astype(dt))
  return o.reshape(N, K, S, R, E).swapaxes(1, 2).reshape(N, S, H, E)
def decode_latent_attention(q_NSHX, prompt, prompt_length_B, own, sees_NSA, kv_rank, impl=None):
  N, S, H, X = q_NSHX.shape
  scaled = isinstance(prompt, tuple)
  px, ps = prompt if scaled else (prompt, None)
  ox, os_ = own if scaled else (own, None)
  f = lambda x, s: (jnp.swapaxes(x, 1, 2)[:, None], x[:, None, :, :kv_rank], *(() if s is None else (s[:, None], s[:, None])))
  return decode_attention(q_NSHX, f(px, ps), prompt_length_B, f(ox, os_), sees_NSA)
def quantise(x, dtype, axis=-1):
  most = 127.0 if dtype == jnp.int8 else 448.0
  scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True) / most
  q = x.astype(jnp.float32) / jnp.where(scale == 0, 1.0, scale)
  q = jnp.round(q) if dtype == jnp.int8 else q
  return q.astype(dtype), jnp.squeeze(scale, axis)

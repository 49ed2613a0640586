"""Causal attention of grouped queries (2305.13245) for training and prefill, with segments, forward and backward.

Token i sees tokens j <= i of its own segment, and those of segment SHARED (-1), a prefix that everything behind it may
look at. This one rule is plain causal attention (no segments), packed rows (packing.py: 1, 2, ...; padding 0), and
rows of one prompt with its G answers (`shared_prompt`). q and k may be wider than v (MLA: 192 and 128). Scores are
divided by the root of q's width; they and the softmax are f32. ref.py is the specification.

What impl=None takes, by the platform that is lowered for:
  cpu, others  xla     scores in memory; for shared_prompt without those of one answer for another
  cuda         triton  our flash attention. Never "mosaic" (Hopper, plain causal, heads of 64 or 128): it takes float16
                       alone, jax refuses it under CUDA 12.8 to 12.9.0, and nobody measured it here
  tpu          splash  without segments; with them tpu, our flash attention
Each branch has its own gradient: the CPU's autodiff keeps weights that kernels compute again.
XLA does not split a Pallas call over devices: under the mesh of sharding.py it runs in a shard_map over rows and heads.
Where that mesh splits sequences, every platform takes ring.py, unless `impl` says otherwise.
Letters: E width of the values, S = P + G * A tokens of a prompt and its answers; the rest in r1jax/types.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax import sharding
from r1jax.kernels.attention import pallas_gpu, pallas_tpu, ref, ring, shipped, xla
from r1jax.kernels.attention.ref import MASKED, SHARED

__all__ = ["HIDDEN", "IMPLS", "MASKED", "SHARED", "attention", "flash", "shared_prompt", "shared_prompt_segments"]

IMPLS = ("triton", "mosaic", "splash", "tpu", "xla", "ref")
HIDDEN = -2      # padding that none but itself sees

FLASH = dict(
  triton=(pallas_gpu.forward, pallas_gpu.backward),
  tpu=(pallas_tpu.forward, pallas_tpu.backward),
  mosaic=(shipped.hopper_forward, shipped.hopper_backward),
)


def attention(q_NTHC, k_NKTC, v_NKTE, segment_NT=None, impl: str | None = None):
  """[N, T, H, E]. impl: one of IMPLS, which then does it or says why not; None: by platform, as above."""
  _check(q_NTHC, k_NKTC, v_NKTE, segment_NT, impl)
  if impl == "ref":
    return ref.attention(q_NTHC, k_NKTC, v_NKTE, segment_NT)
  if impl == "xla":
    return xla.attention(q_NTHC, k_NKTC, v_NKTE, segment_NT)
  if impl:
    return _kernel(impl, q_NTHC, k_NKTC, v_NKTE, segment_NT)
  if sharding.ways("sequence") > 1 and q_NTHC.shape[1] % sharding.ways("sequence") == 0:
    return _sharded(None, q_NTHC, k_NKTC, v_NKTE, segment_NT)
  return _by_platform(xla.attention, q_NTHC, k_NKTC, v_NKTE, segment_NT)


def shared_prompt(P: int, G: int, prompt_length_B, q_BSHC, k_BKSC, v_BKSE, impl: str | None = None):
  """[B, S, H, E] of rows of P prompt tokens, right-padded, and G answers, as if each answer stood alone behind P.

  The same as `attention` with `shared_prompt_segments`, for which "xla" has a cheaper form.
  """
  S = q_BSHC.shape[1]
  _check(q_BSHC, k_BKSC, v_BKSE, None, impl)
  if S < P or (S - P) % G:
    raise ValueError(f"{S} tokens are not a prompt of P={P} and G={G} answers")
  dense = lambda q, k, v, segment: xla.shared_prompt(P, G, prompt_length_B, q, k, v)
  if impl == "xla":
    return dense(q_BSHC, k_BKSC, v_BKSE, None)
  segment_BS = shared_prompt_segments(P, G, (S - P) // G, prompt_length_B)
  if impl:
    return attention(q_BSHC, k_BKSC, v_BKSE, segment_BS, impl)
  return _by_platform(dense, q_BSHC, k_BKSC, v_BKSE, segment_BS)


def shared_prompt_segments(P: int, G: int, A: int, prompt_length_B):
  """[B, P + G * A]: the prompt SHARED, its padding HIDDEN, then answers 0 to G - 1."""
  prompt_BP = jnp.where(jnp.arange(P) < prompt_length_B[:, None], SHARED, HIDDEN)
  answer_BM = jnp.broadcast_to(jnp.repeat(jnp.arange(G), A), (prompt_BP.shape[0], G * A))
  return jnp.concatenate([prompt_BP, answer_BM], axis=1).astype(jnp.int32)


def _by_platform(dense, q, k, v, segment_NT):
  on_tpu = "splash" if segment_NT is None else "tpu"
  return jax.lax.platform_dependent(q, k, v, segment_NT, cuda=functools.partial(_kernel, "triton"),
                                    tpu=functools.partial(_kernel, on_tpu), default=dense)


def _kernel(impl: str, q_NTHC, k_NKTC, v_NKTE, segment_NT):
  """A Pallas kernel, in a shard_map over rows and key heads where there is a mesh to split them over."""
  if impl == "splash":
    if segment_NT is not None:
      raise NotImplementedError("splash takes no segments here: it knows no SHARED tokens; impl='tpu' does")
    run = lambda q, k, v, segment: shipped.splash(q, k, v)
  else:
    run = functools.partial(flash, impl=impl)
  return _sharded(run, q_NTHC, k_NKTC, v_NKTE, segment_NT)


def _sharded(run, q_NTHC, k_NKTC, v_NKTE, segment_NT):
  """run(q, k, v, segments) on each device's rows and key heads; None: ring.py, on its part of the sequence too."""
  mesh = sharding.split_mesh()
  if mesh is None:
    return run(q_NTHC, k_NKTC, v_NKTE, segment_NT)
  rows, heads, part = sharding.spec(mesh, ("batch", "kv_heads", None if run else "sequence"), k_NKTC.shape[:3])
  run = run or functools.partial(ring.attention, axis=sharding.names(part))
  by_q, by_k = PartitionSpec(rows, part, heads), PartitionSpec(rows, heads, part)
  return jax.shard_map(run, mesh=mesh, in_specs=(by_q, by_k, by_k, PartitionSpec(rows, part)), out_specs=by_q,
                       check_vma=False)(q_NTHC, k_NKTC, v_NKTE, segment_NT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def flash(q_NTHC, k_NKTC, v_NKTE, segment_NT, impl: str, options: tuple = ()):
  """One of FLASH. options: (name, value) for its two functions, such as ("interpret", True)."""
  return FLASH[impl][0](q_NTHC, k_NKTC, v_NKTE, segment_NT, **dict(options))[0]


def _flash_forward(q_NTHC, k_NKTC, v_NKTE, segment_NT, impl, options):
  o_NTHE, lse_NHT = FLASH[impl][0](q_NTHC, k_NKTC, v_NKTE, segment_NT, **dict(options))
  return o_NTHE, (q_NTHC, k_NKTC, v_NKTE, segment_NT, o_NTHE, lse_NHT)


def _flash_backward(impl, options, saved, do_NTHE):
  return *FLASH[impl][1](*saved, do_NTHE, **dict(options)), None


flash.defvjp(_flash_forward, _flash_backward)


def _check(q_NTHC, k_NKTC, v_NKTE, segment_NT, impl):
  if impl not in (None, *IMPLS):
    raise ValueError(f"impl={impl!r} is none of {IMPLS}")
  N, T, H, C = q_NTHC.shape
  K, E = v_NKTE.shape[1], v_NKTE.shape[3]
  if k_NKTC.shape != (N, K, T, C) or v_NKTE.shape != (N, K, T, E) or H % K:
    raise ValueError(f"queries {q_NTHC.shape}, keys {k_NKTC.shape} and values {v_NKTE.shape} do not fit together")
  if segment_NT is not None and segment_NT.shape != (N, T):
    raise ValueError(f"segments {segment_NT.shape} of queries {q_NTHC.shape}")

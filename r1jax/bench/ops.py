"""The kernels that r1jax bench kernels and tests/gpu run: of each its implementations by platform, and its rivals."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from r1jax.bench import libraries
from r1jax.kernels import attention, decode_attention, rms_norm, rope, token_logprobs
from r1jax.kernels import fp8_matmul as fp8
from r1jax.kernels import grouped_matmul as grouped
from r1jax.kernels.attention import cases as attention_cases
from r1jax.kernels.case import Case
from r1jax.kernels.decode_attention import cache
from r1jax.kernels.decode_attention import cases as decode_cases
from r1jax.kernels.decode_attention import pallas_gpu as decode_gpu
from r1jax.kernels.decode_attention import pallas_tpu as decode_tpu
from r1jax.kernels.fp8_matmul import cases as fp8_cases
from r1jax.kernels.fp8_matmul import pallas_gpu as fp8_gpu
from r1jax.kernels.fp8_matmul import pallas_tpu as fp8_tpu
from r1jax.kernels.grouped_matmul import cases as grouped_cases
from r1jax.kernels.grouped_matmul import pallas_gpu as grouped_gpu
from r1jax.kernels.grouped_matmul import pallas_tpu as grouped_tpu
from r1jax.kernels.rms_norm import cases as norm_cases
from r1jax.kernels.rope import cases as rope_cases
from r1jax.kernels.token_logprobs import cases as logprob_cases
from r1jax.kernels.token_logprobs import pallas_gpu as logprob_gpu
from r1jax.kernels.token_logprobs import pallas_tpu as logprob_tpu
from r1jax.kernels.token_logprobs import parts


@dataclasses.dataclass(frozen=True)
class Op:
  """A kernel folder and what to run of it. The keys of impls and libraries are those of jax.default_backend().

  A library's error is shown and does not make the benchmark fail: it may compute something near, as bfloat16 is to FP8.
  """
  name: str
  function: Callable                      # the public one; impl="ref" is the specification
  cases: Callable[[], list[Case]]
  impls: dict[str, tuple[str, ...]]       # names of implementations
  libraries: dict[str, dict[str, Callable]] = dataclasses.field(default_factory=dict)
  interpreted: dict[str, Callable] = dataclasses.field(default_factory=dict)   # Pallas kernels' forward passes
  gradient: bool = True
  factors: str = ""                       # what is multiplied, where that is not the arguments' dtype: fp8


def _fp8_by(product: Callable) -> Callable:
  product = functools.partial(product, interpret=True)
  return lambda x_MD, w_DF: fp8.forward(x_MD, w_DF, product)[0]


def _attention_by(impl: str) -> Callable:
  return lambda q_NTHC, k_NKTC, v_NKTE, segment_NT: attention.flash(q_NTHC, k_NKTC, v_NKTE, segment_NT, impl,
                                                                    (("interpret", True),))


def _decode_by(kernel) -> Callable:
  return lambda q_NSHC, prompt, prompt_length_B, own, sees_NSA: kernel.decode_attention(
    q_NSHC, cache.parts("prompt", prompt), prompt_length_B, cache.parts("own", own), sees_NSA, interpret=True)


def _latents_by(kernel) -> Callable:
  return lambda q_NSHX, prompt_BPX, prompt_length_B, own_NAX, sees_NSA, kv_rank: kernel.decode_latent_attention(
    q_NSHX, cache.latents("prompt", prompt_BPX), prompt_length_B, cache.latents("own", own_NAX), sees_NSA, kv_rank,
    interpret=True)


def _logprobs_by(kernel) -> Callable:
  return lambda hidden_MD, head_DV, target_M, temperature, chunk: parts.finish(
    kernel.stats(hidden_MD, head_DV, target_M, temperature, False, interpret=True))[:2]


PALLAS = dict(gpu=("pallas_gpu",), tpu=("pallas_tpu",))
OPS = (
  Op("attention", attention.attention, attention_cases.cases,
     impls=dict(cpu=("xla",), gpu=("triton", "mosaic", "xla"), tpu=("splash", "tpu", "xla")),
     libraries=dict(gpu=dict(cudnn=libraries.cudnn_attention, tokamax=libraries.tokamax_attention)),
     interpreted=dict(triton=_attention_by("triton"), tpu=_attention_by("tpu"))),
  Op("decode_attention", decode_attention.decode_attention, decode_cases.cases,
     impls=PALLAS | dict(cpu=("xla",)), gradient=False,
     interpreted=dict(pallas_gpu=_decode_by(decode_gpu), pallas_tpu=_decode_by(decode_tpu))),
  Op("decode_latent_attention", decode_attention.decode_latent_attention, decode_cases.latent_cases,
     impls=PALLAS | dict(cpu=("xla",)), gradient=False,
     interpreted=dict(pallas_gpu=_latents_by(decode_gpu), pallas_tpu=_latents_by(decode_tpu))),
  Op("token_logprobs", token_logprobs.token_logprobs, logprob_cases.cases,
     impls=dict(cpu=("chunked",), gpu=("pallas_gpu", "chunked"), tpu=("pallas_tpu", "chunked")),
     interpreted=dict(pallas_gpu=_logprobs_by(logprob_gpu), pallas_tpu=_logprobs_by(logprob_tpu))),
  Op("grouped_matmul", grouped.grouped_matmul, grouped_cases.cases,
     impls=dict(cpu=("blocks", "ragged_dot"), gpu=("triton", "mosaic_gpu", "ragged_dot"),
                tpu=("megablox", "ragged_dot")),
     libraries=dict(gpu=dict(tokamax=libraries.tokamax_grouped_matmul),
                    tpu=dict(tokamax=libraries.tokamax_grouped_matmul)),
     interpreted=dict(triton=functools.partial(grouped_gpu.forward, interpret=True),
                      megablox=functools.partial(grouped_tpu.forward, interpret=True))),
  Op("fp8_matmul", fp8.fp8_matmul, fp8_cases.cases, impls=dict(gpu=("triton",), tpu=("pallas_tpu",)),
     libraries={key: {"bfloat16 matmul": libraries.bf16_matmul} for key in ("cpu", "gpu", "tpu")},
     interpreted=dict(triton=_fp8_by(fp8_gpu.product), pallas_tpu=_fp8_by(fp8_tpu.product)), factors="fp8"),
  Op("rms_norm", rms_norm.rms_norm, norm_cases.cases, impls=PALLAS),
  Op("rope", rope.turn, rope_cases.cases, impls=PALLAS),
)

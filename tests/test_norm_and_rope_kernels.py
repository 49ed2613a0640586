"""The kernels of RMSNorm and of the rotary turn: in the interpreter against their references, lowered for CUDA and TPU,
compiled for the latter. The formulas by hand: test_models.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import CALLS, lowered
from tpu_topology import topology

from r1jax.kernels import rms_norm, rope
from r1jax.kernels.rms_norm import cases as norm_cases
from r1jax.kernels.rms_norm import pallas_gpu as norm_gpu
from r1jax.kernels.rope import cases as rope_cases

PLATFORMS = dict(pallas_gpu="cuda", pallas_tpu="tpu")
# shape, type, whether a residual is added: real models' rows scaled down, and odd ones
NORMS = [
  ((3, 13, 72), jnp.bfloat16, True),         # SmolLM2-135M
  ((40, 192), jnp.float32, True),            # Qwen2.5-1.5B
  ((2, 5, 3, 16), jnp.bfloat16, False),      # heads of Qwen3
  ((1, 1), jnp.float32, False),
]
TURNS = [                                    # N, T, H, K, C, type, interleaved
  (2, 19, 3, 1, 16, jnp.bfloat16, False),    # Qwen2.5
  (1, 7, 4, 1, 8, jnp.float32, True),        # DeepSeek-V3
  (1, 1, 1, 1, 2, jnp.float32, False),
  (3, 16, 2, 2, 32, jnp.float32, False),
]


def draw(*shape, dtype=jnp.float32, seed=0):
  return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def outputs_and_gradients(function, g, *args):
  def run(*args):
    out, pull = jax.vjp(function, *args)
    return out, pull(g)
  return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.jit(run)(*args))


def same(got, want, dtype):
  tolerance = 2e-2 if dtype == jnp.bfloat16 else 1e-5
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("name", PLATFORMS)
@pytest.mark.parametrize("shape, dtype, added", NORMS)
def test_norms_values_and_gradients_are_the_references(name, shape, dtype, added, monkeypatch):
  monkeypatch.setattr(norm_gpu, "PROGRAMS", 2)         # so that a program has several tiles, the last one fewer
  monkeypatch.setattr(norm_gpu, "TILE", 1024)
  x, residual, g, g_total = (draw(*shape, dtype=dtype, seed=i) for i in range(4))
  args = (x, residual if added else None, draw(shape[-1], dtype=dtype))
  g = (g, g_total) if added else g
  kernel = getattr(rms_norm, name)
  got = outputs_and_gradients(lambda x, r, s: rms_norm.by_kernel(x, r, s, 1e-6, kernel, True), g, *args)
  want = outputs_and_gradients(lambda x, r, s: rms_norm.rms_norm(x, s, 1e-6, r), g, *args)
  same(got, want, dtype)


@pytest.mark.parametrize("name", PLATFORMS)
@pytest.mark.parametrize("N, T, H, K, C, dtype, interleaved", TURNS)
def test_turns_values_and_gradients_are_the_references(name, N, T, H, K, C, dtype, interleaved):
  if interleaved and name == "pallas_tpu":
    pytest.skip("refused, see below")
  q, k, g_q, g_k = (draw(N, T, heads, C, dtype=dtype, seed=i) for i, heads in enumerate((H, K, H, K)))
  angle = draw(N, T, 1, C // 2)
  cos, sin = 1.3 * jnp.cos(angle), 1.3 * jnp.sin(angle)                  # YaRN's factor: the gradient is no inverse
  kernel = getattr(rope, name)
  got = outputs_and_gradients(lambda q, k: rope.by_kernel(q, k, cos, sin, interleaved, kernel, True), (g_q, g_k), q, k)
  want = outputs_and_gradients(lambda q, k: rope.turn(q, k, cos, sin, interleaved), (g_q, g_k), q, k)
  same(got, want, dtype)


def test_turning_back_undoes_the_turn():
  q, k, angle = draw(2, 5, 3, 8), draw(2, 5, 1, 8), draw(2, 5, 1, 4)
  turn = lambda *args: rope.by_kernel(*args, False, rope.pallas_gpu, True)
  back = jax.vjp(lambda q, k: turn(q, k, jnp.cos(angle), jnp.sin(angle)), q, k)[1]
  for a, b in zip(back(turn(q, k, jnp.cos(angle), jnp.sin(angle))), (q, k), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_one_table_serves_all_rows():
  q, k, angle = draw(3, 5, 2, 8), draw(3, 5, 1, 8), draw(1, 5, 1, 4)
  got = rope.by_kernel(q, k, jnp.cos(angle), jnp.sin(angle), False, rope.pallas_tpu, True)
  for a, b in zip(got, rope.turn(q, k, jnp.cos(angle), jnp.sin(angle)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def split(args: dict):
  """(arrays as shapes, the rest)."""
  arrays = {k: v for k, v in args.items() if hasattr(v, "shape")}
  return arrays, {k: v for k, v in args.items() if k not in arrays}


def step(op, args: dict, impl: str, through: tuple[str, ...]):
  """(a function of arrays that gives outputs' sum and gradients, those arrays, abstract)."""
  arrays, rest = split(args)
  total = lambda moved, fixed: sum(jnp.sum(y.astype(jnp.float32)**2) for y in jax.tree.leaves(
    op(**moved, **fixed, **rest, impl=impl)))
  moved = {k: v for k, v in arrays.items() if k in through}
  return jax.value_and_grad(total), moved, {k: v for k, v in arrays.items() if k not in through}


OPS = dict(rms_norm=(rms_norm.rms_norm, norm_cases, ("x", "scale", "residual")),
           rope=(rope.turn, rope_cases, ("q_NTHC", "k_NTKC")))


def abstract(case):
  """split(case's arguments), without making them."""
  rest = {}

  def make():
    arrays, others = split(case.make(jax.random.key(0)))
    rest.update(others)
    return arrays
  return jax.eval_shape(make), rest


def abstract_cases(op: str):
  """(platform, case, function, its abstract arguments) of every case, for every platform with a kernel for it."""
  function, cases, through = OPS[op]
  for impl, platform in PLATFORMS.items():
    for case in cases.cases():
      args, rest = abstract(case)
      if not (rest.get("interleaved") and impl == "pallas_tpu"):
        yield platform, case, *step(function, args | rest, impl, through)


@pytest.mark.parametrize("op", OPS)
def test_named_kernels_and_their_gradients_lower_at_the_size_of_real_models(op):
  for platform, case, *call in abstract_cases(op):
    assert lowered(call[0], platform, *call[1:]).count(CALLS[platform]) == 2, (platform, case.name)


@pytest.mark.parametrize("op", OPS)
def test_the_tpus_compiler_takes_them(op):
  placed = jax.sharding.SingleDeviceSharding(topology("v5p:2x2x1")[0])
  for platform, case, function, *args in abstract_cases(op):
    if platform == "tpu" and case.name in ("qwen2.5-1.5b", "deepseek-v3", "qwen3-8b queries", "smollm2-135m"):
      args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), args)
      assert jax.jit(function).lower(*args).compile().as_text().count('"tpu_custom_call"') == 2, case.name


@pytest.mark.parametrize("op", OPS)
def test_unless_named_no_kernel_is_taken_on_any_platform(op):
  function, cases, _ = OPS[op]
  arrays, rest = abstract(cases.cases()[1])
  for platform in ("cuda", "tpu", "cpu"):
    text = lowered(lambda arrays: function(**arrays, **rest), platform, arrays)
    assert CALLS["cuda"] not in text and CALLS["tpu"] not in text


def test_what_does_not_fit_is_refused_with_the_numbers():
  x, table = jnp.ones((1, 2, 1, 8)), jnp.ones((1, 2, 1, 4))
  for op, args in ((rms_norm.rms_norm, (x, jnp.ones(8), 1e-6)), (rope.turn, (x, x, table, table))):
    with pytest.raises(ValueError, match="impl='best' is none of"):
      op(*args, impl="best")
  with pytest.raises(ValueError, match=r"residual float32\(2, 8\) is added to x float32\(1, 2, 1, 8\)"):
    rms_norm.rms_norm(x, jnp.ones(8), 1e-6, jnp.ones((2, 8)))
  with pytest.raises(ValueError, match="8 channels of q need half as many cosines, not 3"):
    rope.turn(x, x, table[..., :3], table[..., :3], impl="pallas_gpu")
  with pytest.raises(NotImplementedError, match="no interleaved channels"):
    rope.turn(x, x, table, table, True, "pallas_tpu")

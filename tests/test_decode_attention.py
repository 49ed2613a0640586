"""Decode attention: by hand, beside the last row of causal attention, and every implementation beside the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import CALLS, lowered
from tpu_topology import topology

from r1jax.kernels import decode_attention as op
from r1jax.kernels.decode_attention import (
  cache,
  cases,
  decode_attention,
  decode_latent_attention,
  pallas_gpu,
  pallas_tpu,
  xla,
)
from r1jax.kernels.decode_attention import quantise as _quantise
from r1jax.models import attention

F8 = jnp.float8_e4m3fn
quantise = jax.jit(_quantise, static_argnums=(1, 2))


def inputs(N=6, B=2, S=1, H=6, K=2, C=16, E=16, P=5, A=7, query=jnp.float32, kept=jnp.float32, seed=0):
  """(q, prompt, prompt_length_B, own, sees_NSA): prompts of every length, holes among the columns."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  pair = lambda rows, T: part(draw(rows, K, C, T), draw(rows, K, T, E), kept)
  length_B = jnp.asarray(rng.integers(0, P + 1, B).tolist()[1:] + [P], jnp.int32)
  sees_NSA = rng.random((N, S, A)) < 0.6
  sees_NSA[..., 0] |= ~sees_NSA.any(-1)
  return draw(N, S, H, C).astype(query), pair(B, P), length_B, pair(N, A), jnp.asarray(sees_NSA)


def latent_inputs(N=6, B=2, S=1, H=4, X=24, P=5, A=7, query=jnp.float32, kept=jnp.float32):
  q, (k, _, *_), length_B, (own_k, _, *_), sees_NSA = inputs(N, B, S, H, 1, X, 1, P, A, query)
  keep = lambda k: quantise(k[:, 0].swapaxes(1, 2), kept, 2) if kept in (jnp.int8, F8) else \
      k[:, 0].swapaxes(1, 2).astype(kept)
  return q, keep(k), length_B, keep(own_k), sees_NSA


def part(k, v, kept):
  if kept not in (jnp.int8, F8):
    return k.astype(kept), v.astype(kept)
  (k, k_scale), (v, v_scale) = quantise(k, kept, 2), quantise(v, kept, 3)
  return k, v, k_scale, v_scale


def close(mine, theirs, tolerance):
  mine, theirs = (np.asarray(x, np.float32) for x in (mine, theirs))
  assert mine.shape == theirs.shape and np.isfinite(mine).all()
  np.testing.assert_allclose(mine, theirs, atol=tolerance * np.abs(theirs).max())


def test_a_query_of_zeros_takes_the_mean_of_what_it_sees():
  """Prompt tokens 1 and 2 of three, own columns 0 and 2 of three: (1 + 2 + 10 + 30) / 4."""
  q = jnp.zeros((1, 1, 1, 4))
  prompt = jnp.ones((1, 1, 4, 3)), jnp.array([1., 2., 99.]).reshape(1, 1, 3, 1)
  own = jnp.ones((1, 1, 4, 3)), jnp.array([10., 99., 30.]).reshape(1, 1, 3, 1)
  sees_NSA = jnp.array([[[True, False, True]]])
  for impl in (None, "ref", "xla"):
    assert float(decode_attention(q, prompt, jnp.array([2]), own, sees_NSA, impl).squeeze()) == 10.75
    assert float(decode_attention(q, prompt, jnp.array([0]), own, sees_NSA, impl).squeeze()) == 20
    nothing = jnp.zeros_like(sees_NSA)
    assert float(decode_attention(q, prompt, jnp.array([2]), own, nothing, impl).squeeze()) == 1.5


@pytest.mark.parametrize("S", [1, 3])
def test_decode_steps_are_the_last_rows_of_causal_attention(S):
  """Prompt of 5 tokens, answer of 7: its last S tokens as decode steps of the same keys and values."""
  P, A, H, K, C = 5, 7, 6, 2, 8
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  prompt_k, prompt_v, k, v = draw(2, K, P, C), draw(2, K, P, C), draw(4, K, A, C), draw(4, K, A, C)
  q_NTHC = draw(4, P + A, H, C)
  behind = lambda a, b: jnp.concatenate([jnp.repeat(a, 2, axis=0), b], axis=2)
  whole = attention.KV(behind(prompt_k, k), behind(prompt_v, v))
  want, _ = attention.causal(q_NTHC, whole)
  sees_NSA = jnp.broadcast_to(jnp.arange(A) <= jnp.arange(A - S, A)[:, None], (4, S, A))
  for impl in ("ref", "xla"):
    out = decode_attention(q_NTHC[:, -S:], (prompt_k.swapaxes(2, 3), prompt_v), jnp.array([P, P]),
                           (k.swapaxes(2, 3), v), sees_NSA, impl)
    close(out, want[:, -S:], 1e-6)


DTYPES = [(jnp.float32, jnp.float32, 2e-6), (jnp.float32, jnp.bfloat16, 2e-6), (jnp.bfloat16, jnp.bfloat16, 1.5e-2),
          (jnp.float32, jnp.int8, 2e-6), (jnp.float32, F8, 2e-6), (jnp.bfloat16, jnp.int8, 1e-2)]
SHAPES = [dict(), dict(S=3), dict(N=2, B=2, H=2, E=8), dict(N=8, B=1, S=2, H=3, K=1, C=5, E=3, P=1, A=1)]
LATENTS = [dict(), dict(S=3, N=4, H=3), dict(N=2, B=2, X=9, P=1, A=1)]


def both_chunks(monkeypatch, run, want, tolerance):
  """Widened whole, and row by row."""
  close(jax.jit(run)(), want, tolerance)
  monkeypatch.setattr(xla, "CHUNK", 1)
  close(jax.jit(lambda: run())(), want, tolerance)


@pytest.mark.parametrize("query, kept, tolerance, shape", [(*d, s) for d in DTYPES[:2] for s in SHAPES]
                         + [(*d, SHAPES[1]) for d in DTYPES[2:]])
def test_xla_computes_the_reference(query, kept, tolerance, shape, monkeypatch):
  args = inputs(**shape, query=query, kept=kept)
  want = decode_attention(*args, "ref")
  assert want.dtype == query
  q, prompt, length_B, own, sees_NSA = args
  args = q, cache.Part(*prompt), length_B, cache.Part(*own), sees_NSA
  both_chunks(monkeypatch, lambda: xla.decode_attention(*args), want, tolerance)


@pytest.mark.parametrize("query, kept, tolerance, shape", [(*DTYPES[0], s) for s in LATENTS]
                         + [(*d, LATENTS[1]) for d in DTYPES[1:]])
def test_xla_computes_the_reference_of_latents(query, kept, tolerance, shape, monkeypatch):
  args = latent_inputs(**shape, query=query, kept=kept)
  want = decode_latent_attention(*args, 8, "ref")
  assert want.dtype == query and want.shape[3] == 8
  q, prompt, length_B, own, sees_NSA = args
  args = q, cache.latents("", prompt), length_B, cache.latents("", own), sees_NSA
  both_chunks(monkeypatch, lambda: xla.decode_latent_attention(*args, 8), want, tolerance)


@pytest.mark.parametrize("impl", ["ref", "xla"])
def test_what_is_not_seen_changes_nothing(impl):
  q, (k, v), length_B, (own_k, own_v), sees_NSA = inputs(S=1)
  want = decode_attention(q, (k, v), length_B, (own_k, own_v), sees_NSA, impl)
  hidden_N1A = ~sees_NSA
  beyond_BP = jnp.arange(k.shape[3]) >= length_B[:, None]
  spoil = lambda x, where: jnp.where(where, 1e4, x)
  prompt = spoil(k, beyond_BP[:, None, None]), spoil(v, beyond_BP[:, None, :, None])
  own = spoil(own_k, hidden_N1A[:, None]), spoil(own_v, hidden_N1A[:, 0, None, :, None])
  np.testing.assert_array_equal(decode_attention(q, prompt, length_B, own, sees_NSA, impl), want)


def test_latents_are_one_key_head_whose_value_is_part_of_its_key():
  q, prompt, length_B, own, sees_NSA = latent_inputs()
  as_heads = lambda x: (x[:, None].swapaxes(2, 3), x[:, None, :, :8])
  want = decode_attention(q, as_heads(prompt), length_B, as_heads(own), sees_NSA)
  close(decode_latent_attention(q, prompt, length_B, own, sees_NSA, 8), want, 1e-6)


def test_8_bit_numbers_are_within_their_bounds():
  """Half a step of int8; of float8 a sixteenth of the number, or of its smallest steps."""
  sizes = 10.0 ** np.arange(-8, 8)[:, None, None]
  x = jnp.asarray(np.random.default_rng(0).standard_t(3, size=(16, 8, 16)) * sizes, jnp.float32)
  for axis in (1, 2):
    q, scale = quantise(x, jnp.int8, axis)
    wide = jnp.expand_dims(scale, axis)
    assert q.dtype == jnp.int8 and scale.dtype == jnp.float32 and scale.shape == jnp.squeeze(wide, axis).shape
    assert (jnp.abs(q * wide - x) <= 0.5001 * wide).all() and (jnp.abs(q).max(axis) == 127).all()
    q, scale = quantise(x, F8, axis)
    wide = jnp.expand_dims(scale, axis)
    error = jnp.abs(q.astype(jnp.float32) * wide - x)
    assert (error <= jnp.maximum(jnp.abs(x) / 16, wide / 1024) * 1.0001).all()
    assert (jnp.abs(q.astype(jnp.float32)).max(axis) == 448).all()


def test_numbers_that_8_bits_hold_come_back_exactly():
  q, scale = quantise(jnp.array([[-127., 3, 0, 64]]), jnp.int8, 1)
  assert q.tolist() == [[-127, 3, 0, 64]] and scale.tolist() == [1]
  q, scale = quantise(jnp.array([[448., -26, 2**-9, 0]]), F8, 1)
  assert q.astype(jnp.float32).tolist() == [[448, -26, 2**-9, 0]] and scale.tolist() == [1]
  for dtype in (jnp.int8, F8):
    for x in (jnp.zeros((2, 4)), jnp.full((2, 4), 1e-40), jnp.zeros((2, 4), jnp.bfloat16)):
      q, scale = quantise(x, dtype, 1)
      assert not q.astype(jnp.float32).any() and scale.tolist() == [1, 1]
  with pytest.raises(ValueError, match="dtype=uint8 is none of"):
    quantise(jnp.zeros((2, 4)), jnp.uint8, 1)


def test_every_number_of_8_bits_and_bf16_is_widened_exactly():
  every = jax.lax.bitcast_convert_type(jnp.arange(256, dtype=jnp.uint8), F8)
  finite = jnp.isfinite(every.astype(jnp.float32))
  bits, widen = xla._widener(every)
  np.testing.assert_array_equal(jax.jit(widen)(bits)[finite], every.astype(jnp.float32)[finite])
  x = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.bfloat16)
  bits, widen = xla._widener(x)
  np.testing.assert_array_equal(jax.jit(widen)(bits), x.astype(jnp.float32))


@pytest.mark.parametrize("impl", [None, *op.IMPLS])
def test_there_is_no_gradient_and_it_says_so(impl):
  args, latents = inputs(), latent_inputs()
  with pytest.raises(NotImplementedError, match="decode attention has no gradient"):
    jax.grad(lambda q: decode_attention(q, *args[1:], impl).sum())(args[0])
  with pytest.raises(NotImplementedError, match="decode attention has no gradient"):
    jax.grad(lambda q: decode_latent_attention(q, *latents[1:], 8, impl).sum())(latents[0])


def test_wrong_callers_are_told_the_numbers():
  q, prompt, length_B, own, sees_NSA = inputs()
  small = inputs(kept=jnp.int8)
  with pytest.raises(ValueError, match="impl='best' is none of"):
    decode_attention(q, prompt, length_B, own, sees_NSA, "best")
  with pytest.raises(ValueError, match="6 rows are not a multiple of 4 prompts"):
    decode_attention(q, inputs(N=4, B=4)[1], length_B, own, sees_NSA)
  with pytest.raises(ValueError, match=r"own k is \(6, 2, 16, 7\), not \(6, 2, 16, 8\)"):
    decode_attention(q, prompt, length_B, (own[0], inputs(A=8)[3][1]), sees_NSA)
  with pytest.raises(ValueError, match=r"sees_NSA is bool \(6, 1, 7\), not bool \(6, 2, 7\)"):
    decode_attention(inputs(S=2)[0], prompt, length_B, own, sees_NSA)
  with pytest.raises(ValueError, match="prompt k is int8, with no scale"):
    decode_attention(q, small[1][:2], length_B, own, sees_NSA)
  with pytest.raises(ValueError, match="own k is float32, and needs no scale"):
    decode_attention(q, prompt, length_B, (*own, *small[3][2:]), sees_NSA)
  with pytest.raises(ValueError, match="prompt k is float32 and v bfloat16"):
    decode_attention(q, (prompt[0], prompt[1].astype(jnp.bfloat16)), length_B, own, sees_NSA)
  with pytest.raises(ValueError, match="kv_rank=25 must be within 1 and the latents' 24 channels"):
    decode_latent_attention(*latent_inputs(), 25)


# --- the kernels

KERNELS = pytest.mark.parametrize("kernel", [pallas_gpu, pallas_tpu], ids=lambda m: m.__name__.split(".")[-1])
TABLE = [             # models' heads scaled down, lengths that fill no block; 3 tokens make 96 queries of a prompt
  (jnp.bfloat16, jnp.bfloat16, 1.5e-2, dict(N=8, B=1, H=8, K=2, C=32, E=32, P=70, A=150, S=3)),
  (jnp.float32, jnp.bfloat16, 2e-6, dict(N=4, B=2, H=7, K=1, C=20, E=12, P=130, A=257)),
  (jnp.bfloat16, jnp.int8, 1.5e-2, dict(N=4, B=2, H=6, K=2, C=32, E=32, P=33, A=200)),
  (jnp.float32, F8, 3e-6, dict(N=2, B=1, H=3, K=3, C=64, E=64, P=1, A=1, S=2)),
]
LATENT_TABLE = [
  (jnp.bfloat16, jnp.bfloat16, 1.5e-2, dict(N=4, B=2, H=16, X=40, P=70, A=150, S=2)),
  (jnp.float32, jnp.int8, 3e-6, dict(N=2, B=2, H=5, X=32, P=33, A=130)),
]


@pytest.fixture
def small(monkeypatch):
  """Several parts of the length, of several blocks each, and several blocks of queries."""
  monkeypatch.setattr(pallas_gpu, "PROGRAMS", 16)
  monkeypatch.setattr(pallas_gpu, "TILE_BYTES", 2048)
  monkeypatch.setattr(pallas_gpu, "LATENT_TILE_BYTES", 2048)
  for name in ("BLOCK_BYTES", "OUT_BYTES"):
    monkeypatch.setattr(pallas_tpu, name, 1)


@KERNELS
@pytest.mark.parametrize("query, kept, tolerance, shape", TABLE)
def test_kernels_compute_the_reference(kernel, query, kept, tolerance, shape, small):
  q, prompt, length_B, own, sees_NSA = inputs(**shape, query=query, kept=kept)
  want = decode_attention(q, prompt, length_B, own, sees_NSA, "ref")
  out = jax.jit(lambda: kernel.decode_attention(q, cache.Part(*prompt), length_B, cache.Part(*own), sees_NSA,
                                                interpret=True))()
  assert out.dtype == query
  close(out, want, tolerance)


@KERNELS
@pytest.mark.parametrize("query, kept, tolerance, shape", LATENT_TABLE)
def test_kernels_compute_the_reference_of_latents(kernel, query, kept, tolerance, shape, small):
  kv_rank = 32
  q, prompt, length_B, own, sees_NSA = latent_inputs(**shape, query=query, kept=kept)
  want = decode_latent_attention(q, prompt, length_B, own, sees_NSA, kv_rank, "ref")
  out = jax.jit(lambda: kernel.decode_latent_attention(q, cache.latents("", prompt), length_B, cache.latents("", own),
                                                       sees_NSA, kv_rank, interpret=True))()
  assert out.dtype == query
  close(out, want, tolerance)


@KERNELS
def test_kernels_read_nothing_beyond_what_is_seen(kernel, small):
  """Rows that see different lengths, none of their own or none of the prompt; beyond it stands nan."""
  q, (k, v), _, (own_k, own_v), _ = inputs(N=2, B=2, P=128, A=256)
  last_N1A, column = jnp.array([0, 100]).reshape(2, 1, 1), jnp.arange(256)
  sees_NSA, length_B = jnp.broadcast_to(column < last_N1A, (2, 1, 256)), jnp.array([40, 0])
  want = decode_attention(q, (k, v), length_B, (own_k, own_v), sees_NSA, "ref")
  beyond_NA = column >= 128 * -(-last_N1A[:, 0] // 128)              # blocks are of 128 columns at most
  spoil = lambda x, where: jnp.where(where, jnp.nan, x)
  own = spoil(own_k, beyond_NA[:, None, None]), spoil(own_v, beyond_NA[:, None, :, None])
  run = jax.jit(lambda: kernel.decode_attention(q, cache.Part(k, v), length_B, cache.Part(*own), sees_NSA,
                                                interpret=True))
  close(run(), want, 2e-6)


def shapes(case):
  """The case's arguments, abstract."""
  statics = {}

  def arrays(key):
    made = case.make(key)
    statics.update((name, made.pop(name)) for name in ("kv_rank",) if name in made)
    return made
  return jax.eval_shape(arrays, jax.random.key(0)), statics


REAL = [(decode_attention, c) for c in cases.cases()] + [(decode_latent_attention, c) for c in cases.latent_cases()]
REAL = pytest.mark.parametrize("f, case", REAL, ids=lambda x: getattr(x, "name", ""))


@REAL
def test_it_lowers_for_gpu_and_tpu_at_full_size_without_one(f, case):
  arrays, statics = shapes(case)
  for platform in ("cuda", "tpu", "cpu"):
    text = lowered(lambda kw: f(**kw, **statics), platform, arrays)
    assert text.count(CALLS[platform]) == (0 if platform == "cpu" else 2)


def test_small_cases_are_what_the_op_takes():
  for f, all_cases in ((decode_attention, cases.cases()), (decode_latent_attention, cases.latent_cases())):
    case = next(c for c in all_cases if c.small)
    both = jax.jit(lambda key, f=f, case=case: [f(**case.make(key), impl=impl) for impl in ("xla", "ref")])
    close(*both(jax.random.key(0, impl="unsafe_rbg")), case.tolerance)


@pytest.mark.parametrize("chip, f, case", [
  ("v5e:2x2", decode_attention, 0), ("v5p:2x2x1", decode_attention, 2), ("v6e:2x2", decode_attention, 3),
  ("v5e:2x2", decode_attention, 4), ("v5e:2x2", decode_attention, 5), ("v5e:2x2", decode_attention, 6),
  ("v5e:2x2", decode_latent_attention, 1), ("v6e:2x2", decode_latent_attention, 2),
  ("v5p:2x2x1", decode_latent_attention, 3)])
@pytest.mark.slow
def test_the_tpus_compiler_takes_it_and_copies_no_cache(chip, f, case):
  """In a loop that carries the cache, as a sampler does; before it, a cache of narrow heads may change its layout."""
  heads = f is decode_attention
  arrays, statics = shapes((cases.cases() if heads else cases.latent_cases())[case])
  q_name, own_name = ("q_NSHC", "own") if heads else ("q_NSHX", "own_NAX")
  placed = jax.sharding.SingleDeviceSharding(topology(chip)[0])
  arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), arrays)

  def steps(kw):
    def body(t, carry):
      own, q = carry
      own = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(t.astype(x.dtype)), own)
      out = f(**kw | {own_name: own, q_name: q}, **statics)
      return own, q.at[..., :out.shape[3]].add(out)
    return jax.lax.fori_loop(0, 4, body, (kw[own_name], kw[q_name]))[1]
  text = jax.jit(steps).lower(arrays).compile().as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 2
  loop = text.split("\nENTRY")[0]
  large = "[" + ",".join(map(str, jax.tree.leaves(arrays[own_name])[0].shape)) + "]"
  assert large in loop
  assert not [line for line in loop.splitlines() if " copy" in line and large in line.split(" copy")[0]]

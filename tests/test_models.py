"""The decoder against a plain numpy one, and what must hold of any."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import token_logprobs, weights

from r1jax import losses
from r1jax.models import layers, param, rope, transformer
from r1jax.models.remat import REMAT
from r1jax.models.rope import RopeConfig
from r1jax.models.transformer import ModelConfig

MODEL = ModelConfig(vocab=23, dim=16, layers=3, heads=4, kv_heads=2, ffn=24, head_dim=6, logit_chunk=8)


def tokens(N=3, T=9, seed=0):
  return np.random.default_rng(seed).integers(0, MODEL.vocab, (N, T)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=1)
def forward(p, model, token_NT):
  N, T = token_NT.shape
  return transformer.forward(p, model, token_NT, jnp.broadcast_to(jnp.arange(T), (N, T)))[0]


def hidden(p, model, token_NT):
  return np.asarray(forward(p, model, token_NT))


def numpy_decoder(p, model, token_T):
  """One sequence, f64, a loop over layers, heads and tokens."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
  norm = lambda x, scale: x / np.sqrt((x**2).mean() + model.norm_eps) * scale
  half = model.head_dim // 2

  def rotate(x, position):
    turned = [(x[i] + 1j * x[i + half]) * np.exp(1j * position * model.rope.theta ** (-i / half)) for i in range(half)]
    return np.array([z.real for z in turned] + [z.imag for z in turned])

  xs = [p["embed"][t] for t in token_T]
  for l in range(model.layers):
    w = jax.tree.map(lambda x, l=l: x[l], p["layers"])
    a, keys, values = w["attention"], [], []
    for t, x in enumerate(xs):
      h = norm(x, w["attention_norm"])
      keys.append([rotate(h @ a["k"][:, k], t) for k in range(model.kv_heads)])
      values.append([h @ a["v"][:, k] for k in range(model.kv_heads)])
      out = np.zeros(model.dim)
      for head in range(model.heads):
        k = head // (model.heads // model.kv_heads)
        q = rotate(h @ a["q"][:, head], t)
        score = np.array([q @ keys[s][k] for s in range(t + 1)]) / np.sqrt(model.head_dim)
        share = np.exp(score - score.max())
        share /= share.sum()
        out += sum(share[s] * values[s][k] for s in range(t + 1)) @ a["out"][head]
      x = x + out
      h = norm(x, w["ffn_norm"])
      gate = h @ w["ffn"]["gate"]
      xs[t] = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn"]["up"])) @ w["ffn"]["down"]
  return np.array([norm(x, p["final_norm"]) for x in xs])


@pytest.mark.parametrize("change", [dict(), dict(kv_heads=1), dict(kv_heads=4, head_dim=4),
                                    dict(rope=RopeConfig(theta=100.0)),
                                    dict(tied_head=False, layers=1)])
def test_forward_agrees_with_a_numpy_decoder(change):
  model = dataclasses.replace(MODEL, **change)
  p, token_NT = weights(model), tokens()
  want = np.array([numpy_decoder(p, model, row) for row in token_NT])
  np.testing.assert_allclose(hidden(p, model, token_NT), want, rtol=1e-5, atol=1e-5)


def test_the_head_is_the_transposed_embedding_or_a_weight_of_its_own():
  p = weights(MODEL)
  np.testing.assert_array_equal(transformer.head(p), np.swapaxes(p["embed"], 0, 1))
  untied = weights(dataclasses.replace(MODEL, tied_head=False))
  assert transformer.head(untied) is untied["head"] and untied["head"].shape == (MODEL.dim, MODEL.vocab)


def test_a_token_changes_nothing_before_itself():
  p, token_NT = weights(MODEL), tokens()
  before = hidden(p, MODEL, token_NT)
  for t in range(token_NT.shape[1]):
    other = token_NT.copy()
    other[:, t] = (other[:, t] + 1) % MODEL.vocab
    after = hidden(p, MODEL, other)
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert (np.abs(after[:, t:] - before[:, t:]).max(axis=(0, 2)) > 1e-4).all()       # and all after itself


def test_log_prob_of_a_token_does_not_depend_on_what_follows_it():
  p, token_NT = weights(MODEL), tokens()
  both = jax.jit(token_logprobs, static_argnums=1)
  logp_NT, entropy_NT = both(p, MODEL, token_NT)
  for T in (2, 5):
    short_logp_NT, short_entropy_NT = both(p, MODEL, token_NT[:, :T])
    np.testing.assert_allclose(short_logp_NT, logp_NT[:, :T], atol=1e-5)
    np.testing.assert_allclose(short_entropy_NT, entropy_NT[:, :T], atol=1e-5)
  assert not np.asarray(logp_NT)[:, 0].any()


def test_grouped_queries_are_many_heads_with_repeated_keys_and_values():
  p, token_NT = weights(MODEL), tokens()
  many = dataclasses.replace(MODEL, kv_heads=MODEL.heads)
  attention = dict(p["layers"]["attention"])
  for name in "kv":
    attention[name] = jnp.repeat(attention[name], MODEL.heads // MODEL.kv_heads, axis=2)     # [L, D, K, C]
  repeated = p | {"layers": p["layers"] | {"attention": attention}}
  np.testing.assert_allclose(hidden(repeated, many, token_NT), hidden(p, MODEL, token_NT), atol=1e-5)


def test_rope_scores_depend_on_the_distance_alone():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
  turn = lambda x, position: rope.turn(x, rope.table(RopeConfig(100.0), jnp.array([[position]]), 8))
  score = lambda i, j: float(jnp.vdot(turn(q, i), turn(k, j)))
  for i, j in ((5, 2), (9, 1), (3, 3)):
    assert score(i, j) == pytest.approx(score(i + 17, j + 17), abs=1e-4)
  assert abs(score(5, 2) - score(2, 5)) > 1e-2                                    # the direction counts
  np.testing.assert_array_equal(turn(q, 0), q)
  np.testing.assert_allclose(jnp.linalg.norm(turn(q, 40)), jnp.linalg.norm(q), rtol=1e-5)


def test_rope_by_hand():
  # two channels: one pair, frequency 1; position 2 turns by 2 radians
  by = rope.table(RopeConfig(), jnp.array([[2]]), 2)
  np.testing.assert_allclose(rope.turn(jnp.array([[[[1.0, 0.0]]]]), by)[0, 0, 0], [np.cos(2), np.sin(2)], rtol=1e-6)


def test_rope_lookup_is_the_table_of_those_positions_and_nan_beyond_it():
  every = rope.table(RopeConfig(100.0), jnp.arange(9)[None], 8)
  position_N1 = jnp.array([[3], [0], [8]])
  for a, b in zip(rope.lookup(every, position_N1), rope.table(RopeConfig(100.0), position_N1, 8), strict=True):
    np.testing.assert_array_equal(a, b)
  assert np.isnan(rope.lookup(every, jnp.array([[9]])).cos).all()


def test_rms_norm_by_hand_in_f32_whatever_the_type():
  np.testing.assert_allclose(layers.rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0]), 0.0),
                             [3 / 12.5**0.5, 8 / 12.5**0.5], rtol=1e-6)
  large = layers.rms_norm(jnp.array([3e3, 4e3], jnp.float16), jnp.ones(2, jnp.float16), 0.0)    # squares overflow f16
  assert large.dtype == jnp.float16
  np.testing.assert_allclose(large, [0.8485, 1.1314], rtol=2e-3)


def test_linear_is_an_einsum():
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(4, 5, 6))
  np.testing.assert_allclose(layers.linear(jnp.asarray(x), jnp.asarray(w), axes=2), np.einsum("nthc,hcd->ntd", x, w),
                             rtol=1e-4, atol=1e-5)
  w = rng.normal(size=(5, 6, 2))
  np.testing.assert_allclose(layers.linear(jnp.asarray(x), jnp.asarray(w)), np.einsum("nthd,dkc->nthkc", x, w),
                             rtol=1e-4, atol=1e-5)


def test_the_order_of_layers_matters():
  p = weights(MODEL)
  swapped = p | {"layers": jax.tree.map(lambda x: x[jnp.array([1, 0, 2])], p["layers"])}
  assert np.abs(hidden(swapped, MODEL, tokens()) - hidden(p, MODEL, tokens())).max() > 1e-2


@pytest.mark.slow
def test_remat_changes_neither_loss_nor_gradients():
  p, token_NT = weights(MODEL), tokens()

  def loss_and_grads(remat):
    model = dataclasses.replace(MODEL, remat=remat)
    loss = lambda p: losses.cross_entropy(token_logprobs(p, model, token_NT)[0], jnp.ones(token_NT.shape)).value()
    return jax.jit(jax.value_and_grad(loss))(p)

  first, *others = map(loss_and_grads, REMAT)
  assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(first[1]))      # every weight has a part
  for other in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_shapes_counts_and_axes_agree_with_the_initial_values(dtype, tied_head):
  model = dataclasses.replace(MODEL, dtype=dtype, tied_head=tied_head)
  declared = transformer.params(model)
  values = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  abstract = param.abstract(declared, jnp.dtype(dtype))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), values)
  assert param.count(declared) == sum(x.size for x in jax.tree.leaves(values))
  for p in jax.tree.leaves(declared, is_leaf=param.is_param):
    assert len(p.axes) == len(p.shape)


def test_parameter_count_by_hand():
  D, H, K, C, F, V, L = 16, 4, 2, 6, 24, 23, 3
  assert param.count(transformer.params(MODEL)) == V * D + D + L * (2 * D + 2 * D * H * C + 2 * D * K * C + 3 * D * F)


def test_initial_values_differ_between_weights_and_keys_and_survive_a_new_neighbour():
  tree = {name: param.Param((4, 4), (None, None), param.normal(1)) for name in "ab"}
  first, other = param.init(tree, jax.random.key(0)), param.init(tree, jax.random.key(1))
  assert (first["a"] != first["b"]).any() and (first["a"] != other["a"]).any()
  more = param.init({"0": param.Param((2,), (None,), param.ones)} | tree, jax.random.key(0))
  np.testing.assert_array_equal(more["b"], first["b"])
  stacked = param.init(param.stack(tree, 2), jax.random.key(0))["a"]
  assert (stacked[0] != stacked[1]).any()


def test_bf16_hidden_states_are_near_those_of_f32():
  p = weights(MODEL)
  narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), p)
  half = hidden(narrow, dataclasses.replace(MODEL, dtype="bfloat16"), tokens())
  assert half.dtype == jnp.bfloat16
  assert np.abs(half.astype(np.float32) - hidden(p, MODEL, tokens())).mean() < 0.05


@pytest.mark.parametrize(("wrong", "named"), [
  (dict(vocab=0), "vocab=0"), (dict(layers=-1), "layers=-1"), (dict(logit_chunk=0), "logit_chunk=0"),
  (dict(heads=3), "heads=3 must be a multiple of kv_heads=2"), (dict(head_dim=0, dim=18), "dim=18"),
  (dict(head_dim=5), "head_dim=5 must be even"), (dict(head_dim=0, dim=12), "head_dim=3 must be even"),
  (dict(remat="all"), "'all' is none of"), (dict(dtype="int8"), "'int8' is none of")])
def test_config_errors_name_the_numbers(wrong, named):
  with pytest.raises(ValueError) as error:
    dataclasses.replace(MODEL, **wrong)
  assert named in str(error.value)


def test_head_dim_is_filled_in():
  assert dataclasses.replace(MODEL, head_dim=0).head_dim == 4

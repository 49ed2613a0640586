"""The router by hand, three ways to run experts, replay, loads, drops, the bias rule and the balance loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import weights

from r1jax import drawing, grpo, optimizer, rollout, tokenizer, train
from r1jax.models import moe, mtp, transformer
from r1jax.models.deepseek import PRESETS
from r1jax.models.moe import MoEConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.sampler import SampleConfig
from r1jax.stages import reasoning_rl
from r1jax.types import Problem

MODEL = dataclasses.replace(PRESETS["deepseek-tiny"], vocab=257, dim=32, ffn=48, layers=2, mtp=0,
                            moe=dataclasses.replace(PRESETS["deepseek-tiny"].moe, ffn=24))


def layer(model=MODEL):
  return jax.tree.map(lambda x: x[0], weights(model)["moe_layers"]["moe"])


def hidden(N=3, T=7, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(N, T, MODEL.dim)), jnp.float32)


def with_moe(**changes):
  return dataclasses.replace(MODEL, moe=dataclasses.replace(MODEL.moe, **changes))


def test_v3s_selection_by_hand():
  """8 experts, 4 groups, 2 kept, top 2; the groups' two best sum to .9 .9 .85 1.1, with the bias .9 .9 1.45 1.1."""
  cfg = MoEConfig(experts=8, top_k=2, ffn=1, groups=4, top_groups=2, scale=2.5)
  score_E = jnp.array([.8, .1, .5, .4, .05, .8, .6, .5])
  assert sorted(moe.select(cfg, score_E, jnp.zeros(8)).tolist()) == [0, 6]        # groups 3 and 0 (the first of a tie)
  bias_E = jnp.zeros(8).at[4].set(.6)
  chosen = moe.select(cfg, score_E, bias_E)                                       # groups 2 and 3
  assert sorted(chosen.tolist()) == [4, 5]
  weight = dict(zip(chosen.tolist(), moe.weights(cfg, score_E, chosen).tolist(), strict=True))
  assert weight[4] == pytest.approx(2.5 * .05 / .85) and weight[5] == pytest.approx(2.5 * .8 / .85)   # without the bias
  raw = dataclasses.replace(cfg, normalise=False)
  assert moe.weights(raw, score_E, jnp.array([5, 6])).tolist() == pytest.approx([2., 1.5])


@pytest.mark.parametrize("change", [dict(), dict(shared=0), dict(score="softmax", groups=1, top_groups=1, bias=False),
                                    dict(top_k=1)])
def test_dropless_and_ample_capacity_are_the_dense_oracle(change):
  x_NTD, outs = hidden(), {}
  p = layer(with_moe(**change))
  for dispatch in moe.DISPATCH:
    model = with_moe(**change, dispatch=dispatch, capacity_factor=16.0)
    g_NTD = hidden(seed=1)
    loss = lambda p, x, model=model, g=g_NTD: (lambda y: (jnp.vdot(y, g), y))(moe.block(p, model, x)[0])
    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(p, x_NTD)
    outs[dispatch] = out, grads
  assert float(jnp.abs(outs["dense"][0]).max()) > 0.1
  for dispatch in ("dropless", "capacity"):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), outs[dispatch], outs["dense"])


def test_capacity_drops_the_tokens_that_come_last_and_counts_them():
  cfg = MoEConfig(experts=2, top_k=1, ffn=24, shared=0, capacity_factor=1.0)
  p, x_MD = layer(), hidden(1, 4)[0]
  p = {k: p[k][:2] for k in ("gate", "up", "down")}
  expert_Mk, weight_Mk = jnp.array([[0], [0], [0], [1]]), jnp.ones((4, 1))       # room for 2 each
  out_MD, dropped = moe.with_capacity(p, cfg, x_MD, expert_Mk, weight_Mk)
  whole_MD, none = moe.dense(p, cfg, x_MD, expert_Mk, weight_Mk)
  assert (float(dropped), float(none)) == (1.0, 0.0)
  np.testing.assert_allclose(out_MD[jnp.array([0, 1, 3])], whole_MD[jnp.array([0, 1, 3])], atol=1e-5)
  assert not np.asarray(out_MD[2]).any()


def test_tokens_of_a_capacity_group_share_room_among_themselves():
  cfg = MoEConfig(experts=4, top_k=2, ffn=24, shared=0, capacity_factor=1.0, capacity_group=4)
  p = {k: layer()[k][:4] for k in ("gate", "up", "down")}
  x_MD, rng = hidden(1, 10)[0], np.random.default_rng(0)
  expert_Mk = jnp.asarray([rng.permutation([0, 0, 1, 2, 3])[:2] for _ in range(10)])
  weight_Mk = jnp.asarray(rng.uniform(size=(10, 2)), jnp.float32)
  out_MD, dropped = moe.with_capacity(p, cfg, x_MD, expert_Mk, weight_Mk)
  parts = [moe.with_capacity(p, cfg, x_MD[at], expert_Mk[at], weight_Mk[at])
           for at in (slice(0, 4), slice(4, 8))]
  assert float(dropped) >= sum(float(d) for _, d in parts) > 0
  np.testing.assert_allclose(out_MD[:8], np.concatenate([out for out, _ in parts]), atol=1e-5)
  all_MD, _ = moe.with_capacity(p, dataclasses.replace(cfg, capacity_group=0), x_MD, expert_Mk, weight_Mk)
  assert float(jnp.abs(all_MD - out_MD).max()) > 0.01


def test_loads_leave_padding_out_and_metrics_name_the_busiest():
  x_NTD = hidden()
  mask_NT = jnp.ones((3, 7)).at[:, 4:].set(0)
  _, routing = moe.block(layer(), MODEL, x_NTD, mask_NT=mask_NT)
  want_E = np.bincount(np.asarray(routing.expert_NTk)[:, :4].reshape(-1), minlength=16)
  np.testing.assert_array_equal(routing.load_E, want_E)
  stacked = jax.tree.map(lambda x: jnp.stack([x, x]), routing)
  metrics = moe.metrics(stacked)
  assert float(metrics["router_busiest"].value()) == pytest.approx(want_E.max() / want_E.mean())
  assert float(metrics["router_dropped"].value()) == 0 and moe.metrics(None) == {}


def test_bias_rule_evens_the_loads_out():
  """V3 section 2.1.2: down when overloaded, up when not; after some hundred steps the busiest expert is less busy."""
  np.testing.assert_allclose(moe.update_bias(jnp.zeros(3), jnp.array([6., 3., 0.]), .001), [-.001, 0, .001])
  p, busiest = dict(layer()), []
  step = jax.jit(lambda p, x: moe.block(p, MODEL, x)[1].load_E)
  for i in range(150):
    load_E = step(p, hidden(4, 16, seed=i % 5))
    busiest.append(float(load_E.max() / load_E.mean()))
    p["selection_bias"] = moe.update_bias(p["selection_bias"], load_E, 0.01)
  assert np.mean(busiest[-10:]) < 0.75 * np.mean(busiest[:3])


def test_balance_loss_by_hand():
  cfg = MoEConfig(experts=4, top_k=2, ffn=1)
  even = moe.sequence_balance(cfg, jnp.full((2, 4), .5), jnp.array([[1., 1, 0, 0], [0, 0, 1, 1]]), jnp.ones(2))
  assert float(even) == pytest.approx(1.0)
  # all on experts 0 and 1, scores .9 .9 .1 .1: f = (2, 2, 0, 0), P = (.45, .45, .05, .05)
  score_TE, chosen_TE = jnp.array([[.9, .9, .1, .1]] * 2), jnp.array([[1., 1, 0, 0]] * 2)
  assert float(moe.sequence_balance(cfg, score_TE, chosen_TE, jnp.ones(2))) == pytest.approx(1.8)
  padded = moe.sequence_balance(cfg, jnp.pad(score_TE, ((0, 3), (0, 0)), constant_values=.7),
                                jnp.pad(chosen_TE, ((0, 3), (0, 0))), jnp.array([1., 1, 0, 0, 0]))
  assert float(padded) == pytest.approx(1.8)


def test_replayed_experts_are_used_and_the_router_still_learns():
  x_NTD, p = hidden(), layer()
  free = jax.jit(lambda p: moe.block(p, MODEL, x_NTD))
  replayed = jax.jit(lambda p, experts: moe.block(p, MODEL, x_NTD, experts))
  own_NTD, routing = free(p)
  other_NTk = (routing.expert_NTk + 1) % 16
  out_NTD, again = replayed(p, other_NTk)
  np.testing.assert_array_equal(again.expert_NTk, other_NTk)
  assert float(jnp.abs(out_NTD - own_NTD).max()) > 1e-3
  np.testing.assert_allclose(replayed(p, routing.expert_NTk)[0], own_NTD, atol=1e-6)
  grads = jax.jit(jax.grad(lambda p: jnp.sum(replayed(p, other_NTk)[0] ** 2)))(p)
  assert float(jnp.abs(grads["router"]).max()) > 1e-3
  assert not np.asarray(grads["selection_bias"]).any()                            # state, not a weight


def rollouts():
  problems = [Problem(0, "ab", ""), Problem(1, "abcd", "")]
  return rollout.sample(weights(MODEL), problems, 2, model=MODEL, tokenizer=tokenizer.byte_tokenizer(),
                        cfg=SampleConfig(6), seed=0, step=0)


def test_the_samplers_experts_reach_the_trainer():
  """A router that moved after sampling: with replay the old experts are used, and by default they are handed over."""
  batch = rollout.to_batch(rollouts(), np.zeros(4, np.float32))
  assert batch.expert_NALk.shape[2:] == (1, MODEL.moe.top_k) and batch.expert_NALk.dtype == np.uint8
  assert batch.prompt_expert_BPLk.shape[:2] == batch.prompt_BP.shape
  args = batch.prompt_BP, batch.prompt_length_B, batch.answer_NA
  moved = dict(weights(MODEL))
  moved["moe_layers"] = jax.tree.map(lambda x: x, moved["moe_layers"])
  moved["moe_layers"]["moe"]["router"] = -moved["moe_layers"]["moe"]["router"]
  experts_of = lambda experts: np.asarray(jax.jit(lambda p: train.logprobs_and_routing(
    p, MODEL, *args, experts=experts)[2].expert_NTk)(moved))
  own, replayed = experts_of(None), experts_of(reasoning_rl.replay(batch))
  P = batch.prompt_BP.shape[1]
  np.testing.assert_array_equal(replayed[:, 0, :2], np.moveaxis(batch.prompt_expert_BPLk[0, :2], 1, 0))
  first = batch.expert_NALk[0, :3]
  np.testing.assert_array_equal(replayed[:, 0, P:P + 3], np.moveaxis(first, 1, 0))
  assert (own[:, 0, P:P + 3] != replayed[:, 0, P:P + 3]).any()
  unchanged = train.score(weights(MODEL), *args, reasoning_rl.replay(batch), model=MODEL)
  np.testing.assert_allclose(np.asarray(unchanged) * batch.mask_NA, batch.sampler_logp_NA, atol=1e-5)


def test_an_update_leaves_the_selection_bias_alone_and_moves_the_rest():
  batch = rollout.to_batch(rollouts(), np.array([1., -1, 1, -1], np.float32))
  cfg = reasoning_rl.RLConfig(
    optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.1), loss=grpo.LossConfig(kl_coef=0.0), sampling=SampleConfig(6),
    rewards=dict(x=1.0), rollouts=1, questions_per_rollout=2, group_size=2)
  tx = optimizer.make(cfg.optimizer, 1)
  params = weights(MODEL)
  update = jax.jit(lambda state, batch: train.train_step(
    state, batch, loss_fn=lambda p, b: reasoning_rl.policy_loss(p, b, model=MODEL, cfg=cfg), tx=tx))
  state, metrics = update(train.init_state(params, tx), batch)
  assert float(metrics["router_busiest"].value()) >= 1 and float(metrics["router_dropped"].value()) == 0
  for path, new in jax.tree_util.tree_leaves_with_path(state.params):
    old = dict(jax.tree_util.tree_leaves_with_path(params))[path]
    name = jax.tree_util.keystr(path)
    still = "selection_bias" in name
    assert bool((np.asarray(new) == np.asarray(old)).all()) == still, name


@pytest.mark.slow
def test_mtp_learns_the_token_after_next():
  """A sequence whose token t + 2 follows from token t + 1: the second loss falls; it looks at nothing later."""
  model = dataclasses.replace(with_moe(dispatch="dense"), vocab=11, mtp=1, layers=1, dense_layers=0)
  N, T = 4, 12
  token_NT = jnp.asarray((np.arange(N)[:, None] + 3 * np.arange(T)) % 11, jnp.int32)
  position_NT, mask_NT = jnp.broadcast_to(jnp.arange(T), (N, T)), jnp.ones((N, T))

  def loss(p, token_NT=token_NT):
    hidden_NTD, _ = transformer.forward(p, model, token_NT, position_NT)
    return mtp.loss(p, model, hidden_NTD, token_NT, mask_NT, position_NT).value()
  tx = optimizer.make(OptimizerConfig(lr=1e-2), 60)
  p = weights(model)
  opt = tx.init(p)
  step = jax.jit(lambda p, opt: (lambda v, g: (v, *tx.update(g, opt, p)))(*jax.value_and_grad(loss)(p)))
  first = float(jax.jit(loss)(p))
  for _ in range(60):
    value, updates, opt = step(p, opt)
    p = jax.tree.map(jnp.add, p, updates)
  assert first > 2 and float(value) < 0.3
  hidden_NTD = jax.random.normal(jax.random.key(0), (N, T, model.dim))
  logits = jax.jit(lambda tokens: mtp.forward(p, model, hidden_NTD[:, :-1], tokens[:, 1:], position_NT[:, :-1])[0])
  changed = token_NT.at[:, 6].add(1)
  before, after = logits(token_NT), logits(changed % 11)
  np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-5)
  assert float(jnp.abs(before[:, 5] - after[:, 5]).max()) > 1e-2


@pytest.mark.parametrize("bad, message", [
  (dict(top_k=17), "1 <= top_k=17 <= experts=16"), (dict(groups=3), "multiple of groups=3"),
  (dict(groups=16, top_groups=1, top_k=2), "hold fewer than top_k=2"), (dict(score="tanh"), "score='tanh'"),
  (dict(dispatch="magic"), "dispatch='magic'"), (dict(capacity_factor=0.0), "capacity_factor=0.0")])
def test_impossible_configs_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(MODEL.moe, **bad)


def test_samples_do_not_depend_on_the_batch():
  whole = rollouts()
  alone = rollout.sample(weights(MODEL), whole.problems[1:], 2, model=MODEL, tokenizer=tokenizer.byte_tokenizer(),
                         cfg=SampleConfig(6), seed=0, step=0)
  assert alone.answers == whole.answers[2:] and drawing.CUT < 0
  np.testing.assert_array_equal(alone.experts[0], whole.experts[2])

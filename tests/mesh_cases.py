"""What tests/test_sharding.py runs in a process with eight devices: mesh_cases.py WHAT MODEL LAYOUT MESH ...

train: loss, gradients and three updates; sample: answers; capacity: as train, with experts of limited room.
LAYOUT: packed, padded (a prompt and its answers in a row), alone (an answer in a row).
"""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import weights

from r1jax import layout, sampler, sharding, train
from r1jax.drawing import SampleConfig
from r1jax.grpo import LossConfig
from r1jax.models import transformer
from r1jax.models.deepseek import PRESETS
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.stages.reasoning_rl import RLConfig, policy_loss
from r1jax.types import Batch

TINY = PRESETS["deepseek-tiny"]
MODELS = dict(
  dense=ModelConfig(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, ffn=48, qkv_bias=True, logit_chunk=16,
                    remat="none"),
  deepseek=dataclasses.replace(
    TINY, vocab=64, dim=32, ffn=48, layers=2, mtp=0, logit_chunk=16, remat="none",
    mla=dataclasses.replace(TINY.mla, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8),
    moe=dataclasses.replace(TINY.moe, ffn=24)))
# nothing is recomputed: quicker to compile
MODELS |= dict(dense8=dataclasses.replace(MODELS["dense"], layers=8),
               deepseek5=dataclasses.replace(MODELS["deepseek"], layers=5))       # one dense, four in stages
MODELS["small"] = dataclasses.replace(MODELS["deepseek"], layers=1, dense_layers=0)
TOKENS = 64      # of a packed row


def some_batch(B=8, G=2, P=5, A=12, seed=0, shared=True):
  """Unequal lengths of prompts and answers, two answers outside the loss."""
  rng = np.random.default_rng(seed)
  N = B * G
  length_N = rng.integers(1, A + 1, N)
  mask_NA = (np.arange(A) < length_N[:, None]).astype(np.float32)
  mask_NA[[1, 6]] = 0
  tokens = lambda *shape: rng.integers(0, 64, shape).astype(np.int32)
  draw = lambda: rng.normal(-4.2, 0.5, (N, A)).astype(np.float32)
  prompt_BP, length_B = tokens(B, P), rng.integers(1, P + 1, B).astype(np.int32)
  if not shared:
    prompt_BP, length_B = np.repeat(prompt_BP, G, axis=0), np.repeat(length_B, G)
  return Batch(prompt_BP, length_B, tokens(N, A), mask_NA, rng.normal(size=N).astype(np.float32),
               old_logp_NA=draw(), ref_logp_NA=draw(), sampler_logp_NA=draw())


def config(packed: bool):
  return RLConfig(OptimizerConfig(lr=0.003), LossConfig(0.2, 0.28, kl_coef=0.05), SampleConfig(12), dict(x=1.0),
                  rollouts=3, questions_per_rollout=8, group_size=2, shared_prompt=not packed,
                  pack_tokens=TOKENS if packed else 0)


def program(model) -> set[str]:
  """Lines of the gradient's, without numbers of values and functions, which follow from what was traced before."""
  batch, cfg = some_batch(), config(False)
  f = lambda params: train.gradients(params, batch, lambda p, b: policy_loss(p, b, model=model, cfg=cfg), 1)
  text = jax.jit(f).lower(transformer.param.abstract(transformer.params(model))).as_text()
  return set(re.sub(r"%\w+|[:#]\d+|(?<=@)(\w+?)(_\d+)?(?=\()", r"\1", text).splitlines())


def trained(model, how: str, params, steps):
  """Loss and gradients of a batch, then the parameters after so many updates."""
  cfg = config(how == "packed")
  batch = some_batch(shared=how == "padded")
  if how == "packed":
    batch = batch.replace(packed=layout.pack(batch, TOKENS))
  # not Adam: where a gradient is rounding only, the sign of its step is chance
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
  loss_fn = lambda params, batch: policy_loss(params, batch, model=model, cfg=cfg)

  @jax.jit
  def step(state, batch):
    grads, loss, metrics = train.gradients(state.params, batch, loss_fn, 1)
    return grads, *train.updated(state, grads, loss, metrics, tx)
  state, seen = train.init_state(params, tx), []
  for _ in range(steps):
    grads, state, metrics = step(state, batch)
    seen.append((grads, {k: m.value() for k, m in metrics.items()}))
  return jax.device_get((seen, state.params))


def exchanged(model, text: str) -> str:
  """The compiled forward pass of a few rows."""
  with sharding.use(mesh_of(text)) as mesh:
    position_NT = jnp.broadcast_to(jnp.arange(16), (8, 16))
    f = jax.jit(lambda p: transformer.forward(p, model, jnp.zeros((8, 16), jnp.int32), position_NT)[0])
    return f.lower(placed(model, mesh)).compile().as_text()


def sampled(model, params):
  rng = np.random.default_rng(0)
  prompt_BP, length_B = rng.integers(0, 64, (4, 8)).astype(np.int32), np.array([8, 3, 5, 1], np.int32)
  key_N = sampler.sample_keys(0, 0, jnp.arange(4), jnp.arange(2))
  out = sampler.sample(params, prompt_BP, length_B, key_N, model=model, cfg=SampleConfig(16), end_id=0)
  return jax.device_get((out.token_NA, out.logp_NA))


def same(got, want, path=""):
  """Within 1e-5 of the largest value of each array."""
  def one(path, a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()), err_msg=jax.tree_util.keystr(path))
  jax.tree_util.tree_map_with_path(one, got, want)


def mesh_of(text: str):
  return sharding.MeshConfig(**{"data": 1} | {k: int(v) for k, v in (part.split("=") for part in text.split(","))})


def placed(model, mesh):
  return jax.device_put(weights(model, scale=1.0), sharding.shardings(mesh, transformer.params(model)))


def main(what, name, how, *meshes):
  model = MODELS[name]
  if what == "capacity":
    model = dataclasses.replace(model, moe=dataclasses.replace(model.moe, dispatch="capacity", capacity_group=8))
  run = (lambda params: sampled(model, params)) if what == "sample" else (
    lambda params: trained(model, how, params, 1 if name == "small" else 3))
  alone = run(jax.device_put(weights(model, scale=1.0), jax.devices()[0]))
  if what == "sample":
    assert len(np.unique(alone[0])) > 16, alone[0]
  else:
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone[1], weights(model, scale=1.0))
    still = [path for path, v in jax.tree_util.tree_leaves_with_path(moved) if v < 1e-4]
    assert all("selection_bias" in jax.tree_util.keystr(path) for path in still), still
  if what == "capacity":
    assert alone[0][0][1]["router_dropped"] > 0.01, alone[0][0][1]
    assert "all-to-all" in exchanged(model, meshes[0])
  for text in meshes:
    with sharding.use(mesh_of(text)) as mesh:
      many = run(placed(model, mesh))
      if what == "sample":
        np.testing.assert_array_equal(many[0], alone[0])
      same(many, alone)
    print("same on", text, flush=True)
  print("SAME")


if __name__ == "__main__":
  assert jax.device_count() == 8
  main(*sys.argv[1:])

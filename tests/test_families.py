"""Every family against transformers: the same files, the same logits, forward, cached decode and gradients."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import hf, sampler, train
from r1jax.models import attention, deepseek, transformer
from r1jax.sampler import SampleConfig

torch = pytest.importorskip("torch", reason="needs torch and transformers, to compare with")
transformers = pytest.importorskip("transformers")

SMALL = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2)
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=8.0, original_max_position_embeddings=16, beta_fast=8.0,
            beta_slow=1.0, mscale=0.7, mscale_all_dim=1.3)
DEEPSEEK = dict(SMALL, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6,
                v_head_dim=10, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=20, n_shared_experts=2,
                n_group=4, topk_group=2, first_k_dense_replace=1, routed_scaling_factor=2.5, norm_topk_prob=True,
                rope_scaling=YARN, num_nextn_predict_layers=0)
MOE = dict(SMALL, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, head_dim=10, norm_topk_prob=True)
FAMILIES = {
  "smollm2": ("Llama", dict(SMALL, tie_word_embeddings=True)),
  "llama3": ("Llama", dict(SMALL, tie_word_embeddings=False, head_dim=12, rope_scaling=LLAMA3, rms_norm_eps=1e-5)),
  "qwen2": ("Qwen2", dict(SMALL, tie_word_embeddings=False)),
  "qwen3": ("Qwen3", dict(SMALL, tie_word_embeddings=True, head_dim=10)),
  "qwen3_moe": ("Qwen3Moe", MOE),
  "qwen3_moe_raw": ("Qwen3Moe", MOE | dict(norm_topk_prob=False)),
  "deepseek": ("DeepseekV3", DEEPSEEK),
  "deepseek_no_q_latent": ("DeepseekV3", DEEPSEEK | dict(q_lora_rank=None, rope_scaling=None, n_group=1, topk_group=1)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(their model, its folder) of a family; made once."""
  @functools.cache
  def make(family):
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, name + "ForCausalLM")(config).eval()
    with torch.no_grad():      # norms and biases that are not one and zero, and a selection bias that matters
      for key, x in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in key:
          x.uniform_(0.5, 1.5)
        elif key.endswith(("bias", "gate.weight")):
          x.normal_(0, 0.3)
    folder = tmp_path_factory.mktemp(family)
    model.save_pretrained(folder)
    return model, folder
  return make


@functools.cache
def ours(folder):
  return hf.load(folder, dtype="float32")


def tokens(N, T, seed=0):
  return np.random.default_rng(seed).integers(0, 61, (N, T)).astype(np.int32)


def their_logits(model, token_NT):
  with torch.no_grad():
    return model(torch.tensor(token_NT.astype(np.int64))).logits.numpy()


@functools.partial(jax.jit, static_argnums=1)
def logits(params, cfg, token_NT):
  N, T = token_NT.shape
  hidden_NTD, _ = transformer.forward(params, cfg, token_NT, jnp.broadcast_to(jnp.arange(T), (N, T)))
  return hidden_NTD @ transformer.head(params)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(made, family):
  model, folder = made(family)
  params, cfg = ours(folder)
  token_NT = tokens(3, 41)          # beyond the 16 tokens before the extension of llama3 and yarn
  want = their_logits(model, token_NT)
  assert want.std() > 0.3           # else everything agrees
  np.testing.assert_allclose(logits(params, cfg, token_NT), want, atol=1e-4)


def answers(params, cfg, prompts, G=2, A=9, temperature=1.0):
  """A SampleState of G answers to each prompt; no end token, so that all have A tokens."""
  P = max(map(len, prompts)) + 3
  keys_N = sampler.sample_keys(0, 0, jnp.arange(len(prompts)), jnp.arange(G))
  return sampler.sample(params, train.pad_rows(prompts, P, 0), jnp.asarray([len(p) for p in prompts]), keys_N,
                        model=cfg, cfg=SampleConfig(A, temperature), end_id=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decode_is_the_full_forward_and_the_trainer(made, family):
  """Two prompts of unlike length: the sampler's log-probs are transformers' of the same tokens, and the trainer's."""
  model, folder = made(family)
  params, cfg = ours(folder)
  prompts = [tokens(1, 13)[0].tolist(), tokens(1, 19, 1)[0].tolist()]
  state = answers(params, cfg, prompts)
  token_NA, logp_NA = np.asarray(state.token_NA), np.asarray(state.logp_NA)
  for n, answer in enumerate(token_NA):
    prompt = prompts[n // 2]
    logit_TV = torch.tensor(their_logits(model, np.asarray([prompt + answer.tolist()]))[0]).log_softmax(-1).numpy()
    want_A = logit_TV[np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]
    np.testing.assert_allclose(logp_NA[n], want_A, atol=1e-4)
  prompt_BP = train.pad_rows(prompts, 24, 0)
  pad = lambda x: jnp.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0)))
  experts = (pad(state.prompt_expert_BPLk), state.expert_NALk) if cfg.moe else None
  score_NA = train.score(params, prompt_BP, np.asarray([13, 19]), token_NA, experts, model=cfg)
  np.testing.assert_allclose(score_NA, logp_NA, atol=1e-5)


def test_mla_absorbed_is_expanded():
  """The same layer on whole sequences in both forms; the cache entry is rank + rotary channels a token."""
  cfg = deepseek.PRESETS["deepseek-tiny"]
  from tiny import weights
  w = jax.tree.map(lambda x: x[0], weights(cfg)["layers"]["attention"])
  x_NTD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, cfg.dim)), jnp.float32)
  turned = transformer.positions(cfg, jnp.broadcast_to(jnp.arange(11), (2, 11)))
  run = lambda absorbed: transformer.mla.block(w, cfg, x_NTD, turned, attention.causal, absorbed=absorbed)
  (a_NTD, kept), (b_NTD, _) = run(False), run(True)
  assert float(jnp.abs(a_NTD).max()) > 0.1
  np.testing.assert_allclose(a_NTD, b_NTD, atol=1e-5)
  assert kept.v is None and kept.k.shape == (2, 1, 11, cfg.mla.kv_rank + cfg.mla.rope_dim)


@pytest.mark.parametrize("family", ["llama3", "deepseek"])
def test_gradients_are_those_of_transformers(made, family):
  model, folder = made(family)
  params, cfg = ours(folder)
  token_NT = tokens(2, 23)
  model.zero_grad()
  logit = model(torch.tensor(token_NT.astype(np.int64))).logits
  torch.nn.functional.cross_entropy(logit[:, :-1].reshape(-1, 61), torch.tensor(token_NT[:, 1:].reshape(-1)).long(),
                                    reduction="sum").backward()

  def loss(params):
    logp_NTV = jax.nn.log_softmax(logits(params, cfg, token_NT))
    return -jnp.take_along_axis(logp_NTV[:, :-1], token_NT[:, 1:, None], axis=2).sum()
  grads = jax.jit(jax.grad(loss))(params)
  theirs = {k: v.grad.numpy() for k, v in model.named_parameters() if v.grad is not None}
  seen = 0
  for s in hf.slots(cfg):
    if s.hf in theirs:      # experts are fused over there: those are compared through what lies before them
      mine = functools.reduce(lambda t, k: t[k], s.path, grads)
      np.testing.assert_allclose(hf.to_theirs(np.asarray(mine[s.index] if s.index else mine), s), theirs[s.hf],
                                 atol=2e-3, rtol=1e-3, err_msg=s.hf)
      seen += 1
  assert seen >= 20


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_files_load_in_transformers(made, family, tmp_path):
  model, folder = made(family)
  params, cfg = ours(folder)
  hf.save(tmp_path, params, cfg, max_shard_bytes=40_000)
  assert len(list(tmp_path.glob("*.safetensors"))) > 1
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
  token_NT = tokens(2, 30)
  np.testing.assert_allclose(their_logits(again.eval(), token_NT), their_logits(model, token_NT), atol=1e-5)
  assert json.loads((tmp_path / "config.json").read_text())["model_type"] == cfg_type(family)
  back, cfg_back = hf.load(tmp_path)
  assert cfg_back == dataclasses.replace(cfg, dtype="float32")
  jax.tree.map(np.testing.assert_array_equal, back, params)


def cfg_type(family):
  return dict(Llama="llama", Qwen2="qwen2", Qwen3="qwen3", Qwen3Moe="qwen3_moe", DeepseekV3="deepseek_v3")[
    FAMILIES[family][0]]

"""Qwen2 and 2.5 (biases on q, k, v), Qwen3 (norms on q, k), Qwen3-MoE (softmax router, no shared expert)."""

from __future__ import annotations

from r1jax.models import llama, names
from r1jax.models.moe import MoEConfig
from r1jax.models.names import Name
from r1jax.models.rope import RopeConfig
from r1jax.models.transformer import ModelConfig

TYPES = ("qwen2", "qwen3", "qwen3_moe")

LAYER = llama.LAYER | {
  "attention/q_bias": Name("self_attn.q_proj.bias"),
  "attention/k_bias": Name("self_attn.k_proj.bias"),
  "attention/v_bias": Name("self_attn.v_proj.bias"),
  "attention/q_norm": Name("self_attn.q_norm.weight"),
  "attention/k_norm": Name("self_attn.k_norm.weight"),
  "moe/router": Name("mlp.gate.weight", True),
  "moe/gate": Name("mlp.experts.{e}.gate_proj.weight", True),
  "moe/up": Name("mlp.experts.{e}.up_proj.weight", True),
  "moe/down": Name("mlp.experts.{e}.down_proj.weight", True),
}


def _qwen2(dim, layers, heads, kv_heads, ffn, vocab=151_936, theta=1e6, tied=True):
  return ModelConfig(vocab=vocab, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn,
                     rope=RopeConfig(theta), qkv_bias=True, tied_head=tied, dtype="bfloat16")


def _qwen3(dim, layers, heads, kv_heads, ffn, tied, **more):
  return ModelConfig(vocab=151_936, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn, head_dim=128,
                     rope=RopeConfig(1e6), qk_norm=True, tied_head=tied, dtype="bfloat16", **more)


PRESETS = {
  "qwen2.5-0.5b": _qwen2(896, 24, 14, 2, 4864),
  "qwen2.5-1.5b": _qwen2(1536, 28, 12, 2, 8960),
  "qwen2.5-7b": _qwen2(3584, 28, 28, 4, 18_944, vocab=152_064, tied=False),
  "qwen2.5-math-1.5b": _qwen2(1536, 28, 12, 2, 8960, theta=1e4),
  "qwen2.5-math-7b": _qwen2(3584, 28, 28, 4, 18_944, vocab=152_064, theta=1e4, tied=False),
  "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
  "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
  "qwen3-30b-a3b": _qwen3(2048, 48, 32, 4, 6144, tied=False, moe=MoEConfig(
    experts=128, top_k=8, ffn=768, shared=0, score="softmax", bias=False)),
}


def from_hf(hf: dict) -> ModelConfig:
  """A config.json's contents -> ModelConfig."""
  kind = hf["model_type"]
  names.refuse(hf, use_sliding_window=(False, None), attention_bias=(False,))
  common = names.common_from_hf(hf) | dict(rope=names.rope_from_hf(hf), head_dim=hf.get("head_dim") or 0)
  if kind == "qwen2":
    return ModelConfig(**common, qkv_bias=True)
  if kind == "qwen3":
    return ModelConfig(**common, qk_norm=True)
  names.refuse(hf, decoder_sparse_step=(1,), mlp_only_layers=([], None))
  experts = hf.get("num_experts") or hf.get("num_local_experts")     # newer files have the second name
  return ModelConfig(**common, qk_norm=True, moe=MoEConfig(
    experts=experts, top_k=hf["num_experts_per_tok"], ffn=hf["moe_intermediate_size"], shared=0, score="softmax",
    normalise=bool(hf.get("norm_topk_prob", False)), bias=False))


def to_hf(cfg: ModelConfig) -> dict:
  kind = "qwen3_moe" if cfg.moe else "qwen3" if cfg.qk_norm else "qwen2"
  name = dict(qwen2="Qwen2ForCausalLM", qwen3="Qwen3ForCausalLM", qwen3_moe="Qwen3MoeForCausalLM")[kind]
  out = names.common_to_hf(cfg) | dict(model_type=kind, architectures=[name], use_sliding_window=False)
  if kind == "qwen2":
    if cfg.head_dim * cfg.heads != cfg.dim:
      raise ValueError(f"Qwen2 has head_dim = dim / heads, not {cfg.head_dim} with {cfg.dim} / {cfg.heads}")
    return out
  out["head_dim"] = cfg.head_dim
  if cfg.moe:
    out |= dict(num_experts=cfg.moe.experts, num_experts_per_tok=cfg.moe.top_k, moe_intermediate_size=cfg.moe.ffn,
                norm_topk_prob=cfg.moe.normalise, decoder_sparse_step=1, mlp_only_layers=[])
  return out

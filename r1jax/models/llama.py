"""Llama 3.x, which R1 was distilled into (3.1-8B, 3.3-70B), and SmolLM2: plain GQA decoders."""

from __future__ import annotations

from r1jax.models import names
from r1jax.models.names import Name
from r1jax.models.rope import RopeConfig
from r1jax.models.transformer import ModelConfig

TYPES = ("llama",)

LAYER = {
  "attention_norm": Name("input_layernorm.weight"),
  "attention/q": Name("self_attn.q_proj.weight", True),
  "attention/k": Name("self_attn.k_proj.weight", True),
  "attention/v": Name("self_attn.v_proj.weight", True),
  "attention/out": Name("self_attn.o_proj.weight", True),
  "ffn_norm": Name("post_attention_layernorm.weight"),
  "ffn/gate": Name("mlp.gate_proj.weight", True),
  "ffn/up": Name("mlp.up_proj.weight", True),
  "ffn/down": Name("mlp.down_proj.weight", True),
}


def _llama3(factor: float) -> RopeConfig:
  return RopeConfig(5e5, "llama3", factor, original=8192, low_freq_factor=1.0, high_freq_factor=4.0)


def _smol(dim, layers, heads, kv_heads, ffn, theta=1e5):
  return ModelConfig(vocab=49_152, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn,
                     rope=RopeConfig(theta), norm_eps=1e-5, dtype="bfloat16")


PRESETS = {
  "smollm2-135m": _smol(576, 30, 9, 3, 1536),
  "smollm2-360m": _smol(960, 32, 15, 5, 2560),
  "smollm2-1.7b": _smol(2048, 24, 32, 32, 8192, theta=1.3e5),
  "llama3.1-8b": ModelConfig(vocab=128_256, dim=4096, layers=32, heads=32, kv_heads=8, ffn=14_336, rope=_llama3(8.0),
                             norm_eps=1e-5, tied_head=False, dtype="bfloat16"),
  "llama3.3-70b": ModelConfig(vocab=128_256, dim=8192, layers=80, heads=64, kv_heads=8, ffn=28_672, rope=_llama3(8.0),
                              norm_eps=1e-5, tied_head=False, dtype="bfloat16"),
}


def from_hf(hf: dict) -> ModelConfig:
  """A config.json's contents -> ModelConfig."""
  names.refuse(hf, attention_bias=(False,), mlp_bias=(False,))
  return ModelConfig(**names.common_from_hf(hf), head_dim=hf.get("head_dim") or 0, rope=names.rope_from_hf(hf))


def to_hf(cfg: ModelConfig) -> dict:
  return names.common_to_hf(cfg) | dict(model_type="llama", architectures=["LlamaForCausalLM"], head_dim=cfg.head_dim,
                                        mlp_bias=False)

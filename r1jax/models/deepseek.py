"""DeepSeek-V3 and R1: MLA, dense first layers, mixture of experts, one multi-token prediction module (V3 report)."""

from __future__ import annotations

from r1jax.models import llama, names, qwen
from r1jax.models.mla import MLAConfig
from r1jax.models.moe import MoEConfig
from r1jax.models.names import Name
from r1jax.models.rope import RopeConfig
from r1jax.models.transformer import ModelConfig

TYPES = ("deepseek_v3",)

FEED_FORWARD = {k: v for k, v in (llama.LAYER | qwen.LAYER).items() if not k.startswith("attention/")} | {
  "moe/selection_bias": Name("mlp.gate.e_score_correction_bias"),
  "moe/shared/gate": Name("mlp.shared_experts.gate_proj.weight", True),
  "moe/shared/up": Name("mlp.shared_experts.up_proj.weight", True),
  "moe/shared/down": Name("mlp.shared_experts.down_proj.weight", True),
}

LAYER = FEED_FORWARD | {
  "attention/q_down": Name("self_attn.q_a_proj.weight", True),
  "attention/q_norm": Name("self_attn.q_a_layernorm.weight"),
  "attention/q": Name("self_attn.q_b_proj.weight", True),
  "attention/kv_down": Name("self_attn.kv_a_proj_with_mqa.weight", True),
  "attention/kv_norm": Name("self_attn.kv_a_layernorm.weight"),
  "attention/kv_up": Name("self_attn.kv_b_proj.weight", True),
  "attention/out": Name("self_attn.o_proj.weight", True),
}

PRESETS = {
  # the released 671B: config.json of DeepSeek-R1
  "deepseek-r1": ModelConfig(
    vocab=129_280, dim=7168, layers=61, heads=128, kv_heads=128, ffn=18_432, dense_layers=3, mtp=1, tied_head=False,
    mla=MLAConfig(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    moe=MoEConfig(experts=256, top_k=8, ffn=2048, shared=1, groups=8, top_groups=4, scale=2.5),
    rope=RopeConfig(1e4, "yarn", 40.0, original=4096, mscale=1.0, mscale_all_dim=1.0, interleaved=True),
    dtype="bfloat16"),
  # the same parts at a size for a laptop: 3.8 million parameters, 1.5 of them at work on a token
  "deepseek-tiny": ModelConfig(
    vocab=512, dim=128, layers=4, heads=4, kv_heads=4, ffn=384, dense_layers=1, mtp=1, tied_head=False,
    mla=MLAConfig(q_rank=64, kv_rank=32, nope_dim=16, rope_dim=16, v_dim=16),
    moe=MoEConfig(experts=16, top_k=4, ffn=128, shared=1, groups=4, top_groups=2, scale=2.5),
    rope=RopeConfig(1e4, "yarn", 4.0, original=512, mscale=1.0, mscale_all_dim=1.0, interleaved=True)),
}


def layer_names(cfg: ModelConfig) -> dict[str, Name]:
  """LAYER; without a latent for the queries, their one matrix has another name."""
  return LAYER if cfg.mla.q_rank else LAYER | {"attention/q": Name("self_attn.q_proj.weight", True)}


def from_hf(hf: dict) -> ModelConfig:
  """A config.json's contents -> ModelConfig. FP8 weights become the config's dtype when they are read."""
  names.refuse(hf, scoring_func=("sigmoid",), topk_method=("noaux_tc",), moe_layer_freq=(1,), attention_bias=(False,))
  common = names.common_from_hf(hf)
  moe = MoEConfig(
    experts=hf.get("n_routed_experts") or hf["num_local_experts"], top_k=hf["num_experts_per_tok"],
    ffn=hf["moe_intermediate_size"], shared=hf.get("n_shared_experts") or 0, groups=hf.get("n_group") or 1,
    top_groups=hf.get("topk_group") or 1, normalise=bool(hf.get("norm_topk_prob", True)),
    scale=float(hf.get("routed_scaling_factor", 1.0)))
  mla = MLAConfig(q_rank=hf.get("q_lora_rank") or 0, kv_rank=hf["kv_lora_rank"], nope_dim=hf["qk_nope_head_dim"],
                  rope_dim=hf["qk_rope_head_dim"], v_dim=hf["v_head_dim"])
  return ModelConfig(**common | dict(kv_heads=common["heads"]), mla=mla, moe=moe,
                     dense_layers=hf.get("first_k_dense_replace", 0), mtp=hf.get("num_nextn_predict_layers") or 0,
                     rope=names.rope_from_hf(hf, interleaved=bool(hf.get("rope_interleave", True))))


def to_hf(cfg: ModelConfig) -> dict:
  m, a = cfg.moe, cfg.mla
  return names.common_to_hf(cfg) | dict(
    model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"], rope_interleave=cfg.rope.interleaved,
    q_lora_rank=a.q_rank or None, kv_lora_rank=a.kv_rank, qk_nope_head_dim=a.nope_dim, qk_rope_head_dim=a.rope_dim,
    v_head_dim=a.v_dim, n_routed_experts=m.experts, num_experts_per_tok=m.top_k, moe_intermediate_size=m.ffn,
    n_shared_experts=m.shared, n_group=m.groups, topk_group=m.top_groups, norm_topk_prob=m.normalise,
    routed_scaling_factor=m.scale, scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1,
    first_k_dense_replace=cfg.dense_layers, num_nextn_predict_layers=cfg.mtp)

"""Hugging Face directories: every tensor has its place, what is saved comes back, what does not fit is refused."""

import dataclasses
import gzip
import json
import logging
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import DATA, ROOT
from tiny import weights

from r1jax import hf, safetensors, tokenizer
from r1jax.bench import load as bench
from r1jax.cli import main as cli
from r1jax.models import deepseek, llama, names, param, qwen, transformer
from r1jax.models.mla import MLAConfig
from r1jax.models.moe import MoEConfig
from r1jax.models.transformer import ModelConfig

PRESETS = llama.PRESETS | qwen.PRESETS | deepseek.PRESETS
DENSE = ModelConfig(vocab=61, dim=32, layers=3, heads=4, kv_heads=2, ffn=48, tied_head=False)
TIED = ModelConfig(vocab=61, dim=32, layers=2, heads=4, kv_heads=2, ffn=48, qkv_bias=True)
MOE = ModelConfig(vocab=61, dim=32, layers=2, heads=4, kv_heads=2, head_dim=10, ffn=48, qk_norm=True, tied_head=False,
                  moe=MoEConfig(experts=4, top_k=2, ffn=20, shared=0, score="softmax", bias=False))
DEEPSEEK = ModelConfig(vocab=61, dim=32, layers=3, heads=4, kv_heads=4, ffn=48, dense_layers=1, mtp=1, tied_head=False,
                       mla=MLAConfig(q_rank=24, kv_rank=16, nope_dim=8, rope_dim=6, v_dim=10),
                       moe=MoEConfig(experts=4, top_k=2, ffn=20, shared=2, groups=2, top_groups=1, scale=2.5),
                       rope=dataclasses.replace(deepseek.PRESETS["deepseek-tiny"].rope, original=16))
MODELS = dict(dense=DENSE, tied=TIED, moe=MOE, deepseek=DEEPSEEK,
              deepseek_tied=dataclasses.replace(DEEPSEEK, tied_head=True))


def any_bits(cfg, seed=0):
  """Parameters of any bits whatever: NaNs and denormals, too."""
  rng = np.random.default_rng(seed)

  def leaf(p):
    dtype = jnp.dtype(p.dtype or cfg.dtype)
    return rng.integers(0, 256, (*p.shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
  return jax.tree.map(leaf, transformer.params(cfg), is_leaf=param.is_param)


def same_bits(a, b):
  def check(x, y):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
  jax.tree.map(check, a, b)


def tensors_of(folder):
  files = safetensors.open_files(folder)
  return {name: files.read(name).copy() for name in files.names}


def write(folder, tensors, **config):
  """Puts these tensors into the folder's one file, and changes config.json."""
  specs = {name: (x.dtype, x.shape) for name, x in tensors.items()}
  safetensors.write(folder / "model.safetensors", tensors.items(), specs)
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.fixture
def saved(tmp_path):
  """A folder with a model in it."""
  def save(cfg):
    hf.save(tmp_path, weights(cfg), cfg)
    return tmp_path
  return save


# ----- names -----

@pytest.mark.parametrize("model", PRESETS | MODELS)
def test_every_place_of_every_leaf_is_one_tensor(model):
  """Abstract: no memory."""
  cfg = (PRESETS | MODELS)[model]
  places = {path: [] for path, _ in names.leaves(transformer.params(cfg))}
  slots = hf.slots(cfg)
  assert len({s.hf for s in slots}) == len(slots)
  for s in slots:
    assert math.prod(s.shape) == math.prod(s.ours)
    if s.path:
      places[s.path].append(s)
    else:
      assert s.copy_of in {t.hf for t in slots}
  for path, p in names.leaves(transformer.params(cfg)):
    depth = len(places[path][0].index)
    assert {s.ours for s in places[path]} == {p.shape[depth:]}
    assert sorted(s.index for s in places[path]) == list(np.ndindex(*p.shape[:depth]))
  assert sum(math.prod(s.shape) for s in slots if s.path) == param.count(transformer.params(cfg))


@pytest.fixture(scope="module")
def released():
  """(config.json, {name: shape}) of DeepSeek-R1."""
  folder = DATA / "deepseek_r1"
  if not folder.is_dir():
    pytest.skip(f"no config and list of tensors of DeepSeek-R1 in {folder}")
  tensors = json.loads(gzip.open(folder / "params_map.json.gz").read())
  return json.loads((folder / "config.json").read_text()), {k: tuple(v["shape"]) for k, v in tensors.items()}


def test_the_released_r1_is_the_preset(released):
  config, shapes = released
  r1 = deepseek.PRESETS["deepseek-r1"]
  assert deepseek.from_hf(config) == r1
  assert len(shapes) == 91_991
  hf.check_names(hf.slots(r1), shapes.get, shapes, "R1")
  # 671 billion without the module for multi-token prediction, which has 11.6 of its own and 1.9 copied
  values = {k: math.prod(shape) for k, shape in shapes.items() if not k.endswith("_scale_inv")}
  module = {k: n for k, n in values.items() if k.startswith("model.layers.61.")}
  copied = sum(module["model.layers.61." + k] for k in ("embed_tokens.weight", "shared_head.head.weight"))
  count = lambda cfg: param.count(transformer.params(cfg))
  assert count(dataclasses.replace(r1, mtp=0)) == sum(values.values()) - sum(module.values()) == 671_026_419_200
  assert count(r1) == sum(values.values()) - copied == 682_636_487_424
  assert sum(values.values()) == 684_489_845_504


@pytest.mark.parametrize("name, shape", [
  ("model.layers.37.mlp.experts.200.up_proj.weight", None),
  ("model.layers.37.mlp.experts.256.up_proj.weight", (2048, 7168)),
  ("model.layers.3.self_attn.kv_b_proj.weight", (32_768, 513)),
  ("model.layers.3.self_attn.kv_b_proj.weight_scale_inv", (256, 5)),
  ("model.layers.61.shared_head.head.weight", None),
], ids=["missing", "extra", "shape", "scale", "missing copy"])
def test_one_tensor_of_r1_that_differs_is_named(released, name, shape):
  shapes = {k: v for k, v in (released[1] | {name: shape}).items() if v}
  with pytest.raises(ValueError, match=name.replace(".", r"\.") + r"\b"):
    hf.check_names(hf.slots(deepseek.PRESETS["deepseek-r1"]), shapes.get, shapes, "R1")


# ----- round trips -----

@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_bit_for_bit(tmp_path, name, dtype):
  cfg = dataclasses.replace(MODELS[name], dtype=dtype)
  params = any_bits(cfg)
  hf.save(tmp_path, params, cfg, max_shard_bytes=9_000)
  files = sorted(tmp_path.glob("*.safetensors"))
  assert len(files) > 3 and (tmp_path / "model.safetensors.index.json").is_file()
  back, cfg_back = hf.load(tmp_path)
  for file in files:                 # the parameters must not be views of the files
    with file.open("r+b") as f:
      f.write(bytes(file.stat().st_size))
  assert cfg_back == cfg
  same_bits(back, params)


@pytest.mark.parametrize("name, dtype", [("tied", "float32"), ("deepseek", "bfloat16")])
def test_leaves_that_are_filled_block_by_block(tmp_path, monkeypatch, name, dtype):
  """As those of large models are. 900 bytes: some rows of a tensor, and the last block is no whole one."""
  cfg = dataclasses.replace(MODELS[name], dtype="bfloat16")
  params = any_bits(cfg)
  hf.save(tmp_path, params, cfg)
  monkeypatch.setattr(hf, "BLOCK", 900)
  loaded, _ = hf.load(tmp_path, dtype)
  if dtype == cfg.dtype:
    same_bits(loaded, params)
  else:
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(lambda x: x.astype(dtype), params))


def test_loaded_parameters_can_be_donated(saved, monkeypatch):
  """They belong to JAX: a training step writes the new ones where they were, and does not hold the model twice."""
  monkeypatch.setattr(hf, "BLOCK", 700)
  x = hf.load(saved(DENSE))[0]["layers"]["ffn"]["up"]
  place = x.unsafe_buffer_pointer()
  y = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
  np.testing.assert_array_equal(y, weights(DENSE)["layers"]["ffn"]["up"] + 1)
  assert x.is_deleted() and y.unsafe_buffer_pointer() == place


SHARDED = """
import sys
import jax, numpy as np
from r1jax import hf, sharding
from r1jax.models import transformer
from test_hf import DEEPSEEK, any_bits, same_bits

assert jax.device_count() == 8
mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
want = sharding.shardings(mesh, transformer.params(DEEPSEEK))
split = sum(not s.is_fully_replicated for s in jax.tree.leaves(want))
assert split > 15, split
for hf.BLOCK in (hf.BLOCK, 2200):
  params, cfg = hf.load(sys.argv[1], mesh=mesh)
  assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, params, want))
  for x in jax.tree.leaves(params):
    for s in x.addressable_shards:
      np.testing.assert_array_equal(np.asarray(s.data).view(np.uint32), np.asarray(x).view(np.uint32)[s.index])
  same_bits(params, any_bits(DEEPSEEK))
packed, _ = hf.load(sys.argv[2], mesh=mesh)      # FP8, as each part of a tensor is cut from what it stands for
assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, packed, want))
jax.tree.map(np.testing.assert_array_equal, packed, hf.load(sys.argv[2])[0])
print("equal")
"""


def test_sharded_over_eight_devices(tmp_path):
  hf.save(tmp_path / "plain", any_bits(DEEPSEEK), DEEPSEEK, max_shard_bytes=20_000)
  bench.write_random(tmp_path / "packed", DEEPSEEK, 20_000, fp8=True)
  env = os.environ | dict(XLA_FLAGS="--xla_force_host_platform_device_count=8", PYTHONPATH=str(ROOT / "tests"))
  done = subprocess.run([sys.executable, "-c", SHARDED, str(tmp_path / "plain"), str(tmp_path / "packed")], env=env,
                        cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == "equal\n", done.stderr[-3000:]


@pytest.mark.parametrize("name", ["dense", "deepseek"])
def test_transformers_reads_what_save_writes(tmp_path, name):
  """Weights, the tokenizer, its template and the end token; logits are ours. The module for MTP, they leave out."""
  torch = pytest.importorskip("torch", reason="needs torch and transformers, to compare with")
  transformers = pytest.importorskip("transformers")
  cfg = dataclasses.replace(MODELS[name], vocab=300)
  tok = dataclasses.replace(tokenizer.byte_tokenizer(), templates=dict(default="{{ messages[0].content }}<|end|>"))
  params = weights(cfg)
  hf.save(tmp_path, params, cfg, tok, max_shard_bytes=40_000, settings=dict(max_position_embeddings=777))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ids = theirs.apply_chat_template([dict(role="user", content="Hello, {} wörld!")], tokenize=False)
  ids = theirs(ids, add_special_tokens=False)["input_ids"]
  assert ids == [*tok.encode("Hello, {} wörld!"), tok.end_id]
  assert model.generation_config.eos_token_id == model.config.eos_token_id == tok.end_id
  assert model.config.max_position_embeddings == 777
  assert str(model.dtype) == "torch.float32"
  ours = jax.jit(lambda p, t: transformer.forward(p, cfg, t, jnp.arange(t.shape[1])[None])[0] @ transformer.head(p))
  with torch.no_grad():
    want = model(torch.tensor([ids])).logits.numpy()
  assert want.std() > 0.3
  np.testing.assert_allclose(ours(params, np.asarray([ids])), want, atol=1e-4)
  assert tokenizer.load_dir(tmp_path).encode("Hello") == tok.encode("Hello")


# ----- FP8 -----

@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
def test_fp8_is_read_as_the_values_that_it_stands_for(tmp_path, scale_dtype):
  """Linear layers in blocks of 128 x 128, the last ones not whole; norms, embedding, router and MTP's merge are not."""
  cfg = dataclasses.replace(DEEPSEEK, dim=160, ffn=200, layers=2)
  rng, packed, plain = np.random.default_rng(0), {}, {}
  for s in hf.slots(cfg):
    w = rng.normal(size=s.shape).astype(np.float32) * np.exp(rng.normal(size=s.shape[:1] + (1,) * (len(s.shape) - 1)))
    plain[s.hf] = packed[s.hf] = w.astype(np.float32)
    if "_proj" in s.hf and "eh_proj" not in s.hf:
      q, scale = safetensors.quantize_blocks(plain[s.hf])
      scale = scale.astype(scale_dtype)
      packed |= {s.hf: q, s.hf + "_scale_inv": scale}
      each = np.kron(scale.astype(np.float32), np.ones((128, 128), np.float32))[:s.shape[0], :s.shape[1]]
      assert np.abs(q.astype(np.float32) * each - plain[s.hf]).max() < 0.1 * np.abs(plain[s.hf]).max()
      plain[s.hf] = q.astype(np.float32) * each
  for name, tensors in (("packed", packed), ("plain", plain)):
    hf.save(tmp_path / name, weights(cfg), cfg)
    write(tmp_path / name, tensors)
  quantised = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
  write(tmp_path / "packed", packed, quantization_config=quantised, torch_dtype="bfloat16")
  assert sum(x.dtype == safetensors.FP8 for x in packed.values()) > 40
  (wide, _), (want, _) = hf.load(tmp_path / "packed", dtype="float32"), hf.load(tmp_path / "plain")
  same_bits(wide, want)
  as_config_says, cfg_back = hf.load(tmp_path / "packed")
  assert cfg_back == dataclasses.replace(cfg, dtype="bfloat16")
  same_bits(as_config_says, jax.tree.map(lambda x, p: np.asarray(x).astype(p.dtype or ml_dtypes.bfloat16), want,
                                         transformer.params(cfg)))


def test_fp8_without_its_scale_and_a_scale_of_nothing(saved):
  folder = saved(DENSE)
  tensors, name = tensors_of(folder), "model.layers.1.mlp.up_proj.weight"
  q, scale = safetensors.quantize_blocks(tensors[name])
  for change, message in (({name: q}, "is float8_e4m3fn, and .*weight_scale_inv is missing"),
                          ({name + "_scale_inv": scale}, "is float32, and .*weight_scale_inv is there")):
    write(folder, tensors | change)
    with pytest.raises(ValueError, match=name + " " + message):
      hf.load(folder)
  write(folder, tensors | {name: q, name + "_scale_inv": scale.astype(np.int32)})
  with pytest.raises(ValueError, match=r"up_proj.weight of shape .* has int32 scales"):
    hf.load(folder)


# ----- what released directories hold besides -----

def test_a_tied_head_may_be_given_twice_if_it_is_the_same(saved):
  folder = saved(TIED)
  tensors = tensors_of(folder)
  embed = tensors["model.embed_tokens.weight"]
  write(folder, tensors | {"lm_head.weight": embed})
  same_bits(hf.load(folder)[0], weights(TIED))
  write(folder, tensors | {"lm_head.weight": np.where(np.arange(61)[:, None] == 60, 0, embed).astype(np.float32)})
  with pytest.raises(ValueError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"):
    hf.load(folder)


def test_tables_of_angles_in_old_files_are_left_out(saved):
  folder = saved(DENSE)
  angles = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(3)}
  write(folder, tensors_of(folder) | angles)
  same_bits(hf.load(folder)[0], weights(DENSE))


def test_a_module_for_mtp_that_no_file_has_is_left_out_with_a_warning(saved, caplog):
  folder = saved(DEEPSEEK)
  with caplog.at_level(logging.WARNING):
    assert hf.load(folder)[1].mtp == 1 and not caplog.text
    write(folder, {k: v for k, v in tensors_of(folder).items() if not k.startswith("model.layers.3.")})
    params, cfg = hf.load(folder)
  assert cfg == dataclasses.replace(DEEPSEEK, mtp=0) and "model.layers.3" in caplog.text
  same_bits(params, {k: v for k, v in weights(DEEPSEEK).items() if k != "mtp"})


def test_a_config_made_for_readers_that_take_the_factor_from_the_length():
  assert hf.to_hf(deepseek.PRESETS["deepseek-r1"])["max_position_embeddings"] == 163_840   # as released


# ----- refusals -----

Q = "model.layers.1.self_attn.q_proj.weight"
DAMAGED = dict(
  missing=(lambda t: t.pop(Q), {}, ValueError, f"1 tensors are missing: {Q}"),
  extra=(lambda t: t.update(more=np.ones(3)), {}, ValueError, "1 tensors belong to no weight of the model: more"),
  shape=(lambda t: t.update({Q: t[Q][:-1]}), {}, ValueError, rf"{Q} has shape \(31, 32\), the model wants \(32, 32\)"),
  transposed=(lambda t: t.update({Q: t[Q].reshape(64, 16)}), {}, ValueError, rf"{Q} has shape \(64, 16\)"),
  integers=(lambda t: t.update({Q: t[Q].astype(np.int32)}), {}, ValueError, f"{Q} is int32, not a float"),
  a_layer_more=(None, dict(num_hidden_layers=4), ValueError, "9 tensors are missing: model.layers.3.input"),
  a_layer_less=(None, dict(num_hidden_layers=2), ValueError, "9 tensors belong to no weight .*: model.layers.2.input"),
  many_layers=(None, dict(num_hidden_layers=10**12), ValueError, "1000000000000 layers .* only 30 tensors"),
  huge_vocabulary=(None, dict(vocab_size=10**15), ValueError, r"embed_tokens.weight has shape \(61, 32\)"),
  no_layers=(None, dict(num_hidden_layers=0), ValueError, "config.json: .*layers=0"),
  text_for_a_number=(None, dict(hidden_size="32"), ValueError, "config.json: .*hidden_size"),
  infinite=(None, dict(rope_scaling=dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=math.inf)),
            ValueError, "config.json: .*OverflowError"),
  other_type=(None, dict(model_type="gpt2"), NotImplementedError, "model_type 'gpt2' is none of llama, qwen2"),
  no_type=(None, dict(model_type=None), ValueError, "config.json: .*model_type"),
  dtype=(None, dict(torch_dtype="int8"), ValueError, "config.json: .*dtype='int8'"),
  other_activation=(None, dict(hidden_act="gelu"), NotImplementedError, "hidden_act='gelu'"),
  gptq=(None, dict(quantization_config=dict(quant_method="gptq", bits=4)), NotImplementedError, "'gptq'"),
  other_blocks=(None, dict(quantization_config=dict(quant_method="fp8", weight_block_size=[64, 64])),
                NotImplementedError, r"\[64, 64\]"),
)


@pytest.mark.parametrize("case", DAMAGED)
def test_directories_that_do_not_fit_are_refused(saved, case):
  change, config, kind, message = DAMAGED[case]
  folder = saved(DENSE)
  tensors = tensors_of(folder)
  if change:
    change(tensors)
  write(folder, tensors, **config)
  with pytest.raises(kind, match=message) as error:
    hf.load(folder)
  assert str(folder) in str(error.value)


def test_files_that_are_no_files_of_a_model(saved):
  folder = saved(DENSE)
  config, weights_file = folder / "config.json", folder / "model.safetensors"
  text, raw = config.read_text(), weights_file.read_bytes()
  for damaged in (raw[:-1], raw[:5000], raw[:100], b"", b"\xff" * 7 + b"\x7f" + raw[8:]):
    weights_file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"model.safetensors: "):
      hf.load(folder)
  weights_file.unlink()
  with pytest.raises(ValueError, match=r"expected model.safetensors.index.json"):
    hf.load(folder)
  for damaged in ("{", "[]", "", "[" * 100_000, "\x00", '{"model_type": "llama"}'):
    config.write_text(damaged)
    with pytest.raises(ValueError, match=r"config.json: not a config of a known model"):
      hf.load(folder)
  config.write_bytes(b"\xff" + text.encode())
  with pytest.raises(ValueError, match=r"config.json: not a config of a known model"):
    hf.load(folder)
  config.unlink()
  with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
    hf.load(folder)
  with pytest.raises(FileNotFoundError, match="nowhere"):
    hf.load(folder / "nowhere")


def test_experts_in_one_tensor_are_refused_with_a_hint(saved):
  folder = saved(MOE)
  tensors = {k: v for k, v in tensors_of(folder).items() if ".experts." not in k}
  for i in range(2):
    tensors |= {f"model.layers.{i}.mlp.experts.gate_up_proj": np.ones((4, 40, 32), np.float32),
                f"model.layers.{i}.mlp.experts.down_proj": np.ones((4, 32, 20), np.float32)}
  write(folder, tensors)
  with pytest.raises(NotImplementedError, match=r"experts.gate_up_proj holds all experts in one.*save_original_format"):
    hf.load(folder)


@pytest.mark.parametrize("model, message", [
  (dataclasses.replace(MOE, moe=dataclasses.replace(MOE.moe, score="sigmoid")), "'qwen3_moe' cannot hold model.moe="),
  (dataclasses.replace(DENSE, mtp=1), "'llama' cannot hold model.mtp=1"),
  (dataclasses.replace(TIED, qk_norm=True), "'qwen3' cannot hold model.qkv_bias=True"),
  (dataclasses.replace(DEEPSEEK, moe=None, dense_layers=0, mtp=0), "model.mla without model.moe"),
], ids=["router", "mtp", "biases", "dense MLA"])
def test_what_config_json_cannot_hold_is_not_saved(tmp_path, model, message):
  with pytest.raises(ValueError, match=message):
    hf.save(tmp_path / "x", {}, model)
  assert not (tmp_path / "x").exists()


def test_how_to_compute_is_no_part_of_a_checkpoint():
  moe = dataclasses.replace(DEEPSEEK.moe, dispatch="dense")
  how = dataclasses.replace(DEEPSEEK, remat="layer", logit_chunk=7, moe=moe)
  assert hf.to_hf(how) == hf.to_hf(DEEPSEEK)


@pytest.mark.parametrize("change, message", [
  (lambda p: p["layers"].pop("ffn_norm"), "layers/ffn_norm has shape None"),
  (lambda p: p.update(head=np.ones((32, 61))), r"head has shape \(32, 61\), the model wants None"),
  (lambda p: p.update(embed=np.ones((61, 33))), r"embed has shape \(61, 33\)"),
], ids=["missing", "extra", "shape"])
def test_parameters_that_are_not_the_models_are_not_saved(tmp_path, change, message):
  params = jax.tree.map(lambda x: x, weights(TIED))
  change(params)
  with pytest.raises(ValueError, match=message):
    hf.save(tmp_path, params, TIED)
  with pytest.raises(ValueError, match=r"the tokenizer has 257 tokens, model.vocab=61"):
    hf.save(tmp_path, weights(TIED), TIED, tokenizer.byte_tokenizer())
  assert not list(tmp_path.iterdir())


# ----- memory -----

linux = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is read from /proc")


@linux
def test_bench_load_prints_what_it_measured(saved, tmp_path, capsys):
  folder = saved(DENSE)
  assert cli.main(["bench", "load", "--model", str(folder), "--json", str(tmp_path / "out.json")]) == 0
  result = json.loads((tmp_path / "out.json").read_text())
  assert result["params_bytes"] == 4 * param.count(transformer.params(DENSE)) and result["files"] == 1
  assert result["largest_shard_bytes"] == (folder / "model.safetensors").stat().st_size
  assert "peak beyond params, MB" in capsys.readouterr().out
  assert cli.main(["bench", "load", "--model", str(tmp_path / "nowhere")]) == 2
  assert "nowhere" in capsys.readouterr().err


@linux
@pytest.mark.slow
def test_loading_takes_little_memory_beyond_the_parameters():
  result = bench.measure()
  assert result["params_bytes"] > 490e6 and result["largest_shard_bytes"] <= 64.1e6
  assert result["ratio_to_largest_shard"] <= bench.BAR


@linux
@pytest.mark.slow
def test_a_scaled_down_deepseek_in_fp8_goes_to_its_shards_in_a_stream():
  """Its largest leaf, the experts' up-projections of all layers, has 201 MB, its parameters 847 MB."""
  result = bench.measure(fp8=True, devices=4)
  experts = transformer.params(bench.FP8_MODEL)["moe_layers"]["moe"]["up"].shape
  assert result["params_bytes"] > 840e6 and 2 * math.prod(experts) > 200e6
  assert result["peak_beyond_params_bytes"] < 130e6

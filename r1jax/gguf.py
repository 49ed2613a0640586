"""GGUF files of llama architecture -> Hugging Face directories: config.json, safetensors, tokenizer.

The `gguf` package reads and dequantises. Here is what llama.cpp's converter did on the way there, undone: names of
tensors and of metadata, the order of the rows of q and k, the tokenizer's parts (written down in llama.cpp,
docs/gguf.md of ggml, convert_hf_to_gguf.py and src/llama-vocab.cpp). What would not come out as the same model, such as
experts, partial rotary positions or an unknown way to cut text, is a NotImplementedError; a malformed file is a
ValueError; both name the file.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gguf
import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as token_models

from r1jax import hf, tokenizer
from r1jax.models import rope
from r1jax.models.names import Slot
from r1jax.models.rope import RopeConfig
from r1jax.models.transformer import ModelConfig

DTYPES = dict(bfloat16=np.dtype(ml_dtypes.bfloat16), float32=np.dtype(np.float32))
VERSIONS = (2, 3)
MAX_TENSORS, MAX_PAIRS, MAX_ARRAY = 2**16, 2**16, 2**22   # far beyond what models have; the package's reader has none
CHUNK = 2**22   # values that are dequantised at a time

# our leaves (as in models/llama.py) -> GGUF's tensors
TOP = {"embed": "token_embd", "final_norm": "output_norm", "head": "output"}
LAYER = {"attention_norm": "attn_norm", "attention/q": "attn_q", "attention/k": "attn_k", "attention/v": "attn_v",
         "attention/out": "attn_output", "ffn_norm": "ffn_norm", "ffn/gate": "ffn_gate", "ffn/up": "ffn_up",
         "ffn/down": "ffn_down"}
ROPE_FACTORS = "rope_freqs.weight"
# what a llama of ours does not do: these keys must be absent or as here
PLAIN = {"expert_count": 0, "attention.sliding_window": 0, "attention.clamp_kqv": 0, "attention.max_alibi_bias": 0,
         "attention.scale": 0, "attention.causal": True, "attn_logit_softcapping": 0, "final_logit_softcapping": 0,
         "logit_scale": 0, "residual_scale": 0, "embedding_scale": 0, "use_parallel_residual": False}

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4   # of tokenizer.ggml.token_type; 1 normal, 5 unused, 6 byte
_ANY = object()


class _Reader(gguf.GGUFReader):
  """The package's reader; but a length that goes beyond the file is a ValueError, where it has endless loops."""

  def _get(self, offset, dtype, count=1, *args, **options):
    end = int(offset) + int(count) * np.dtype(dtype).itemsize
    if end > len(self.data):
      raise ValueError(f"something in it ends at byte {end}, but the file has {len(self.data)} (cut short?)")
    return super()._get(offset, dtype, count, *args, **options)

  def _get_field_parts(self, orig_offs, raw_type):
    if raw_type == gguf.GGUFValueType.ARRAY:
      kind, length = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
      if kind == gguf.GGUFValueType.ARRAY:
        raise NotImplementedError("metadata has an array of arrays")
      if length > min(MAX_ARRAY, len(self.data)):
        raise ValueError(f"metadata has an array of {length} values in a file of {len(self.data)} bytes;"
                         f" the limit is {MAX_ARRAY}")
    return super()._get_field_parts(orig_offs, raw_type)


@dataclass(frozen=True)
class _File:
  """meta: all metadata as Python values. tensors: the package's views into the mapped file, by name."""
  meta: Mapping[str, object]
  tensors: Mapping[str, gguf.ReaderTensor]

  def get(self, key: str, kind: type = int, default=_ANY):
    """A value of metadata; ValueError where it is missing (and no default is given) or of another type."""
    value = self.meta.get(key, default)
    if value is _ANY:
      raise ValueError(f"no {key} in its metadata")
    if value is default:
      return value
    if isinstance(value, list) and kind is not list and value:   # a value for each layer
      if any(v != value[0] for v in value):
        raise NotImplementedError(f"{key} differs from layer to layer")
      value = value[0]
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
      raise ValueError(f"{key} of its metadata is {str(value)[:60]!r}, not {kind.__name__}")
    return float(str(np.float32(value))) if kind is float else value   # 1e-05 was written, 9.99999974e-06 is read

  def strings(self, key: str) -> list[str]:
    values = self.get(key, list)
    if not all(isinstance(v, str) for v in values):
      raise ValueError(f"{key} of its metadata is not all strings")
    return values

  def shape(self, name: str) -> tuple[int, ...]:
    """As NumPy and Hugging Face have it: the dimension that changes fastest comes last."""
    return tuple(int(n) for n in reversed(self.tensors[name].shape))


@contextlib.contextmanager
def _naming(path: Path):
  try:
    yield
  except NotImplementedError as error:
    raise NotImplementedError(f"{path}: {error}") from error
  except (ValueError, KeyError, IndexError, OverflowError, TypeError) as error:   # the package's reader has them all
    raise ValueError(f"{path}: {error or type(error).__name__}") from error


def to_hf(file: str | Path, folder: str | Path, dtype: str = "bfloat16") -> tuple[ModelConfig, list[Path]]:
  """Writes a GGUF file's model and tokenizer to a folder that hf.load and transformers read; gives what it wrote.

  dtype: bfloat16 or float32; what is quantised is exact in float32 only. One tensor at a time is in memory, in dtype.
  """
  file, folder = Path(file), Path(folder)
  if dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}")
  with _naming(file):
    source = _read(file)
    cfg = _config(source, dtype)
    wanted = {s.hf: s for s in hf.slots(cfg)}
    present = [name for name in source.tensors if name != ROPE_FACTORS]
    hf.check_names([s._replace(hf=_name(s)) for s in wanted.values()], source.shape, present, "tensors")
    tok = _tokenizer(source, cfg)
    context = source.get("llama.context_length", default=0)

  def get(name: str) -> np.ndarray:
    slot = wanted[name]
    with _naming(file):
      w = _dequantise(source.tensors[_name(slot)], DTYPES[dtype])
    heads = {"q": cfg.heads, "k": cfg.kv_heads}.get(slot.path[-1])
    return _unpermute(w, heads) if heads else w

  specs = {name: (DTYPES[dtype], slot.shape) for name, slot in wanted.items()}
  config = hf.full_config(cfg, tok, dict(max_position_embeddings=context) if context else {})
  files = hf.write_model(folder, config, specs, get)
  # of another tokenizer that was here, these would be read beside ours
  for old in ("generation_config", "special_tokens_map", "added_tokens", "vocab"):
    (folder / f"{old}.json").unlink(missing_ok=True)
  for old in ("tokenizer.model", "merges.txt"):
    (folder / old).unlink(missing_ok=True)
  tok.save_dir(folder)
  return cfg, files


def _read(path: Path) -> _File:
  """The header: all metadata, and views of the tensors. ValueError for what is not a whole GGUF file."""
  with open(path, "rb") as file:
    head = file.read(24)
  if head[:4] != b"GGUF":
    raise ValueError(f"not a GGUF file: it begins with {head[:4]!r}, not b'GGUF'")
  if len(head) < 24:
    raise ValueError(f"{len(head)} bytes; the header alone takes 24 (cut short?)")
  version, tensors, pairs = struct.unpack("<IQQ", head[4:])
  if version not in VERSIONS:
    raise NotImplementedError(f"GGUF version {version:#x} (little-endian), only {VERSIONS} are read")
  if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
    raise ValueError(f"it says that it has {tensors} tensors and {pairs} pairs of metadata; the limits are"
                     f" {MAX_TENSORS} and {MAX_PAIRS}")
  reader = _Reader(path)
  return _File({k: field.contents() for k, field in reader.fields.items()}, {t.name: t for t in reader.tensors})


def _name(slot: Slot) -> str:
  """GGUF's name of a tensor."""
  if not slot.index:
    return f"{TOP[slot.path[0]]}.weight"
  return f"blk.{slot.index[0]}.{LAYER['/'.join(slot.path[1:])]}.weight"


def _config(source: _File, dtype: str) -> ModelConfig:
  if (architecture := source.get("general.architecture", str)) != "llama":
    raise NotImplementedError(f"architecture {architecture!r}; only 'llama' is read")
  if (kind := source.get("general.type", str, "model")) != "model":
    raise NotImplementedError(f"it holds a {kind!r}, not a model")
  if (parts := source.get("split.count", default=1)) > 1:
    raise NotImplementedError(f"it is one of {parts} parts; join them first (llama-gguf-split --merge)")
  for key, plain in PLAIN.items():
    if (value := source.meta.get(f"llama.{key}", plain)) != plain:
      raise NotImplementedError(f"llama.{key} is {str(value)[:60]}, only {plain} is supported")
  if "token_embd.weight" not in source.tensors:
    raise ValueError("tensor token_embd.weight is missing")
  dim, heads = source.get("llama.embedding_length"), source.get("llama.attention.head_count")
  if dim < 1 or heads < 1:
    raise ValueError(f"llama.embedding_length={dim} and llama.attention.head_count={heads} must be at least 1")
  head_dim = source.get("llama.attention.key_length", default=dim // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if (value := source.get(f"llama.{key}", default=head_dim)) != head_dim:
      raise NotImplementedError(f"llama.{key} is {value}, only that of keys, {head_dim}, is supported")
  return ModelConfig(
    vocab=source.shape("token_embd.weight")[0], dim=dim, layers=source.get("llama.block_count"), heads=heads,
    kv_heads=source.get("llama.attention.head_count_kv", default=heads), ffn=source.get("llama.feed_forward_length"),
    head_dim=head_dim, rope=_rope(source, head_dim), tied_head="output.weight" not in source.tensors, dtype=dtype,
    norm_eps=source.get("llama.attention.layer_norm_rms_epsilon", float))


def _rope(source: _File, head_dim: int) -> RopeConfig:
  """Rotary frequencies. Llama 3's scaling is not in the metadata: a tensor holds what each frequency is divided by."""
  theta = source.get("llama.rope.freq_base", float, 10_000.0)
  factor = source.get("llama.rope.scaling.factor", float, source.get("llama.rope.scale_linear", float, 0.0))
  kind = source.get("llama.rope.scaling.type", str, "linear")   # without it, llama.cpp takes the factor as linear
  plain = RopeConfig(theta)
  if kind not in ("none", "linear"):
    raise NotImplementedError(f"llama.rope.scaling.type is {kind!r}, only none and linear are supported")
  if kind == "linear" and factor not in (0.0, 1.0):
    if ROPE_FACTORS in source.tensors:
      raise NotImplementedError(f"a linear factor of {factor} together with {ROPE_FACTORS}")
    return RopeConfig(theta, "linear", factor)
  if ROPE_FACTORS not in source.tensors:
    return plain
  found_C = _dequantise(source.tensors[ROPE_FACTORS], DTYPES["float32"]).reshape(-1)
  if found_C.shape == (head_dim // 2,) and np.all(found_C == 1):
    return plain
  # every release since 3.1 has the same three numbers beside the factor; whether this one has, the tensor tells
  guess = RopeConfig(theta, "llama3", float(found_C.max()), original=8192, low_freq_factor=1.0, high_freq_factor=4.0)
  want_C = rope.frequencies(plain, head_dim) / rope.frequencies(guess, head_dim)
  if found_C.shape != want_C.shape or not np.allclose(found_C, want_C, rtol=1e-4):
    raise NotImplementedError(f"{ROPE_FACTORS} is not Llama 3's scaling of 8192 tokens between 1 and 4 turns")
  return guess


def _dequantise(tensor: gguf.ReaderTensor, dtype: np.dtype) -> np.ndarray:
  """The values, of dtype. Some rows at a time: beside the result, only so much exists in float32."""
  packed = tensor.data.reshape(-1, tensor.data.shape[-1])   # a row is a whole number of blocks
  out = np.empty((len(packed), int(tensor.shape[0])), dtype)
  rows = max(1, CHUNK // out.shape[1])
  for i in range(0, len(packed), rows):
    out[i:i + rows] = gguf.dequantize(packed[i:i + rows], tensor.tensor_type)
  return out.reshape([int(n) for n in reversed(tensor.shape)])


def _unpermute(w: np.ndarray, heads: int) -> np.ndarray:
  """Rows of q or k [heads * C, D]: llama.cpp turns channels 2i and 2i + 1 of a head, Hugging Face i and i + C / 2."""
  return w.reshape(heads, -1, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


# the tokenizer


def _tokenizer(source: _File, cfg: ModelConfig) -> tokenizer.Tokenizer:
  tokens = source.strings("tokenizer.ggml.tokens")
  if len(tokens) != cfg.vocab or len(set(tokens)) != len(tokens):
    raise ValueError(f"tokenizer.ggml.tokens has {len(set(tokens))} different tokens of {len(tokens)}, but"
                     f" token_embd.weight has {cfg.vocab} rows")
  kinds = source.get("tokenizer.ggml.token_type", list, [1] * len(tokens))
  if len(kinds) != len(tokens):
    raise ValueError(f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens")

  def token(name: str) -> int | None:
    i = source.get(f"tokenizer.ggml.{name}_token_id", default=None)
    if i is not None and not 0 <= i < len(tokens):
      raise ValueError(f"tokenizer.ggml.{name}_token_id is {i}, but there are {len(tokens)} tokens")
    return i

  if (end := token("eos")) is None:
    raise ValueError("no tokenizer.ggml.eos_token_id in its metadata")
  build = {"gpt2": _byte_level, "llama": _sentencepiece}
  if (model := source.get("tokenizer.ggml.model", str)) not in build:
    raise NotImplementedError(f"tokenizer.ggml.model is {model!r}, none of {', '.join(build)}")
  try:
    backend, add_bos = build[model](source, tokens, kinds, token)
  except NotImplementedError:
    raise
  except Exception as error:   # the library raises bare ones
    raise ValueError(f"its tokenizer cannot be built ({error})") from error
  added = [(AddedToken(t, special=kind != USER_DEFINED, normalized=False), kind)
           for t, kind in zip(tokens, kinds, strict=True) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
  backend.add_special_tokens([t for t, kind in added if kind != USER_DEFINED])
  backend.add_tokens([t for t, kind in added if kind == USER_DEFINED])   # <think> and the like: text may hold them
  bos = token("bos")
  if add_bos := source.get("tokenizer.ggml.add_bos_token", bool, add_bos) and bos is not None:
    opened = [tokens[bos], "$A"]
    backend.post_processor = processors.TemplateProcessing(single=opened, pair=[*opened, tokens[bos], "$B"],
                                                           special_tokens=[(tokens[bos], bos)])
  texts = dict(bos_token=bos, eos_token=end, pad_token=token("padding"), unk_token=token("unknown"))
  settings = {name: tokens[i] for name, i in texts.items() if i is not None} | dict(add_bos_token=add_bos)
  if context := source.get("llama.context_length", default=0):
    settings["model_max_length"] = context
  ends = (end, *(i for i in (token("eot"), token("eom")) if i is not None))   # of a turn, of a message
  return tokenizer.Tokenizer(backend, end, bos, ends, dict(_templates(source)), settings)


def _templates(source: _File) -> Iterator[tuple[str, str]]:
  first = "tokenizer.chat_template"
  for key in source.meta:
    if key == first:
      yield "default", source.get(key, str)
    elif key.startswith(f"{first}."):
      yield key.removeprefix(f"{first}."), source.get(key, str)


class _Cut(NamedTuple):
  """How a byte-level tokenizer cuts a text before merges apply, by tokenizer.ggml.pre. As in the models' own files."""
  steps: tuple = ()
  gpt2: bool = True           # and then by GPT-2's pattern, which ByteLevel brings along
  whole_words: bool = False   # a word that is a token needs no merges; and BOS opens a text, if the file does not say


def _words(digits: str) -> pre_tokenizers.Split:
  return pre_tokenizers.Split(Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits +
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated")


_LLAMA3, _QWEN2 = _Cut((_words("{1,3}"),), False, True), _Cut((_words(""),), False)
CUTS = {"gpt-2": _Cut(), "smollm": _Cut((pre_tokenizers.Digits(individual_digits=True),)), "llama-bpe": _LLAMA3,
        "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}


def _byte_level(source: _File, tokens: list[str], kinds: list[int], token) -> tuple[tokenizers.Tokenizer, bool]:
  """BPE over bytes, and whether a text opens with BOS where the file does not say."""
  pre = source.get("tokenizer.ggml.pre", str, "")
  if pre not in CUTS:
    raise NotImplementedError(f"tokenizer.ggml.pre is {pre!r}, none of {', '.join(CUTS)}: how to cut text is unknown")
  merges = [tuple(m.split(" ")) for m in source.strings("tokenizer.ggml.merges")]
  vocab, cut = {t: i for i, t in enumerate(tokens)}, CUTS[pre]
  backend = tokenizers.Tokenizer(token_models.BPE(vocab=vocab, merges=merges, ignore_merges=cut.whole_words))
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [*cut.steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.gpt2)])
  backend.decoder = decoders.ByteLevel()
  return backend, cut.whole_words


def _sentencepiece(source: _File, tokens: list[str], kinds: list[int], token) -> tuple[tokenizers.Tokenizer, bool]:
  """SentencePiece's BPE, as in Llama 2's tokenizer.json: whichever pair makes the piece of highest score is merged."""
  scores = source.get("tokenizer.ggml.scores", list)
  vocab = {t: i for i, t in enumerate(tokens)}
  pieces = sorted((i for i, kind in enumerate(kinds) if kind == 1), key=lambda i: (-scores[i], i))
  merges = [(piece[:cut], piece[cut:]) for piece in map(tokens.__getitem__, pieces) for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab]
  unknown = tokens[token("unknown") or 0]
  model = token_models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
  backend = tokenizers.Tokenizer(model)
  prefix = source.get("tokenizer.ggml.add_space_prefix", bool, True)
  space = normalizers.Replace(" ", "▁")
  backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space] if prefix else [space])
  parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
  return backend, True

"""Text to tokens and back, by Hugging Face `tokenizers`: bytes, a task's own symbols, or a given tokenizer.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

END = "<|end|>"
# what released tokenizers call the token that ends an answer
KNOWN_ENDS = (END, "<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "</s>", "<eos>",
              "<|end_of_text|>")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A `tokenizers` tokenizer and the token that ends an answer; padding uses that token too, under a mask."""
  backend: tokenizers.Tokenizer
  end_id: int

  @property
  def vocab(self) -> int:
    return self.backend.get_vocab_size()

  def encode(self, text: str) -> list[int]:
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of an answer; the end token is left out."""
    return self.backend.decode([int(i) for i in ids if i != self.end_id], skip_special_tokens=False)

  def save(self, path: Path) -> None:
    self.backend.save(str(path))


def _finish(backend: tokenizers.Tokenizer, end: str) -> Tokenizer:
  # text that looks like a special token is text: nobody can end an answer by writing <|end|> in a prompt
  backend.encode_special_tokens = True
  return Tokenizer(backend, backend.token_to_id(end))


def byte_tokenizer() -> Tokenizer:
  """256 bytes and the end token. Any text goes in; bytes that are no UTF-8 come out as U+FFFD."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
  return _finish(backend, END)


def symbol_tokenizer(symbols: Sequence[str]) -> Tokenizer:
  """One token for each symbol ("0", "<think>"), longest first, and the end token. Other text is an error."""
  vocab = {s: i for i, s in enumerate(symbols)}     # without END: the model must not find it in text
  if len(vocab) != len(symbols) or END in vocab:
    raise ValueError(f"symbols repeat, or contain {END}: {symbols}")
  backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unknown>"))
  pattern = "|".join(_escape(s) for s in sorted(symbols, key=len, reverse=True))
  backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
  backend.decoder = decoders.Fuse()
  backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
  return _finish(backend, END)


def _escape(symbol: str) -> str:
  return "".join("\\" + c if c in r"\.^$*+?{}[]|()-/" else c for c in symbol)


def load(path: str | Path, end: str = "") -> Tokenizer:
  """A tokenizer.json. `end` names the token that ends an answer; empty: the first of KNOWN_ENDS that it has."""
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file (expected a tokenizer.json)")
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:   # the library raises a bare Exception
    raise ValueError(f"{path}: not a tokenizer.json ({error})") from error
  ends = [end] if end else [e for e in KNOWN_ENDS if backend.token_to_id(e) is not None]
  if not ends or backend.token_to_id(ends[0]) is None:
    raise ValueError(f"{path}: {'no token ' + repr(end) if end else 'none of the known end tokens'} in its vocabulary;"
                     " name the one that ends an answer (data.end_token)")
  return _finish(backend, ends[0])

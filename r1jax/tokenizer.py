"""Text to tokens and back, by Hugging Face `tokenizers`: bytes, a task's own symbols, or a released model's folder.

Plain text never makes a special token: `encode` reads "<|im_end|>" as ten characters. Only a chat's template may write
one (`encode_chat`, see r1jax/chat.py), and there too the messages' own words stay text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

END = "<|end|>"
# what released tokenizers call the token that ends an answer
KNOWN_ENDS = (END, "<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "</s>", "<eos>",
              "<|end_of_text|>")
# DeepSeek's <｜User｜> opens a turn and yet is not marked special: the form tells as well
CONTROL = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)

TEMPLATES = "additional_chat_templates"   # transformers' folder for templates that have a name


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A `tokenizers` tokenizer and the token that ends an answer; padding uses that token too, under a mask."""
  backend: tokenizers.Tokenizer
  end_id: int                       # the one that training writes
  bos_id: int | None = None         # opens a text, where the model wants that; templates write it, `encode` does not
  end_ids: tuple[int, ...] = ()     # all that end an answer when sampling, end_id first; empty: end_id alone
  templates: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)   # name -> jinja
  settings: Mapping[str, object] = dataclasses.field(default_factory=dict, compare=False, repr=False)
  # settings: tokenizer_config.json as it was read, without the template

  def __post_init__(self):
    object.__setattr__(self, "end_ids", tuple(dict.fromkeys((self.end_id, *self.end_ids))))

  @property
  def vocab(self) -> int:
    return self.backend.get_vocab_size()

  def encode(self, text: str) -> list[int]:
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of an answer; end tokens are left out."""
    return self.backend.decode([int(i) for i in ids if i not in self.end_ids], skip_special_tokens=False)

  def stream(self) -> Stream:
    """Gives the text of tokens that come one by one."""
    return Stream(self)

  @property
  def chat_template(self) -> str | None:
    return self.templates.get("default")

  def encode_chat(self, messages: Sequence[Mapping], **options) -> list[int]:
    """Tokens of a chat in the template's form. See `chat.encode` for the options and what is promised."""
    from r1jax import chat  # jinja2 is needed for chats only

    return chat.encode(self, messages, **options)

  @property
  def special_texts(self) -> dict[str, str]:
    """What a template may write by name: bos_token, eos_token, pad_token, ..."""
    texts = {name: _content(value) for name, value in self.settings.items()
             if name.endswith("_token") and isinstance(value, str | Mapping)}
    for name, i in (("bos_token", self.bos_id), ("eos_token", self.end_id)):
      if i is not None:
        texts.setdefault(name, self.backend.id_to_token(i))
    return texts

  @functools.cached_property
  def controls(self) -> re.Pattern:
    """Finds what only a template may say: special tokens, end tokens, and added tokens written <|...|>.

    Tags such as <think> or <tool_call>, where a tokenizer has them as tokens, are words of the model: not among them.
    """
    texts = {t.content for t in self.backend.get_added_tokens_decoder().values()
             if t.special or CONTROL.fullmatch(t.content)}
    return _any_of(texts | {self.backend.id_to_token(i) for i in self.end_ids})

  @functools.cached_property
  def _controls_normalised(self) -> re.Pattern:
    # a lower-casing tokenizer reads <|END|> as <|end|>: the library looks for these in the normalised text
    texts = {t.content for t in self.backend.get_added_tokens_decoder().values() if self.controls.fullmatch(t.content)}
    return _any_of(texts | {self.backend.normalizer.normalize_str(t) for t in texts})

  def guard(self, text: str, mark: str) -> str:
    """`text` with `mark` inside whatever would be read as a control token; encode_markup cuts there.

    `mark` is a character that no text in the chat contains.
    """
    while self.controls.search(text):     # again, as the rest of one may be another: <<s>
      text = self.controls.sub(lambda found: _broken(found[0], mark), text)
    normaliser = self.backend.normalizer
    if normaliser and any(self._controls_normalised.search(normaliser.normalize_str(t)) for t in text.split(mark)):
      return mark.join(text.replace(mark, ""))   # where in the text is unknown: each character alone
    return text

  @functools.cached_property
  def _markup(self) -> tokenizers.Tokenizer:
    # a copy, as the switch is the backend's and not the call's
    backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
    backend.encode_special_tokens = False
    backend.post_processor = None   # it would only trim spaces off the offsets
    return backend

  def encode_markup(self, text: str, mark: str = "") -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens of a text whose control tokens are meant, and the characters [begin, end) that each token stands for.

    The text is cut at each `mark` and its parts are encoded one by one; marks are not counted as characters.
    """
    ids, spans, at = [], [], 0
    for part in text.split(mark) if mark else [text]:
      encoding = self._markup.encode(part, add_special_tokens=False)
      ids += encoding.ids
      spans += [(begin + at, end + at) for begin, end in encoding.offsets]
      at += len(part)
    return ids, spans

  def save(self, path: Path) -> None:
    self.backend.save(str(path))

  def save_dir(self, path: str | Path) -> None:
    """Writes a folder that `load_dir` and transformers read: tokenizer.json, its settings, templates, end tokens.

    As transformers 5 does, the template goes to chat_template.jinja, others to additional_chat_templates/NAME.jinja.
    Of a generation_config.json that is there already, only the bos and end tokens change.
    """
    path = Path(path)
    if wrong := [name for name in self.templates if name != Path(name).name]:
      raise ValueError(f"template names {wrong} cannot be names of files")
    path.mkdir(parents=True, exist_ok=True)
    self.save(path / "tokenizer.json")
    settings = dict(self.settings) or {"pad_token": self.backend.id_to_token(self.end_id)}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | settings
    settings |= {k: v for k, v in self.special_texts.items() if not settings.get(k)}
    _write_json(path / "tokenizer_config.json", settings)
    for old in [path / "chat_template.jinja", *(path / TEMPLATES).glob("*.jinja")]:
      old.unlink(missing_ok=True)   # a template of another tokenizer would be taken for ours
    for name, template in self.templates.items():
      file = path / "chat_template.jinja" if name == "default" else path / TEMPLATES / f"{name}.jinja"
      file.parent.mkdir(exist_ok=True)
      file.write_bytes(template.encode())
    file = path / "generation_config.json"
    ends = dict(eos_token_id=self.end_id if len(self.end_ids) == 1 else list(self.end_ids))
    starts = {} if self.bos_id is None else dict(bos_token_id=self.bos_id)
    _write_json(file, _read_json(file) | starts | ends)


class Stream:
  """Text of tokens as they come: whole characters, and joined exactly `decode` of all the tokens.

  Held back until it is certain: a last U+FFFD, as it may become a character; and a run of SentencePiece's byte tokens
  (<0xE2>), as its decoder turns the whole run into U+FFFD if it is no UTF-8. `tokenizers.decoders.DecodeStream` has no
  end (an unfinished character is lost), gives such runs too early and then raises.
  """
  KEEP = 8   # tokens of context: 3 that may be an unfinished character, and some text before (leading spaces)

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer, self._ids, self._given = tokenizer, [], 0    # given: characters of decode(ids)

  def push(self, token: int) -> str:
    """The text that is certain after this token; often empty."""
    name = self._tokenizer.backend.id_to_token(int(token))
    if name is None or token in self._tokenizer.end_ids:   # as in decode
      return ""
    self._ids.append(int(token))
    if len(name) == 6 and name.startswith("<0x"):
      return ""
    text = self._tokenizer.decode(self._ids)
    certain = max(self._given, len(text) - text.endswith("\ufffd"))
    piece, self._given = text[self._given:certain], certain
    if len(self._ids) > 2 * self.KEEP:
      self._forget(text[certain:])
    return piece

  def flush(self) -> str:
    """What was held back; the stream is as new afterwards."""
    piece = self._tokenizer.decode(self._ids)[self._given:]
    self._ids, self._given = [], 0
    return piece

  def _forget(self, held: str) -> None:
    # so that a push costs the same however long the answer; the new beginning may be half a character, but that part
    # has been given
    kept = self._ids[-self.KEEP:]
    text = self._tokenizer.decode(kept)
    if text and text.endswith(held) and all(map(self._tokenizer.backend.id_to_token, kept)):
      self._ids, self._given = kept, len(text) - len(held)


def _any_of(texts) -> re.Pattern:
  # longest first, so that a token wins over the one it begins with; (?!) matches nothing
  return re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True) if t) or "(?!)")


def _broken(control: str, mark: str) -> str:
  if len(control) == 1:
    raise ValueError(f"a message may not contain {control!r}: it is a control token of this tokenizer")
  return control[0] + mark + control[1:]


def _content(token: str | Mapping) -> str:
  return token if isinstance(token, str) else token["content"]


def _read_json(path: Path) -> dict:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path}: not JSON ({error})") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected an object, not {type(value).__name__}")
  return value


def _write_json(path: Path, value: dict) -> None:
  path.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _finish(backend: tokenizers.Tokenizer, end: str) -> Tokenizer:
  return Tokenizer(_strict(backend), backend.token_to_id(end))


def _strict(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  # text that looks like a special token is text: nobody can end an answer by writing <|end|> in a prompt
  backend.encode_special_tokens = True
  backend.no_truncation()   # some files carry these; lengths are ours to choose
  backend.no_padding()
  return backend


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
  """A tokenizer.json. `end` names the token that ends an answer; empty: the first of KNOWN_ENDS that it has.

  The path of a folder: as load_dir; there `end` is one token more that ends an answer, such as a line break, and the
  one that training writes.
  """
  if Path(path).is_dir():
    tok = load_dir(path)
    ids = tok.encode(end)
    if len(ids) > 1:
      raise ValueError(f"{path}: {end!r} is {len(ids)} tokens, not one that could end an answer")
    return dataclasses.replace(tok, end_id=ids[0], end_ids=(*ids, *tok.end_ids)) if end else tok
  backend = _read_backend(Path(path))
  return _finish(backend, _end_of(backend, path, end))


def load_or_bytes(path: str | None, end: str | None) -> Tokenizer:
  """The tokenizer that a task's data names, as `load`; bytes where it names none."""
  return load(path, end or "") if path else byte_tokenizer()


def load_dir(path: str | Path) -> Tokenizer:
  """A released model's folder: tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json.

  All but the first may be missing. An answer ends at generation_config's eos_token_id (one or several), else at the
  tokenizer's eos_token, else at the first of KNOWN_ENDS; end_id is the tokenizer's eos_token if it is one of these.
  A template file wins over the one in tokenizer_config.json, as in transformers.
  """
  path = Path(path)
  if not path.is_dir():
    raise FileNotFoundError(f"{path}: no such folder (expected tokenizer.json and tokenizer_config.json in it)")
  backend = _read_backend(path / "tokenizer.json")
  settings = _read_json(path / "tokenizer_config.json")
  templates = _templates(settings.pop("chat_template", None), path)
  for name, value in settings.items():      # add_bos_token and the like are true or false
    used = (value is not None if name in ("bos_token", "eos_token") else
            name.endswith("_token") and isinstance(value, Mapping))
    if used and not isinstance(value.get("content") if isinstance(value, Mapping) else value, str):
      raise ValueError(f"{path / 'tokenizer_config.json'}: {name}={str(value)[:80]} is neither a text nor an object"
                       " with a text 'content'")
  bos, eos = (_named(backend, settings, name, path) for name in ("bos_token", "eos_token"))
  ends = _read_json(path / "generation_config.json").get("eos_token_id")
  ends = [] if ends is None else list(ends) if isinstance(ends, list) else [ends]
  if wrong := [i for i in ends if type(i) is not int or i < 0 or backend.id_to_token(i) is None]:
    raise ValueError(f"{path}: eos_token_id {wrong} of generation_config.json is no token of tokenizer.json")
  if eos is None and not ends:
    eos = backend.token_to_id(_end_of(backend, path))
  end = eos if eos is not None and (eos in ends or not ends) else ends[0]
  return Tokenizer(_strict(backend), end, bos, tuple(ends), templates, settings)


def _read_backend(path: Path) -> tokenizers.Tokenizer:
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file (expected a tokenizer.json)")
  try:
    return tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:   # the library raises a bare Exception
    raise ValueError(f"{path}: not a tokenizer.json ({error})") from error


def _end_of(backend: tokenizers.Tokenizer, path: str | Path, end: str = "") -> str:
  ends = [e for e in ([end] if end else KNOWN_ENDS) if backend.token_to_id(e) is not None]
  if not ends:
    raise ValueError(f"{path}: {'no token ' + repr(end) if end else 'none of the known end tokens'} in its vocabulary;"
                     " name the one that ends an answer (data.end_token)")
  return ends[0]


def _named(backend: tokenizers.Tokenizer, settings: Mapping, name: str, path: Path) -> int | None:
  if settings.get(name) is None:
    return None
  token = backend.token_to_id(_content(settings[name]))
  if token is None:
    raise ValueError(f"{path}: {name} {_content(settings[name])!r} of tokenizer_config.json is not in tokenizer.json")
  return token


def _templates(setting, path: Path) -> dict[str, str]:
  files = {file.stem: file for file in sorted((path / TEMPLATES).glob("*.jinja"))}
  if (path / "chat_template.jinja").is_file():
    files["default"] = path / "chat_template.jinja"
  if files:
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
  if setting is None:
    return {}
  if isinstance(setting, str):
    return {"default": setting}
  if not isinstance(setting, list) or not all(
      isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str) for t in setting):
    raise ValueError(f"{path / 'tokenizer_config.json'}: chat_template={str(setting)[:80]} is neither a text nor a list"
                     " of objects with texts 'name' and 'template'")
  return {t["name"]: t["template"] for t in setting}

"""Text to tokens and back, end tokens that nobody can write, released folders, and text that streams."""

import functools
import gzip
import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from r1jax import tokenizer

DEEPSEEK = Path(__file__).parents[2] / "shared/data/deepseek_r1/tokenizer.json.gz"
TEXTS = ("", "a", " leading and  double ", "tab\tnew\nline\r\n", "naïve Ångström", "二 + 二 = 四", "🙂👩‍👩‍👧‍👦🇩🇪",
         "\x00\x7f", "<think>\n1 + 1</think>", "Ġ ▁ Ċ")


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_give_any_text_back(text):
  tok = tokenizer.byte_tokenizer()
  ids = tok.encode(text)
  assert tok.decode(ids) == text
  assert len(ids) == len(text.encode()) and all(0 <= i < 256 for i in ids)


def test_bytes_every_value_has_a_token_and_cut_utf8_comes_out_as_a_mark():
  tok = tokenizer.byte_tokenizer()
  assert (tok.vocab, tok.end_id) == (257, 256)
  assert tok.decode(tok.encode("🙂")[:2]) in ("\ufffd", "\ufffd\ufffd")
  assert len({tok.encode(chr(i))[-1] for i in range(128)}) == 128


def test_a_batch_is_encoded_as_each_text_alone():
  tok = tokenizer.byte_tokenizer()
  assert tok.encode_batch(TEXTS) == [tok.encode(t) for t in TEXTS]


def test_decoding_leaves_the_end_out():
  tok = tokenizer.byte_tokenizer()
  assert tok.decode([*tok.encode("ab"), tok.end_id]) == "ab"


@pytest.mark.parametrize("make", [tokenizer.byte_tokenizer, lambda: tokenizer.symbol_tokenizer(
  ["<", "|", "e", "n", "d", ">", "<|en"])])
def test_text_that_looks_like_the_end_token_is_text(make):
  tok = make()
  for text in (tokenizer.END, f"end{tokenizer.END}end"):
    ids = tok.encode(text)
    assert tok.end_id not in ids
    assert tok.decode(ids) == text


def test_symbols_are_one_token_each_longest_first():
  symbols = ["0", "1", "10", "<think>", "</think>", "<", "+", "\n", "a.b", "[", "^"]
  tok = tokenizer.symbol_tokenizer(symbols)
  assert (tok.vocab, tok.end_id) == (len(symbols) + 1, len(symbols))
  pieces = ("<think>", "10", "+", "0", "\n", "</think>")
  assert tok.encode("".join(pieces)) == [symbols.index(s) for s in pieces]
  for text in ("".join(symbols), "".join(reversed(symbols)), ""):
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("text", ["2", "0 1", "0x1", "<|end|>"])
def test_symbols_other_text_is_an_error(text):
  with pytest.raises(Exception, match="WordLevel error"):
    tokenizer.symbol_tokenizer(["0", "1"]).encode(text)


def test_symbols_that_repeat_or_are_the_end_are_an_error():
  for symbols in (["0", "0"], ["0", tokenizer.END]):
    with pytest.raises(ValueError, match="symbols repeat"):
      tokenizer.symbol_tokenizer(symbols)


def test_save_and_load_give_the_same_tokens(tmp_path):
  for tok in (tokenizer.byte_tokenizer(), tokenizer.symbol_tokenizer(["0", "1", "<think>"])):
    tok.save(tmp_path / "tokenizer.json")
    again = tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.vocab, again.end_id, again.encode("01<think>")) == (tok.vocab, tok.end_id, tok.encode("01<think>"))
    assert tokenizer.load(tmp_path / "tokenizer.json", end="<|end|>").end_id == tok.end_id


def test_load_says_what_is_wrong(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
    tokenizer.load(tmp_path / "none.json")
  (tmp_path / "bad.json").write_text("{}")
  with pytest.raises(ValueError, match=r"bad\.json: not a tokenizer\.json"):
    tokenizer.load(tmp_path / "bad.json")
  tok = tokenizer.byte_tokenizer()
  tok.save(tmp_path / "good.json")
  with pytest.raises(ValueError, match="no token '<stop>' in its vocabulary"):
    tokenizer.load(tmp_path / "good.json", end="<stop>")
  (tmp_path / "endless.json").write_text((tmp_path / "good.json").read_text().replace("<|end|>", "<|over|>"))
  with pytest.raises(ValueError, match="none of the known end tokens"):
    tokenizer.load(tmp_path / "endless.json")


@pytest.mark.skipif(not DEEPSEEK.is_file(), reason="DeepSeek-R1's tokenizer is not at hand")
def test_deepseek_r1s_own_tokenizer_loads(tmp_path):
  (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(DEEPSEEK.read_bytes()))
  tok = tokenizer.load(tmp_path / "tokenizer.json")
  end = "<｜end▁of▁sentence｜>"
  assert tok.backend.id_to_token(tok.end_id) == end
  assert tok.vocab > 128_000
  for text in TEXTS:
    assert tok.decode(tok.encode(text)) == text
  ids = tok.encode(f"1 + 1{end} = 2")
  assert tok.end_id not in ids and tok.decode(ids) == f"1 + 1{end} = 2"


# a released model's folder

def write(folder: Path, **files) -> Path:
  """A folder with a small tokenizer.json and the given settings, as JSON or as text."""
  backend = tokenizer.byte_tokenizer().backend
  backend.add_special_tokens(["<s>", "<|im_end|>"])   # 257, 258
  folder.mkdir(exist_ok=True)
  backend.save(str(folder / "tokenizer.json"))
  for name, value in files.items():
    file = folder / (name + (".jinja" if isinstance(value, str) else ".json"))
    file.write_text(value if isinstance(value, str) else json.dumps(value))
  return folder


ADDED = dict(__type="AddedToken", content="<|im_end|>", lstrip=False, normalized=False, rstrip=False, single_word=False)


@pytest.mark.parametrize("config, generation, end, ends", [
  ({}, {}, 256, (256,)),                                                   # the first of the known ones
  (dict(eos_token="<|im_end|>"), {}, 258, (258,)),
  (dict(eos_token=ADDED), {}, 258, (258,)),
  (dict(eos_token=None), dict(eos_token_id=257), 257, (257,)),
  (dict(eos_token="<|im_end|>"), dict(eos_token_id=[256, 258]), 258, (258, 256)),
  (dict(eos_token="<|im_end|>"), dict(eos_token_id=[256, 257]), 256, (256, 257)),
  ({}, dict(eos_token_id=[257, 257]), 257, (257,)),
])
def test_a_folder_says_what_ends_an_answer(config, generation, end, ends, tmp_path):
  folder = write(tmp_path / "a", tokenizer_config=config, generation_config=generation)
  tok = tokenizer.load_dir(folder)
  assert (tok.end_id, tok.end_ids, tok.bos_id, tok.chat_template) == (end, ends, None, None)
  assert tok.decode([*tok.encode("ab"), *ends]) == "ab"
  tok.save_dir(tmp_path / "b")
  again = tokenizer.load_dir(tmp_path / "b")
  assert (again.end_id, again.end_ids) == (end, ends)


def test_a_folder_without_settings_is_a_tokenizer_json(tmp_path):
  tok = tokenizer.load_dir(write(tmp_path))
  assert (tok.end_id, tok.bos_id, tok.special_texts) == (256, None, dict(eos_token=tokenizer.END))
  assert 256 not in tok.encode("<|end|>") and 257 not in tok.encode("<s>")


@pytest.mark.parametrize("setting, files, templates", [
  ("in config", {}, dict(default="in config")),
  ([dict(name="default", template="a"), dict(name="tool_use", template="b")], {}, dict(default="a", tool_use="b")),
  ("in config", dict(chat_template="in\nfile"), dict(default="in\nfile")),
  (None, dict(chat_template="é\n"), dict(default="é\n")),
  (None, {}, {}),
])
def test_a_folders_templates_survive_and_transformers_reads_them(setting, files, templates, tmp_path):
  folder = write(tmp_path / "a", tokenizer_config=dict(chat_template=setting, bos_token="<s>"), **files)
  tok = tokenizer.load_dir(folder)
  assert (tok.templates, tok.bos_id, tok.chat_template) == (templates, 257, templates.get("default"))
  (tmp_path / "b/additional_chat_templates").mkdir(parents=True)
  for old in ("chat_template.jinja", "additional_chat_templates/other.jinja"):
    (tmp_path / "b" / old).write_text("another tokenizer's")
  tok.save_dir(tmp_path / "b")
  again = tokenizer.load_dir(tmp_path / "b")
  assert again.templates == templates and again.settings["bos_token"] == "<s>"
  transformers = pytest.importorskip("transformers")
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "b").chat_template
  assert theirs == (templates if len(templates) > 1 else templates.get("default"))


@pytest.mark.parametrize("make", [tokenizer.byte_tokenizer, lambda: tokenizer.symbol_tokenizer(["0", "1", "<think>"])])
def test_our_own_tokenizers_load_in_transformers(make, tmp_path):
  transformers = pytest.importorskip("transformers")
  tok = make()
  tok.save_dir(tmp_path)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  ids = tok.encode("01<think>0")
  assert theirs("01<think>0")["input_ids"] == ids and theirs.decode(ids) == "01<think>0"
  assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (tok.end_id, tok.end_id, tok.vocab)


def test_saving_changes_only_the_end_of_a_generation_config(tmp_path):
  write(tmp_path, generation_config=dict(temperature=0.6, eos_token_id=7), tokenizer_config=dict(eos_token="<s>"))
  tok = tokenizer.byte_tokenizer()
  tok.save_dir(tmp_path)
  assert json.loads((tmp_path / "generation_config.json").read_text()) == dict(temperature=0.6, eos_token_id=256)


@pytest.mark.parametrize("files, reason", [
  (dict(tokenizer_config=dict(bos_token="<bos>")), "bos_token '<bos>' of tokenizer_config.json is not in"),
  (dict(tokenizer_config=dict(eos_token=dict(content="<e>"))), "eos_token '<e>' of tokenizer_config.json is not in"),
  (dict(tokenizer_config=dict(eos_token=5)), r"tokenizer_config\.json: eos_token=5 is neither"),
  (dict(tokenizer_config=dict(bos_token=dict(x=1))), r"tokenizer_config\.json: bos_token={'x': 1} is neither"),
  (dict(tokenizer_config=dict(pad_token=dict(content=1))), r"tokenizer_config\.json: pad_token={'content': 1} is neit"),
  (dict(tokenizer_config=dict(chat_template=["x"])), r"tokenizer_config\.json: chat_template=\['x'\] is neither"),
  (dict(tokenizer_config=dict(chat_template=5)), r"tokenizer_config\.json: chat_template=5 is neither"),
  (dict(tokenizer_config=dict(chat_template=[dict(name="a")])), "chat_template=.* is neither"),
  (dict(generation_config=dict(eos_token_id=[256, 259])), r"eos_token_id \[259\] of generation_config.json is no"),
  (dict(generation_config=dict(eos_token_id="<s>")), r"eos_token_id \['<s>'\] of generation_config.json is no"),
  (dict(generation_config=[1]), "generation_config.json: expected an object, not list"),
])
def test_a_folder_says_what_is_wrong(files, reason, tmp_path):
  with pytest.raises(ValueError, match=reason):
    tokenizer.load_dir(write(tmp_path, **files))


def test_a_folder_that_is_none(tmp_path):
  with pytest.raises(FileNotFoundError, match="none: no such folder"):
    tokenizer.load_dir(tmp_path / "none")
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
    tokenizer.load_dir(tmp_path)
  write(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match=r"tokenizer_config\.json: not JSON"):
    tokenizer.load_dir(tmp_path)
  tok = tokenizer.byte_tokenizer()
  with pytest.raises(ValueError, match=r"template names \['\.\./x'\]"):
    tokenizer.Tokenizer(tok.backend, tok.end_id, templates={"../x": ""}).save_dir(tmp_path)


def test_a_files_truncation_and_padding_are_not_ours(tmp_path):
  backend = tokenizers.Tokenizer.from_file(str(write(tmp_path) / "tokenizer.json"))
  backend.enable_truncation(3)
  backend.enable_padding(length=5)
  backend.save(str(tmp_path / "tokenizer.json"))
  assert len(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("abcdefgh").ids) == 5
  for tok in (tokenizer.load_dir(tmp_path), tokenizer.load(tmp_path / "tokenizer.json")):
    assert tok.decode(tok.encode("abcdefgh")) == "abcdefgh" and len(tok.encode("a")) == 1


# streaming

def sentencepiece() -> tokenizer.Tokenizer:
  """As Llama 2's: a space is ▁, unknown characters are bytes, and one space before the text is taken off."""
  pieces = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁a", "a", "b", "▁▁", "é", "\ufffd", "", "."]
  backend = tokenizers.Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
  backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])
  return tokenizer.Tokenizer(backend, 1)


def words(decoder, pieces=("</s>", "a", "##b", "c</w>", "</w>", ".", "▁d", "▁", "é", "\ufffd", " ", "'", "##")):
  backend = tokenizers.Tokenizer(models.WordLevel(vocab={p: i for i, p in enumerate(pieces)}, unk_token="?"))
  if decoder:
    backend.decoder = decoder
  return tokenizer.Tokenizer(backend, 0)


@functools.cache
def deepseek() -> tokenizer.Tokenizer:
  if not DEEPSEEK.is_file():
    pytest.skip("DeepSeek-R1's tokenizer is not at hand")
  return tokenizer.Tokenizer(tokenizers.Tokenizer.from_buffer(gzip.decompress(DEEPSEEK.read_bytes())), 1)


MAKERS = dict(bytes=tokenizer.byte_tokenizer, symbols=lambda: tokenizer.symbol_tokenizer(["0", "é", "<think>", "\n"]),
              sentencepiece=sentencepiece, deepseek=deepseek, metaspace=lambda: words(decoders.Metaspace()),
              wordpiece=lambda: words(decoders.WordPiece()), suffix=lambda: words(decoders.BPEDecoder()),
              spaced=lambda: words(None))


@pytest.fixture(scope="module", params=MAKERS)
def any_tokenizer(request):
  return MAKERS[request.param]()


def streamed(tok, ids) -> list[str]:
  stream = tok.stream()
  return [*(stream.push(i) for i in ids), stream.flush()]


def test_streamed_pieces_are_the_text_whatever_the_tokens(any_tokenizer):
  tok = any_tokenizer
  rng = random.Random(0)
  starts = [i for i in range(tok.vocab) if tok.decode([i]).endswith("\ufffd")][:400] or [0]   # parts of characters
  for n in range(2000):
    pool = [starts, range(tok.vocab), [*starts[:9], *range(min(tok.vocab, 300))]][n % 3]
    ids = [rng.choice((rng.choice(pool), rng.choice(pool), rng.choice(pool), tok.end_id, tok.vocab + 5))
           for _ in range(rng.randint(0, 60 if n % 50 == 0 else 12))]
    pieces = streamed(tok, ids)
    assert "".join(pieces) == tok.decode(ids), ids
    for piece in pieces:
      piece.encode()   # no half of a surrogate pair


@pytest.mark.parametrize("make", ["bytes", "deepseek"])
def test_streamed_text_is_late_by_one_character_at_most(make):
  tok = MAKERS[make]()
  rng = random.Random(1)
  for _ in range(300):
    stream, said, ids = tok.stream(), "", []
    for _ in range(20):
      ids.append(rng.randrange(256 if rng.random() < 0.7 else tok.vocab - 1))
      said += stream.push(ids[-1])
      whole = tok.decode(ids)
      assert whole.startswith(said) and len(whole) - len(said) == whole.endswith("\ufffd")


@pytest.mark.parametrize("text", [*TEXTS, "e\u0301\u0323 a\u0300", "漢字かな交じり文", "a\r\n\r\n\x00b", "🏳️‍🌈 🧑🏽‍🚀",
                                  "नमस्ते", "  \n  "])
@pytest.mark.parametrize("make", ["bytes", "deepseek"])
def test_streamed_text_has_no_broken_character(make, text):
  tok = MAKERS[make]()
  pieces = streamed(tok, tok.encode(text))
  assert "".join(pieces) == text and not any("\ufffd" in p for p in pieces)
  assert pieces[-1] == ""   # every character came with its last byte


def test_a_character_comes_with_its_last_byte_and_a_broken_one_when_that_is_certain():
  tok = tokenizer.byte_tokenizer()
  byte = {b: tok.backend.token_to_id(c) for b, c in bytes_to_alphabet().items()}
  def pieces(data): return streamed(tok, [byte[b] for b in data])
  assert pieces(b"a\xf0\x9f\x99\x82b") == ["a", "", "", "", "🙂", "b", ""]
  assert pieces(b"\xf0\x9fb") == ["", "", "\ufffdb", ""]
  assert pieces(b"\xf0\x9f\x99") == ["", "", "", "\ufffd"]
  assert pieces(b"\x80\x80a") == ["", "\ufffd", "\ufffda", ""]
  assert pieces("\ufffdx".encode()) == ["", "", "", "\ufffdx", ""]


def bytes_to_alphabet() -> dict[int, str]:
  """GPT-2's table: printable bytes are themselves, the others are 256, 257, ... in order."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in plain]
  return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def test_sentencepieces_leading_spaces_and_byte_runs():
  tok = sentencepiece()
  def pieces(*names): return streamed(tok, [tok.backend.token_to_id(n) for n in names])
  assert pieces("▁a", "▁a", "▁", "b") == ["a", " a", " ", "b", ""]
  assert pieces("▁", "▁a") == ["", " a", ""]
  assert pieces("a", "<0xC3>", "<0xA9>", "b") == ["a", "", "", "éb", ""]
  assert pieces("a", "<0x41>", "<0xC3>") == ["a", "", "", "\ufffd\ufffd"]   # one wrong byte spoils the run


@pytest.mark.parametrize("make", ["bytes", "deepseek", "sentencepiece"])
def test_a_stream_remembers_little_however_long_the_text(make):
  tok = MAKERS[make]()
  rng = random.Random(2)
  for ids in ([tok.backend.token_to_id("a")] * 300, [rng.randrange(2, tok.vocab) for _ in range(3000)],
              [128 + 60] * 300 if make == "bytes" else []):
    stream, most = tok.stream(), 0
    pieces = []
    for i in ids:
      pieces.append(stream.push(i))
      most = max(most, len(stream._ids))
    assert "".join(pieces) + stream.flush() == tok.decode(ids)
    assert most <= (2 * stream.KEEP + 1 if make != "sentencepiece" else 200)   # byte runs are kept whole


def test_a_flushed_stream_is_as_new():
  tok = sentencepiece()
  a = tok.backend.token_to_id("▁a")
  stream = tok.stream()
  assert [stream.push(a), stream.push(a), stream.flush(), stream.push(a), stream.flush()] == ["a", " a", "", "a", ""]

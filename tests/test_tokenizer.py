"""Text to tokens and back, and end tokens that nobody can write."""

import gzip
from pathlib import Path

import pytest

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

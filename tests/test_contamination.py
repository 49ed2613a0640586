"""n-grams that training and test files share: the words, the findings, the command."""

import json

import pytest

from r1jax.cli import main as cli
from r1jax.evals import contamination
from r1jax.evals.contamination import index, overlaps, words

TEN = "a b c d e f g h i j"


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def found(train, tests):
  return [overlap for _, of_line in overlaps(train, tests) for overlap in of_line]


@pytest.mark.parametrize("text, expected", [
  ("What's 2+2, Bob?", ["whats", "2", "2", "bob"]), ("x^2 + \\frac{1}{2}", ["x", "2", "frac", "1", "2"]),
  ("a_b\n\tC-d", ["a", "b", "c", "d"]), ("问题 is ＡＢＣ", ["问", "题", "is", "abc"]), ("...", [])])
def test_words_have_no_case_and_no_punctuation(text, expected):
  assert words(text) == expected


def test_ten_words_in_a_row_match_and_nine_do_not(tmp_path):
  tests = index(write(tmp_path / "test", dict(question=f"Intro: {TEN} k!"), dict(question="other " * 12)))
  train = write(tmp_path / "train", dict(text="a b c d e f g h i x j"), dict(text=f"see: {TEN.upper()}. End"),
                dict(text=f"intro {TEN} k"))
  one, whole = found(train, tests)
  assert (one.test_line, one.train_line, one.grams, one.example) == (1, 2, 1, TEN) and one.share == pytest.approx(1 / 3)
  assert (whole.test_line, whole.train_line, whole.grams, whole.share) == (1, 3, 3, 1.0)


def test_no_gram_spans_two_texts_but_nested_texts_count(tmp_path):
  tests = index(write(tmp_path / "test", dict(q=TEN)))
  half = TEN.split()
  train = write(tmp_path / "train", dict(a=" ".join(half[:5]), b=" ".join(half[5:])),
                dict(messages=[dict(role="user", content=TEN)]))
  assert [o.train_line for o in found(train, tests)] == [2]


def test_a_url_is_no_text(tmp_path):
  row = dict(url="https://a.org/one_two/three/four_five/six-seven_eight_nine/ten")
  path = write(tmp_path / "both", row)
  assert index(path).short == 1 and not found(path, index(path))


def test_short_problems_are_counted_and_a_smaller_n_reads_them(tmp_path):
  path = write(tmp_path / "test", dict(q="only three words"), dict(q=TEN))
  assert index(path).short == 1 and index(path, n=3).short == 0
  assert [o.test_line for o in found(path, index(path, n=3))] == [1, 2]


def test_what_many_problems_share_can_be_left_out(tmp_path):
  path = write(tmp_path / "test", *(dict(q=f"{TEN} {i}") for i in range(3)))
  assert len(found(path, index(path))) == 9
  tests = index(path, common=2)
  assert tests.left_out == 1 and [(o.test_line, o.train_line) for o in found(path, tests)] == [(1, 1), (2, 2), (3, 3)]
  assert index(path, common=3).left_out == 0


def test_training_is_streamed(tmp_path):
  train = write(tmp_path / "train", dict(q=TEN))
  with train.open("a") as file:
    file.write("{ cut short\n")
  lines = overlaps(train, index(write(tmp_path / "test", dict(q=TEN))))
  assert next(lines)[1][0].train_line == 1                 # before the bad line is met
  with pytest.raises(ValueError, match="train:2: not JSON"):
    next(lines)


def test_the_command_prints_a_table_and_writes_every_match(tmp_path, capsys):
  test = write(tmp_path / "test", dict(q=TEN), dict(q="short"))
  train = write(tmp_path / "train", *(dict(q=f"{TEN} {i}") for i in range(8)), dict(q="clean"))
  argv = ["contamination", "--train", str(train), "--test", str(test), "--json", str(tmp_path / "out.json")]
  assert cli.main(argv) == 0
  shown = capsys.readouterr().out
  assert "1, 2, 3, 4, 5 and 3" in " ".join(shown.replace("│", " ").split())
  assert "8 of 9" in shown and "1 of 2" in shown
  out = json.loads((tmp_path / "out.json").read_text())
  assert [o["train_line"] for o in out["overlaps"]] == list(range(1, 9)) and out["overlaps"][0]["test_line"] == 1
  assert (out["train_lines_matched"], out["test_problems_matched"], out["test_problems_too_short"]) == (8, 1, 1)
  assert cli.main(["contamination", "--train", str(test), "--test", str(train), "--n", "40"]) == 0


@pytest.mark.parametrize("line, reason", [("{", "not JSON"), ("[1]", "expected a JSON object")])
def test_a_bad_line_is_named_and_leaves_no_file(line, reason, tmp_path, capsys):
  test, train = write(tmp_path / "test", dict(q=TEN)), tmp_path / "train"
  train.write_text('{"q": "fine"}\n' + line + "\n")
  out = tmp_path / "out.json"
  assert cli.main(["contamination", "--train", str(train), "--test", str(test), "--json", str(out)]) == 2
  assert f"{train}:2: {reason}" in capsys.readouterr().err and list(tmp_path.glob("out*")) == []


def test_help_and_wrong_numbers(tmp_path, capsys):
  with pytest.raises(SystemExit):
    cli.main(["contamination", "--help"])
  assert "--common" in capsys.readouterr().out
  path = str(write(tmp_path / "a", dict(q=TEN)))
  assert cli.main(["contamination", "--train", path, "--test", path, "--n", "0"]) == 2
  assert "n=0 must be at least 1" in capsys.readouterr().err


def test_gsm8ks_splits_share_sentences_and_no_whole_problem(gsm8k):
  every = found(gsm8k[0], index(gsm8k[1]))
  assert len({o.test_line for o in every}) == 68 and len({o.train_line for o in every}) == 117
  assert max(o.share for o in every) < 0.9


def test_the_papers_gram_is_the_default():
  assert contamination.PAPER == 10

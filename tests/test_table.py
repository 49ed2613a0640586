"""The stage table over runs."""

import json

import pytest

from r1jax.cli import table


def run(folder, accuracy, stages=("zero", "dev1")):
  (folder / "eval").mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(dict(name="r1", stages=["base", *stages])))
  for stage, value in zip(("base", *stages), accuracy, strict=True):
    (folder / "eval" / f"{stage}.json").write_text(json.dumps({f"{stage}/pass@1": value, f"{stage}/length": 10 * value,
                                                               "seconds/eval": 3}))
  return str(folder)


def test_means_and_ends_over_seeds_in_the_order_of_the_run(tmp_path, capsys):
  table.main([run(tmp_path / "a", (0.5, 0.9, 0.7)), run(tmp_path / "b", (0.4, 1.0, 0.6)), "--markdown"])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "|  | base | zero | dev1 |"
  assert lines[2] == "| accuracy, pass@1 | 0.450 (0.400 - 0.500) | 0.950 (0.900 - 1.000) | 0.650 (0.600 - 0.700) |"
  assert lines[3].startswith("| answer length, tokens | 4.5 (4.0 - 5.0)") and len(lines) == 4


def test_one_run_and_one_that_is_not_finished(tmp_path, capsys):
  a, b = run(tmp_path / "a", (0.5, 0.9, 0.7)), run(tmp_path / "b", (0.4, 1.0, 0.6))
  (tmp_path / "b" / "eval" / "dev1.json").unlink()
  table.main([a, b, "--markdown"])
  assert capsys.readouterr().out.splitlines()[0] == "|  | base | zero |"
  table.main([a, "--markdown", "--stages", "dev1", "base"])
  assert capsys.readouterr().out.splitlines()[0] == "|  | dev1 | base |"
  with pytest.raises(ValueError, match="--stages dev1: not evaluated in all of these runs; there are base, zero"):
    table.main([a, b, "--stages", "dev1"])
  table.main([a])
  assert "0.900" in capsys.readouterr().out


def test_folders_without_a_run_or_an_evaluation(tmp_path):
  with pytest.raises(FileNotFoundError, match="no run here"):
    table.main([str(tmp_path)])
  (tmp_path / "config.json").write_text(json.dumps(dict(name="x", stages=["a"])))
  with pytest.raises(ValueError, match="no stage has been evaluated"):
    table.main([str(tmp_path)])
  (tmp_path / "eval").mkdir()
  for text, reason in (("{", "not JSON"), ("[1]", "expected a JSON object, got list")):
    (tmp_path / "eval" / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"a.json: {reason}"):
      table.main([str(tmp_path)])

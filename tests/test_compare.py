"""r1jax compare: variants over seeds from one base; what would not share it is refused before anything runs."""

import json

import pytest
from conftest import ROOT

from r1jax.cli import compare

FILE = str(ROOT / "experiments" / "compare.py")


def result(accuracy, to_90):
  return {"final/greedy_accuracy": accuracy, "final/pass@1": accuracy, "rollouts_to_90": to_90, "final/length": 3.0,
          "seconds/reasoning_rl": 1.0}


def test_the_table_has_means_and_ends():
  table = compare.table({"a": [result(0.5, 3.0), result(1.0, 5.0)]}, [0, 1])
  assert [next(iter(column.cells)) for column in table.columns][:4] == [
    "a", "0.750 (0.500 - 1.000)", "0.750 (0.500 - 1.000)", "4 (3 - 5)"]


def test_variants_of_another_base_or_that_do_not_freeze_are_refused(tmp_path):
  run = lambda *variants, more=(): compare.main(["--config", FILE, "--workdir", str(tmp_path), "--variants", *variants,
                                                 *more])
  with pytest.raises(ValueError, match="differ in task, pretrain"):
    run("algorithm=grpo", "tiny,algorithm=grpo")
  with pytest.raises(ValueError, match=r"clip_low=0\.0"):
    run("algorithm=grpo,clip=0")
  (tmp_path / "base.json").write_text(json.dumps(dict(task=1)))
  with pytest.raises(ValueError, match="another base"):
    run("tiny,algorithm=grpo")
  with pytest.raises(ValueError, match="has no VARIANTS"):
    compare.main(["--config", str(ROOT / "experiments" / "r1_zero_parity.py"), "--workdir", str(tmp_path)])


@pytest.mark.slow
def test_two_variants_run_from_one_base(tmp_path, capsys):
  args = ["--config", FILE, "--workdir", str(tmp_path), "--variants", "tiny,algorithm=grpo", "tiny,algorithm=cispo",
          "--seeds", "3"]
  assert compare.main(args) == 0
  results = json.loads((tmp_path / "compare.json").read_text())
  base = [rows[0]["base/greedy_accuracy"] for rows in results.values()]
  assert len(base) == 2 and base[0] == base[1] and (tmp_path / "base-seed3").is_dir()
  assert "tiny,algorithm=cispo" in capsys.readouterr().out

"""The policy learns, and does not when what it is told is not about its own answers."""

import pytest
from conftest import experiment

from r1jax import pipeline
from r1jax.metrics import read


def run(folder, control="none", **changes):
  c = experiment("r1_zero_parity")
  c.reasoning_rl.loss.negative_control = control
  c.reasoning_rl.update(changes)
  result = pipeline.run(c, folder)
  return result, read(folder / "reasoning_rl" / "metrics.jsonl")


@pytest.mark.slow
def test_grpo_learns_by_thinking_longer(tmp_path):
  result, rows = run(tmp_path)
  assert result["base/greedy_accuracy"] < 0.7 and result["base/greedy_length"] < 8     # guesses, at once
  assert result["final/greedy_accuracy"] >= 0.9
  assert result["final/greedy_length"] == pytest.approx(8 + 6, abs=1)                   # d bits, four tags, answer, end
  assert rows[-1]["reward"] > rows[0]["reward"] + 0.4
  assert max(row["mismatch/max"] for row in rows) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("control", ["shuffled_groups", "flipped_advantages"])
def test_negative_controls_do_not_learn(control, tmp_path):
  result, rows = run(tmp_path, control)
  assert result["final/greedy_accuracy"] < 0.75
  assert result["final/pass@1"] < 0.75
  assert rows[-1]["reward"] < 1.75       # the positive run ends near 1.95

"""Every experiment file runs, small, and leaves what a run must leave."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, experiment

from r1jax import config, lineage, pipeline
from r1jax.metrics import read

NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))
CHAINS = [name for name in NAMES if name.startswith("r1_zero") or name == "compare"]      # a base, then RL


@pytest.fixture
def make(request):
  """The config of an experiment; one that starts from released weights starts from tiny ones."""
  def make(name, arg):
    if name == "r1_zero_smollm2" or (name == "distill" and not arg):
      arg = ",".join(filter(None, (arg, f"start={request.getfixturevalue('released')}")))
    return experiment(name, arg)
  return make


def shorter(c):
  if "pretrain" in c:
    c.pretrain.steps = 6
  c.reasoning_rl.rollouts = 2
  c.eval.problems = 8
  return c


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_runs_a_few_steps(name, tmp_path, request, make):
  c = shorter(make(name, "tiny"))
  if name == "r1_zero_gsm8k":
    c.data.train, c.data.test = map(str, request.getfixturevalue("gsm8k"))
  result = pipeline.run(c, tmp_path)
  assert np.isfinite(result["final/greedy_accuracy"]) and result["seconds/total"] > 0
  rows = read(tmp_path / "reasoning_rl" / "metrics.jsonl")
  minibatches = c.reasoning_rl.minibatches
  assert [row["step"] for row in rows] == [0, minibatches]
  assert rows[0]["mismatch/max"] < 1e-5
  if minibatches == 1:       # else the policy has moved within the rollout
    assert rows[0]["ratio/max"] == pytest.approx(1, abs=1e-5) and rows[0]["kl"] == pytest.approx(0, abs=1e-6)
  N = c.reasoning_rl.questions_per_rollout * c.reasoning_rl.group_size
  table = pq.read_table(tmp_path / "reasoning_rl" / "samples" / "step_000000.parquet")
  assert table.num_rows == N
  assert {"prompt", "text", "tokens", "gold", "verdict", "reward", "reward/accuracy", "advantage",
          "logp_mean", "logp_min", "length", "truncated"} <= set(table.column_names)
  assert {f"reward/{term}" for term in c.reasoning_rl.rewards} <= set(table.column_names)
  assert [len(t) for t in table["tokens"].to_pylist()] == table["length"].to_pylist()
  assert "<svg" in (tmp_path / "report.html").read_text() or "data-chart" in (tmp_path / "report.html").read_text()
  assert json.loads((tmp_path / "config.json").read_text())["name"] == c.name
  assert list((tmp_path / "reasoning_rl" / "tensorboard").iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_full_config_is_valid(name, make):
  cfg = config.freeze(make(name, None))
  rl = cfg.section("reasoning_rl")
  clip = 0.28 if name == "r1_zero_smollm2" else 10
  assert cfg.name == name and (name == "distill" or rl.cfg.loss.clip_high == clip)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*CHAINS} - {"distill", "r1"}))
def test_an_ablation_changes_what_it_says_and_nothing_else(name):
  """Branches of one stage differ in a few values; `short` keeps the stages."""
  c = experiment(name, None)
  cfg, short = config.freeze(c), config.freeze(experiment(name, "short"))
  assert short.stages == cfg.stages
  branches = [s for s in cfg.sections.values() if s.stage == list(cfg.sections.values())[-1].stage
              and s.name not in ("zero", "dev1")]
  assert len(branches) > 1
  values = lambda branch: {k: v for k, v in lineage.flat(lineage.as_dict(branch.cfg)).items()
                           if not k.startswith("critic")}
  first = values(branches[0])
  for other in branches[1:]:
    its = values(other)
    differ = [k for k in its.keys() | first.keys() if its.get(k) != first.get(k)]
    assert len(differ) + (other.start != branches[0].start) in (1, 2), differ


def test_students_are_smaller_and_learn_from_the_samples_of_the_teacher():
  cfg = config.freeze(experiment("distill", "tiny"))
  of = cfg.sections
  assert of["student"].model.dim < cfg.model.dim and of["distilled"].model == of["student"].model
  assert (of["distilled"].start, of["distilled"].data) == ("student", "sft_data")
  assert of["student_rl"].cfg == of["distilled_rl"].cfg == of["dev2"].cfg


def test_r1_has_the_numbers_of_the_paper(released):
  cfg = config.freeze(experiment("r1", None))
  of = {name: section.cfg for name, section in cfg.sections.items()}
  updates = lambda rl: rl.rollouts * rl.minibatches
  assert updates(of["zero"]) + updates(of["zero_long"]) == 10_400 and 8_192 < updates(of["zero"]) < 8_216
  assert of["zero"].questions_per_rollout * of["zero"].group_size == 8_192 and of["zero"].loss.kl_coef == 1e-3
  assert (of["zero"].sampling.max_tokens, of["zero_long"].sampling.max_tokens) == (32_768, 65_536)
  assert of["zero"].rewards == dict(accuracy=1, format=1) and of["dev2"].rewards["language"] == 1
  assert updates(of["r1"].rl) == pytest.approx(1700, abs=16) and of["r1"].preference_rollouts * 16 == 400
  assert of["r1"].rl.sampling.temperature == 0.7 and of["zero"].sampling.temperature == 1
  assert (of["dev1"].optimizer.lr, of["dev1"].optimizer.final, of["dev1"].batch) == (5e-5, 0.1, 128)
  assert cfg.sections["dev3"].start == cfg.sections["dev1"].start == "" and cfg.sections["dev3"].data == "sft_data"
  assert (of["helpful"].kind, of["harmless"].kind, of["helpful"].batch) == ("pairwise", "pointwise", 256)
  assert cfg.model.moe.experts == 256 and cfg.model.layers == 61
  smollm2 = config.freeze(experiment("r1", f"smollm2,start={released}"))
  assert smollm2.sections["r1"].start == "dev3" and smollm2.start == str(released)


@pytest.mark.parametrize("change, message", [
  ({"model.dim": 31}, "model.dim=31 must be a multiple of heads=2"),
  ({"reasoning_rl.group_size": 1}, "group_size=1"),
  ({"reasoning_rl.minibatches": 3}, "questions_per_rollout=16 must be a multiple of minibatches=3"),
  ({"reasoning_rl.minibatches": 16, "reasoning_rl.reference_refresh": 20}, "reference_refresh=20"),
  ({"reasoning_rl.micro_batches": 7}, "micro_batches=7"),
  ({"reasoning_rl.loss.aggregation": "mean"}, "aggregation='mean' is none of sequence_mean_token_mean"),
  ({"reasoning_rl.loss.divisor": 3.0}, "divisor=3.0"),
  ({"reasoning_rl.sampling.top_p": 0.0}, "top_p=0.0"),
  ({"reasoning_rl.sampling.temperature": 0.0}, "greedy"),
  ({"reasoning_rl.truncated": "ignored"}, "truncated='ignored'"),
  ({"reasoning_rl.rewards": {"style": 1.0}}, None),
  ({"task.p_long": 1.5}, "p_long=1.5"),
  ({"task.name": "sudoku"}, "task.name='sudoku' is none of parity"),
  ({"stages": ("pretrain", "rl")}, "'rl' is none of"),
  ({"stages": ("pretrain", "reasoning_rl", "pretrain")}, "pretrain is named twice; a folder"),
  ({"pretrain.optimizer.schedule": "step"}, "schedule='step'"),
  ({"reasoning_rl.questions": 3}, "unknown key reasoning_rl.questions"),
  ({"reasoning_rl.optimizer.lr": float("nan")}, "reasoning_rl.optimizer.lr=nan must be finite"),
  ({"reasoning_rl.rewards.accuracy": float("inf")}, "reasoning_rl.rewards={'accuracy': inf"),
  ({"reasoning_rl.rollouts": "3"}, "reasoning_rl.rollouts='3' must be of type int"),
  ({"seed": -1}, "seed=-1"),
  ({"data": {"train": "x.jsonl"}}, None),
])
def test_a_wrong_config_is_refused_before_anything_runs(change, message, tmp_path):
  c = experiment("r1_zero_parity")
  for key, value in change.items():
    *path, last = key.split(".")
    at = c
    for part in path:
      at = at[part]
    with at.ignore_type():
      at[last] = value
  if message is None:        # the task knows, the config alone does not
    with pytest.raises(ValueError, match=r"style|data"):
      pipeline.run(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    return
  with pytest.raises(ValueError) as error:
    config.freeze(c)
  assert message in str(error.value)


def test_config_arguments():
  assert config.parse_arg("tiny,bits=8", tiny=False, bits=20).to_dict() == dict(tiny=True, bits=8)
  assert config.parse_arg(None, tiny=False).tiny is False
  assert config.parse_arg("tiny=No", tiny=True).tiny is False
  for wrong in ("small", "bits", "bits=x", "tiny=maybe"):
    with pytest.raises(ValueError):
      config.parse_arg(wrong, tiny=False, bits=20)

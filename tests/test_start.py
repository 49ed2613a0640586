"""From a Hugging Face directory to a run and back: sample, eval, run, export."""

import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import CHATML, experiment
from test_cli import call
from tiny import weights

from r1jax import config, hf, pipeline, policies, tokenizer
from r1jax.evals import formats
from r1jax.models.transformer import ModelConfig
from r1jax.rewards import sandbox

MODEL = ModelConfig(vocab=260, dim=16, layers=1, heads=2, kv_heads=1, ffn=24, tied_head=False)     # `released`'s


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "sums.jsonl"
  path.write_text("".join(json.dumps(dict(question=f"{i} + 1?", answer=f"so #### {i + 1}")) + "\n" for i in range(6)))
  return path


def test_sample_streams_a_chat(released, capsys):
  args = ["sample", "--model", released, "Hi", "--max-tokens", 6, "--seed", 3]
  code, said, err = call(*args, capsys=capsys)
  assert code == 0 and len(said) > 1 and str(released) in err
  again = call(*args, capsys=capsys)[1]
  plain = call(*args[:3], "--prompt", "Hi", *args[4:], capsys=capsys)[1]
  assert said == again and plain.startswith("Hi") and plain[2:] != said
  for wrong, message in (([], "needs a MESSAGE"), (["Hi", "--prompt", "x"], "exclude each other"),
                         (["Hi", "--stage", "x"], "are for --workdir")):
    code, _, err = call("sample", "--model", released, *wrong, capsys=capsys)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_eval_scores_a_file_of_problems(released, problems, tmp_path, capsys):
  args = ["eval", "--model", released, "--data", problems, "--samples", 2, "--problems", 4, "--max-tokens", 5]
  results = {}
  for template in ("chat", "plain", "r1_zero"):
    code, out, _ = call(*args, "--template", template, "--out", tmp_path / template, capsys=capsys)
    assert code == 0 and "pass@1" in out
    results[template] = json.loads(next((tmp_path / template).glob("*.json")).read_text())
    assert (results[template]["problems"], results[template]["template"]) == (4, template)
  assert call("eval", "--model", released, capsys=capsys)[0] == 2


@pytest.mark.skipif(bool(sandbox.capabilities().missing()), reason="no sandbox here")
def test_eval_runs_the_programs_of_an_mbpp_file(released, tmp_path, capsys):
  row = dict(task_id=3, text="Square a number.", code="def sq(n): return n * n", test_list=["assert sq(2) == 4"])
  (tmp_path / "mbpp.jsonl").write_text(json.dumps(row) + "\n")
  code, out, _ = call("eval", "--model", released, "--data", tmp_path / "mbpp.jsonl", "--samples", 2, "--max-tokens", 5,
                      "--template", "plain", "--out", tmp_path, capsys=capsys)
  assert code == 0 and "format" in out
  table = pq.read_table(tmp_path / f"mbpp-{released.name}.parquet").to_pydict()
  assert len(table["text"]) == 2 and "sq(2) == 4" in table["gold"][0] and not any(table["reward"])
  read = formats.read(tmp_path / "mbpp.jsonl", "Q: {question}")
  problems, scoring = read.problems, read.scoring
  assert problems[0].prompt.startswith("Q: Square a number.")
  program = "```python\ndef sq(n): return n * n\n```"
  assert scoring["rewards"]["accuracy"](problems[0], program).verdict == "correct"


@pytest.mark.slow
def test_a_run_starts_from_the_released_weights_and_exports_its_own(released, problems, tmp_path, capsys):
  c = experiment("r1_zero_gsm8k", f"tiny,start={released}")
  c.data.train = c.data.test = str(problems)
  c.task.held_out = 4
  c.reasoning_rl.rollouts = 1
  c.reasoning_rl.optimizer = dict(lr=1e-2, weight_decay=0.1)      # random bytes earn nothing: only decay moves weights
  frozen = config.freeze(c)
  assert frozen.model == MODEL and frozen.data.tokenizer == str(released)
  pipeline.run(c, tmp_path / "run")
  params, model, task, _ = policies.load_policy(tmp_path / "run")
  assert task.tokenizer.chat_template == CHATML and model.vocab == 260
  change = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), params, weights(MODEL))
  moved = jax.tree.leaves(change)
  assert 0 < max(moved) < 0.02                                    # near where it started
  code, out, _ = call("export", "--workdir", tmp_path / "run", tmp_path / "out", capsys=capsys)
  assert code == 0 and "parameters" in out
  back, again = hf.load(tmp_path / "out")
  assert again == model and tokenizer.load_dir(tmp_path / "out").chat_template == CHATML
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_what_cannot_be_started_from_is_said_before_anything_runs(released, problems, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
    config.freeze(experiment("r1_zero_gsm8k", f"tiny,start={tmp_path}"))
  c = experiment("r1_zero_gsm8k", f"tiny,start={released}")
  c.model = dict(dim=8)
  with pytest.raises(ValueError, match=r"model\.dim: the model is that of start="):
    config.freeze(c)
  small = tmp_path / "small"
  shutil.copytree(released, small)
  record = json.loads((small / "config.json").read_text())
  (small / "config.json").write_text(json.dumps(record | dict(vocab_size=200)))
  with pytest.raises(ValueError, match=r"tokenizer has 257 tokens, the model of start=.* only 200"):
    config.with_vocab(config.freeze(experiment("r1_zero_gsm8k", f"tiny,start={small}")), 257)

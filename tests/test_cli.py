"""The commands as a user types them: what they print, what they leave, how they refuse."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, experiment

from r1jax import config as configs
from r1jax import pipeline
from r1jax.cli import main as cli

EXPERIMENT = str(ROOT / "experiments" / "r1_zero_parity.py")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A tiny finished run."""
  c = experiment("r1_zero_parity")
  c.pretrain.steps, c.reasoning_rl.rollouts, c.eval.problems = 8, 2, 8
  folder = tmp_path_factory.mktemp("cli") / "run"
  pipeline.run(c, folder)
  return folder


def call(*argv, capsys):
  """(exit code, stdout, stderr) of `r1jax argv`, in this process."""
  try:
    code = cli.main([str(a) for a in argv])
  except SystemExit as error:        # argparse
    code = error.code
  out = capsys.readouterr()
  return code, out.out, out.err


@pytest.mark.parametrize("command", ["", "run", "eval", "sample", "report", "doctor", "bench"])
def test_help(command, capsys):
  code, out, _ = call(*command.split(), "--help", capsys=capsys)
  assert code == 0 and "usage: r1jax" in out


def test_the_doctor_reads_a_real_run(workdir, capsys):
  code, out, _ = call("doctor", workdir, capsys=capsys)
  words = " ".join(out.replace("│", " ").split())
  assert code == 0 and "pretrain" in out and "healthy" in out and "2 updates so far" in words


def test_help_needs_no_jax():
  script = ("import sys; from r1jax.cli import main\n"
            "try: main.main(['eval', '--help'])\nexcept SystemExit: pass\n"
            "assert 'jax' not in sys.modules")
  subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("argv, message", [
  (["nope"], "invalid choice: 'nope'"),
  (["run", "--config", "missing.py", "--workdir", "x"], "missing.py: no such file"),
  (["run", "--config", EXPERIMENT], "required: --workdir"),
  (["run", "--config", EXPERIMENT, "--workdir", "x", "--confg.seed=1"], "unknown argument '--confg.seed=1'"),
  (["run", "--config", EXPERIMENT, "--workdir", "x", "--config.sead=1"], "did you mean seed?"),
  (["run", "--config", EXPERIMENT, "--workdir", "x", "--config.model.dim=wide"], "invalid literal for int"),
  (["run", "--config", EXPERIMENT, "--workdir", "x", "--config.model.dim=31"], "dim=31 must be a multiple of heads=4"),
  (["run", "--config", EXPERIMENT, "--workdir", __file__], "File exists"),
  (["run", "--config", EXPERIMENT + ":small", "--workdir", "x"], "'small' is none of tiny, bits"),
  (["eval", "--workdir", "nowhere"], "no run here"),
  (["eval", "--workdir", "nowhere", "--data", "none.jsonl"], "none.jsonl: no such file"),
  (["eval", "--workdir", "nowhere", "--samples", "0"], "--samples=0"),
  (["eval", "--workdir", "nowhere", "--samples", "many"], "invalid int value: 'many'"),
  (["eval", "--workdir", "nowhere", "--seed", "-1"], "--seed=-1 must be within 0 and 2^31 - 1"),
  (["eval", "--workdir", "nowhere", "--temperature", "nan"], "temperature=nan must be finite and not negative"),
  (["sample", "--workdir", "nowhere", "--seed", "2147483648"], "--seed=2147483648 must be within"),
  (["sample", "--workdir", "nowhere", "--top-p", "2"], "top_p=2.0"),
  (["sample", "--workdir", "nowhere", "--min-p", "nan"], "min_p=nan"),
  (["report", "nowhere"], "no run here"),
  (["bench", "grpo", "--steps", "0"], "--steps=0"),
])
def test_what_is_wrong_is_one_line_and_exit_2(argv, message, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, out, err = call(*argv, capsys=capsys)
  assert code == 2 and message in err and not out
  assert len([line for line in err.splitlines() if not line.startswith(("usage:", " "))]) == 1
  assert not (tmp_path / "x").exists()      # nothing was begun


@pytest.mark.parametrize("text, reason", [
  ("[]", "expected a JSON object, got list"), ("{", "not JSON"), ("{}", "not a run's config"),
  ('{"name": "x", "stages": [[1]]}', "not a run's config")])
def test_a_folder_whose_config_is_none_of_a_run_is_named(text, reason, tmp_path, capsys):
  path = tmp_path / "config.json"
  path.write_text(text)
  export = ["export", "--workdir", tmp_path, tmp_path / "out"]
  for argv in (["table", tmp_path], ["eval", "--workdir", tmp_path], export, [*export, "--all"]):
    code, out, err = call(*argv, capsys=capsys)
    assert code == 2 and f"{path}: {reason}" in err and not out and len(err.splitlines()) == 1


def test_override_with_a_space(tmp_path):
  from r1jax.cli.run import load_config
  config = load_config(EXPERIMENT, ["--config.seed", "3", "--config.reasoning_rl.loss.clip_low=0.2"])
  assert config.seed == 3 and config.reasoning_rl.loss.clip_low == 0.2


def test_a_section_that_the_experiment_leaves_out_can_be_overridden():
  from r1jax.cli.run import load_config
  config = load_config(EXPERIMENT, ["--config.ledger.price=2", "--config.tracking.tensorboard=False"])
  assert config.ledger.price == 2.0 and config.tracking.to_dict() == dict(tensorboard=False, wandb="")
  assert "rewards" not in config      # nothing else is added: the folders of older runs know this config
  with pytest.raises(ValueError, match=r"tracking.wnadb: the experiment has no such key; did you mean wandb"):
    load_config(EXPERIMENT, ["--config.tracking.wnadb=r1"])


def test_a_key_that_the_experiment_leaves_to_its_default_can_be_overridden():
  from r1jax.cli.run import load_config
  config = load_config(EXPERIMENT, ["--config.reasoning_rl.ahead=1", "--config.reasoning_rl.checkpoint.keep", "3"])
  rl = configs.freeze(config).sections["reasoning_rl"].cfg
  assert rl.ahead == 1 and rl.checkpoint.keep == 3 and "in_flight" not in config.reasoning_rl
  named = load_config(str(ROOT / "experiments" / "r1.py:tiny"), ["--config.zero.partial=0"])
  assert named.zero.partial == 0
  other = load_config(EXPERIMENT, ["--config.mesh.fsdp=1", "--config.rollout_mesh.tensor=1", "--config.start=a/b",
                                   "--config.data.tokenizer=t.json", "--config.eval.problems=3"])
  assert other.start == "a/b" and other.data.tokenizer == "t.json" and other.eval.problems == 3
  other.start = other.data.tokenizer = None
  for again in (other, type(other)(json.loads(json.dumps(other.to_dict())))):       # as a run's folder keeps it
    frozen = configs.freeze(again)
    assert frozen.mesh.fsdp == frozen.rollout_mesh.tensor == 1 and frozen.start is None
  with pytest.raises(ValueError, match=r"mesh.rules='x' must be of type dict"):
    configs.freeze(type(other)(other.to_dict() | dict(mesh=dict(rules="x"))))
  with pytest.raises(ValueError, match=r"reasoning_rl.ahaed: the experiment has no such key"):
    load_config(EXPERIMENT, ["--config.reasoning_rl.ahaed=1"])


def test_eval_held_out(workdir, capsys):
  code, out, _ = call("eval", "--workdir", workdir, "--samples", 4, "--problems", 8, capsys=capsys)
  assert code == 0 and "strict pass@4" in out and "lenient pass@1" in out
  numbers = json.loads((workdir / "eval" / "parity-reasoning_rl-2.json").read_text())
  assert numbers["problems"] == 8 and 0 <= numbers["pass@1"] <= numbers["pass@2"] <= numbers["pass@4"] <= 1
  low, high = numbers["pass@1_interval"]
  assert low <= numbers["pass@1"] <= high and f"({low:.3f} - {high:.3f})" in out
  name = str(workdir / "eval" / "parity-reasoning_rl-2")
  assert call("compare-evals", name + ".json", name, capsys=capsys)[0] == 0
  assert pq.read_table(workdir / "eval" / "parity-reasoning_rl-2.parquet").num_rows == 32


def test_eval_of_a_stage_on_a_file(workdir, capsys, tmp_path):
  data = tmp_path / "two.jsonl"
  data.write_text('{"prompt": "00000000:", "answer": "0"}\n{"prompt": "00000001:", "answer": 1}\n')
  code, out, _ = call("eval", "--workdir", workdir, "--stage", "pretrain", "--data", data, "--samples", 2, "--out",
                      tmp_path, capsys=capsys)
  assert code == 0 and "pretrain 8" in out
  table = pq.read_table(tmp_path / "two-pretrain-8.parquet").to_pydict()
  assert table["gold"] == ["0", "0", "1", "1"] and table["prompt"][2] == "00000001:"


@pytest.mark.parametrize("line, reason", [
  ('{"prompt": "0:"}', "needs 'prompt' or 'question', and 'answer'"), ("{", "not JSON"),
  ("[1]", "expected a JSON object"),
  ('{"prompt": "0:", "answer": NaN}', "NaN is not a finite number"),
  ('{"prompt": "0:", "answer": -1e999}', "-1e999 is not a finite number"),
  ('{"prompt": "0: \\uD800", "answer": "1"}', "\\ud800 is half a surrogate pair"),
  ('{"prompt": "", "answer": "1"}', "needs 'prompt'"), ('{"prompt": "0:", "answer": true}', "needs 'prompt'")])
def test_a_bad_line_is_named(workdir, line, reason, capsys, tmp_path):
  data = tmp_path / "bad.jsonl"
  data.write_text('{"prompt": "0:", "answer": "0"}\n' + line + "\n")
  code, _, err = call("eval", "--workdir", workdir, "--data", data, capsys=capsys)
  assert code == 2 and f"{data}:2: " in err and reason in err


def test_sample_streams_the_whole_answer(workdir, capsys):
  code, out, err = call("sample", "--workdir", workdir, "--prompt", "01100110:", "--samples", 2, capsys=capsys)
  assert code == 0 and "reasoning_rl 2" in err
  assert [line[:9] for line in out.splitlines()] == ["01100110:"] * 2
  assert out == call("sample", "--workdir", workdir, "--prompt", "01100110:", "--samples", 2, capsys=capsys)[1]


@pytest.mark.parametrize("prompt, reason", [("two plus two", "cannot read the prompt"), ("", "empty")])
def test_sample_refuses_what_the_tokenizer_cannot_read(workdir, prompt, reason, capsys):
  code, _, err = call("sample", "--workdir", workdir, "--prompt", prompt, capsys=capsys)
  assert code == 2 and reason in err


def test_unknown_checkpoints_are_named(workdir, capsys):
  code, _, err = call("sample", "--workdir", workdir, "--step", 77, capsys=capsys)
  assert code == 2 and "no checkpoint of step 77" in err
  code, _, err = call("sample", "--workdir", workdir, "--stage", "sft", capsys=capsys)
  assert code == 2 and "'sft'" in err


def test_report(workdir, capsys):
  code, out, _ = call("report", workdir, capsys=capsys)
  assert code == 0 and "greedy accuracy" in out and (workdir / "report.html").is_file()


def test_bench_table(capsys, tmp_path, monkeypatch):
  from r1jax.bench import grpo
  from r1jax.models.transformer import ModelConfig
  tiny = ModelConfig(vocab=16, dim=8, layers=1, heads=2, kv_heads=1, ffn=8)
  monkeypatch.setitem(grpo.SHAPES, "A", grpo.Shape(tiny, 2, 2, 4, 4))
  code, out, _ = call("bench", "grpo", "--steps", 2, "--json", tmp_path / "b.json", capsys=capsys)
  numbers = json.loads((tmp_path / "b.json").read_text())
  assert code == 0 and "peak memory" in out
  assert numbers["seconds/step"] > 0 and numbers["peak_memory_bytes"] > 2**20

"""Policies of a run of several stages as Hugging Face directories, against transformers."""

import jax
import numpy as np
import pytest
from conftest import experiment
from test_cli import call

from r1jax import hf, pipeline, policies, rollout, tokenizer
from r1jax.cli import main as cli
from r1jax.sampler import SampleConfig

POLICIES = ("base", "dev1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Three stages of the recipe, a few steps each: a base, data that it samples, fine-tuning on them."""
  c = experiment("r1", "tiny,short")
  for name in set(c.stages) - {"base", "cold_start", "dev1"}:
    del c[name]
  c.stages = ("base", "cold_start", "dev1")
  c.model.update(dim=16, heads=2, kv_heads=1, ffn=24)
  c.base.update(steps=80, batch=32)
  c.cold_start.update(start="base", rewards=())      # of this base, few answers are right
  c.eval.update(samples=0, problems=1, each=False)
  workdir = tmp_path_factory.mktemp("run")
  pipeline.run(c, workdir)
  return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
  out = tmp_path_factory.mktemp("out")
  assert cli.main(["export", "--workdir", str(run), "--all", str(out)]) == 0
  return out


def test_all_writes_a_folder_for_every_stage_that_leaves_a_policy(run, exported, tmp_path, capsys):
  assert sorted(p.name for p in exported.iterdir()) == sorted(POLICIES)       # cold_start leaves data
  code, out, _ = call("export", "--workdir", run, "--stage", "base", tmp_path / "one", capsys=capsys)
  assert code == 0 and out.startswith("base 80: ") and out.strip().endswith(str(tmp_path / "one"))
  for path in (tmp_path / "one").iterdir():
    assert path.read_bytes() == (exported / "base" / path.name).read_bytes()
  weights = [(exported / name / "model.safetensors").read_bytes() for name in POLICIES]
  assert weights[0] != weights[1]


def test_a_runs_folder_is_not_written_over(run, capsys):
  before = (run / "config.json").read_bytes()
  for out in (["--stage", "base", run], ["--all", run]):
    code, _, error = call("export", "--workdir", run, *out, capsys=capsys)
    assert code == 2 and "not empty, and no model directory" in error
  assert (run / "config.json").read_bytes() == before and not (run / "base" / "config.json").exists()


@pytest.mark.parametrize("stage", POLICIES)
def test_a_stages_policy_is_the_same_in_transformers(run, exported, stage):
  """Logits on what the policy itself is asked and says, the tokens of the texts, and greedy answers."""
  torch = pytest.importorskip("torch", reason="needs torch and transformers, to compare with")
  transformers = pytest.importorskip("transformers")
  from test_families import logits, their_logits
  params, model, task, _ = policies.load_policy(run, stage)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(exported / stage, dtype=torch.float32).eval()
  tok = transformers.AutoTokenizer.from_pretrained(exported / stage)
  problems = [*task.held_out[:3], task.scenarios["general"](0), task.scenarios["unsafe"](1)]
  texts = [p.prompt for p in problems] + ["".join(task.demonstration(i)) for i in range(40)]
  assert tok(texts)["input_ids"] == task.tokenizer.encode_batch(texts)
  assert {i for ids in tok(texts)["input_ids"] for i in ids} >= set(range(10))      # not all the same few
  assert [tok.decode(ids) for ids in tok(texts)["input_ids"]] == texts
  assert (tok.eos_token_id, tok.pad_token_id) == (task.tokenizer.end_id,) * 2
  assert theirs.generation_config.eos_token_id == task.tokenizer.end_id

  answers = rollout.sample(params, problems, 1, model=model, tokenizer=task.tokenizer, seed=0, step=0,
                           cfg=SampleConfig(max_tokens=20, temperature=0.0))
  for prompt, answer, text in zip(answers.prompts, answers.answers, answers.texts, strict=True):
    token_NT = np.asarray([prompt + answer], np.int32)
    want = their_logits(theirs, token_NT)
    assert want.std() > 0.3           # else everything agrees
    np.testing.assert_allclose(logits(params, model, token_NT), want, atol=1e-4)
    said = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                           max_new_tokens=20, do_sample=False)[0, len(prompt):].tolist()
    assert said == answer and tok.decode(said, skip_special_tokens=True) == text


def test_an_exported_policy_is_read_back_to_the_bit(run, exported):
  params, model, task, _ = policies.load_policy(run, "dev1")
  back, found = hf.load(exported / "dev1")
  assert found == model
  jax.tree.map(np.testing.assert_array_equal, back, params)
  assert tokenizer.load_dir(exported / "dev1").encode("greet ana?") == task.tokenizer.encode("greet ana?")


def test_what_cannot_be_exported_is_one_line(run, tmp_path, capsys):
  for args, message in (
      ([run, "--all", "--stage", "base"], "--stage and --step do not go with it"),
      ([run, "--stage", "cold_start"], "stage cold_start leaves data, not a policy"),
      ([run, "--stage", "dev2"], "no stage 'dev2'; there are base, cold_start, dev1"),
      ([tmp_path, "--all"], "no run here"),
  ):
    code, _, err = call("export", "--workdir", *args, tmp_path / "out", capsys=capsys)
    assert code == 2 and message in err and len(err.splitlines()) == 1
  assert not (tmp_path / "out").exists()


def test_a_run_under_way_exports_the_stages_that_are_there(run, tmp_path, capsys):
  (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
  code, _, err = call("export", "--workdir", tmp_path, "--all", tmp_path / "out", capsys=capsys)
  assert code == 2 and "no checkpoint of any stage" in err
  (tmp_path / "base").symlink_to(run / "base")
  code, out, _ = call("export", "--workdir", tmp_path, "--all", tmp_path / "out", capsys=capsys)
  assert code == 0 and "dev1: no checkpoint yet, not written" in out
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["base"]

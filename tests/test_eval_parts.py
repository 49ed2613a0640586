"""`r1jax eval` after a kill: finished parts are not sampled again, and what it leaves is the same to the byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from r1jax.cli import main as cli
from r1jax.evals import evaluate, parts
from r1jax.evals.parts import Parts, fingerprint

LEFT = ("seven-{}.parquet", "seven-{}.json")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
  path = tmp_path_factory.mktemp("questions") / "seven.jsonl"
  path.write_text("".join(json.dumps(dict(question=f"What is {i} + {i}?", answer=str(2 * i))) + "\n" for i in range(7)))
  return path


def command(model, questions, out, *more):
  return ["eval", "--model", str(model), "--data", str(questions), "--template", "plain", "--samples", "2",
          "--max-tokens", "6", "--temperature", "1", "--prompts-at-once", "2", "--out", str(out), *map(str, more)]


def left(out, model):
  assert sorted(path.name for path in out.iterdir()) == sorted(name.format(model.name) for name in LEFT)
  return [(out / name.format(model.name)).read_bytes() for name in LEFT]


@pytest.fixture(scope="module")
def whole(released, questions, tmp_path_factory):
  """What an evaluation leaves that nothing interrupted."""
  out = tmp_path_factory.mktemp("whole")
  assert cli.main(command(released, questions, out)) == 0
  table = pq.read_table(out / f"seven-{released.name}.parquet").to_pydict()
  assert len(set(table["text"])) > 7      # or resuming wrongly could not be seen
  return left(out, released)


@pytest.fixture
def cut_off(released, questions, tmp_path, monkeypatch):
  """A folder whose evaluation was cut off after two of four parts."""
  def write(parts, first, table):
    if first == 4:
      raise KeyboardInterrupt
    written(parts, first, table)
  written = Parts.write
  with monkeypatch.context() as patch:
    patch.setattr(Parts, "write", write)
    assert cli.main(command(released, questions, tmp_path)) == 130
  assert len(list(tmp_path.glob("*.parts/*.parquet"))) == 2 and not list(tmp_path.glob("*.json"))
  return tmp_path


@pytest.fixture
def sampled(monkeypatch):
  """The ids of problems as they are sampled."""
  ids, answered = [], evaluate.answered

  def record(params, task, problems, *rest, **options):
    ids.append([p.id for p in problems])
    return answered(params, task, problems, *rest, **options)
  monkeypatch.setattr(evaluate, "answered", record)
  return ids


def test_it_goes_on_where_it_was_and_leaves_the_same_bytes(released, questions, whole, cut_off, sampled, capsys):
  assert cli.main(command(released, questions, cut_off)) == 0
  assert sampled == [[4, 5], [6]] and "going on: 4 of 7 problems are done" in capsys.readouterr().out
  assert left(cut_off, released) == whole


def test_a_part_that_was_being_written_does_not_count(released, questions, whole, cut_off, sampled):
  [folder] = cut_off.glob("*.parts")
  (folder / "problem_00000004.tmp").write_bytes(b"PAR1 half")
  assert cli.main(command(released, questions, cut_off)) == 0
  assert sampled == [[4, 5], [6]] and left(cut_off, released) == whole


def test_another_setting_starts_anew_and_is_named(released, questions, whole, cut_off, sampled, capsys):
  assert cli.main(command(released, questions, cut_off, "--seed", 1)) == 0
  assert sampled[0] == [0, 1] and "starting anew: seed differs" in capsys.readouterr().out
  assert left(cut_off, released) != whole


@pytest.mark.slow
@pytest.mark.parametrize("change, said", [
  (("--temperature", 0.9), "temperature, sampling"), (("--samples", 3), "samples"),
  (("--prompts-at-once", 3), "prompts_at_once")])
def test_each_setting_counts(change, said, released, questions, cut_off, sampled, capsys):
  assert cli.main(command(released, questions, cut_off, *change)) == 0
  assert sampled[0][0] == 0 and f"starting anew: {said} differ" in capsys.readouterr().out


def test_another_policy_or_question_starts_anew_though_its_name_is_the_same(released, questions, cut_off, sampled,
                                                                            capsys, tmp_path_factory):
  from r1jax import hf
  other = tmp_path_factory.mktemp("other") / released.name
  shutil.copytree(released, other)
  params, model = hf.load(other)
  params["final_norm"] = params["final_norm"].at[3].multiply(1 + 2**-7)
  from r1jax import tokenizer
  hf.save(other, params, model, tokenizer.load_dir(other))
  again = tmp_path_factory.mktemp("again") / questions.name
  again.write_text(questions.read_text().replace('"answer": "6"', '"answer": "4"'))
  saved = shutil.copytree(cut_off, tmp_path_factory.mktemp("saved") / "out")
  assert cli.main(command(other, questions, cut_off)) == 0
  assert sampled[0] == [0, 1] and "parameters" in capsys.readouterr().out
  sampled.clear()
  assert cli.main(command(released, again, saved)) == 0
  assert sampled[0] == [0, 1] and "starting anew: questions differs" in capsys.readouterr().out


def test_another_template_or_end_token_starts_anew(released, questions, tmp_path, monkeypatch, capsys):
  def interrupt(*args, **options):
    raise KeyboardInterrupt
  monkeypatch.setattr(evaluate, "answered", interrupt)
  model = shutil.copytree(released, tmp_path / "model")
  argv = command(model, questions, tmp_path / "out", "--template", "chat")
  assert cli.main(argv) == 130 and cli.main(argv) == 130 and "anew" not in capsys.readouterr().out
  template = model / "chat_template.jinja"
  template.write_text("Answer briefly. " + template.read_text())
  assert cli.main(argv) == 130 and "starting anew: prompt_tokens differs" in capsys.readouterr().out
  (model / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[256, 0])))
  assert cli.main(argv) == 130 and "starting anew: end_tokens differs" in capsys.readouterr().out


def test_another_evaluation_is_not_overwritten(released, questions, whole, tmp_path, sampled, capsys):
  other = tmp_path / "b" / questions.name
  other.parent.mkdir()
  other.write_text(questions.read_text().replace('"answer": "6"', '"answer": "4"'))
  out = tmp_path / "out"
  out.mkdir()
  for name, content in zip(LEFT, whole, strict=True):
    (out / name.format(released.name)).write_bytes(content)
  for argv, differs in ((command(released, other, out), "questions"),
                        (command(released, questions, out, "--top-p", 0.5), "top_p (0.95, now 0.5)"),
                        (command(released, questions, out, "--stop", "x"), "stop ([], now ['x'])")):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert f"seven-{released.name}.json is of another evaluation, it differs in {differs}" in err and "--out" in err
    assert err.count("now") == 1 and len(err.splitlines()) == 1
  assert not sampled and left(out, released) == whole
  assert cli.main(command(released, questions, out)) == 0 and left(out, released) == whole
  record = out / LEFT[1].format(released.name)
  record.write_text('{"pass@1": 0.5}')
  assert cli.main(command(released, questions, out)) == 2
  assert "does not say what it was made with" in capsys.readouterr().err and len(record.read_text()) == 15


def test_a_record_may_be_of_other_parameters_where_that_is_expected(tmp_path):
  path, settings = tmp_path / "a.json", dict(policy="sft 2", parameters="a", sampling=dict(top_k=0))
  path.write_text(json.dumps(dict(settings=settings)))
  parts.refuse_another(path, settings | dict(policy="./sft 2"))
  parts.refuse_another(path, settings | dict(parameters="b"), but=("parameters",))
  with pytest.raises(ValueError, match=r"differs in parameters \('a', now 'b'\): give another --out"):
    parts.refuse_another(path, settings | dict(parameters="b"))


def test_settings_that_cannot_be_read_are_no_reason_to_trust_the_parts(tmp_path):
  parts = Parts(tmp_path / "x.parts", dict(seed=1))
  parts.write(0, dict(text=["a"]))
  assert Parts(tmp_path / "x.parts", dict(seed=1)).done(0)
  (tmp_path / "x.parts" / "settings.json").write_text("{")
  again = Parts(tmp_path / "x.parts", dict(seed=1))
  assert again.dropped and not again.done(0)


def test_columns_have_the_type_of_all_their_values(tmp_path):
  parts = Parts(tmp_path / "x.parts", {})
  parts.write(0, dict(score=[1, 0], final=[None, None], tokens=[[1], []]))
  parts.write(2, dict(score=[0.5, 1.0], final=["7", None], tokens=[[2, 3], [4]]))
  table = parts.table([0, 2])
  assert table == dict(score=[1, 0, 0.5, 1.0], final=[None, None, "7", None], tokens=[[1], [], [2, 3], [4]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "float8_e4m3fn"])
def test_the_fingerprint_sees_any_one_value(dtype):
  rng = np.random.default_rng(0)
  tree = dict(a=jnp.asarray(rng.normal(size=(3, 5, 2)) * 20, dtype), b=jnp.ones(4, dtype))
  first = fingerprint(tree)
  assert fingerprint(jax.tree.map(jnp.copy, tree)) == first
  for place in ((0, 0, 0), (2, 4, 1), (1, 3, 0)):
    changed = tree | dict(a=tree["a"].at[place].add(jnp.asarray(8, dtype)))
    assert fingerprint(changed) != first
  swapped = tree["a"].at[0, 0, 0].set(tree["a"][2, 3, 1]).at[2, 3, 1].set(tree["a"][0, 0, 0])
  assert fingerprint(tree | dict(a=swapped)) != first
  assert fingerprint(dict(a=tree["a"], c=tree["b"])) != first


@pytest.mark.slow
def test_killed_between_parts_it_goes_on(released, questions, whole, tmp_path, sampled):
  process = subprocess.Popen([sys.executable, "-m", "r1jax.cli.main", *command(released, questions, tmp_path)],
                             env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL)
  while process.poll() is None and not list(tmp_path.glob("*.parts/problem_*.parquet")):
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert process.returncode == -signal.SIGKILL
  assert cli.main(command(released, questions, tmp_path)) == 0
  assert sum(map(len, sampled)) < 7 and left(tmp_path, released) == whole

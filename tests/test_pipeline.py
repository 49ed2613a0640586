"""Stages in order, what they leave, what is skipped, what goes on, what is done again and why."""

import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import experiment

from r1jax import config, lineage, metrics, pipeline, policies


def small():
  """Two supervised stages of a model that is hardly there."""
  c = experiment("r1_zero_parity")
  c.stages = ("pretrain", "more")
  c.task.update(bits=4, held_out=4)
  c.model.update(dim=8, layers=1, heads=2, kv_heads=1, ffn=8)
  c.pretrain.update(steps=3, batch=4)
  c.more = dict(stage="pretrain", steps=2, batch=4, optimizer=dict(lr=1e-3))
  c.eval.samples = 0
  return c


def stages_of(said: str, words: str) -> list[str]:
  return [line.split()[0].rstrip(":") for line in said.splitlines() if words in line]


class Said:
  """A console that remembers."""

  def __init__(self):
    self.text = ""

  def print(self, text, **_):
    self.text += f"{text}\n"


def run(c, workdir, monkeypatch):
  """(result, what was said) of a run; the live line and tables are left out."""
  said = Said()
  monkeypatch.setattr(metrics, "print_rows", lambda *_: None)
  monkeypatch.setattr(metrics, "progress", lambda _: PROGRESS())
  return pipeline.run(c, workdir, console=said), said.text


PROGRESS = lambda plain=metrics.progress: plain(None)


@pytest.mark.slow
def test_finished_stages_are_skipped_and_a_change_is_carried_downstream_with_its_reason(tmp_path, monkeypatch):
  c = small()
  first, said = run(c, tmp_path, monkeypatch)
  assert "again" not in said and "before" not in said
  made = {name: lineage.read(tmp_path / name) for name in c.stages}
  assert made["more"]["start"] == "pretrain" and made["more"]["finished"]
  assert made["more"]["inputs"]["upstream"] == dict(pretrain=made["pretrain"]["hash"])
  again, said = run(c, tmp_path, monkeypatch)
  assert again == first and stages_of(said, "finished before") == list(c.stages) and "evaluating" not in said

  c.more.steps = 3                      # its own stage alone
  c.pretrain.log_every = 2              # no weight depends on it
  c.more.checkpoint = dict(every=1, keep=1)
  _, said = run(c, tmp_path, monkeypatch)
  assert stages_of(said, "finished before") == ["pretrain"]
  assert "more is done again: steps: 2 -> 3. What was there is in more.before" in said
  assert stages_of(said, "evaluating") == ["evaluating"]                   # the final policy; the base is as it was
  assert (tmp_path / "more.before" / "stage.json").exists() and lineage.read(tmp_path / "more")["redone"]

  c.pretrain.optimizer.lr = 1e-3        # and all that follows
  _, said = run(c, tmp_path, monkeypatch)
  assert "pretrain is done again: optimizer.lr: 0.003 -> 0.001." in said
  assert "more is done again: pretrain was made anew." in said
  assert len(metrics.read(tmp_path / "more" / "metrics.jsonl")) == 2     # not those of the run before as well

  c.name = "another"
  with pytest.raises(ValueError, match="run of another experiment, 'r1_zero_parity'"):
    pipeline.run(c, tmp_path)


def test_the_start_is_evaluated_again_when_it_is_another(tmp_path, monkeypatch):
  c = small()
  c.stages = ("sft",)
  c.sft = dict(steps=1, batch=4, length=32, optimizer=dict(lr=1e-3))
  asked = []

  def evaluate(which, params, cfg, task, model, path, *_):
    asked.append(which)
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"accuracy": 0}')
    return {}
  monkeypatch.setattr(pipeline, "_evaluate", evaluate)
  run(c, tmp_path, monkeypatch)
  for change in ({}, dict(seed=1), {"model.dim": 12}, {"task.bits": 5}):
    asked.clear()
    c.update_from_flattened_dict(change)
    run(c, tmp_path, monkeypatch)
    assert asked == (["base", "final"] if change else []), change


def test_only_runs_one_stage_from_what_the_others_left(tmp_path, monkeypatch):
  c = small()
  c.only = "more"
  with pytest.raises(ValueError, match="only=more needs stage pretrain, which is not finished"):
    pipeline.run(c, tmp_path)
  c.only = "pretrain"
  run(c, tmp_path, monkeypatch)
  assert not (tmp_path / "more").exists() and not (tmp_path / "result.json").exists()
  c.only = "more"
  run(c, tmp_path, monkeypatch)
  assert lineage.read(tmp_path / "more")["finished"]
  c.pretrain.steps, c.more.steps = 4, 1
  with pytest.raises(ValueError, match=r"needs stage pretrain, which is out of date \(steps: 3 -> 4\)"):
    pipeline.run(c, tmp_path)
  c.only = ""
  assert "final/greedy_accuracy" in run(c, tmp_path, monkeypatch)[0]


@pytest.mark.parametrize("change, message", [
  (dict(start="later"), "more.start='later' is no stage before it that leaves a policy; these are pretrain"),
  (dict(stage="tune"), "more.stage='tune' is none of pretrain"),
  (dict(data="pretrain", stage="sft"), "more.data='pretrain': sft and distill learn from the data of a rejection"),
  (dict(model=dict(dim=8)), "more.model: a stage that starts from pretrain has its model"),
  (dict(start="", model=dict(dim=9)), "more.model.layers is missing"),
  (dict(steps=0), "steps=0 must be at least 1"),
])
def test_a_wrong_section_is_refused(change, message):
  c = small()
  with c.unlocked():
    c.more.update(change)
  with pytest.raises(ValueError, match=message.replace("(", r"\(")):
    config.freeze(c)


def test_a_stage_of_its_own_model_and_unknown_sections():
  c = small()
  c.more.update(start="", model=dict(dim=4, layers=1, heads=1, kv_heads=1, ffn=4))
  cfg = config.freeze(c)
  assert cfg.sections["more"].model.dim == 4 and cfg.sections["pretrain"].model is None
  assert cfg.sections["more"].seed != cfg.sections["pretrain"].seed == cfg.seed
  c.extra = dict(steps=1)
  with pytest.raises(ValueError, match="unknown key extra"):
    config.freeze(c)
  c = small()
  c.only = "later"
  with pytest.raises(ValueError, match="only='later' is none of the stages pretrain, more"):
    config.freeze(c)


def test_lineage_sees_the_contents_of_files_and_names_the_nearest_cause(tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_text("one")
  before = lineage.file_digest(path)
  path.write_text("two")
  assert lineage.file_digest(path) != before
  old = dict(config=dict(a=1, b=2), upstream=dict(base="x"), files=dict(other="1"), seed=0)
  new = dict(config=dict(a=1, c=3), upstream=dict(base="y"), files=dict(other="2"), seed=1)
  assert lineage.changes(old, new) == ["c: None -> 3", "data.other has other contents", "seed: 0 -> 1", "b: 2 -> gone",
                                       "base was made anew"]
  assert lineage.changes(old, old) == [] and lineage.digest(old) != lineage.digest(new)
  assert lineage.read(tmp_path) is None
  (tmp_path / "stage.json").write_text("{half")
  assert lineage.read(tmp_path) is None


class Crash(Exception):
  pass


@pytest.mark.slow
def test_the_whole_recipe_and_a_kill_in_any_of_its_stages(tmp_path, monkeypatch):
  c = experiment("r1", "tiny,short")
  whole, _ = run(c, tmp_path / "whole", monkeypatch)

  crashed = set()
  write = metrics.Writer.write

  def dies_once(self, step, values):
    write(self, step, values)
    if self.folder.name not in crashed and self.folder.parent.name == "killed":
      crashed.add(self.folder.name)
      raise Crash(self.folder.name)
  monkeypatch.setattr(metrics.Writer, "write", dies_once)
  for _ in c.stages:
    with pytest.raises(Crash):
      run(c, tmp_path / "killed", monkeypatch)
  resumed, said = run(c, tmp_path / "killed", monkeypatch)
  assert crashed == set(c.stages) and "again" not in said
  times = lambda result: {k: v for k, v in result.items() if not k.startswith("seconds")}
  assert times(resumed) == times(whole)
  for name in ("zero", "dev1", "dev3", "r1"):
    a, b = (policies.load_policy(tmp_path / folder, name)[0] for folder in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, a, b)

  folder = tmp_path / "whole"
  assert [lineage.read(folder / name)["start"] for name in ("zero", "dev1", "dev2", "dev3", "r1")] == [
    "base", "base", "dev1", "base", "dev3"]
  for name in ("cold_start", "sft_data"):
    a, b = ((tmp_path / run / name / "data.jsonl").read_text() for run in ("whole", "killed"))
    assert a == b
    rows = [json.loads(line) for line in a.splitlines()]
    counts = json.loads((folder / name / "filters.json").read_text())
    assert counts["sampled"] == 64 == counts["kept"] + sum(counts["dropped"].values())
    assert len(rows) == counts["kept"] + counts["other"]
    assert rows[0]["policy"].split()[0] == dict(cold_start="zero", sft_data="dev2")[name]
  scenarios = pq.read_table(folder / "r1" / "samples" / "step_000001.parquet")["scenario"].to_pylist()
  assert set(scenarios) != {"reasoning"}
  assert set(pq.read_table(folder / "r1" / "samples" / "step_000000.parquet")["scenario"].to_pylist()) == {"reasoning"}
  for stage in ("base", "zero", "dev1", "dev2", "dev3", "r1"):
    assert {f"{stage}/pass@1", f"{stage}/language", f"{stage}/general/helpful", f"{stage}/unsafe/safe"} <= whole.keys()
  assert "cold_start/pass@1" not in whole
  said = pq.read_table(folder / "eval" / "r1.parquet").to_pylist()
  assert {row["scenario"] for row in said} == {"reasoning", "general", "unsafe"}
  assert {row["reward/safe"] is None for row in said if row["scenario"] == "unsafe"} == {False}

  c.dev3.batch = 8
  _, said = run(c, folder, monkeypatch)
  assert stages_of(said, "done again") == ["dev3", "helpful", "harmless", "r1"]
  rows = (folder / "cold_start" / "data.jsonl").read_text().splitlines()
  (folder / "cold_start" / "data.jsonl").write_text("\n".join(rows[:-1]) + "\n")      # a person takes one out
  c.only = "dev1"
  _, said = run(c, folder, monkeypatch)
  assert "dev1 is done again: cold_start was made anew" in said
  with pytest.raises(ValueError, match="stage helpful leaves a reward model, not a policy"):
    policies.load_policy(folder, "helpful")

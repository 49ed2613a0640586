"""Rejection sampling: each filter by itself, what is kept, and the folder that it leaves."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import weights

from r1jax.drawing import SampleConfig
from r1jax.models.transformer import ModelConfig
from r1jax.problem import Score
from r1jax.rollout import Rollouts
from r1jax.stages import rejection
from r1jax.stages.rejection import RejectionConfig
from r1jax.tasks import DataConfig, world

SAMPLING = SampleConfig(4)
GOOD = dict(accuracy=Score(1.0, "correct"), format=Score(1.0), language=Score(1.0))


def config(**more):
  return RejectionConfig(SAMPLING, problems=4, samples=2, **more)


@pytest.mark.parametrize("text, more, dropped", [
  ("<think>a b c d</think>1", {}, ""),
  ("<think>a b c d</think>1", dict(truncated=True), "truncated"),
  ("<think>a b c d</think>1", dict(accuracy=Score(0.0, "wrong")), "wrong"),
  ("<think>a b c d</think>1", dict(format=Score(0.75)), "format"),
  ("<think>a b c d</think>1", dict(language=Score(0.89)), "language"),
  ("<think> la la la la la la </think>1", {}, "repetition"),
  ("<think>" + "abcd efgh " * 2 + "ijkl mnop</think>1", {}, "paragraph"),
  ("<think>ab cd\n\nefgh\n\nij kl mn</think>1", {}, ""),
  ("<think>ab ```x```</think>1", {}, "code"),
  ("<think>ab</think> ```x```", {}, ""),                 # code in the answer is no code in the thought
])
def test_each_filter(text, more, dropped):
  cfg = config(min_language=0.9, max_repetition=0.3, max_paragraph=20, drop_code=True)
  truncated = more.pop("truncated", False)
  assert rejection.dropped_by(cfg, text, GOOD | more, truncated) == dropped


def test_filters_that_are_off_let_everything_pass():
  cfg = config(rewards=())
  assert rejection.dropped_by(cfg, "la la la la ```x``` " * 50, dict(language=Score(0.0)), False) == ""


def test_no_more_than_keep_of_a_prompt():
  rollouts = Rollouts([None] * 2, [[1]] * 2, [[2]] * 6, [np.zeros(1)] * 6, ["a"] * 6, np.zeros(6, bool))
  wrong = GOOD | dict(accuracy=Score(0.0, "wrong"))
  parts = [GOOD, wrong, GOOD, GOOD, GOOD, GOOD]
  assert rejection.marked(config(keep=1), rollouts, parts) == ["", "wrong", "enough", "", "enough", "enough"]
  assert rejection.marked(config(), rollouts, parts).count("") == 5


def test_wrong_configs_and_tasks(tmp_path):
  for more, message in ((dict(keep=-1), "keep=-1"), (dict(min_language=1.5), "min_language=1.5"),
                        (dict(prompts_at_once=0), "prompts_at_once=0")):
    with pytest.raises(ValueError, match=message):
      config(**more)
  task = world.make(world.Config(bits=4, held_out=2), DataConfig())
  bare = dataclasses.replace(task, rewrite=None, other=None, rewards=dict(accuracy=world.accuracy))
  for more, message in ((dict(rewrite=True), "rewrites no answers"), (dict(other=3), "other=3"),
                        (dict(min_language=0.5), "no reward named language")):
    with pytest.raises(ValueError, match=message):
      rejection.run(config(**more), bare, tmp_path, None, model=None, seed=0)


def test_the_folder_holds_every_answer_and_a_part_that_is_there_is_not_sampled_again(tmp_path, monkeypatch):
  task = world.make(world.Config(bits=4, held_out=2), DataConfig())
  model = ModelConfig(vocab=task.tokenizer.vocab, dim=8, layers=1, heads=1, kv_heads=1, ffn=8)
  cfg = RejectionConfig(SampleConfig(4), problems=5, samples=2, rewards=(), rewrite=True, other=3, prompts_at_once=2)
  monkeypatch.setattr(rejection, "dropped_by", lambda cfg, text, scores, truncated: "wrong" if "0" in text else "")
  draw, drawn = rejection.rollout.sample, []

  def sample(params, problems, *args, **options):
    drawn.append(len(problems))
    return draw(params, problems, *args, **options)
  monkeypatch.setattr(rejection.rollout, "sample", sample)
  params = weights(model)
  run = lambda folder: rejection.run(cfg, task, folder, params, model=model, seed=3, policy="zero abc")
  assert run(tmp_path / "a") is params and drawn == [2, 2, 1]
  counts = json.loads((tmp_path / "a" / "filters.json").read_text())
  rows = [json.loads(line) for line in (tmp_path / "a" / "data.jsonl").read_text().splitlines()]
  samples = [row for part in range(3) for row in pq.read_table(rejection.sample_file(tmp_path / "a", part)).to_pylist()]
  assert counts["sampled"] == 10 == len(samples) and counts["kept"] == sum(row["dropped"] == "" for row in samples)
  assert len(rows) == counts["kept"] + 3 and [row.get("policy") for row in rows][-3:] == [""] * 3
  kept = [row for row in rows if row["policy"]]
  assert all(row["policy"] == "zero abc" and row["seed"] == 3 for row in kept)
  assert all(("said" in row) != ("answer_tokens" in row) for row in kept)

  for part in (1, 2):      # killed in the second part
    rejection.sample_file(tmp_path / "a", part).unlink()
  (tmp_path / "a" / "data.jsonl").rename(tmp_path / "whole.jsonl")
  drawn.clear()
  run(tmp_path / "a")
  assert drawn == [2, 1] and (tmp_path / "a" / "data.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_question_that_comes_again_gets_other_answers_whatever_the_parts(tmp_path):
  whole = world.make(world.Config(bits=4, held_out=2), DataConfig())
  task = dataclasses.replace(whole, size=3)
  model = ModelConfig(vocab=task.tokenizer.vocab, dim=8, layers=1, heads=1, kv_heads=1, ffn=8)
  cfg = RejectionConfig(SampleConfig(8), problems=6, samples=2, rewards=(), other=1)
  params = weights(model)

  def said(folder, at_once, parts):
    rejection.run(dataclasses.replace(cfg, prompts_at_once=at_once), task, folder, params, model=model, seed=3)
    rows = [row for part in range(parts) for row in pq.read_table(rejection.sample_file(folder, part)).to_pylist()]
    return [(row["problem"], row["tokens"]) for row in rows]
  found = said(tmp_path / "two", 2, 3)
  assert sorted({problem for problem, _ in found}) == [0, 1, 2]
  assert len({(problem, *tokens) for problem, tokens in found}) == len(found) == 12
  assert said(tmp_path / "all", 6, 1) == found
  rejection.sample_file(tmp_path / "two", 2).unlink()      # killed in the last part
  assert said(tmp_path / "two", 2, 3) == found


def test_nothing_kept_is_an_error_that_says_why(tmp_path):
  task = world.make(world.Config(bits=4, held_out=2), DataConfig())
  (tmp_path / "samples").mkdir()
  rejection.metrics.write_table(rejection.sample_file(tmp_path, 0), dict(dropped=["wrong", "language"]))
  with pytest.raises(ValueError, match=r"none of 2 answers passed the filters: \{'wrong': 1, 'language': 1\}"):
    rejection.write_data(config(), task, tmp_path, 1, 0)

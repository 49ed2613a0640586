"""Rejection sampling: a policy's answers that pass the filters, as data for supervised stages; the policy stays.

R1 (Nature 2025, Methods; arXiv 2501.12948 v2, B.3.2-3.3): cold-start data are answers of R1-Zero at T 1 that are
correct, readable, in one language, without repetition; 600 thousand samples for the second fine-tuning are several
answers a prompt of the RL checkpoint, the correct ones kept, without mixed languages, long paragraphs and code blocks,
beside 200 thousand that are no reasoning. For the cold start people and another model first rewrote the answers, for
one thing in the language of the question: `rewrite` asks the task to do it, and the filters see what comes of it.

Left in the folder: samples/ with every answer and what dropped it, filters.json with the counts, data.jsonl with what
was kept and where it comes from. A part (`prompts_at_once` prompts) that is there is not sampled again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from r1jax import data, hosts, ledger, metrics, rollout
from r1jax.drawing import SampleConfig
from r1jax.ledger import Rates
from r1jax.loop import Interrupted
from r1jax.models.transformer import ModelConfig
from r1jax.rewards.language import reasoning
from r1jax.rewards.repetition import repeated_share
from r1jax.types import Task

SAMPLING_STEP = 2**31 - 2      # no training unit has this number, and evaluation has the next
FILTERS = ("truncated", "wrong", "format", "language", "repetition", "paragraph", "code", "enough")


@dataclasses.dataclass(frozen=True)
class RejectionConfig:
  sampling: SampleConfig         # R1: T 1
  problems: int                  # prompts
  samples: int                   # answers to each
  keep: int = 0                  # of a prompt's answers that pass, at most so many, the first; 0: all
  rewards: tuple[str, ...] = ("accuracy", "format")      # that must be 1, as far as the task has them
  min_language: float = 0.0      # least language consistency of the thought, by the task's reward `language`; 0: off
  max_repetition: float = 1.0    # largest share of 3-grams written before; 1: off
  max_paragraph: int = 0         # characters of the longest paragraph of the thought; 0: off
  drop_code: bool = False        # thoughts with ``` blocks
  rewrite: bool = False          # by the task's `rewrite`, before the filters
  other: int = 0                 # so many samples beside reasoning (data.other, or the task's own) go with them
  prompts_at_once: int = 64

  def __post_init__(self):
    for name in ("problems", "samples", "prompts_at_once"):
      if getattr(self, name) < 1:
        raise ValueError(f"rejection.{name}={getattr(self, name)} must be at least 1")
    if min(self.keep, self.other, self.max_paragraph) < 0:
      raise ValueError(f"rejection.keep={self.keep}, other={self.other}, max_paragraph={self.max_paragraph} must not be"
                       " negative")
    if not (0 <= self.min_language <= 1 and 0 <= self.max_repetition <= 1):
      raise ValueError(f"rejection.min_language={self.min_language} and max_repetition={self.max_repetition} are within"
                       " 0 and 1")


def refuse(cfg: RejectionConfig, task: Task, model: ModelConfig) -> None:
  """Refuses what the task does not have. A run asks before its first stage."""
  del model
  if cfg.min_language and "language" not in task.rewards:
    raise ValueError(f"rejection.min_language={cfg.min_language}: task {task.name} has no reward named language; it has"
                     f" {', '.join(task.rewards)}")
  if cfg.rewrite and task.rewrite is None:
    raise ValueError(f"rejection.rewrite=True: task {task.name} rewrites no answers")
  if cfg.other and task.other is None:
    raise ValueError(f"rejection.other={cfg.other}: task {task.name} has no such data of its own: give data.other=FILE")


def dropped_by(cfg: RejectionConfig, text: str, scores: dict, truncated: bool) -> str:
  """The first filter that an answer does not pass, "" for one that passes all."""
  if truncated:
    return "truncated"
  for name in cfg.rewards:
    if name in scores and scores[name].value != 1:
      return "wrong" if name == "accuracy" else name
  if cfg.min_language and scores["language"].value < cfg.min_language:
    return "language"
  if cfg.max_repetition < 1 and repeated_share(text, 3) > cfg.max_repetition:
    return "repetition"
  thought = reasoning(text)
  if cfg.max_paragraph and max(map(len, thought.split("\n\n"))) > cfg.max_paragraph:
    return "paragraph"
  return "code" if cfg.drop_code and "```" in thought else ""


def marked(cfg: RejectionConfig, rollouts, parts) -> list[str]:
  """What dropped each answer; beyond `keep` good ones of a prompt: "enough"."""
  marks, kept = [], Counter()
  for n, (text, scores) in enumerate(zip(rollouts.texts, parts, strict=True)):
    mark = dropped_by(cfg, text, scores, bool(rollouts.truncated_N[n]))
    if not mark:
      kept[n // rollouts.group_size] += 1
      mark = "enough" if cfg.keep and kept[n // rollouts.group_size] > cfg.keep else ""
    marks.append(mark)
  return marks


def run(cfg: RejectionConfig, task: Task, folder: Path, params, *, model: ModelConfig, seed: int, stop=None,
        console=None, files=None, pool=None, rates: Rates | None = None, policy: str = ""):
  """Samples, filters and writes the data; returns the policy unchanged. policy: its name, for the data's provenance."""
  refuse(cfg, task, model)
  wanted = [*cfg.rewards, *(["language"] if cfg.min_language else [])]
  terms = {name: (1.0, task.rewards[name]) for name in wanted if name in task.rewards}
  at_once = min(cfg.prompts_at_once, cfg.problems)
  firsts = range(0, cfg.problems, at_once)
  done = hosts.from_main(lambda: next(part for part in itertools.count() if not sample_file(folder, part).exists()))
  problems_of = lambda part: [task.problem(i) for i in data.positions(part, at_once, task.size, seed)][
    :cfg.problems - part * at_once]
  asked = Counter(problem.id for part in range(done) for problem in problems_of(part))     # in all parts, on each host
  writer = metrics.Writer(folder, done, quiet=not hosts.is_main())
  with contextlib.closing(writer), metrics.progress(console) as progress:
    bar = progress.add_task(folder.name, total=len(firsts), completed=done, numbers="")
    for part in range(done, len(firsts)):
      began = time.monotonic()
      problems = problems_of(part)
      rollouts = rollout.sample(params, problems, cfg.samples, model=model, tokenizer=task.tokenizer, cfg=cfg.sampling,
                                seed=seed, step=SAMPLING_STEP, encode=task.encode, asked=asked)
      said = rollouts.texts
      if cfg.rewrite:
        rollouts = dataclasses.replace(rollouts, texts=[task.rewrite(problems[n // cfg.samples], text)
                                                        for n, text in enumerate(said)])
      reward_N, scores = rollout.score(rollouts, terms, "scored", pool)
      marks = marked(cfg, rollouts, scores)
      row = dict(kept_share=marks.count("") / len(marks), length=sum(map(len, rollouts.answers)) / len(marks),
                 accuracy=sum(s["accuracy"].value == 1 for s in scores) / len(marks) if "accuracy" in terms else 0.0)
      row |= {f"dropped_share/{name}": marks.count(name) / len(marks) for name in FILTERS if name in marks}
      if rates:
        row |= ledger.row(rates, rollout=ledger.sampled(model, [rollouts], time.monotonic() - began))
      table = rollout.table(rollouts, reward_N, scores, stage=folder.name, policy=policy, step=part)
      writer.write(part, row)
      writer.samples(part, table | dict(dropped=marks, said=said))      # last: what is there is not done again
      progress.update(bar, completed=part + 1, numbers=metrics.line(row))
      if hosts.any_of(stop is not None and stop.asked) and part + 1 < len(firsts):
        raise Interrupted(f"stopped in stage {folder.name} after {part + 1} of {len(firsts)} parts; saved")
  hosts.from_main(lambda: write_data(cfg, task, folder, len(firsts), seed))
  return params


def sample_file(folder: Path, part: int) -> Path:
  return folder / "samples" / f"step_{part:06d}.parquet"


def write_data(cfg: RejectionConfig, task: Task, folder: Path, parts: int, seed: int) -> None:
  """data.jsonl and filters.json, from the samples; each written beside and renamed."""
  counts, sampled = Counter(), 0
  with (folder / "data.tmp").open("w", encoding="utf-8") as out:
    put = lambda row: out.write(json.dumps(row, ensure_ascii=False) + "\n")
    for part in range(parts):
      for row in pq.read_table(sample_file(folder, part)).to_pylist():
        sampled += 1
        counts[row["dropped"]] += 1
        if not row["dropped"]:
          rewritten = row["said"] != row["text"]       # else its own tokens: a text may be tokenised in other ways
          also = dict(said=row["said"]) if rewritten else dict(answer_tokens=row["tokens"])
          put(dict(prompt=row["prompt"], answer=row["text"], **also, policy=row["policy"], problem=row["problem"],
                   gold=row["gold"], sample=row["sample"], part=part, seed=seed,
                   scenario=row["scenario"], **{k: v for k, v in row.items() if k.startswith("reward")}))
    for i in range(cfg.other):
      prompt, answer = task.other(i)
      put(dict(prompt=prompt, answer=answer, policy="", source=f"other data of task {task.name}", seed=seed))
  kept = counts.pop("", 0)
  if not kept + cfg.other:
    raise ValueError(f"{folder}: none of {sampled} answers passed the filters: {dict(counts)}")
  (folder / "filters.tmp").write_text(json.dumps(dict(sampled=sampled, kept=kept, other=cfg.other,
                                                      dropped=dict(sorted(counts.items()))), indent=1))
  os.replace(folder / "filters.tmp", folder / "filters.json")
  os.replace(folder / "data.tmp", folder / "data.jsonl")

"""The answers that the page holds for its browser (browser.js): a bounded choice, whole groups where they fit.

Of a stage a few steps, first and last among them, and its policy's evaluation: of each the first two groups, then those
whose rewards differ, which teach, then others, until the bounds are reached. The page says what was chosen of how much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1jax.report.folder import Run, number
from r1jax.report.markup import esc, json_html

STEPS = 5                # sample files of a stage that are looked into
ANSWERS = 200            # of a stage's training, at most; as many of its policy's evaluation
CHARACTERS = 500_000     # of a stage's training, at most, and of an evaluation
LONGEST = 8_000          # characters: the middle of a longer text is left out
FACTS = ("reward", "advantage", "length", "logp_mean", "logp_min")      # numbers of an answer
KEYS = (("j", "k", "next and previous answer"), ("[", "]", "page back and forward"), ("/", "", "search"),
        ("Esc", "", "leave the search"))


def section(run: Run, notes: list[str]) -> tuple[str, str]:
  """(what the page shows, what its script reads)."""
  sources, said = [], []
  for name in dict.fromkeys([*(stage.name for stage in run.stages), *run.eval_samples]):
    stage = next((stage for stage in run.stages if stage.name == name), None)
    if stage and stage.samples:
      picked = [stage.samples[i * (len(stage.samples) - 1) // max(1, STEPS - 1)] for i in range(STEPS)]
      picked = list(dict.fromkeys(picked if len(stage.samples) > STEPS else stage.samples))
      groups, answers, of = chosen(picked, notes)
      if groups:
        sources.append(dict(stage=name, groups=groups))
        steps = ", ".join(f"{step:,}" for step, _ in picked)
        said.append(f"{name}: {answers:,} of {of:,} answers of {'step' if len(picked) == 1 else 'steps'} {steps} "
                    f"({len(stage.samples):,} {'was' if len(stage.samples) == 1 else 'were'} written).")
    if name in run.eval_samples:
      groups, answers, of = chosen([(None, run.eval_samples[name])], notes)
      if groups:
        sources.append(dict(stage=name, groups=groups))
        said.append(f"{name}, evaluation: {answers:,} of {of:,} answers.")
  if not sources:
    return '<p class="note">No sample answers were found.</p>', ""
  keys = "".join(f"<span>{''.join(f'<kbd>{esc(k)}</kbd> ' for k in (a, b) if k)}{text}</span>" for a, b, text in KEYS)
  lines = "".join(f"<li>{esc(line)}</li>" for line in said)
  return (f'<section id="answers"><h2>Answers</h2><div id="browser"></div><p class="note keys">{keys}</p>'
          f'<details class="note"><summary>The page holds a choice of the answers; all are in the run\'s sample files.'
          f"</summary><ul>{lines}</ul></details></section>", json_html("samples", sources))


def chosen(files: list[tuple[int | None, Path]], notes: list[str]) -> tuple[list[dict], int, int]:
  """(groups, answers in them, answers that there were) of sample files; the bounds are shared out evenly."""
  groups, kept, of = [], 0, 0
  for step, path in files:
    try:
      with pq.ParquetFile(path) as file:
        rows = file.read([name for name in file.schema_arrow.names if name != "tokens"]).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
      notes.append(f"{'/'.join(path.parts[-3:])} could not be read: {error}")
      continue
    of += len(rows)
    answers, characters = ANSWERS // len(files), CHARACTERS // len(files)
    taken = []
    for of_problem in worth_seeing(rows):
      if taken and len(of_problem) > answers:      # a first group is cut to fit, others are left out
        break
      group = group_of(step, of_problem[:answers])
      size = len(group["prompt"]) + sum(len(answer["text"]) for answer in group["answers"])
      if taken and size > characters:
        break
      taken.append(group)
      answers, characters = answers - len(group["answers"]), characters - size
    groups += taken
    kept += sum(len(group["answers"]) for group in taken)
  return groups, kept, of


def worth_seeing(rows: list[dict]) -> list[list[dict]]:
  groups: dict[Any, list[dict]] = {}
  for row in rows:
    groups.setdefault((row.get("problem"), row.get("prompt")), []).append(row)
  first, rest = list(groups.values())[:2], list(groups.values())[2:]
  differ = [len({row.get("reward") for row in group}) > 1 for group in rest]
  return first + [g for g, d in zip(rest, differ, strict=True) if d] + [g for g, d in zip(rest, differ, strict=True)
                                                                        if not d]


def group_of(step: int | None, rows: list[dict]) -> dict:
  """A problem and its answers as the script reads them; step None: of an evaluation."""
  first = rows[0]
  return dict(step=step, problem=text_of(first.get("problem")), prompt=text_of(first.get("prompt")),
              gold=text_of(first.get("gold")), scenario=text_of(first.get("scenario")),
              answers=[answer_of(row) for row in rows])


def answer_of(row: dict) -> dict:
  """Parts: [name, value or None, verdict]; a reward that does not apply says not_asked, and has no value."""
  parts = []
  for key, value in row.items():
    if key.startswith("reward/"):
      name = key.partition("/")[2]
      verdict = text_of(row.get("verdict" if name == "accuracy" else f"verdict/{name}"))
      parts.append([text_of(name), None if verdict == "not_asked" else rounded(value), verdict])
  verdict = text_of(row.get("verdict"))
  if row.get("truncated") and verdict != "truncated":
    verdict += ", cut off" if verdict else "cut off"
  return dict(text=text_of(row.get("text")), verdict=verdict, dropped=text_of(row.get("dropped")),
              parts=parts) | {name: rounded(row.get(name)) for name in FACTS}


def rounded(value) -> float | None:
  value = number(value)
  return None if value is None else float(f"{value:.6g}")


def text_of(value) -> str:
  text = "" if value is None else str(value)
  if len(text) > LONGEST:
    left_out = f"\n\n[… {len(text) - LONGEST:,} characters left out …]\n\n"
    return text[:LONGEST // 2] + left_out + text[-LONGEST // 2:]
  return text

"""Reading problems and runs from files: what is malformed is named, with its file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r1jax.problem import Problem
from r1jax.rewards.accuracy import check_gold


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
  """(1-based line number, object) for each line of a JSONL file, streamed.

  ValueError `path:line: reason` for a line that is not one JSON object in UTF-8, or holds NaN, an infinite number or a
  lone surrogate. Blank lines may only end the file: inside it, they would silently shift whatever counts lines.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file (expected JSONL, one object a line)")
  blank = row_count = 0
  with path.open("rb") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        blank = blank or number
        continue
      if blank:
        raise ValueError(f"{path}:{blank}: blank line inside the file")
      try:
        row = json.loads(line.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
        if b"\\ud" in line.lower():      # an escape may be half a surrogate pair, which no text holds
          json.dumps(row, ensure_ascii=False).encode()
      except UnicodeEncodeError as error:
        raise ValueError(f"{path}:{number}: \\u{ord(error.object[error.start]):04x} is half a surrogate pair, not a"
                         " character") from error
      except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 at byte {error.start} of the line") from error
      except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not JSON, or a line cut short ({error})") from error
      if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
      row_count += 1
      yield number, row
  if not row_count:
    raise ValueError(f"{path}:1: the file is empty")


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{text[:80]} is not a finite number")
  return value


def read_object(path: Path) -> dict:
  """A JSON file that holds one object. ValueError, with its path, for another."""
  try:
    value = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: not JSON ({error})") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
  return value


def read_run(workdir: Path) -> dict:
  """The config.json of a run's folder."""
  path = workdir / "config.json"
  config = read_object(path)
  stages = config.get("stages")
  if not isinstance(config.get("name"), str) or not isinstance(stages, list) or not all(
      isinstance(stage, str) for stage in stages):
    raise ValueError(f"{path}: not a run's config: it needs a text 'name' and a list of texts 'stages'")
  return config


def read_problems(path: str | Path, template: str) -> list[Problem]:
  """Problems of a JSONL file: `prompt` (taken as it is) or `question` / `problem` (put into `template` at
  {question}), and `answer`, a string or a number; of a worked answer, what follows its last `####`. id = line index.

  ValueError `path:line: reason` for a line that lacks one of them or whose answer cannot be matched.
  """
  problems = []
  for number, row in read_jsonl(path):
    keys = [k for k in ("prompt", "question", "problem") if isinstance(row.get(k), str) and row[k].strip()]
    answer = row.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
      answer = str(answer)
    if not keys or not isinstance(answer, str) or not answer.strip():
      raise ValueError(f"{path}:{number}: needs 'prompt' or 'question', and 'answer', all non-empty")
    prompt = row[keys[0]] if keys[0] == "prompt" else template.replace("{question}", row[keys[0]].strip())
    problem = Problem(number - 1, prompt, answer.rpartition("####")[2].strip())
    try:
      check_gold(problem)
    except ValueError as error:
      raise ValueError(f"{path}:{number}: {error}") from error
    problems.append(problem)
  return problems


def read_prompts(path: str | Path, template: str) -> list[str]:
  """Prompts of a JSONL file: `prompt`, or `question` / `problem`, as read_problems takes them, without an answer."""
  out = []
  for number, row in read_jsonl(path):
    keys = [k for k in ("prompt", "question", "problem") if _text(row.get(k))]
    if not keys:
      raise ValueError(f"{path}:{number}: needs 'prompt' or 'question', non-empty")
    out.append(row[keys[0]] if keys[0] == "prompt" else template.replace("{question}", row[keys[0]].strip()))
  return out


def read_demonstrations(path: str | Path) -> list[tuple[str, str | list[int]]]:
  """(prompt, answer) of a JSONL file with `prompt` and `answer`; an `answer_tokens` list, of ids, goes before `answer`.

  Token ids, where a policy sampled the answer: text that is tokenised again may give others. ValueError
  `path:line: reason` for a line that lacks one.
  """
  out = []
  for number, row in read_jsonl(path):
    answer = row.get("answer_tokens") or row.get("answer")
    ids = isinstance(answer, list) and all(isinstance(i, int) and i >= 0 for i in answer)
    if not _text(row.get("prompt")) or not (ids or _text(answer)):
      raise ValueError(f"{path}:{number}: needs 'prompt', and 'answer' or 'answer_tokens', all non-empty")
    out.append((row["prompt"], answer))
  return out


def read_pairs(path: str | Path) -> list[tuple[str, str, str]]:
  """(prompt, chosen, rejected) of a JSONL file with these keys, or ValueError `path:line: reason`."""
  out = []
  for number, row in read_jsonl(path):
    values = tuple(row.get(key) for key in ("prompt", "chosen", "rejected"))
    if not all(map(_text, values)):
      raise ValueError(f"{path}:{number}: needs 'prompt', 'chosen' and 'rejected', all non-empty texts")
    out.append(values)
  return out


def read_labels(path: str | Path) -> list[tuple[str, str, bool]]:
  """(prompt, answer, safe) of a JSONL file with `prompt`, `answer` and a true or false `safe`."""
  out = []
  for number, row in read_jsonl(path):
    if not (_text(row.get("prompt")) and _text(row.get("answer")) and isinstance(row.get("safe"), bool)):
      raise ValueError(f"{path}:{number}: needs 'prompt' and 'answer', non-empty texts, and 'safe', true or false")
    out.append((row["prompt"], row["answer"], row["safe"]))
  return out


def _text(value) -> bool:
  return isinstance(value, str) and bool(value.strip())


def positions(step: int, count: int, size: int | None, seed: int) -> list[int]:
  """Indices of the `count` items that step `step` of a run reads. The position in the data follows from the step.

  Without end (size None): counts on. Else: each epoch is a permutation of its own, and runs on into the next.
  """
  start = step * count
  if size is None:
    return list(range(start, start + count))
  orders = {epoch: np.random.default_rng([seed, epoch]).permutation(size)
            for epoch in range(start // size, (start + count - 1) // size + 1)}
  return [int(orders[i // size][i % size]) for i in range(start, start + count)]

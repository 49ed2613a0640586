"""What a stage is made of, so that a run knows what is finished, what was cut, what has to be done again, and why.

A stage's inputs are its config, its model, the task, the seed, the contents of the files that it reads, and the digests
of the stages that it starts from or learns from: so a change goes down to all that follow from it. Its folder holds
them in stage.json. What changes neither data nor weights is left out: checkpoints, logging, meshes, evaluation, prices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

UNSEEN = ("checkpoint", "log_every")      # of a stage's config


def inputs(cfg, section, upstream: dict[str, str], files: tuple[str, ...]) -> dict:
  """Of `section` of the RunConfig `cfg`. upstream: digests of the stages that it reads, by name."""
  own = dict(stage=section.stage, config={k: v for k, v in as_dict(section.cfg).items() if k not in UNSEEN},
             model=as_dict(section.model or cfg.model), seed=section.seed, data=section.data, upstream=upstream)
  return of_start(cfg, files) | plain(own | (dict(start=section.start) if section.start else {}))


def of_start(cfg, files: tuple[str, ...]) -> dict:
  """Of the policy that a run begins with, on its task; and those files of the user's."""
  given = {name: path for name in files if (path := getattr(cfg.data, name))}
  return plain(dict(
    model=as_dict(cfg.model), task=as_dict(cfg.task), seed=cfg.seed,
    start=start_digest(cfg.start) if cfg.start else "random weights",
    files={name: file_digest(path) for name, path in given.items()}))


def as_dict(value):
  return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def plain(value):
  """As JSON gives it back, so that what was read compares with what is made."""
  return json.loads(json.dumps(value))


def digest(made_of: dict | list) -> str:
  return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
  """Of a file's bytes; of a folder, those of its tokenizer. FileNotFoundError for one that is not there."""
  path = Path(path) / "tokenizer.json" if Path(path).is_dir() else path
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def start_digest(folder: str | Path) -> str:
  """Of a Hugging Face directory: its config, and names and sizes of its weights, which would take minutes to read."""
  folder = Path(folder)
  weights = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors"))
  return f"{folder.name} {file_digest(folder / 'config.json')} {digest(dict(weights=weights))}"


def read(folder: Path) -> dict | None:
  """stage.json; None where there is none, or none that can be read."""
  try:
    record = json.loads((folder / "stage.json").read_text())
    return record if isinstance(record, dict) and "hash" in record else None
  except (OSError, ValueError):
    return None


def write(folder: Path, record: dict) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "stage.tmp").write_text(json.dumps(record, indent=1))
  os.replace(folder / "stage.tmp", folder / "stage.json")


def changes(old: dict, new: dict) -> list[str]:
  """What differs between two stages' inputs, as sentences; the first one is the nearest cause."""
  said = []
  for key, value in flat(new).items():
    before = flat(old).get(key)
    if before == value:
      continue
    if key.startswith("upstream."):
      said.append(f"{key.removeprefix('upstream.')} was made anew")
    elif key.startswith("files."):
      said.append(f"data.{key.removeprefix('files.')} has other contents")
    else:
      said.append(f"{key.removeprefix('config.')}: {before!r} -> {value!r}")
  said += [f"{key.removeprefix('config.')}: {value!r} -> gone" for key, value in flat(old).items()
           if key not in flat(new)]
  return sorted(said, key=lambda line: line.endswith("was made anew"))


def flat(tree: dict, path: str = "") -> dict:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  out = {}
  for key, value in tree.items():
    out |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
  return out


def set_aside(folder: Path) -> Path:
  """Moves a stage's folder out of the way of a new run of it; the one that was set aside before is given up."""
  aside = folder.with_name(folder.name + ".before")
  shutil.rmtree(aside, ignore_errors=True)
  folder.rename(aside)
  return aside

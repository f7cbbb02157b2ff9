"""The notebook runs from its first cell to its last, on a short setting."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[2] / "colab/quickstart.ipynb"


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
  settings = notebook.cells[1]
  short = settings.source.replace("SHORT = False", "SHORT = True").replace('"runs/demo"', f"{str(tmp_path / 'run')!r}")
  assert "SHORT = True" in short and str(tmp_path) in short
  settings.source = short
  NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}).execute()
  pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
  assert len(pictures) == 2
  assert notebook.cells[-2].outputs[-1].data["text/plain"] == "('text',)"

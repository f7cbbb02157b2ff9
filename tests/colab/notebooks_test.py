"""Every notebook runs from its first cell to its last, on a short setting."""

import json
import pathlib
import shutil
import subprocess
import zipfile

import nbformat
import pytest
import safetensors.numpy
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
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


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
  return nbformat.read(request.param, as_version=4)


def run(name, **settings):
  """Runs a notebook with settings other than its own; returns its code cells' outputs."""
  notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
  lines = notebook.cells[SETTINGS].source.splitlines()
  assert settings.keys() <= {line.split(" = ")[0] for line in lines if " = " in line}
  notebook.cells[SETTINGS].source = "\n".join([*lines, *(f"{key} = {value!r}" for key, value in settings.items())])
  NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
  return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def pictures(outputs):
  return [out for out in outputs if "image/png" in out.get("data", {})]


def shown(outputs):
  return [out.data["text/plain"] for out in outputs if "text/plain" in out.get("data", {})]


def test_no_outputs_are_kept(notebook):
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_defines_nothing_of_its_own(notebook):
  lines = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").splitlines()
  assert not [line for line in lines if line.startswith(("def ", "class "))]


def test_all_install_alike():
  cells = {nbformat.read(path, as_version=4).cells[INSTALL].source for path in NOTEBOOKS}
  assert len(NOTEBOOKS) == 4 and len(cells) == 1


def test_the_quickstart_runs_and_shows_what_both_queries_found(tmp_path):
  outputs = run("quickstart", SHORT=True, WORKDIR=str(tmp_path / "run"))
  assert len(pictures(outputs)) == 2
  assert shown(outputs)[-1] == "('text',)"


def test_a_zip_of_pictures_is_learned_from_and_searched(tmp_path):
  kept = tmp_path / "pictures.zip"
  with zipfile.ZipFile(kept, "w") as archive:
    for number in range(40):
      Image.new("RGB", (32, 32), (6 * number, 255 - 5 * number, 40)).save(tmp_path / "one.png")
      archive.write(tmp_path / "one.png", f"holiday/{number:02}.png")
  outputs = run("your_images", SHORT=True, WORKDIR=str(tmp_path / "run"), PICTURES=str(kept), ENCODER="toy_clip")
  assert "'40 of 40 pictures, 128 wide'" in shown(outputs)
  assert any("image queries: " in out.get("text", "") for out in outputs)
  assert len(pictures(outputs)) == 2


@pytest.mark.parametrize("encoder", ["toy_clip", str(ROOT / "tests/data/reference_encoders/dinov3")])
def test_towers_encode_without_the_rest(tmp_path, encoder):
  Image.new("RGB", (40, 60), "red").save(tmp_path / "one.png")
  outputs = run("towers", ENCODER=encoder, PICTURES=str(tmp_path) if "dino" in encoder else "", BATCH=4)
  assert pictures(outputs)
  assert "images a second, " in shown(outputs)[-1]


def narrowed_clip(folder, width):
  """Writes the reference CLIP with its projections cut to a width; returns its folder."""
  shutil.copytree(ROOT / "tests/data/reference_encoders/clip", folder)
  weights = safetensors.numpy.load_file(folder / "model.safetensors")
  cut = {name: array[:width] if "_projection." in name else array for name, array in weights.items()}
  safetensors.numpy.save_file(cut, folder / "model.safetensors")
  config = json.loads((folder / "config.json").read_text())
  for part in (config, config["text_config"], config["vision_config"]):
    part["projection_dim"] = width
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def test_a_released_checkpoint_searches_pictures_of_its_encoder(tmp_path):
  encoder = narrowed_clip(tmp_path / "encoder", 32)
  released = shutil.copytree(ROOT / "tests/data/reference_vectors/anchored", tmp_path / "released")
  config = (released / "config.yml").read_text()
  (released / "config.yml").write_text(config.replace("openai/clip-vit-base-patch16", str(encoder)))
  outputs = run("released_quari", WORKDIR=str(tmp_path / "run"), CHECKPOINT=str(released), ENCODER=str(encoder))
  assert any(text.endswith("32 wide'") for text in shown(outputs))
  assert len(pictures(outputs)) == 2


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


def test_a_zip_beside_it_is_the_default(notebook, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(subprocess, "check_output", lambda command, text: FROZEN)
  with zipfile.ZipFile("qat-jax-main.zip", "w") as archive:
    archive.writestr("qat-jax-main/configs/demo.py", "")
    archive.writestr("qat-jax-main/pyproject.toml", "")
  assert install(notebook, "")[0] == "%cd qat-jax"
  assert {path.name for path in pathlib.Path("qat-jax").iterdir()} == {"configs", "pyproject.toml", "runtime.txt"}


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

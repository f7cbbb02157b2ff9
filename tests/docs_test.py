"""What the documents, the recipes' docstrings and the notebook show is what the programs take, and it runs."""

import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

import qat_jax
from eval.pipeline import evaluate
from qat_jax import cli
from qat_jax.adaptation import unit
from qat_jax.adapter import Adapter
from qat_jax.features.store import write_features
from qat_jax.models.head import Head
from train.pipeline import train

ROOT = pathlib.Path(__file__).parents[1]


def beside(name):
  """Imports a module of this folder, which is no package."""
  spec = importlib.util.spec_from_file_location(name, ROOT / f"tests/{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


SHOWN = beside("commands")
COMMANDS = SHOWN.commands()
SNIPPETS = SHOWN.snippets()
WIDTH, COUNT = 8, 24
# Tiny and quick: that a command runs, not what it shows.
SHORT = [
  "--config.form=static",
  "--config.trained.image=never",
  "--config.gallery_map=never",
  "--config.train.batch_size=16",
  "--config.train.steps=4",
  "--config.static_train.steps=4",
  "--config.validation.every=4",
  "--config.memory.text=0",
  "--config.captions.text=0",
  "--config.captions.image=0",
  "--config.levelled.text=0",
  "--config.levelled.image=0",
]


def module_of(command):
  """Returns the program of a command and its arguments; None for one of the Makefile's targets."""
  if command.words[0] == "python":
    return list(command.words[2:])
  return ["qat_jax.cli", *command.words[1:]] if command.words[0] == "qat-jax" else None


def parsed(commands):
  """Returns what the programs' own parsers say of each command: None where they take it."""
  done = subprocess.run(
    [sys.executable, ROOT / "tests/parsing.py"],
    input=json.dumps(commands),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_commands_are_found_wherever_they_are_shown():
  where = {command.where for command in COMMANDS}
  assert {"README.md", "CONTRIBUTING.md", "docs/data.md", "colab/quickstart.ipynb", "configs/features.py"} <= where
  assert "train/main.py" in where


def test_every_command_is_one_that_its_program_takes():
  programs = [(command, words) for command in COMMANDS if (words := module_of(command)) is not None]
  wrong = ["train.main", "--config", "configs/demo.py", "--config.train.stepz=1"]  # so that this test can fail
  *said, refused = parsed([*(words for _, words in programs if len(words) > 1), wrong])
  given = [command for command, words in programs if len(words) > 1]
  assert {str(c): answer for c, answer in zip(given, said, strict=True) if answer} == {}
  assert "stepz" in refused
  bare = {words[0] for _, words in programs}
  assert not [name for name in bare if importlib.util.find_spec(name) is None]


def test_every_target_of_make_exists():
  targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  shown = {command.words[1] for command in COMMANDS if command.words[0] == "make"}
  assert shown and shown <= targets


def test_every_extra_exists_that_the_pages_install():
  declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
  shown = {
    name
    for page in SHOWN.PAGES
    for group in re.findall(r"'\.\[([\w,]+)\]'", page.read_text())
    for name in group.split(",")
  }
  assert shown <= set(declared)


def test_the_reference_has_every_public_name():
  shown = set(re.findall(r"^::: qat_jax\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
  assert shown == set(qat_jax.__all__) - {"__version__"}


def test_the_reference_of_commands_and_keys_is_made_from_the_present_code():
  done = subprocess.run([sys.executable, ".ci/reference.py", "--check"], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr


def test_the_site_has_every_page():
  nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
  assert {page.name for page in SHOWN.PAGES if page.parent == ROOT / "docs"} == set(re.findall(r"- (\w+\.md)", nav))


def config_of(command, *more):
  """Returns the config of a command, and its working folder, as train.main and eval.main parse them."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
  flags.DEFINE_string("workdir", "runs/here", "", flag_values=values)
  with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
    warnings.simplefilter("ignore", DeprecationWarning)  # ml_collections loads a recipe with load_module(),
    patch.setattr(sys, "argv", [*command.words[2:], *more])  # and looks for overrides there
    values(sys.argv)
  return values.config, pathlib.Path(values.workdir)


def shown_in(where, beginning):
  found = [command for command in COMMANDS if command.where == where and " ".join(command.words).startswith(beginning)]
  assert found, f"{where} shows no {beginning}"
  return found[0]


def rows(seed, prefix):
  """Returns features of COUNT instances, near those of the same seed, and the columns beside them."""
  centre_ND = np.random.default_rng(seed).normal(size=(COUNT, WIDTH))
  noise_ND = np.random.default_rng(len(prefix)).normal(size=(COUNT, WIDTH))
  columns = {"id": [f"{prefix}{i}" for i in range(COUNT)], "instance": [f"{seed}-{i}" for i in range(COUNT)]}
  return (centre_ND + 0.3 * noise_ND).astype(np.float32), columns


def arrays():
  """Returns the names that the snippets of docs/data.md and docs/benchmarks.md take as given."""
  images_ND, about = rows(0, "image")
  given = {"images_ND": images_ND, "texts_ND": rows(0, "a caption of image")[0], "about": {"train": about}}
  given |= {"gallery": {}, "queries": {}}
  for seed, split in enumerate(("val", "test"), start=1):
    given["gallery"][split], given["about"][split, "gallery"] = rows(seed, f"{split} image")
    given["queries"][split], given["about"][split, "queries"] = rows(seed, f"{split} caption")
  given |= {"texts_QD": given["queries"]["test"], "query_ids": given["about"]["test", "queries"]["id"]}
  return given | {"gallery_ids": about["id"]}


def run_snippets(page, given):
  """Runs the snippets of a page in order, in one namespace; what is here stands in for the hub."""
  for text in [text for name, text in SNIPPETS if name.rsplit(":", 1)[0] == page]:
    local = re.sub(r"hf://[\w./-]+", str(ROOT / "tests/data/reference_vectors/anchored"), text)
    local = re.sub(r"load_encoder\([^)]*\)", 'load_encoder("toy_clip")', local)
    exec(compile(local.replace(', revision="main"', ""), page, "exec"), given)
  return given


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A folder where docs/data.md has been followed, and the tutorial's two commands have trained and measured on it."""
  folder = tmp_path_factory.mktemp("made")
  (folder / "configs").symlink_to(ROOT / "configs")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    run_snippets("docs/data.md", arrays())
    train(*config_of(shown_in("docs/tutorial.md", "python -m train.main --config configs/features.py"), *SHORT))
  return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
  """A copy of it, as the working folder."""
  shutil.copytree(made, tmp_path / "place", symlinks=True)
  monkeypatch.chdir(tmp_path / "place")
  return tmp_path / "place"


def test_the_tutorials_commands_measure_and_rank(place):
  config, workdir = config_of(shown_in("docs/tutorial.md", "python -m eval.main --config configs/features.py"), *SHORT)
  config.eval.methods = ("plain", "adapted")
  assert evaluate(config, workdir)
  command = shown_in("docs/tutorial.md", "qat-jax rank")
  program = "from qat_jax.cli import main; main()"
  done = subprocess.run([sys.executable, "-c", program, *command.words[1:]], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert set(pq.read_table("ranking.parquet").column("query_id").to_pylist()) == {
    f"test caption{i}" for i in range(COUNT)
  }


ELSEWHERE = {"docs/data.md", "docs/tutorial.md", "README.md"}  # tried by tests of their own, README's by make demo
PAGES_WITH_SNIPPETS = sorted({name.rsplit(":", 1)[0] for name, _ in SNIPPETS} - ELSEWHERE)


@pytest.mark.parametrize("page", PAGES_WITH_SNIPPETS)
def test_a_pages_snippets_run(page, place):
  """With what the pages take as given: names of arrays, and folders of features in the working folder."""
  if page in ("docs/words.md", "docs/marks.md"):  # as wide as the encoder that stands in, and items for their mean
    for name, count in (("gallery", 100), ("queries", 4)):
      rows_ND = unit(np.random.default_rng(count).normal(size=(count, 128)), np.float32)
      write_features(name, {"img": rows_ND, "text": rows_ND}, {"id": [f"{name}{i}" for i in range(count)]})
    plain = Head("plain", {}, {})
    Adapter(128, {"text": plain, "image": plain}).save("runs/mine/adapter")
  else:
    shutil.copytree("ROOT/test/gallery", "gallery")
    shutil.copytree("ROOT/test/text_queries", "queries")
  given = arrays() | {"qat_jax": qat_jax, "np": np, "picture": Image.new("RGB", (40, 30), "red")}
  given |= dict.fromkeys(("query_QD", "gallery_ND"), np.eye(32, dtype=np.float32))  # 32: the released reference's width
  if page == "docs/search.md":
    given["query_QD"] = rows(2, "test caption")[0]
  run_snippets(page, given)
  assert "ranking" in given or page in ("docs/benchmarks.md", "docs/encoders.md")


def test_the_tutorial_runs_as_it_is_printed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  draw, *searching = [text for name, text in SNIPPETS if name.startswith("docs/tutorial.md:")]
  exec(compile(draw.replace("[:200]", "[:60]"), "draw.py", "exec"), {})
  for command in ("qat-jax extract pictures", "qat-jax split features"):
    cli.main(list(shown_in("docs/tutorial.md", command).words[1:]))
  adapter = train(*config_of(shown_in("docs/tutorial.md", "python -m train.main"), *SHORT))
  assert set(adapter.heads) == {"text", "image"}
  given = {}
  for text in searching:
    there = given["pictures"].ids[0] if given else ""  # of so few toys, another one is in the gallery
    exec(compile(text.replace("family0001_1_1.png", there), "docs/tutorial.md", "exec"), given)
  assert given["ranking"].ids.shape == (1, 3) and (given["ranking"].ids >= 0).all()


def test_the_documented_command_for_pictures_of_ones_own_trains_an_adapter(tmp_path, monkeypatch):
  pictures = tmp_path / "PICTURES"
  pictures.mkdir()
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  lines = ["file,caption,instance"]
  for i in range(60):
    Image.new("RGB", (32, 32), (4 * i, 255 - 4 * i, 90)).save(pictures / f"{i}.png")
    lines.append(f"{i}.png,a toy of colour {i // 2},{i // 2}")
  (pictures / "captions.csv").write_text("\n".join(lines))
  monkeypatch.chdir(tmp_path)
  command = shown_in("docs/data.md", "python -m train.main --config configs/clip_b16.py")
  assert "--config.data.source=folder" in command.words
  adapter = train(*config_of(command, "--config.encoder.name=toy_clip", *SHORT))
  assert set(adapter.heads) == {"text", "image"}


def test_the_documented_route_of_a_clip_retrieval_folder_trains_an_adapter(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  images_ND, _ = rows(0, "image")
  for kind, features_ND in (("img", images_ND), ("text", images_ND[:, ::-1])):
    (tmp_path / f"FOLDER/{kind}_emb").mkdir(parents=True)
    np.save(tmp_path / f"FOLDER/{kind}_emb/{kind}_emb_0.npy", features_ND.astype(np.float16, order="C"))
  (tmp_path / "FOLDER/metadata").mkdir()
  paths = [f"{i}.jpg" for i in range(COUNT)]
  pq.write_table(pa.table({"image_path": paths, "caption": paths}), "FOLDER/metadata/metadata_0.parquet")
  cli.main(list(shown_in("docs/data.md", "qat-jax split").words[1:]))
  command = shown_in("docs/data.md", "python -m train.main --config configs/features.py --config.data.root=ROOT")
  assert train(*config_of(command, *SHORT)).heads.keys() == {"text"}

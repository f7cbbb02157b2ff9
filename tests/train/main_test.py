"""What a user who gets something wrong sees: one line that names it, status 1, no traceback, before any long work."""

import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import features as recipe
from qat_jax.adapter import Adapter
from qat_jax.features.store import write_features
from qat_jax.runs import explained
from tests.vectors import change_a_feature
from train import pipeline

WIDTH, COUNT = 4, 16
PLACES = {
  "train": ("img", "text"),
  "val/gallery": ("img",),
  "val/text_queries": ("text",),
  "test/gallery": ("img",),
  "test/text_queries": ("text",),
}


def put(folder, kinds, width=WIDTH):
  shutil.rmtree(folder, ignore_errors=True)
  rng = np.random.default_rng(len(str(folder)))
  split = next(part for part in ("train", "val", "test") if part in folder.parts[-2:])
  columns = {"id": [f"{split}-{folder.name}-{i}" if folder.name != split else f"{split}-{i}" for i in range(COUNT)]}
  columns["instance"] = [f"{split}-toy{i}" for i in range(COUNT)]
  write_features(folder, {kind: rng.normal(size=(COUNT, width)).astype(np.float32) for kind in kinds}, columns)


def rewrite(folder, columns):
  pq.write_table(pa.table(columns), folder / "metadata/metadata_0000.parquet")


def break_a_row(folder):
  path = folder / "img_emb/img_emb_0000.npy"
  array = np.load(path)
  array[3] = np.nan
  np.save(path, array)


def make_set(root):
  for place, kinds in PLACES.items():
    put(root / place, kinds)
  return root


def make_config(root):
  config = recipe.get_config()
  config.data.root = str(root)
  config.form = "query_only"
  config.forms.query_only.hidden = 8
  config.train.update({"batch_size": 8, "steps": 2})
  config.static_train.steps = 2
  config.validation.every = 2
  config.levelled.text = 0
  return config


@pytest.fixture
def root(tmp_path):
  return make_set(tmp_path / "set")


@pytest.fixture
def config(root):
  return make_config(root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Returns a set and a working folder that was trained on it."""
  folder = tmp_path_factory.mktemp("trained")
  pipeline.train(make_config(make_set(folder / "set")), folder / "run")
  return folder / "set", folder / "run"


def run(config, workdir, capsys):
  """Runs what `train.main` runs after its flags are parsed; returns the line on stderr of a run that failed."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as ended, explained():
    pipeline.train(config, workdir)
  assert ended.value.code == 1
  lines = capsys.readouterr().err.strip().splitlines()
  return lines[-1]


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (lambda root: shutil.rmtree(root / "train"), "has no train/, only ['test', 'val']"),
    (
      lambda root: rewrite(root / "train", {"id": [f"{i}" for i in range(COUNT)]}),
      "train (img) has no metadata column `instance`, only ['id']",
    ),
    (lambda root: put(root / "test/gallery", ["img"], 3), "test/gallery (img) is 3 wide"),
    (lambda root: break_a_row(root / "train"), "1 items have NaN or infinite features: 'train-3'"),
    (
      lambda root: rewrite(root / "val/gallery", {"id": ["a"] * COUNT, "instance": [f"toy{i}" for i in range(COUNT)]}),
      "ids occur more than once: 'a'",
    ),
  ],
  ids=["no train", "no instance", "widths", "NaN", "ids"],
)
def test_a_bad_set_is_named_before_any_work(root, config, tmp_path, capsys, monkeypatch, damage, words):
  for stage in ("mining", "candidates"):
    monkeypatch.setattr(pipeline, stage, None)
  damage(root)
  error = run(config, tmp_path / "run", capsys)
  assert error.startswith("error: ")
  assert words in error
  assert not (tmp_path / "run").exists()


def test_a_set_with_nothing_to_train_on_is_named(root, config, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(pipeline, "candidates", None)
  put(root / "train", ["img"])
  error = run(config, tmp_path / "run", capsys)
  assert "has text queries alone, and" in error
  assert "train no text_emb/" in error


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("train.batch_size", 30, "train.batch_size is 30, not a multiple of 4 devices; use 28 or 32"),
    ("data.source", "coco", "data.source is 'coco'; use one of toybox, tfds, folder"),
  ],
)
def test_a_bad_value_is_named_before_any_work(config, tmp_path, capsys, monkeypatch, key, value, words):
  monkeypatch.setattr(pipeline, "features", None)
  config.update_from_flattened_dict({key: value})
  assert words in run(config, tmp_path / "run", capsys)


def killed(*_):
  raise KeyboardInterrupt


def test_a_working_folder_of_another_model_is_refused(trained, config, tmp_path, capsys, monkeypatch):
  config.data.root = str(trained[0])
  workdir = shutil.copytree(trained[1], tmp_path / "run")
  folder = workdir / "candidates/text/query_only"
  assert not (folder / "checkpoints").exists()
  config.forms.query_only.hidden = 16
  error = run(config, workdir, capsys)
  assert (
    "candidates/text/query_only was made with other inputs or settings: settings.query_only.hidden was 8, is 16. "
    in error
  )
  assert error.endswith("Use another --workdir, or what it was made with")

  shutil.rmtree(folder)
  monkeypatch.setattr(Adapter, "save", killed)
  with pytest.raises(KeyboardInterrupt):
    pipeline.train(config, workdir)
  assert (folder / "checkpoints").exists()
  config.forms.query_only.hidden = 8
  assert "settings.query_only.hidden was 16, is 8" in run(config, workdir, capsys)


def edit_a_caption(config):
  folder = pathlib.Path(config.data.root) / "train"
  columns = pq.read_table(folder / "metadata/metadata_0000.parquet").to_pydict()
  rewrite(folder, columns | {"caption": ["a toy"] * COUNT})
  (folder / "meta.json").unlink()


def name_another_root(config):
  config.data.root = str(shutil.copytree(config.data.root, f"{config.data.root}-2"))
  put(pathlib.Path(config.data.root) / "val/gallery", ["img"])


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda config: change_a_feature(pathlib.Path(config.data.root) / "train"), "train.images.features was "),
    (edit_a_caption, "train.images.metadata was "),
    (name_another_root, "val.gallery.features was "),
    (lambda config: config.semi_positives.update({"keep": 2}), "semi_positives was None, is not there"),
    (lambda config: config.validation.update({"queries": 5}), "validation.queries was 1000, is 5"),
    (lambda config: config.update({"seed": 1}), "validation.seed was 0, is 1"),
  ],
  ids=["features", "captions", "root", "semi-positives", "queries", "seed"],
)
def test_what_was_made_from_other_data_is_named_and_never_served(trained, config, tmp_path, capsys, change, words):
  config.data.root = str(shutil.copytree(trained[0], tmp_path / "other"))
  workdir = shutil.copytree(trained[1], tmp_path / "run")
  change(config)
  error = run(config, workdir, capsys)
  assert "candidates/text/plain was made with other inputs or settings: " in error
  assert words in error
  assert error.endswith("Use another --workdir, or what it was made with")


def test_the_same_data_somewhere_else_is_the_same_data(trained, config, tmp_path, monkeypatch):
  config.data.root = str(shutil.copytree(trained[0], tmp_path / "moved"))
  workdir = shutil.copytree(trained[1], tmp_path / "run")
  monkeypatch.setattr("train.loop.train_head", None)
  pipeline.train(config, workdir)


def test_the_program_says_where_the_adapter_is_and_what_comes_next(trained):
  settings = {"data.root": trained[0], "form": "query_only", "forms.query_only.hidden": 8, "train.batch_size": 8}
  settings |= {"train.steps": 2, "static_train.steps": 2, "validation.every": 2}
  given = [f"--config.{name}={value}" for name, value in settings.items()]
  arguments = ["--config", "configs/features.py", *given, "--workdir", str(trained[1])]
  done = subprocess.run([sys.executable, "-m", "train.main", *arguments], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  *_, adapter, following = done.stdout.splitlines()
  assert adapter == f"adapter: {trained[1] / 'adapter'}" and (trained[1] / "adapter/adapter.json").is_file()
  assert shlex.split(following) == ["next:", "python", "-m", "eval.main", *arguments]


@pytest.mark.parametrize("left", ["adapter.json", "checkpoints"])
def test_a_working_folder_of_an_earlier_version_is_refused(trained, config, tmp_path, capsys, left):
  config.data.root = str(trained[0])
  folder = tmp_path / "run/candidates/text/plain"
  folder.mkdir(parents=True)
  (folder / left).mkdir()
  error = run(config, tmp_path / "run", capsys)
  assert "candidates/text/plain does not say what it was made from: it is of an earlier version" in error


TYPO = "features", ["--config.train.learning_rat=1"], "no such key: 'learning_rat' Did you mean \"learning_rate\""


@pytest.mark.parametrize(
  ("program", "config", "more", "words"),
  [
    ("train.main", *TYPO),
    ("eval.main", *TYPO),
    ("train.main", "nope", [], "error: --config is 'configs/nope.py', and there is no such file"),
  ],
)
def test_a_wrong_command_line_is_one_line(tmp_path, program, config, more, words):
  command = [sys.executable, "-m", program, f"--config=configs/{config}.py", f"--workdir={tmp_path}", *more]
  done = subprocess.run(command, capture_output=True, text=True)
  (line,) = done.stderr.strip().splitlines()
  assert done.returncode == 1 and line.startswith("error: ") and words in line

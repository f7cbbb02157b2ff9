import argparse
import os
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import qat_jax
from qat_jax import cli
from qat_jax.models import forms
from tests import vectors
from tests.qat_jax.datasets.corpora import parquet_files, tar_shards

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path):
  """An adapter with two heads, and 12 items that are their own queries."""
  variables = forms.initialise(forms.FORMS["static"](8, maps_gallery=True), jax.random.key(0))
  heads = {"text": qat_jax.Head("plain", {}, {}), "image": qat_jax.Head("static", {"maps_gallery": True}, variables)}
  qat_jax.Adapter(8, heads).save(tmp_path / "run/adapter")
  rows_ND = vectors.features(12, 8)
  qat_jax.write_features(tmp_path / "gallery", {"img": rows_ND}, {"id": [f"item{i}" for i in range(12)]})
  qat_jax.write_features(tmp_path / "queries", {"text": rows_ND}, {"id": [f"query{i}" for i in range(12)]})
  return tmp_path


def test_files_are_ranked_and_the_command_says_where(files, capsys):
  places = [f"--{name}={files / name}" for name in ("gallery", "queries")]
  cli.main(["rank", f"--adapter={files / 'run'}", *places, "--k=2", f"--out={files / 'out.parquet'}"])
  assert capsys.readouterr().out == f"rankings are in {files / 'out.parquet'}\n"
  assert pq.read_table(files / "out.parquet").column("item_id").to_pylist()[::2] == [f"item{i}" for i in range(12)]


def test_what_is_wrong_is_one_line_and_status_1(files):
  command = [sys.executable, "-m", "qat_jax", "rank", "--gallery=g", "--queries=q", "--out=o.parquet"]
  failed = subprocess.run([*command, f"--adapter={files / 'nowhere'}"], capture_output=True, text=True, check=False)
  assert failed.returncode == 1
  assert failed.stderr.count("\n") == 1 and failed.stderr.startswith("error: no adapter in")
  for arguments, message in (
    (["export", files / "gallery", files / "x"], "error: no adapter in"),
    (["convert", files / "run", files / "x"], "error: .*no released checkpoint"),
    (["extract", files / "run", files / "x", "--encoder=toy_clip"], "error: no images in"),
  ):
    with pytest.raises(SystemExit, match=message):
      cli.main([str(argument) for argument in arguments])
  for arguments in ([], ["export", str(files / "run"), ""]):
    with pytest.raises(SystemExit, match="2"):
      cli.main(arguments)


def test_a_run_is_exported(files, capsys):
  cli.main(["export", str(files / "run"), str(files / "mine")])
  assert capsys.readouterr().out.endswith("8 wide\n")
  assert qat_jax.load(files / "mine").fingerprint == qat_jax.load(files / "run").fingerprint


@pytest.mark.compile
def test_pictures_become_features(tmp_path, capsys):
  (tmp_path / "pictures").mkdir()
  for name, colour in (("a", "red"), ("b", "blue")):
    Image.new("RGB", (40, 40), colour).save(tmp_path / f"pictures/{name}.png")
    (tmp_path / f"pictures/{name}.txt").write_text(f"a {colour} square")
  cli.main(["extract", str(tmp_path / "pictures"), str(tmp_path / "features"), "--encoder=toy_clip"])
  assert capsys.readouterr().out == f"2 pictures and their captions are in {tmp_path / 'features'}\n"
  for kind in ("img", "text"):
    store = qat_jax.FeatureStore.open(tmp_path / "features", kind)
    assert store.ids.tolist() == ["a.png", "b.png"]
  cli.main(["extract", str(tmp_path / "pictures"), str(tmp_path / "crops"), "--encoder=toy_clip", "--tiles=2,1"])
  assert capsys.readouterr().out.startswith(f"10 crops of 2 pictures are in {tmp_path / 'crops'}; rank them by group")
  crops = qat_jax.FeatureStore.open(tmp_path / "crops")
  assert crops.ids[1] == "a.png#2.0.0" and set(crops.column("picture")) == {"a.png", "b.png"}
  np.testing.assert_array_equal(crops[:1], qat_jax.FeatureStore.open(tmp_path / "features")[:1])  # the whole picture
  cli.main(["extract", str(tmp_path / "pictures"), str(tmp_path / "moments"), "--encoder=toy_clip", "--frames=2"])
  told = f"0 frames of 0 videos and 2 pictures are in {tmp_path / 'moments'}; rank them by group: --group picture\n"
  assert capsys.readouterr().out == told
  for flags in (["--frames=2", "--tiles=2"], ["--frames=2", "--reuse=features"], ["--tiles=2", "--reuse=features"]):
    with pytest.raises(SystemExit, match="error: (crops are of pictures, and frames of videos|--reuse goes by)"):
      cli.main(["extract", str(tmp_path / "pictures"), str(tmp_path / "no"), "--encoder=toy_clip", *flags])
  (tmp_path / "pictures/b.txt").unlink()
  cli.main(["extract", str(tmp_path / "pictures"), str(tmp_path / "alone"), "--encoder=toy_clip"])
  assert capsys.readouterr().out == f"2 pictures are in {tmp_path / 'alone'}, without captions: 1 have none\n"
  (tmp_path / "pictures/b.txt").write_text("a green square")
  with pytest.raises(SystemExit, match="features was made with other inputs or settings: source.content was"):
    cli.main(["extract", str(tmp_path / "pictures"), str(tmp_path / "features"), "--encoder=toy_clip"])


@pytest.mark.parametrize("write", [tar_shards, parquet_files])
def test_shards_of_pictures_become_features(write, tmp_path, capsys):
  cli.main(["extract", str(write(tmp_path / "corpus")), str(tmp_path / "features"), "--encoder=toy_clip"])
  *left_out, last = capsys.readouterr().out.splitlines()
  assert last == f"12 pictures and their captions are in {tmp_path / 'features'}"
  lists = [f"{tmp_path / 'features'}: left out: 1 columns of no plain values (tags)"]
  assert left_out == (lists if write is tar_shards else [])
  store = qat_jax.FeatureStore.open(tmp_path / "features")
  assert store.column("price").tolist() == [i if write is tar_shards else i / 2 for i in range(12)]
  assert store.meta["speed"]["items_per_second"] > 0


def test_near_duplicates_are_written_and_shown_side_by_side(tmp_path, capsys):
  (tmp_path / "pictures").mkdir()
  rows_ND = np.eye(12, dtype=np.float32)
  rows_ND[[3, 7]] = rows_ND[1] + [[0.1], [0.05]] * np.eye(12, dtype=np.float32)[[3, 7]]
  rows_ND[9] = rows_ND[0]
  for i in range(12):
    Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(tmp_path / f"pictures/{i}<b.png")
  names = [f"{i}<b" for i in range(12)]
  qat_jax.write_features(tmp_path / "all", {"img": rows_ND}, {"id": names})
  out, page = tmp_path / "out.parquet", tmp_path / "out.html"
  flags = [f"--out={out}", f"--images={tmp_path / 'pictures'}", f"--report={page}"]
  cli.main(["duplicates", str(tmp_path / "all"), *flags])
  assert capsys.readouterr().out == f"2 groups of 5 near-duplicates among 12 items are in {out}\n"
  table = pq.read_table(out).to_pydict()
  assert table["item_id"] == ["1<b", "3<b", "7<b", "0<b", "9<b"] and table["group"] == [0, 0, 0, 1, 1]
  assert table["cosine"][3:] == [1, 1] and 0.99 < table["cosine"][0] < 1
  html = page.read_text()
  assert html.count("data:image/jpeg") == 5 and "1&lt;b, 0.99" in html and "3 alike" in html and "<b," not in html
  qat_jax.write_features(tmp_path / "train", {"img": rows_ND[[5, 1]]}, {"id": ["five", "one"]})
  cli.main(["duplicates", str(tmp_path / "all"), "--against", str(tmp_path / "train"), f"--out={out}"])
  said = f"4 of 12 items of {tmp_path / 'all'} are nearly the same as one of {tmp_path / 'train'}: {out}\n"
  assert capsys.readouterr().out == said
  table = pq.read_table(out).to_pydict()
  assert table["item_id"] == ["1<b", "3<b", "5<b", "7<b"] and table["other_id"] == ["one", "one", "five", "one"]
  with pytest.raises(SystemExit, match="--images and --report go together"):
    cli.main(["duplicates", str(tmp_path / "all"), *flags[:2]])


def test_a_folder_of_features_is_split(tmp_path, capsys):
  rows_ND = np.eye(12, dtype=np.float32)
  columns = {"id": [str(i) for i in range(12)], "toy": [str(i // 2) for i in range(12)]}
  qat_jax.write_features(tmp_path / "all", {"img": rows_ND}, columns)
  cli.main(["split", str(tmp_path / "all"), str(tmp_path / "set"), "--by=toy", "--val=0.2", "--test=0.4"])
  said = "6 in train, 2 in val/gallery, 4 in test/gallery, 2 in val/image_queries, 4 in test/image_queries"
  assert capsys.readouterr().out == f"{tmp_path / 'set'}: {said}\n"
  with pytest.raises(SystemExit, match="no metadata column 'shop' in .*all; there are"):
    cli.main(["split", str(tmp_path / "all"), str(tmp_path / "other"), "--by=shop"])


def test_the_version_is_the_package_s(capsys):
  with pytest.raises(SystemExit, match="0"):
    cli.main(["--version"])
  assert capsys.readouterr().out == f"qat-jax {qat_jax.__version__}\n"


def test_signals_are_handled_before_the_command_line_is_built(monkeypatch):
  order = []

  def parser():
    order.append("the command line")
    raise SystemExit(3)

  monkeypatch.setattr(cli, "end_on_signals", lambda: order.append("signals"))
  monkeypatch.setattr(cli, "command_line", parser)
  monkeypatch.setattr(sys, "argv", ["qat-jax", "rank"])
  with pytest.raises(SystemExit):
    cli.main()
  assert order == ["signals", "the command line"]


def commands_of(parser):
  (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
  return action.choices


def test_every_command_has_examples_that_it_takes_and_flags_with_dashes():
  commands = commands_of(cli.command_line())
  names = "extract split train evaluate eight-bits rank serve duplicates migrate learn convert export push"
  assert " ".join(commands) == names
  for name, command in commands.items():
    heading, *examples = command.epilog.replace("\\\n", " ").splitlines()
    assert heading == "examples:" and examples
    for words in map(shlex.split, examples):
      words = words[words.index("qat-jax") :]
      known, others = cli.command_line().parse_known_args(words[1:])
      assert words[1] == name and known.run and all(word.startswith("--config.") for word in others)
    shown = [action for action in command._actions if action.help is not argparse.SUPPRESS]
    assert all(action.help and action.help[0].islower() and action.help[-1] != "." for action in shown)
    flags = [flag for action in shown for flag in action.option_strings]
    assert "--help" in flags and not [flag for flag in flags if "_" in flag]
    command.format_help()  # a stray % in a help text would raise


def test_the_older_spelling_of_query_type_is_still_taken():
  words = ["rank", "--adapter=a", "--queries=q", "--gallery=g", "--out=o"]
  read = lambda *more: cli.command_line().parse_args([*words, *more]).query_type
  assert [read(), read("--query_type=text"), read("--query-type=image")] == [None, "text", "image"]
  with pytest.raises(SystemExit):
    read("--query=text")  # no abbreviations: a flag to come would change what they mean


@pytest.mark.parametrize(("command", "module"), [("train", "train.main"), ("evaluate", "eval.main")])
def test_train_and_evaluate_become_the_programs_of_a_checkout(command, module, monkeypatch, capsys, tmp_path):
  started = []
  monkeypatch.setattr(os, "execve", lambda *call: started.append(call) or sys.exit(0))
  monkeypatch.setenv("PYTHONPATH", "mine")
  with pytest.raises(SystemExit):
    cli.main([command, "--config", "configs/demo.py", "--config.train.steps=3", "--workdir=x"])
  ((program, words, environment),) = started
  assert program == sys.executable
  assert words[1:] == ["-m", module, "--config", "configs/demo.py", "--config.train.steps=3", "--workdir=x"]
  assert environment["PYTHONPATH"] == f"{ROOT}{os.pathsep}mine"
  with pytest.raises(SystemExit, match="0"):
    cli.main([command, "--help"])
  assert f"python -m {module}" in capsys.readouterr().out
  monkeypatch.setattr(qat_jax, "__file__", str(tmp_path / "site-packages/qat_jax/__init__.py"))
  with pytest.raises(SystemExit, match=f"^error: qat-jax {command} is python -m {module}, which an installed wheel"):
    cli.main([command, "--config", "configs/demo.py"])
  assert len(started) == 1


def test_train_really_starts_the_program_from_any_folder(tmp_path):
  command = [sys.executable, "-m", "qat_jax", "train", "--config", "nowhere.py"]
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
  )
  assert done.returncode == 1 and done.stderr.startswith("error: ") and "nowhere.py" in done.stderr

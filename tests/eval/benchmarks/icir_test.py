"""i-CIR from files in its official form, against its program's figures worked by hand."""

import json
import re

import numpy as np
import pytest

import qat_jax
from eval.benchmarks import icir
from qat_jax.adapter import Adapter
from qat_jax.features.store import write_features
from qat_jax.models.head import Head

WIDTH = 8
DATABASE = [*((f"a/{i}.jpg", "at night" if i in (1, 4) else "by day", "mug") for i in range(6))]
DATABASE += [*((f"b/{i}.jpg", "at night", "lamp") for i in range(3)), ("b/3.jpg", "as a toy", "lamp")]
QUERIES = [("q/0.jpg", "at night", "mug"), ("q/1.jpg", "as a toy", "lamp"), ("q/0.jpg", "by day", "mug")]


def unit(rows, seed):
  x = np.random.default_rng(seed).standard_normal((rows, WIDTH)) + 0.3
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Encoder:
  name, revision, max_tokens, truncated = "words", "1", 8, 0

  def texts(self, texts):
    return np.concatenate([unit(1, sum(map(ord, text))) for text in texts])


@pytest.fixture
def folders(tmp_path):
  root, features = tmp_path / "root" / "annotations", tmp_path / "features"
  root.mkdir(parents=True)
  for name, rows in (("query", QUERIES), ("database", DATABASE)):
    (root / f"{name}_files.csv").write_text("".join(",".join(row) + "\n" for row in rows))
  about = {"encoder": "words", "revision": "1"}
  write_features(features / "queries", {"img": unit(3, 0), "text": unit(3, 1)}, {"id": ["0", "1", "2"]}, about)
  write_features(features / "gallery", {"img": unit(10, 2)}, {"id": [row[0] for row in DATABASE]}, about)
  for seed, name in enumerate(("subjects", "styles"), start=3):
    write_features(features / name, {"text": unit(20, seed)}, {"id": [f"{name}{i}" for i in range(20)]}, about)
  return tmp_path / "root", features


def official(positions):
  """The official program's sum, over the places (from 0) of what is right."""
  before = [1.0 if place == 0 else j / place for j, place in enumerate(positions)]
  at = [(j + 1) / (place + 1) for j, place in enumerate(positions)]
  return sum((x + y) / 2 for x, y in zip(before, at, strict=True)) / (len(positions) + 1e-5)


def test_a_query_is_answered_by_its_instance_alone_and_counted_as_the_official_program_does(folders):
  benchmark, gallery_ND = icir.Icir.open(folders[0]), unit(10, 2)
  order = {"mug": [3, 1, 0, 4, 2, 5], "lamp": [1, 3, 0, 2]}  # best first, places in the instance's database

  def score(picture_QD, text_QD, item_ND):
    places = order["mug" if len(item_ND) == 6 else "lamp"]
    return -np.argsort(places)[None].repeat(len(picture_QD), axis=0).astype(float)

  precision_Q = benchmark.precisions(score, unit(3, 0), unit(3, 1), gallery_ND)
  np.testing.assert_allclose(precision_Q, [official([1, 3]), official([1]), official([0, 2, 4, 5])], rtol=1e-12)
  figures = benchmark.figures(precision_Q)
  assert figures["map"] == pytest.approx(100 * precision_Q.mean())
  assert figures["mmap"] == pytest.approx(100 * ((precision_Q[0] + precision_Q[2]) / 2 + precision_Q[1]) / 2)
  assert figures["low"] <= figures["map"] <= figures["high"]


def test_the_command_measures_every_method_by_its_formula(folders, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(qat_jax, "load_encoder", lambda name: Encoder())
  monkeypatch.setattr("qat_jax.words.LEAST", 4)
  Adapter(WIDTH, {"image": Head("plain", {}, {})}).save(tmp_path / "run")
  (tmp_path / "aspects.json").write_text(json.dumps({"hour": ["at night", "by day", "at dawn", "as a toy"]}))
  more = ["--adapter", str(tmp_path / "run"), "--aspects", str(tmp_path / "aspects.json")]
  icir.main([*map(str, folders), *more, "--json", str(tmp_path / "out.json")])
  figures = json.loads((tmp_path / "out.json").read_text())
  benchmark, picture_QD, text_QD, gallery_ND = icir.Icir.open(folders[0]), unit(3, 0), unit(3, 1), unit(10, 2)
  formulas = {
    "text": lambda p, t, z: t @ z.T,
    "image": lambda p, t, z: p @ z.T,
    "sum, text × 0.5": lambda p, t, z: p @ z.T + 0.5 * t @ z.T,
    "product": lambda p, t, z: np.clip(p @ z.T, 0, None) * np.clip(t @ z.T, 0, None),
    "ours, image head + text": lambda p, t, z: p @ z.T + t @ z.T,
  }
  for name, formula in formulas.items():
    expected = benchmark.precisions(formula, picture_QD, text_QD, gallery_ND)
    assert figures[name]["map"] == pytest.approx(100 * expected.mean()), name
  assert {"BASIC", "ours, told in words"} < set(figures) and len(figures) == 11
  assert capsys.readouterr().out.count(": mAP") == 11


def test_basic_is_its_formula(folders):
  """Written out with the projection as a matrix."""
  gallery = qat_jax.FeatureStore.open(folders[1] / "gallery")
  subject_SD, style_SD, item_ND = unit(20, 3).astype(float), unit(20, 4).astype(float), unit(10, 2).astype(float)
  picture_QD, text_QD = unit(3, 0).astype(float), unit(3, 1).astype(float)
  mean_D, text_D = item_ND.mean(axis=0), subject_SD.mean(axis=0)
  a, b = (x - text_D for x in (subject_SD, style_SD))
  value_D, along_DD = np.linalg.eigh(0.8 * a.T @ a / 19 - 0.2 * b.T @ b / 19)
  assert 0 < (value_D > 0).sum() < WIDTH
  onto_DD = along_DD[:, value_D > 0] @ along_DD[:, value_D > 0].T
  shown_QN, told_QN = (picture_QD - mean_D) @ onto_DD @ (item_ND - mean_D).T, (text_QD - text_D) @ (item_ND - mean_D).T
  least = np.min((item_ND - mean_D) @ (item_ND - mean_D).T)
  shown_QN, told_QN = (shown_QN - least) / abs(least), (told_QN - told_QN.min()) / abs(least)
  expected = np.clip(shown_QN, 0, None) * told_QN - 0.1 * (np.clip(shown_QN, 0, None) + told_QN) ** 2
  score_QN = icir.basic(unit(20, 3), unit(20, 4), gallery)(picture_QD, text_QD, item_ND)
  np.testing.assert_allclose(score_QN, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("query_files.csv", "q.jpg,at dawn,mug\n", "query 1 .* has nothing right in database_files.csv"),
    ("query_files.csv", "q.jpg,at night\n", "line 1 is 'q.jpg,at night'; wanted image, text and instance"),
    ("query_files.csv", b"q.jpg,caf\xe9,mug\n", r"query_files.csv, line 1, is not UTF-8 \(byte 0xe9\)"),
    ("database_files.csv", "", "is empty; it is one of the two CSV files"),
    ("query_files.csv", "q.jpg,at night,mug\n", "has 3 rows for 1 queries"),
    ("database_files.csv", None, "no .*database_files.csv"),
  ],
)
def test_files_that_are_not_the_benchmark_are_named(folders, name, content, message, capsys):
  path = folders[0] / "annotations" / name
  path.unlink()
  if content is not None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(SystemExit):
    icir.main([*map(str, folders)])
  assert re.search(message, capsys.readouterr().err)

"""The published comparison, on look-alikes of ILIAS's files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from eval import published
from eval.benchmarks.ilias import Ilias
from tests.eval.benchmarks.uned_test import ITEMS, LINES, ROWS, write_layer
from tests.eval.tiny import WIDTH, plain_ranking, put_hdf5, unit

VECTORS = Path(__file__).parents[1] / "data" / "metric_vectors"
ENCODER = "vit_large_patch16_siglip_512.v2_webli"
FAR = [f"0000/{n:05x}" for n in range(30)]


@pytest.fixture
def root(tmp_path):
  """A folder as whoever downloads ILIAS's publications has it, without UnED's features."""
  root = Path(shutil.copytree(VECTORS / "ilias", tmp_path / "root"))
  benchmark = Ilias.open(root)
  parts = {
    "image_queries": benchmark.image_query_ids,
    "text_queries": benchmark.text_query_ids,
    "positives": benchmark.positive_ids,
    "distractors_00000": FAR,
  }
  for seed, (name, ids) in enumerate(parts.items()):
    put_hdf5(root / "features" / ENCODER / f"features_{name}.hdf5", ids, unit(len(ids), seed))
  (root / "image_ids" / published.MINI).write_text("\n".join(name.split("/")[1] for name in FAR[:20]) + "\n")
  (root / "lin_adapt_layers").mkdir()
  weight_ED = np.random.default_rng(0).normal(size=(5, WIDTH))
  for name in (ENCODER, "vit_large_patch16_siglip_384.webli"):
    write_layer(root / "lin_adapt_layers" / f"{name}.pth", layer_weight=weight_ED, layer_bias=np.zeros(5))
  (root / "similarities").mkdir()
  shutil.move(root / "similarities.json", root / "similarities" / "theirs.json")
  return root


def expected(root, query_ids, seed):
  """Returns the figure of plain features, among the positives and the distractors of mini-ILIAS."""
  benchmark = Ilias.open(root)
  gallery_ids = np.array([*benchmark.positive_ids, *FAR[:20]])
  gallery_ND = np.concatenate([unit(len(benchmark.positive_ids), 2), unit(30, 3)[:20]])
  ranking = plain_ranking(unit(len(query_ids), seed), gallery_ND)
  pairs = zip(query_ids, ranking.ids, ranking.scores, strict=True)
  return benchmark.score((q, (gallery_ids[ids_K], score_K)) for q, ids_K, score_K in pairs)["map"]


def test_what_is_there_is_measured_and_stands_beside_the_published_figures(root, tmp_path, capsys):
  published.main(["ilias", str(root), "--workdir", str(tmp_path / "run")])
  rows = json.loads((tmp_path / "run/published.json").read_text())["rows"]
  value = {(row["task"], row["row"]): row["value"] for row in rows}
  benchmark = Ilias.open(root)
  assert value["i2i", "plain"] == pytest.approx(expected(root, benchmark.image_query_ids, 0))
  assert value["t2i", "plain"] == pytest.approx(expected(root, benchmark.text_query_ids, 1))
  assert {("i2i", "published_linear"), ("t2i", "published_linear")} < value.keys()
  assert any(row["row"] == "similarities/theirs.json" for row in rows)
  report = (tmp_path / "run/published.md").read_text()
  assert "# ILIAS 5M" in report and f"lin_adapt_layers/{ENCODER}.pth" in report
  assert "| t2i | plain | " in report and "| 24.7 | QuARI, arXiv 2505.21647 |" in report
  assert "| t2i | released | not measured |  | 40.6 |" in report
  assert "UnED's training features: missing, features/, features_uned.hdf5" in report
  assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in rows)


def test_a_gallery_that_lacks_distractors_has_no_published_figures(root, tmp_path, monkeypatch):
  rows = [{"row": "plain", "task": "t2i", "value": 1.0, "interval": [0.5, 1.5], "queries": 3}]
  monkeypatch.setattr(published, "rows_of_runs", lambda *_: rows)
  path = root / "image_ids" / published.MINI
  path.write_text(path.read_text() + "elsewhere\n")
  published.main(["ilias", str(root), "--workdir", str(tmp_path / "run")])
  report = (tmp_path / "run/published.md").read_text()
  assert "# ILIAS 20 of 21 distractors" in report and "QuARI, arXiv" not in report


def test_uneds_features_are_trained_on_in_both_forms(root, tmp_path, monkeypatch):
  put_hdf5(root / "features" / ENCODER / "features_uned.hdf5", ITEMS, ROWS)
  (root / "uned_paths_1M.txt").write_text("\n".join(LINES) + "\n")
  calls = []

  def called(module, *words):
    calls.append((module, words))
    if module == "eval.main":
      methods = next(word for word in words if word.startswith("--config.eval.methods=")).split("=")[1]
      folder = Path(words[words.index("--workdir") + 1]) / "eval"
      folder.mkdir(parents=True, exist_ok=True)
      one = {"metric": "ilias/map", "task": "i2i", "value": 1.0, "interval": [0.5, 1.5], "queries": 3}
      results = [{**one, "method": name} for name in methods.strip("(),").replace("'", "").split(",")]
      (folder / "metrics.json").write_text(json.dumps({"results": results}))

  monkeypatch.setattr(published, "called", called)
  arguments = ["ilias", str(root), "--workdir", str(tmp_path / "run"), "--config.train.steps=7"]
  published.main(arguments)
  assert [(module, words[1]) for module, words in calls] == [
    ("eval.main", "configs/benchmark.py:ilias,google/siglip2-large-patch16-512"),
    *((f"{program}.main", "configs/uned.py:google/siglip2-large-patch16-512") for program in ("train", "eval")),
    *((f"{program}.main", "configs/uned.py:google/siglip2-large-patch16-512,paper") for program in ("train", "eval")),
  ]
  assert all("--config.train.steps=7" in words for _, words in calls)
  rows = [row["row"] for row in json.loads((tmp_path / "run/published.json").read_text())["rows"]]
  assert rows[1:] == [
    "plain",
    "published_linear",
    "static",
    "ilias_linear",
    "plda",
    "experts",
    "gated",
    "adapted",
    "paper",
  ]
  published.main(arguments)  # the set is there


def test_what_is_unclear_is_asked_for(root, tmp_path, capsys):
  put_hdf5(root / "features" / "other" / "features_positives.hdf5", ["a"], unit(1))
  for words, told in (
    ([], "holds 2 encoders' features"),
    (["--features", str(tmp_path)], "holds 2 encoders' features"),
    (["--epochs=3"], "unknown arguments --epochs=3"),
  ):
    with pytest.raises(SystemExit):
      published.main(["ilias", str(root), "--workdir", str(tmp_path / "run"), *words])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("vit_large_patch16_siglip_512.v2_webli", "siglip2-large"),
    ("google/siglip2-large-patch16-512", "siglip2-large"),
    ("vit_large_patch16_siglip_384.webli", ""),
    ("vit_base_patch16_siglip_512.v2_webli", ""),
    ("vit_pe_core_large_patch14_336.fb", "pe-core-large"),
    ("vit_large_patch16_dinov3.lvd1689m", "dinov3-large"),
  ],
)
def test_an_encoder_is_known_by_timms_name_and_the_hubs(name, wanted):
  assert published.named(name) == wanted

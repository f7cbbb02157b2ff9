"""Benchmarks in their official formats, from files to metrics.json, with a tiny adapter."""

import functools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from eval.benchmarks import gldv2, revisited
from eval.benchmarks.ilias import Ilias
from eval.benchmarks.inquire import Inquire
from eval.pipeline import evaluate
from qat_jax.types import Ranking
from tests.eval.tiny import plain_ranking, put, put_hdf5, run, unit, values

VECTORS = Path(__file__).parents[1] / "data" / "metric_vectors"


def ilias(folder):
  shutil.copytree(VECTORS / "ilias", folder / "root")
  benchmark = Ilias.open(folder / "root")
  features = folder / "features"
  far = [f"0000/{n:05x}" for n in range(30)]
  parts = {
    "queries": benchmark.image_query_ids,
    "text_queries": benchmark.text_query_ids,
    "positives": benchmark.positive_ids,
    "distractors_00000": far,
  }
  for seed, (name, ids) in enumerate(parts.items()):
    put_hdf5(features / f"features_{name}.hdf5", ids, unit(len(ids), seed))
  gallery_ids, gallery_ND = (
    [*benchmark.positive_ids, *far],
    np.concatenate([unit(len(parts["positives"]), 2), unit(30, 3)]),
  )

  def expected(query_ids, seed):
    ranking = plain_ranking(unit(len(query_ids), seed), gallery_ND)
    pairs = zip(query_ids, ranking.ids, ranking.scores, strict=True)
    return benchmark.score((q, (np.array(gallery_ids)[ids_K], score_K)) for q, ids_K, score_K in pairs)["map"]

  maps = {("image", "i2i"): expected(parts["queries"], 0), ("text", "t2i"): expected(parts["text_queries"], 1)}
  return {"name": "ilias", "distractor_files": 1}, "ilias/map", maps, 100


def inquire(folder, rerank=False):
  (folder / "root").mkdir()
  photos = [f"train/0000{i % 3}_Animalia/{i:02x}" for i in range(30)]
  queries = {"8": (1, 4), "15": (2, 3, 5)}
  lines = [f"{query},animal {query}" for query in queries]
  (folder / "root" / "inquire_queries_test.csv").write_text("\n".join(["query_id,query_text", *lines]) + "\n")
  lines = [f"{query},{photos[i]}.jpg" for query, items in queries.items() for i in items]
  (folder / "root" / "inquire_annotations.csv").write_text("\n".join(["query_id,image_path", *lines]) + "\n")
  shown = {"8": range(0, 10), "15": range(3, 13)}
  lines = [f"animal {q},{photos[i]}.jpg,{int(i in queries[q])}" for q, items in shown.items() for i in items]
  (folder / "root" / "inquire_rerank.csv").write_text("\n".join(["query,file_name,relevant", *lines]) + "\n")
  gallery_ND = put(folder / "features" / "gallery", "img", photos, 1)[:]
  query_QD = put(folder / "features" / "queries", "text", ["15", "8"], 2)[:][::-1]  # in another order than the CSV
  benchmark, ranking = Inquire.open(folder / "root"), plain_ranking(query_QD, gallery_ND)
  if rerank:
    kept = [np.isin(ids_K, shown[q]) for q, ids_K in zip(queries, ranking.ids, strict=True)]
    ranking = Ranking(
      *(np.stack([x[k] for x, k in zip(part, kept, strict=True)]) for part in (ranking.ids, ranking.scores))
    )
    task, _ = benchmark.rerank_set(photos)
  else:
    task = benchmark.full_rank(photos)
  name = "inquire_rerank" if rerank else "inquire"
  return {"name": name}, f"{name}/map", {("text", ""): task.score(ranking)["map"]}, 100


def oxford(folder, name, distractors=False):
  (folder / "root").mkdir()
  truth = json.loads((VECTORS / "revisited_oxford_paris.json").read_text())["gnd"][:5]
  if name not in revisited.REVISITED:
    truth = [{"ok": [*q["easy"], *q["hard"]], "junk": q["junk"]} for q in truth]
  names = [f"image_{i}" for i in range(400)]
  gnd = {"imlist": names, "qimlist": [f"query_{i}" for i in range(5)], "gnd": truth}
  path = folder / "root" / f"gnd_{name}.pkl"
  path.write_bytes(pickle.dumps(gnd))
  gallery_ND = put(folder / "features" / "gallery", "img", names, 1)[:]
  query_QD = put(folder / "features" / "queries", "img", gnd["qimlist"], 2)[:]
  if distractors:
    far_ND = put(folder / "far", "img", ["far_0", "far_1"], 3)[:]
    gallery_ND = np.concatenate([gallery_ND, far_ND])
  figures = revisited.score_ranks(path, plain_ranking(query_QD, gallery_ND).ids.T, name)
  figures = figures if "easy" in figures else {"": figures}
  maps = {("image", task): one["map"] for task, one in figures.items()}
  return {"name": name, "distractors": str(folder / "far") if distractors else ""}, f"{name}/map", maps, 1


def paris6k(folder):
  """The published layout of features, a .mat, followed by a folder of distractors."""
  settings, *expected = oxford(folder, "paris6k", distractors=True)
  scipy.io.savemat(folder / "features.mat", {"Q": unit(5, 2).T, "X": unit(400, 1).T})
  shutil.rmtree(folder / "features")
  return {**settings, "features": str(folder / "features.mat")}, *expected


def instre(folder):
  (folder / "root").mkdir()
  gnd = np.zeros((1, 2), dtype=[("ok", object), ("bbx", object)])
  gnd[0, 0]["ok"], gnd[0, 1]["ok"] = np.array([[1, 3]]), np.array([[2]])
  gnd[0, 0]["bbx"] = gnd[0, 1]["bbx"] = np.array([[1, 2, 3, 4]])
  names = {"imlist": np.array(list("abcd"), object), "qimlist": np.array(["q0", "q1"], object)}
  path = folder / "root" / "gnd_instre.mat"
  scipy.io.savemat(path, {"gnd": gnd, **names})
  query_QD, gallery_ND = unit(2, 2), unit(4, 1)
  scipy.io.savemat(folder / "features.mat", {"Q": query_QD.T, "X": gallery_ND.T})  # the published layout
  figures = revisited.score_ranks(path, plain_ranking(query_QD, gallery_ND).ids.T, "instre")
  return {"name": "instre", "features": str(folder / "features.mat")}, "instre/map", {("image", ""): figures["map"]}, 1


def landmarks(folder):
  root = folder / "root"
  root.mkdir()
  (root / "index.csv").write_text("\n".join(["id", *"abcdef"]) + "\n")
  (root / "retrieval_solution_v2.1.csv").write_text("id,images,Usage\nq0,a b,Public\nq1,c,Private\nq2,None,Ignored\n")
  gallery_ND = put(folder / "features" / "gallery", "img", "abcdef", 1)[:]
  ids_QK = plain_ranking(put(folder / "features" / "queries", "img", ["q0", "q1"], 2)[:], gallery_ND).ids
  lines = [f"q{q},{' '.join('abcdef'[i] for i in ids_K)}" for q, ids_K in enumerate(ids_QK)]
  (folder / "predictions.csv").write_text("\n".join(["id,images", *lines]) + "\n")
  figures = gldv2.score_predictions(root / "retrieval_solution_v2.1.csv", folder / "predictions.csv")
  return {"name": "gldv2"}, "gldv2/map", {("image", ""): figures["map"]}, 1


MAKE = {make.__name__: make for make in (ilias, inquire, paris6k, instre, landmarks)}
MAKE |= {"inquire_rerank": functools.partial(inquire, rerank=True)}
MAKE |= {"roxford5k": functools.partial(oxford, name="roxford5k")}
MAKE |= {name: functools.partial(oxford, name=name, distractors=True) for name in ("rparis6k", "oxford5k")}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_benchmark_in_its_official_format_gives_its_own_figures(make, config, workdir, tmp_path):
  settings, metric, expected, per_unit = make(tmp_path)
  settings = {"root": str(tmp_path / "root"), "features": str(tmp_path / "features"), **settings}
  metrics = run(config, workdir, **settings)
  assert values(metrics, metric) == pytest.approx(expected, abs=1e-6)
  assert {key: per_unit * v for key, v in values(metrics, "map").items()} == pytest.approx(expected, abs=1e-6)
  groups = set(expected)
  assert set(values(metrics, "recall@1", "adapted")) == groups
  compared = {(d["query"], d.get("task", "")) for d in metrics["differences"] if d["method"] == "adapted"}
  assert compared == groups
  assert (workdir / "eval" / "report.html").exists()


def test_an_adapter_without_training_features_is_measured_on_a_benchmark(config, trained, tmp_path):
  shutil.copytree(trained[1] / "adapter", tmp_path / "run" / "adapter")
  settings, metric, expected, _ = instre(tmp_path)
  config.data.root, config.eval.methods = "", ("plain", "static", "neighbours", "adapted")
  metrics = run(config, tmp_path / "run", root=str(tmp_path / "root"), **settings)
  assert values(metrics, metric) == pytest.approx(expected, abs=1e-6)
  assert {s["method"]: s["reason"].split(";")[0] for s in metrics["skipped"]} == {
    "static": "none of static, static_mapped, closed_form_both, plda, off_words was trained in this run",
    "neighbours": "there are no training features to fit it on",
  }


@pytest.mark.parametrize(
  ("benchmark", "message"),
  [
    ({"name": "oxford"}, r"config\.benchmark\.name is 'oxford'; use one of ilias, inquire"),
    ({"name": "ilias", "features": "x"}, r"config\.benchmark\.root is empty; give --config\.benchmark\.root=FOLDER"),
  ],
)
def test_a_benchmark_that_is_not_known_or_not_there_is_named_before_any_work(config, tmp_path, benchmark, message):
  config.benchmark.update(benchmark)
  with pytest.raises(ValueError, match=message):
    evaluate(config, tmp_path)


def test_a_benchmark_of_another_width_is_refused(config, workdir, tmp_path):
  settings, *_ = instre(tmp_path)
  scipy.io.savemat(tmp_path / "features.mat", {"Q": np.eye(5, 2), "X": np.eye(5, 4)})
  with pytest.raises(ValueError, match="is 5 wide, the adapter 8"):
    run(config, workdir, root=str(tmp_path / "root"), **settings)

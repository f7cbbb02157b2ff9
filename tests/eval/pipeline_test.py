"""Benchmarks in their official formats, from files to metrics.json, with a tiny adapter; and what is kept."""

import functools
import json
import pickle
import shutil
from pathlib import Path

import h5py
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from configs import features as recipe
from eval import methods
from eval.benchmarks import gldv2, revisited
from eval.benchmarks.ilias import Ilias
from eval.benchmarks.inquire import Inquire
from eval.pipeline import evaluate
from eval.ranking import Method
from qat_jax.adapter import Adapter, Head, load
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import write_features
from qat_jax.fit.training import PLAIN
from qat_jax.models import forms as hypernetwork
from qat_jax.sharing.share import report_of
from qat_jax.types import Ranking

VECTORS = Path(__file__).parents[1] / "data" / "metric_vectors"
WIDTH, SEED = 8, 0


def unit(rows, seed=SEED):
  x_ND = np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)
  return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def put(folder, kind, ids, seed, columns=None):
  return write_features(folder, {kind: unit(len(ids), seed)}, {"id": list(ids), **(columns or {})})


def plain_ranking(query_QD, gallery_ND):
  score_QN = np.asarray(query_QD, np.float32) @ np.asarray(gallery_ND, np.float32).T
  ids_QK = np.argsort(-score_QN, axis=1, kind="stable")
  return Ranking(ids_QK, np.take_along_axis(score_QN, ids_QK, 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Returns a retrieval set and a working folder as training leaves it, with untrained heads that move queries."""
  folder = tmp_path_factory.mktemp("trained")
  root, workdir = folder / "set", folder / "run"
  names = [f"i{n // 2}" for n in range(40)]
  images, texts = unit(40, 1), unit(40, 2)
  write_features(
    root / "train", {"img": images, "text": texts}, {"id": [f"t{n}" for n in range(40)], "instance": names}
  )
  for split, seed in (("val", 3), ("test", 5)):
    put(root / split / "gallery", "img", [f"g{n}" for n in range(40)], seed, {"instance": names})
    for kind, place in (("text", "text_queries"), ("img", "image_queries")):
      put(root / split / place, kind, [f"{kind}{n}" for n in range(20)], seed + len(kind), {"instance": names[::2]})

  def head(form, settings):
    variables = hypernetwork.initialise(hypernetwork.FORMS[form](WIDTH, **settings), jax.random.key(0))
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), variables["params"])
    return Head(form, settings, variables | {"params": moved})

  heads = {name: head(name, settings) for name, settings in (("static", {}), ("query_only", {"hidden": 4}))}
  for query_type in ("text", "image"):
    for name, one in heads.items():
      info = {"name": name, "val_map": 0.1, "offline_seconds": 1.5}
      Adapter(WIDTH, {query_type: one}, info).save(workdir / "candidates" / query_type / name)
  info = {"chosen": {name: {"name": "query_only"} for name in ("text", "image")}}
  Adapter(WIDTH, dict.fromkeys(("text", "image"), heads["query_only"]), info).save(workdir / "adapter")
  return root, workdir


@pytest.fixture
def config(trained):
  config = recipe.get_config()
  config.data.root = str(trained[0])
  config.eval.methods = ("plain", "adapted")
  config.eval.shortlist = 10
  return config


@pytest.fixture
def workdir(trained, tmp_path):
  shutil.copytree(trained[1], tmp_path / "run")
  return tmp_path / "run"


def run(config, workdir, **benchmark):
  config.benchmark.update(benchmark)
  evaluate(config, workdir)
  return json.loads((workdir / "eval" / "metrics.json").read_text())


def values(metrics, metric, method="plain"):
  return {
    (r["query"], r.get("task", "")): r["value"]
    for r in metrics["results"]
    if r["metric"] == metric and r["method"] == method
  }


def ilias(folder):
  shutil.copytree(VECTORS / "ilias", folder / "root")
  benchmark = Ilias.open(folder / "root")
  features = folder / "features"
  features.mkdir()
  far = [f"0000/{n:05x}" for n in range(30)]
  parts = {
    "queries": benchmark.image_query_ids,
    "text_queries": benchmark.text_query_ids,
    "positives": benchmark.positive_ids,
    "distractors_00000": far,
  }
  for seed, (name, ids) in enumerate(parts.items()):
    with h5py.File(features / f"features_{name}.hdf5", "w") as file:
      file.create_dataset("index", data=ids, dtype=h5py.string_dtype("ascii"))
      file.create_dataset("features", data=unit(len(ids), seed))
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


def inquire_rerank(folder):
  return inquire(folder, rerank=True)


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


def roxford5k(folder):
  return oxford(folder, "roxford5k")


def rparis6k(folder):
  return oxford(folder, "rparis6k", distractors=True)


def oxford5k(folder):
  return oxford(folder, "oxford5k", distractors=True)


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


@pytest.mark.parametrize(
  "make", [ilias, inquire, inquire_rerank, roxford5k, rparis6k, oxford5k, paris6k, instre, landmarks]
)
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
    "static": "none of static, static_mapped, closed_form_both, plda was trained in this run",
    "neighbours": "there are no training features to fit it on",
  }


def untuned(run, problem):
  return Method(lambda gallery: lambda query_QD, k: plain_ranking(query_QD, gallery[:]), "", 7, 3.0)


def test_every_method_has_a_row_or_a_reason_and_its_costs(config, workdir, monkeypatch):
  for name in ("whitening", "ilias_linear", "query_expansion", "diffusion", "diffusion_shortlist"):  # slow to tune
    monkeypatch.setitem(methods.METHODS, name, untuned)
  cannot = functools.partial(methods.fitted, lambda training, validator: None)
  monkeypatch.setitem(methods.METHODS, "lda", cannot)
  config.eval.methods = ("all",)
  metrics = run(config, workdir)
  rows = {(r["query"], r["method"]) for r in metrics["results"]}
  left_out = {(s["query"], s["method"]) for s in metrics["skipped"]}
  assert rows | left_out == {(q, m) for q in ("text", "image") for m in methods.METHODS}
  assert not rows & left_out
  for cost in metrics["costs"]:
    assert cost["ms_per_query"] > 0
    assert cost["offline_seconds"] is not None
    assert cost["extra_bytes_per_item"] is not None
    assert cost["parameters"] is not None
  without = {"lda", "head_alone", "head_with_memory", "head_with_captions"}  # this run's adapter has no parts
  assert left_out == {(q, m) for q in ("text", "image") for m in without} | {("text", "plda")}
  costs = {c["method"]: c for c in metrics["costs"]}
  assert (costs["whitening"]["parameters"], costs["whitening"]["extra_bytes_per_item"]) == (7, 3.0)
  assert costs["plain"]["parameters"] == 0
  assert costs["static"]["offline_seconds"] >= 1.5  # its training, and the gallery's map
  assert costs["adapted_shortlist"]["extra_bytes_per_item"] == 4 * WIDTH


def test_a_killed_evaluation_goes_on_with_the_methods_that_are_missing(config, workdir, tmp_path, monkeypatch):
  shutil.copytree(workdir, tmp_path / "undisturbed")
  expected = run(config, tmp_path / "undisturbed")
  called = []
  whole = methods.method

  def method(name, run, problem):
    called.append((problem.name, name))
    if called.count(("image", "adapted")) == 1 and called[-1] == ("image", "adapted"):
      raise KeyboardInterrupt
    return whole(name, run, problem)

  monkeypatch.setattr(methods, "method", method)
  with pytest.raises(KeyboardInterrupt):
    run(config, workdir)
  assert not (workdir / "eval" / "metrics.json").exists()
  called.append("again")
  metrics = run(config, workdir)
  assert called[called.index("again") + 1 :] == [("image", "adapted")]
  for part in ("results", "differences"):
    assert metrics[part] == expected[part]
  before = (workdir / "eval" / "metrics.json").read_text()
  assert report_of(workdir, load(workdir)) == metrics  # which a model card of this very adapter may tell
  called.clear()
  run(config, workdir)
  assert called == []
  assert (workdir / "eval" / "metrics.json").read_text() == before


def change_a_feature(folder, kind="img"):
  path = folder / f"{kind}_emb/{kind}_emb_0000.npy"
  array = np.load(path)
  array[3] = array[4]
  np.save(path, array)
  (folder / "meta.json").unlink()  # else it is damage


def edit_the_metadata(folder):
  path = folder / "metadata/metadata_0000.parquet"
  table = pq.read_table(path)
  pq.write_table(table.append_column("caption", pa.array(["a toy"] * len(table))), path)
  (folder / "meta.json").unlink()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda config, root, workdir: config.eval.update({"shortlist": 11}), "config.shortlist was 10, is 11"),
    (lambda config, root, workdir: config.eval.update({"queries": 15}), "config.queries was 0, is 15"),
    (lambda config, root, workdir: config.validation.update({"queries": 9}), "config.validation was 1000, is 9"),
    (lambda config, root, workdir: config.update({"seed": 4}), "config.seed was 0, is 4"),
    (lambda c, r, workdir: Adapter(WIDTH, {"text": PLAIN, "image": PLAIN}).save(workdir / "adapter"), "is 'plain'"),
    (lambda config, root, workdir: shutil.rmtree(workdir / "candidates/text/static"), "candidates.static was "),
    (lambda config, root, workdir: change_a_feature(root / "train"), "tuned_on.train.images.features was "),
    (lambda config, root, workdir: edit_the_metadata(root / "train"), "tuned_on.train.images.metadata was "),
    (lambda config, root, workdir: change_a_feature(root / "val/gallery"), "tuned_on.val.gallery.features was "),
    (lambda config, root, workdir: change_a_feature(root / "test/gallery"), "problem.gallery.features was "),
    (lambda config, root, workdir: None, "code was "),
  ],
  ids=[
    "shortlist",
    "queries",
    "validation",
    "seed",
    "adapter",
    "candidate",
    "train",
    "captions",
    "val",
    "test",
    "code",
  ],
)
def test_results_made_from_anything_else_are_made_anew_and_it_is_said(
  change, words, config, workdir, tmp_path, monkeypatch, caplog
):
  root = tmp_path / "set"
  shutil.copytree(config.data.root, root)
  config.data.root, config.eval.methods = str(root), ("plain",)
  run(config, workdir)
  called = []
  whole = methods.method
  monkeypatch.setattr(methods, "method", lambda name, *rest: called.append(name) or whole(name, *rest))
  change(config, root, workdir)
  if words.startswith("code"):
    monkeypatch.setattr("eval.measure.of_code", lambda: "other")
  caplog.clear()
  run(config, workdir)
  assert called and set(called) == {"plain"}
  assert "text: plain score is made anew: " in caplog.text
  assert words in caplog.text


def test_a_damaged_file_of_results_is_made_anew(config, workdir, monkeypatch):
  config.eval.methods = ("plain",)
  before = run(config, workdir)
  for path in (workdir / "eval" / "methods").rglob("*.npz"):
    path.write_bytes(path.read_bytes()[:100])
  assert run(config, workdir)["results"] == before["results"]


def test_another_set_of_the_same_encoder_is_measured_for_the_queries_that_it_has(config, workdir, tmp_path):
  root = tmp_path / "set"
  shutil.copytree(config.data.root, root)
  for split in ("val", "test"):
    shutil.rmtree(root / split / "text_queries")
  config.data.root = str(root)
  assert {row["query"] for row in run(config, workdir)["results"]} == {"image"}


def test_a_set_whose_queries_the_adapter_does_not_serve_is_refused_in_a_line(config, workdir, tmp_path):
  root = tmp_path / "set"
  shutil.copytree(config.data.root, root)
  for split in ("val", "test"):
    shutil.rmtree(root / split / "image_queries")
  Adapter(WIDTH, {"image": PLAIN}).save(workdir / "adapter")
  config.data.root = str(root)
  with pytest.raises(ValueError, match=r"set asks text queries, the adapter serves image queries alone"):
    run(config, workdir)


def test_a_set_of_another_width_is_refused_in_a_line(config, workdir):
  Adapter(5, {"text": PLAIN}).save(workdir / "adapter")
  with pytest.raises(ValueError, match=r"set is 8 wide, the adapter 5: give the set that it was trained on"):
    run(config, workdir)


def test_an_unknown_method_is_named_before_any_work(config, tmp_path):
  config.eval.methods = ("plain", "adaptd")
  with pytest.raises(ValueError, match=r"has 'adaptd'; use some of plain, static, .*adapted_shortlist"):
    evaluate(config, tmp_path)


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


def test_a_gallery_too_large_for_a_method_is_said_and_the_others_run_streamed(config, workdir, monkeypatch):
  monkeypatch.setattr("eval.galleries.RESIDENT", 0)
  monkeypatch.setattr(methods, "HELD", 1e-9)
  monkeypatch.setattr(methods, "GRAPH_ITEMS", 39)
  config.eval.methods = ("static", "adapted", "neighbours", "whitening", "query_expansion", "diffusion")
  streamed = run(config, workdir)
  reasons = {s["method"]: s["reason"] for s in streamed["skipped"]}
  assert reasons.keys() == {"query_expansion", "diffusion"}
  assert "it holds the gallery, 0.0 GiB as float32" in reasons["query_expansion"]
  assert "the gallery has 40; it is run on 39 at most" in reasons["diffusion"]
  assert not (workdir / "eval" / "scratch").exists()
  monkeypatch.undo()
  shutil.rmtree(workdir / "eval")
  resident = run(config, workdir)
  for method in ("static", "adapted", "neighbours", "whitening"):
    assert values(streamed, "map", method) == pytest.approx(values(resident, "map", method), abs=0.01)


def test_the_set_is_right(trained):
  assert len(RetrievalSet.open(trained[0]).split("test").gallery) == 40

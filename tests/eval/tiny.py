"""A tiny trained run for the tests of evaluation, and what they read off its metrics."""

import json

import h5py
import numpy as np

from eval.pipeline import evaluate
from qat_jax.features.store import write_features
from qat_jax.types import Ranking
from tests.vectors import features

WIDTH = 8


def unit(rows, seed=0):
  return features(rows, WIDTH, seed)


def put(folder, kind, ids, seed, columns=None):
  return write_features(folder, {kind: unit(len(ids), seed)}, {"id": list(ids), **(columns or {})})


def put_hdf5(path, ids, rows_ND):
  """Writes features as ILIAS publishes them."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with h5py.File(path, "w") as file:
    file.create_dataset("index", data=ids, dtype=h5py.string_dtype("ascii"))
    file.create_dataset("features", data=rows_ND, compression="gzip", compression_opts=0)


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


def plain_ranking(query_QD, gallery_ND):
  score_QN = np.asarray(query_QD, np.float32) @ np.asarray(gallery_ND, np.float32).T
  ids_QK = np.argsort(-score_QN, axis=1, kind="stable")
  return Ranking(ids_QK, np.take_along_axis(score_QN, ids_QK, 1))

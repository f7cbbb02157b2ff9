"""Google Landmarks v2, retrieval: the solution CSV (id, images, Usage), predictions CSV (id, images), index.csv (id).

AP@100 with repeated predictions skipped; the mean is over every query of the solution that is not marked Ignored,
those without predictions too.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.benchmarks.task import Task, check_unique, read_csv, relevance_of
from qat_jax.metrics import bootstrap_interval, landmark_average_precision
from qat_jax.types import Ranking

K = 100
_log = logging.getLogger(__name__)
USAGES = ("Public", "Private", "Ignored")
SOURCE = "it comes with the dataset's ground truth (retrieval_solution_v2.1.csv) and metadata (index.csv)"


def open_task(solution: Path | str, index: Path | str) -> Task:
  """Returns the task: queries in the order of the solution (Ignored ones left out), the gallery that of index.csv."""
  gallery_ids = [row["id"] for row in _rows(index, ("id",))]
  check_unique(gallery_ids, str(index))
  return _task(read_solution(solution), gallery_ids, f"{solution}, {index}")


def _task(truth: dict[str, tuple[list[str], str]], gallery_ids: list[str], where: str) -> Task:
  query_ids = [query for query, (_, usage) in truth.items() if usage != "Ignored"]
  place = {name: i for i, name in enumerate(gallery_ids)}
  positives = []
  for query in query_ids:
    missing = [name for name in truth[query][0] if name not in place]
    if missing:
      raise ValueError(f"{where}: {len(missing)} images of {query} are not in the index (first {missing[0]}); {SOURCE}")
    positives.append(np.array([place[name] for name in truth[query][0]], np.int64))
  relevance = relevance_of(positives)
  precision = lambda ranking: landmark_average_precision(ranking.ids, relevance, K)
  score = lambda ranking: _figures(precision(ranking), [truth[q][1] for q in query_ids])
  return Task("gldv2", query_ids, gallery_ids, relevance, score, precision, K)


def score_predictions(solution: Path | str, predictions: Path | str) -> dict:
  """Returns {"map", "queries"} (fraction), and the map of the public and private part where there are any."""
  truth = read_solution(solution)
  guessed = read_predictions(predictions, truth)
  right = {name for images, _ in truth.values() for name in images}
  if guessed and not any(name in right for row in guessed.values() for name in row):
    _log.warning("%s names no image that is right for any query; are its ids written as in %s?", predictions, solution)
  every = [name for images, _ in truth.values() for name in images] + [name for row in guessed.values() for name in row]
  number = {name: i for i, name in enumerate(dict.fromkeys(every))}
  task = _task(truth, list(number), str(solution))
  ids_QK = np.full((len(task.query_ids), K), -1)
  for row_K, query in zip(ids_QK, task.query_ids, strict=True):
    first = guessed.get(query, [])[:K]
    row_K[: len(first)] = [number[name] for name in first]
  return task.score(Ranking(ids_QK, np.empty(ids_QK.shape)))


def read_solution(path: Path | str) -> dict[str, tuple[list[str], str]]:
  """Returns for each query id its relevant image ids and its Usage."""
  truth: dict[str, tuple[list[str], str]] = {}
  for row in _rows(path, ("id", "images", "Usage")):
    images = _images(row, path)
    if row["Usage"] not in USAGES:
      raise ValueError(f"{path}: query {row['id']} has Usage {row['Usage']!r}; one of {', '.join(USAGES)} is known")
    if row["id"] in truth:
      raise ValueError(f"{path}: query {row['id']} comes twice")
    if not images and row["Usage"] != "Ignored":
      raise ValueError(f"{path}: query {row['id']} has no relevant image and is not Ignored")
    check_unique(images, f"{path}, query {row['id']}")
    truth[row["id"]] = (images, row["Usage"])
  if not any(usage != "Ignored" for _, usage in truth.values()):
    raise ValueError(f"{path} has no query that counts; {SOURCE}")
  return truth


def read_predictions(path: Path | str, known: Mapping[str, object]) -> dict[str, list[str]]:
  """Returns for each query id the image ids predicted, best first. Raises ValueError for a query not in `known`."""
  guessed: dict[str, list[str]] = {}
  for row in _rows(path, ("id", "images")):
    if row["id"] not in known:
      raise ValueError(f"{path}: query {row['id']!r} is not in the solution; are both files of the same task?")
    if row["id"] in guessed:
      raise ValueError(f"{path}: query {row['id']!r} comes twice")
    guessed[row["id"]] = _images(row, path)
  return guessed


def _images(row: Mapping[str, str], path: Path | str) -> list[str]:
  if "," in row["images"]:
    raise ValueError(f"{path}: the images of query {row['id']} have commas; give their ids with spaces between")
  return row["images"].split()


def _figures(ap_Q: np.ndarray, usages: Sequence[str]) -> dict:
  figures = {"map": float(np.mean(ap_Q)), "interval": list(bootstrap_interval(ap_Q)), "queries": len(ap_Q)}
  for usage in ("Public", "Private"):
    part = ap_Q[np.array(usages) == usage]
    if len(part):
      figures[usage.lower()] = float(np.mean(part))
  return figures


def _rows(path: Path | str, fields: Sequence[str]) -> list[dict[str, str]]:
  csv.field_size_limit(1 << 24)  # a landmark may have thousands of images
  return read_csv(Path(path), fields, SOURCE)

"""ILIAS from published features: image queries and text queries over positives and any number of distractor files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eval.benchmarks.hdf5 import Hdf5Features
from eval.benchmarks.ilias import SOURCE, Ilias
from eval.benchmarks.joined import Joined
from eval.benchmarks.task import Task, check_same_ids, check_unique, need, with_features

QUERY_FILES = {"i2i": ("queries", "image_queries"), "t2i": ("text_queries",)}


def open_tasks(
  root: Path | str, features: Path | str, distractor_files: int, mini_ids: Path | str | None = None
) -> list[Task]:
  """Returns the I2I and T2I tasks (those whose query file is there) over positives and distractors.

  `features` is the folder of features_queries.hdf5, features_text_queries.hdf5, features_positives.hdf5 and
  features_distractors_00000.hdf5 …; `distractor_files` says how many of the last (100 for the whole set, 0 for none).
  `mini_ids` is the list of mini-ILIAS, to keep its 5M of the 100M.
  """
  benchmark, features = Ilias.open(root), Path(features)
  paths = [features / f"features_distractors_{i:05d}.hdf5" for i in range(distractor_files)]
  positives = _first(features, ("positives", "positive"))
  if positives is None:
    raise FileNotFoundError(f"{features} has no features_positives.hdf5; it is one of ILIAS's published features")
  keep = _chosen(benchmark, mini_ids)
  gallery = Joined([Hdf5Features(path, keep) for path in (positives, *paths)])
  check_unique(gallery.ids, f"{features}, gallery")
  tasks = []
  for name, endings in QUERY_FILES.items():
    path = _first(features, endings)
    if path is None:
      continue
    queries = Hdf5Features(path)
    query_ids = benchmark.image_query_ids if name == "i2i" else benchmark.text_query_ids
    check_same_ids(sorted(queries.ids), query_ids, str(path))
    task = benchmark.task(f"ilias {name}", list(queries.ids), gallery.ids)
    tasks.append(with_features(task, queries, gallery))
  if not tasks:
    raise FileNotFoundError(f"{features} has neither features_queries.hdf5 nor features_text_queries.hdf5")
  return tasks


def _first(folder: Path, endings: Sequence[str]) -> Path | None:
  return next((p for p in (folder / f"features_{ending}.hdf5" for ending in endings) if p.exists()), None)


def _chosen(benchmark: Ilias, mini_ids: Path | str | None) -> Callable[[np.ndarray], np.ndarray] | None:
  """Returns which ids stay: all, or the positives and those whose photo is in the list of mini-ILIAS."""
  if mini_ids is None:
    return None
  photos = set(need(Path(mini_ids), SOURCE).read_text().split())
  positives = set(benchmark.positive_ids)

  def keep(ids: np.ndarray) -> np.ndarray:
    return np.array([name in positives or name.split("/")[-1] in photos for name in ids], bool)

  return keep

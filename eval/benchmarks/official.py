"""From the files of a public benchmark to its problems: what `config.benchmark` names, opened and checked.

Features lie in `features`: ILIAS's published HDF5 files; for the others the folders queries/ and gallery/, as
docs/data.md has them, with the benchmark's own ids.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.benchmarks import gldv2, ilias_features, ilias_files, revisited
from eval.benchmarks.ilias import Ilias
from eval.benchmarks.inquire import Inquire
from eval.benchmarks.joined import Joined
from eval.benchmarks.task import Ids, Task, check_same_ids, need, with_features
from eval.problem import Problem, files_of
from qat_jax.features.store import FeatureStore
from qat_jax.types import ArrayGallery

QUERY_TYPES = {"i2i": "image", "t2i": "text"}


class BenchmarkFiles(NamedTuple):
  """What `config.benchmark` holds; paths as text, "" where there is none."""

  name: str
  root: str
  features: str
  distractors: str = ""  # a folder of features that follow the gallery: +1M, or the 100k of Oxford105k
  distractor_files: int = 100  # of ILIAS: how many million
  mini_ids: str = ""  # of ILIAS: the list of the 5M set
  split: str = "test"  # of INQUIRE
  linear_layer: str = ""  # a published static layer, for a row of its own


def check_files(settings: BenchmarkFiles) -> None:
  """Raises ValueError for a benchmark that is not known, or whose files are not named."""
  if settings.name not in BENCHMARKS:
    raise ValueError(f"config.benchmark.name is {settings.name!r}; use one of {', '.join(BENCHMARKS)}")
  for key in ("root", "features"):
    if not getattr(settings, key):
      raise ValueError(
        f"config.benchmark.{key} is empty; give --config.benchmark.{key}=FOLDER (docs/benchmarks.md says what is in it)"
      )


def open_problems(settings: BenchmarkFiles) -> list[Problem]:
  """Returns the problems of the benchmark, every file checked; raises ValueError or FileNotFoundError."""
  check_files(settings)
  return BENCHMARKS[settings.name].open(settings)


def _ilias(settings: BenchmarkFiles) -> list[Problem]:
  folder = Path(settings.features)
  mini = Path(settings.mini_ids) if settings.mini_ids else None
  tasks = ilias_features.open_tasks(settings.root, folder, settings.distractor_files, mini)
  lists = (Path(settings.root) / "image_ids").glob("*.txt")
  files = (*sorted(lists), *sorted(folder.glob("features_*.hdf5")), *([mini] if mini else []))
  problems = []
  for task in tasks:
    kind = task.name.split()[-1]
    problems.append(_problem(settings, f"ilias_{kind}", QUERY_TYPES[kind], {kind: task}, files))
  return problems


def _inquire(settings: BenchmarkFiles) -> list[Problem]:
  benchmark = Inquire.open(settings.root, settings.split)
  files = sorted(Path(settings.root).glob("inquire_*.csv"))
  return [_of_stores(settings, f"inquire_{settings.split}", "text", benchmark.full_rank, files)]


def _inquire_rerank(settings: BenchmarkFiles) -> list[Problem]:
  """Returns the problem whose gallery is what the re-rank set shows; a query is answered by its own 100 photos."""
  benchmark = Inquire.open(settings.root, settings.split)
  queries, gallery = _stores(settings, "text")
  _, shown_QK = benchmark.rerank_set(gallery.ids)
  used = np.unique(shown_QK)
  task, candidates_QK = benchmark.rerank_set(gallery.ids[used])
  task = with_features(task, _in_order(queries, task.query_ids), np.asarray(gallery[used]))
  files = (*sorted(Path(settings.root).glob("inquire_*.csv")), *files_of(queries), *files_of(gallery))
  problem = _problem(settings, f"inquire_rerank_{settings.split}", "text", {"": task}, files)
  return [problem._replace(depth=len(used), candidates=candidates_QK)]


def _gldv2(settings: BenchmarkFiles) -> list[Problem]:
  root = Path(settings.root)
  solutions = sorted(root.glob("retrieval_solution*.csv"))
  solution = solutions[-1] if solutions else need(root / "retrieval_solution_v2.1.csv", gldv2.SOURCE)
  task = gldv2.open_task(solution, root / "index.csv")
  return [_of_stores(settings, "gldv2", "image", lambda _: task, [solution, root / "index.csv"])]


def _oxford_paris(settings: BenchmarkFiles) -> list[Problem]:
  """Returns the problem of Oxford, Paris or INSTRE; features are folders, or the published .mat of Q and X."""
  name, features = settings.name, Path(settings.features)
  candidates = [Path(settings.root) / f"gnd_{name}{ending}" for ending in (".pkl", ".mat", ".json")]
  gnd = next((path for path in candidates if path.exists()), candidates[0])
  far = FeatureStore.open(settings.distractors, "img") if settings.distractors else None
  queries: Any  # arrays or stores
  images: Any
  files: tuple[Path, ...]
  if features.suffix == ".mat":
    queries, images = (part.astype(np.float32) for part in revisited.read_features(features))
    files = (features,)
  else:
    queries, images = _stores(settings, "img")
    files = (*files_of(queries), *files_of(images))
  protocols = revisited.open_task(gnd, name, far.ids if far else ())
  tasks = {task.name.removeprefix(name).strip(): task for task in protocols}
  first = next(iter(tasks.values()))
  if not len(first.gallery_ids):
    raise ValueError(f"{gnd} has no imlist, the names of its images; {revisited.SOURCE}")
  if isinstance(queries, FeatureStore):
    queries = _in_order(queries, first.query_ids)
  if far is not None:
    listed = None if isinstance(images, FeatureStore) else first.gallery_ids
    images, files = (
      Joined([ArrayGallery(images, "frozen") if listed else images, far], listed),
      (*files, *files_of(far)),
    )
  tasks = {label: with_features(task, queries, images) for label, task in tasks.items()}
  return [_problem(settings, name + ("_distractors" if far else ""), "image", tasks, (gnd, *files))]


def _problem(settings: BenchmarkFiles, name: str, query_type: str, tasks: dict[str, Task], files: tuple) -> Problem:
  first = next(iter(tasks.values()))
  depth = min(first.depth or len(first.gallery), len(first.gallery))
  query_QD = np.asarray(first.queries[:], np.float32)
  # Size and time of change, not contents: hundreds of GB would be read before the first ranking.
  made_from = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
  return Problem(name, settings.name, query_type, query_QD, first.gallery, depth, tasks, made_from)


def _of_stores(
  settings: BenchmarkFiles, name: str, query_type: str, task_of: Callable[[Ids], Task], files: Sequence[Path]
) -> Problem:
  """Returns the problem of a task whose features lie in queries/ and gallery/; `task_of` gets the gallery's ids."""
  queries, gallery = _stores(settings, "img" if query_type == "image" else query_type)
  task = task_of(gallery.ids)
  task = with_features(task, _in_order(queries, task.query_ids), gallery)
  return _problem(settings, name, query_type, {"": task}, (*files, *files_of(queries), *files_of(gallery)))


def _stores(settings: BenchmarkFiles, kind: str) -> tuple[Any, FeatureStore]:
  folder = Path(settings.features)
  gallery = FeatureStore.open(folder / "gallery", "img")
  if gallery.space != "frozen":
    raise ValueError(f"{gallery.folder} was prepared by an adapter ({gallery.space}); give the encoder's own features")
  return FeatureStore.open(folder / "queries", kind), gallery


def _in_order(queries: FeatureStore, ids: Ids) -> np.ndarray:
  """Returns the features of all queries (QD, float32), in the benchmark's order; raises ValueError for other ids."""
  place = {name: i for i, name in enumerate(queries.ids)}
  if len(place) != len(ids) or any(name not in place for name in ids):
    check_same_ids(list(queries.ids), list(ids), f"{queries.folder}, queries")
  return np.asarray(queries[np.array([place[name] for name in ids])], np.float32)


class Benchmark(NamedTuple):
  """What a public benchmark is for `eval.main` and, where it says which flags it needs, for `eval.score`."""

  open: Callable[[BenchmarkFiles], list[Problem]]
  score: Callable[[argparse.Namespace], dict]  # the figures of the files that the flags name
  needs: tuple[str, ...] = ()


def _score_ilias(flags: argparse.Namespace) -> dict:
  if flags.k < 1:
    raise ValueError(f"--k is {flags.k}; give 1 or more")
  similarities = ilias_files.read_similarities(flags.similarities)
  return Ilias.open(flags.root).score(similarities, flags.k, flags.similarities)


def _unscored(flags: argparse.Namespace) -> dict:
  raise ValueError(f"{flags.benchmark} has no file of results; give its features to eval.main")


_score_landmarks = lambda flags: gldv2.score_predictions(flags.solution, flags.predictions)
_score_ranks = lambda flags: revisited.score_ranks(
  flags.gnd, revisited.read_ranks(flags.ranks), flags.benchmark, flags.distractors
)
BENCHMARKS = {
  "ilias": Benchmark(_ilias, _score_ilias, ("root", "similarities")),
  "inquire": Benchmark(_inquire, _unscored),
  "inquire_rerank": Benchmark(_inquire_rerank, _unscored),
  **dict.fromkeys(revisited.NAMES, Benchmark(_oxford_paris, _score_ranks, ("gnd", "ranks"))),
  "gldv2": Benchmark(_gldv2, _score_landmarks, ("solution", "predictions")),
}

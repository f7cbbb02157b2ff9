"""What every benchmark comes down to: queries, a gallery, what is right, and the benchmark's own rule."""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qat_jax.types import Ranking, Relevance

Ids = Sequence[str] | np.ndarray  # an object array of str
UNIT_TOLERANCE = 0.02  # of a length of 1: fp16 storage is off by 1e-3
# Large features are not read twice: 64 blocks of 1,024 rows are checked, spread evenly over them.
CHECKED_BLOCKS, BLOCK_ROWS = 64, 1024


@dataclass(frozen=True)
class Task:
  """One retrieval task. Features are anything with `len`, `width`, `ids` and slices; None where only ids are known."""

  name: str
  query_ids: Ids
  gallery_ids: Ids
  relevance: Relevance
  score: Callable[[Ranking], dict]  # the benchmark's figures for a ranking of the gallery, in its own unit
  # each query's average precision by the benchmark's rule (Q, fraction; NaN: no positive)
  precision: Callable[[Ranking], np.ndarray]
  depth: int = 0  # how many items of a ranking count; 0: all of the gallery
  queries: Any = None
  gallery: Any = None


def relevance_of(positives: Sequence[np.ndarray]) -> Relevance:
  """Returns the relevance of queries that have these positives, a row a query, and ignore nothing."""
  return Relevance(list(positives), [np.zeros(0, np.int64)] * len(positives))


def need(path: Path, source: str) -> Path:
  """Returns a path that exists; `source` says in words where its contents come from."""
  if not path.exists():
    raise FileNotFoundError(f"no {path}; {source}")
  return path


def with_features(task: Task, queries: Any, gallery: Any) -> Task:
  """Returns the task with features, after checking that they are its own: ids and their order, widths, lengths of 1.

  Features without `ids` (arrays) are checked by their number.
  """
  for what, features, ids in (("queries", queries, task.query_ids), ("gallery", gallery, task.gallery_ids)):
    if len(features) != len(ids):
      raise ValueError(f"{task.name}, {what}: {len(features):,} features for {len(ids):,} ids; give one for each")
    if getattr(features, "ids", None) is not None:
      check_same_ids(features.ids, ids, f"{task.name}, {what}")
    check_unit_lengths(features, ids, f"{task.name}, {what}")
  widths = [int(features[:1].shape[1]) for features in (queries, gallery)]
  if widths[0] != widths[1]:
    raise ValueError(f"{task.name}: queries are {widths[0]} wide, the gallery {widths[1]}; use one encoder for both")
  return dataclasses.replace(task, queries=queries, gallery=gallery)


def check_unit_lengths(features: Any, ids: Ids, what: str) -> None:
  """Raises ValueError where a feature is not of unit length, or not finite; looks at 65,536 of a larger number."""
  every = max(BLOCK_ROWS, len(features) // CHECKED_BLOCKS)
  for start in range(0, len(features), every):
    length_N = np.linalg.norm(np.asarray(features[start : start + BLOCK_ROWS], np.float32), axis=1)
    bad = np.flatnonzero(~(np.abs(length_N - 1) < UNIT_TOLERANCE))
    if len(bad):
      raise ValueError(
        f"{what}: the feature of {ids[start + bad[0]]!r} has length {length_N[bad[0]]:.4g}, not 1; "
        "normalise the features to unit length"
      )


def check_same_ids(got: Ids, wanted: Ids, what: str) -> None:
  """Raises ValueError where two lists of ids are not the same in the same order; says what differs."""
  if len(got) == len(wanted) and np.array_equal(np.asarray(got, object), np.asarray(wanted, object)):
    return
  missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
  if missing or extra:
    raise ValueError(
      f"{what}: {len(missing)} ids are missing (first {missing[:1]}) and {len(extra)} are unknown (first {extra[:1]})"
    )
  check_unique(got, what)
  place = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b)
  raise ValueError(
    f"{what}: the order differs, row {place} is {got[place]!r}, the benchmark's list has {wanted[place]!r}; "
    "write the features in the order of the benchmark's list"
  )


def check_unique(ids: Iterable[str], what: str) -> None:
  """Raises ValueError where an id comes twice."""
  seen: set[str] = set()
  for name in ids:
    if name in seen:
      raise ValueError(f"{what}: the id {name!r} comes twice; every item needs an id of its own")
    seen.add(name)


def read_csv(path: Path, fields: Sequence[str], source: str) -> list[dict[str, str]]:
  """Returns the rows of a CSV that has these fields; what a short row lacks is empty.

  Raises FileNotFoundError as `need`, ValueError for a missing field, a row with too many cells, or what is no CSV.
  """
  try:
    with open(need(path, source), newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file, restval="", strict=True)
      names = reader.fieldnames or []
      if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it has the column {repeated[0]!r} twice")
      missing = [f for f in fields if f not in (reader.fieldnames or ())]
      if missing:
        raise ValueError(f"it has the columns {reader.fieldnames}, but no {', '.join(missing)}")
      rows = list(reader)
      if long := next((row for row in rows if any(row.get(None, ()))), None):
        raise ValueError(f"the row {list(long.values())} has more cells than columns; put text with a comma in quotes")
      return rows
  except (ValueError, csv.Error) as error:
    raise ValueError(f"{path} is no such table: {error}; {source}") from error

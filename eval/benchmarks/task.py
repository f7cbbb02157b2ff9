"""What every benchmark comes down to: queries, a gallery, what is right, and the benchmark's own rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.benchmarks.relevance import Relevance
from qat_jax.types import Ranking

UNIT_TOLERANCE = 0.02  # features stored as fp16 are off by 1e-3
CHECKED_ROWS = 65536  # of features too many to read twice


@dataclass(frozen=True)
class Task:
  """One retrieval task. Features are anything with `len`, `width`, `ids` and slices; None where only ids are known."""

  name: str
  query_ids: Sequence[str]
  gallery_ids: Sequence[str]
  relevance: Relevance
  score: Callable[[Ranking], dict]  # the benchmark's figures for a ranking of the gallery, in its own unit
  queries: object | None = None
  gallery: object | None = None


def need(path: Path, source: str) -> Path:
  """Returns a path that exists; `source` says in words where its contents come from."""
  if not path.exists():
    raise FileNotFoundError(f"no {path}; {source}")
  return path


def check_features(features, what: str, ids: Sequence[str] | None = None) -> None:
  """Raises ValueError where features are not of unit length, not finite, or not for these `ids` in this order."""
  if ids is not None:
    check_same_ids(list(features.ids), list(ids), what)
  for start in range(0, min(len(features), CHECKED_ROWS), 8192):
    length_N = np.linalg.norm(np.asarray(features[start : start + 8192], np.float32), axis=1)
    bad = np.flatnonzero(~(np.abs(length_N - 1) < UNIT_TOLERANCE))
    if len(bad):
      raise ValueError(
        f"{what}: the feature of {features.ids[start + bad[0]]!r} has length {length_N[bad[0]]:.4g}, not 1; "
        "normalise the features to unit length"
      )


def check_same_ids(got: Sequence[str], wanted: Sequence[str], what: str) -> None:
  """Raises ValueError where two lists of ids are not the same in the same order; says what differs."""
  if list(got) == list(wanted):
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

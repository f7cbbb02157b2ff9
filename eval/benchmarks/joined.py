"""Several stores of features as one gallery, in the order given: a benchmark's own images and its distractors."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eval.benchmarks.task import Ids

CHUNK_ROWS = 65536


class Joined:
  """Features of parts one after the other. A part has `len`, `width`, `ids` and can be read by sorted positions."""

  def __init__(self, parts: Sequence[Any], ids: Ids | None = None):
    """Raises ValueError where there is no part, or where widths or spaces differ; `ids` for parts without their own."""
    if not parts:
      raise ValueError("no features were given; name at least one store")
    for part in parts:
      if part.width != parts[0].width:
        raise ValueError(f"features are {part.width} wide and {parts[0].width} wide; use the same encoder for all")
      if getattr(part, "space", "frozen") != getattr(parts[0], "space", "frozen"):
        raise ValueError(f"features of the spaces {part.space!r} and {parts[0].space!r}; prepare all alike")
    self.parts = list(parts)
    self.width = int(parts[0].width)
    self.dtype = np.dtype(parts[0].dtype)
    self.space = getattr(parts[0], "space", "frozen")
    self.ids = np.concatenate([np.asarray(part.ids, object) for part in parts]) if ids is None else ids
    self._starts = np.cumsum([0] + [len(part) for part in parts])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns rows by slice, or by positions in any order and shape (…D)."""
    positions_N = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
    if positions_N.size and not 0 <= positions_N.min() <= positions_N.max() < len(self):
      raise IndexError(f"positions from {positions_N.min()} to {positions_N.max()} of {len(self)} items")
    unique_U, place_N = np.unique(positions_N, return_inverse=True)
    rows_ND = np.empty((len(unique_U), self.width), self.dtype)
    bounds = np.searchsorted(unique_U, self._starts)
    for part, start, (first, last) in zip(self.parts, self._starts, itertools.pairwise(bounds), strict=False):
      if first < last:
        rows_ND[first:last] = part[unique_U[first:last] - start]
    return rows_ND[place_N.reshape(positions_N.shape)]

  def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (start, rows from there on) over everything, in order."""
    for start in range(0, len(self), rows):
      yield start, self[start : start + rows]

"""Features that lie in HDF5 files, as ILIAS publishes them: `features` (N × D) and `index` (N ids) in each file.

Several files form one gallery in the order given. Rows are read when asked for, so a gallery may be larger than memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_ROWS = 65536
SOURCE = "fetch the file again, or extract the features again"


class Hdf5Features:
  """Rows of one or more HDF5 files: `len`, `width`, `ids`, slices and positions, as a FeatureStore has them."""

  space = "frozen"

  def __init__(self, paths: Sequence[Path | str], keep: Callable[[np.ndarray], np.ndarray] | None = None):
    """Opens the files and reads their ids. `keep` says which ids (bool, N) of a file belong; all without it.

    Raises FileNotFoundError or ValueError for a file that is missing, cut short, or of another form or width.
    """
    self._features: list[Any] = []
    self._rows: list[np.ndarray | None] = []
    ids = []
    for path in map(Path, paths):
      features, names = _open(path)
      if self._features and features.shape[1] != self.width:
        raise ValueError(f"{path}: features are {features.shape[1]} wide, those of {paths[0]} {self.width}")
      kept = None if keep is None else np.flatnonzero(keep(names))
      self._features.append(features)
      self._rows.append(kept)
      ids.append(names if kept is None else names[kept])
    if not ids:
      raise ValueError("no HDF5 file was given; name at least one")
    self.ids = np.concatenate(ids)  # of str objects
    self._starts = np.cumsum([0] + [len(names) for names in ids])

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def width(self) -> int:
    """D."""
    return int(self._features[0].shape[1])

  @property
  def dtype(self) -> np.dtype:
    """The stored type."""
    return self._features[0].dtype

  def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns rows by slice, or by positions in any order (ND)."""
    positions_N = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
    if positions_N.size and not 0 <= positions_N.min() <= positions_N.max() < len(self):
      raise IndexError(f"positions from {positions_N.min()} to {positions_N.max()} of {len(self)} items")
    wanted, place_N = np.unique(positions_N, return_inverse=True)
    found = np.empty((len(wanted), self.width), self.dtype)
    bounds = np.searchsorted(wanted, self._starts)
    for part, (first, last) in enumerate(itertools.pairwise(bounds)):
      if first < last:
        found[first:last] = self._read(part, wanted[first:last] - self._starts[part])
    return found[place_N.reshape(positions_N.shape)]

  def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (start, rows from there on) over everything, in order."""
    for start in range(0, len(self), rows):
      yield start, self[start : start + rows]

  def _read(self, part: int, local: np.ndarray) -> np.ndarray:
    kept = self._rows[part]
    local = local if kept is None else kept[local]
    first, last = int(local[0]), int(local[-1]) + 1
    if last - first <= 8 * len(local):  # one long read is faster than many short ones
      return self._features[part][first:last][local - first]
    return self._features[part][local]


def _open(path: Path) -> tuple[Any, np.ndarray]:
  try:
    import h5py
  except ImportError as error:
    raise ValueError("reading HDF5 features needs h5py; install it with: pip install 'qat-jax[bench]'") from error
  if not path.exists():
    raise FileNotFoundError(f"no {path}; it is a file of published or extracted ILIAS features")
  try:
    file = h5py.File(path, "r")
  except OSError as error:
    raise ValueError(f"{path} is not a whole HDF5 file ({error}); {SOURCE}") from error
  if "features" not in file or "index" not in file:
    raise ValueError(f"{path} has {sorted(file)}, it should have `features` and `index`; {SOURCE}")
  features = file["features"]
  try:
    names = file["index"].asstr()[:]
    features[len(features) - 1 :]  # the last row is lost first
  except OSError as error:
    raise ValueError(f"{path} is damaged ({error}); {SOURCE}") from error
  if features.ndim != 2 or len(features) != len(names):
    raise ValueError(f"{path}: features of shape {features.shape} for {len(names)} ids; {SOURCE}")
  return features, names

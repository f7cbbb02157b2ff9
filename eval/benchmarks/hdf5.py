"""Features in an HDF5 file, as ILIAS publishes them: `features` (N × D) and `index` (N ids).

Rows are read when asked for, so a file may be larger than memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qat_jax.sealed import UNREADABLE

HEAD = 16  # bytes of the header of a heap, and of each of its entries
SOURCE = "fetch the file again, or extract the features again"


class Hdf5Features:
  """Rows of an HDF5 file: `len`, `width`, `ids`, slices and sorted positions, as a FeatureStore has them."""

  space = "frozen"

  def __init__(self, path: Path | str, keep: Callable[[np.ndarray], np.ndarray] | None = None):
    """Opens the file and reads its ids. `keep` says which of them (bool, N) belong; all without it.

    Raises FileNotFoundError or ValueError for a file that is missing, cut short, or of another form.
    """
    self.path = Path(path)
    self._features, self.ids = _open(self.path)  # ids: str objects
    self._rows: np.ndarray | None = None
    if keep is not None:
      self._rows = np.flatnonzero(keep(self.ids))
      self.ids = self.ids[self._rows]
    self.width, self.dtype = int(self._features.shape[1]), self._features.dtype

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    """Returns rows by slice, or by positions that ascend (ND)."""
    local = np.arange(len(self))[rows]
    local = local if self._rows is None else self._rows[local]
    if not len(local):
      return np.empty((0, self.width), self.dtype)
    first, last = int(local[0]), int(local[-1]) + 1
    if last - first <= 8 * len(local):  # one long read is faster than many short ones
      return self._features[first:last][local - first]
    return self._features[local]


def _open(path: Path) -> tuple[Any, np.ndarray]:
  try:
    import h5py
  except ImportError as error:
    raise ImportError("reading HDF5 features needs h5py; install it with: pip install 'qat-jax[eval]'") from error
  if not path.exists():
    raise FileNotFoundError(f"no {path}; it is a file of published or extracted ILIAS features")
  try:
    file = h5py.File(path, "r")
    arrays = sorted(file)
  except (OSError, *UNREADABLE) as error:
    raise ValueError(f"{path} is not a whole HDF5 file ({error}); {SOURCE}") from error
  if "features" not in arrays or "index" not in arrays:
    raise ValueError(f"{path} has {arrays}, it should have `features` and `index`; {SOURCE}")
  try:
    features = file["features"]
    _check_heaps(path, file["index"])
    names = file["index"].asstr()[:]
    if names.ndim != 1 or features.dtype.kind != "f":
      raise ValueError(f"features are {features.dtype}, ids of shape {names.shape}")
    features[len(features) - 1 :]  # the last row is lost first
  except (OSError, *UNREADABLE) as error:
    raise ValueError(f"{path} is damaged, or holds no features with their ids ({error}); {SOURCE}") from error
  if features.ndim != 2 or len(features) != len(names):
    raise ValueError(f"{path}: features of shape {features.shape} for {len(names)} ids; {SOURCE}")
  return features, names


def _check_heaps(path: Path, ids: Any) -> None:
  """Raises ValueError for strings in a heap with an entry of no length, in which HDF5 2.0 would go round for ever."""
  import h5py

  about, start = h5py.check_string_dtype(ids.dtype), ids.id.get_offset()
  if about is None or about.length is not None or start is None:  # of fixed length, or in chunks
    return
  kind = np.dtype([("length", "<u4"), ("heap", "<u8"), ("entry", "<u4")])
  places = np.fromfile(path, kind, ids.size, offset=start)
  with open(path, "rb") as file:
    for heap in np.unique(places["heap"][places["length"] > 0]).tolist():
      file.seek(heap)
      data = file.read(HEAD)
      size = int.from_bytes(data[8:], "little")
      data += file.read(min(size, path.stat().st_size))
      at = HEAD
      while data.startswith(b"GCOL") and at + HEAD <= min(size, len(data)):
        free = not int.from_bytes(data[at : at + 2], "little")
        length = int.from_bytes(data[at + 8 : at + HEAD], "little")
        length = length if free else HEAD + -(-length // 8) * 8
        if not length:
          raise ValueError(f"the heap of its strings at byte {heap} has an entry of no length")
        at += length

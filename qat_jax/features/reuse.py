"""Features of pictures that were encoded before: found by what is in the file, so neither names nor dates matter.

Beside the features of an extraction lies one digest a row, of the picture's bytes. Whoever encodes a collection that
has grown takes the rows of the pictures that it had already.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qat_jax.features.shards import META, read_meta
from qat_jax.features.store import FeatureStore
from qat_jax.sealed import read_sealed, write_sealed

CONTENT = "content.bin"  # a digest a row, in the order of the rows
DIGEST = 16  # bytes
UNKNOWN = bytes(DIGEST)  # of pictures that did not come as bytes
ALIKE = ("encoder", "revision", "precision", "dtype")  # what features must share to be reused


def digest(image: Any) -> bytes:
  """Returns what tells a picture's bytes from others'; UNKNOWN for what is a picture already."""
  if not isinstance(image, bytes | bytearray | memoryview):
    return UNKNOWN
  return hashlib.blake2b(image, digest_size=DIGEST).digest()


def write_content(folder: Path, digests: Iterable[str]) -> None:
  """Writes the digests (hexadecimal, of some rows each) of all rows of a folder."""
  write_sealed(folder / CONTENT, bytes.fromhex("".join(digests)))


class Encoded:
  """The image features in all folders beneath one, by what is in the pictures. Holds 24 bytes a picture."""

  def __init__(self, root: str | os.PathLike, plan: Mapping[str, Any]) -> None:
    """Opens what lies beneath `root`; `plan` is that of the extraction which wants it.

    Raises ValueError where there is nothing of the kind, it is damaged, or another encoder made it.
    """
    root = Path(root)
    folders = sorted(path.parent for path in root.rglob(META) if (path.parent / CONTENT).exists())
    self.stores = [FeatureStore.open(folder, "img") for folder in folders if (folder / "img_emb").is_dir()]
    if not self.stores:
      raise ValueError(f"{root} has nothing to reuse: give a folder that this version has encoded pictures into")
    for store in self.stores:
      made = read_meta(store.folder).get("extraction", {})
      ours, theirs = ({name: of.get(name) for name in ALIKE} for of in (plan, made))
      if theirs != ours:
        raise ValueError(f"{store.folder} cannot be reused: it is of {theirs}, wanted {ours}; leave out the reuse")
      store.check_files()
    digests = [np.frombuffer(read_sealed(store.folder / CONTENT), np.uint64).reshape(-1, 2) for store in self.stores]
    for store, digest_N2 in zip(self.stores, digests, strict=True):
      if len(digest_N2) != len(store):
        raise ValueError(f"{store.folder / CONTENT} is of {len(digest_N2)} rows, the features are {len(store)}")
    self._starts = np.cumsum([0, *map(len, self.stores)])
    digest_N2 = np.concatenate(digests)
    self._order = np.lexsort((digest_N2[:, 1], digest_N2[:, 0]))
    self._digest_N2 = digest_N2[self._order]

  def row(self, digest: bytes) -> int | None:
    """Returns the place of a picture's feature; None where it was not encoded."""
    first, second = np.frombuffer(digest, np.uint64)
    start, stop = (np.searchsorted(self._digest_N2[:, 0], first, side) for side in ("left", "right"))
    at = start + int(np.searchsorted(self._digest_N2[start:stop, 1], second))
    if digest == UNKNOWN or at >= stop or self._digest_N2[at, 1] != second:
      return None
    return int(self._order[at])

  def features(self, rows: list[int]) -> np.ndarray:
    """Returns the features (ND) at places."""
    row_N = np.array(rows, np.int64)
    found_ND = np.empty((len(row_N), self.stores[0].width), self.stores[0].dtype)
    of_N = np.searchsorted(self._starts, row_N, "right") - 1
    for number, store in enumerate(self.stores):
      here_N = of_N == number
      found_ND[here_N] = store[row_N[here_N] - self._starts[number]]
    return found_ND

"""ScaNN: partitions, quantised scores, and exact inner products of the best few. Linux only."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np

from qat_jax.search.index import SMALL, as_queries, check_gallery, read_about, whole
from qat_jax.search.indexes.stored import needed
from qat_jax.search.rank import GalleryLike
from qat_jax.types import Ranking


class ScannIndex:
  """An index of ScaNN's in memory. It keeps no vectors: rerank with the gallery itself."""

  def __init__(self, searcher: Any, items: int, width: int, space: str) -> None:
    self.searcher, self.items, self.width, self.space = searcher, items, width, space

  @classmethod
  def build(cls, gallery: GalleryLike, leaves_searched: float = 0.1, reordered: int = 1000) -> ScannIndex:
    """Returns the index; a gallery of under 20,000 items is searched exhaustively.

    `leaves_searched`: the share of partitions that a search looks into; `reordered`: how many of the best quantised
    scores are computed exactly.
    """
    gallery = check_gallery(gallery)
    gallery_ND = np.ascontiguousarray(gallery[:], np.float32)
    items, width = gallery_ND.shape
    builder = _scann().builder(gallery_ND, min(reordered, items), "dot_product")
    if items < SMALL:
      builder = builder.score_brute_force()
    else:
      leaves = round(items**0.5)
      builder = builder.tree(leaves, max(1, round(leaves * leaves_searched)), training_sample_size=min(items, 250_000))
      builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(reordered)
    return cls(builder.build(), items, width, gallery.space or "frozen")

  def search(self, query_QD: np.ndarray | jax.Array, k: int) -> Ranking:
    query_QD = as_queries(query_QD, self.width, k)
    found = min(k, self.items)
    ids_QK, scores_QK = self.searcher.search_batched_parallel(query_QD, found, max(found, min(self.items, 1000)))
    ids_QK, scores_QK = np.asarray(ids_QK).astype(np.int32), np.asarray(scores_QK, np.float32)
    missing_QK = ~np.isfinite(scores_QK)  # ScaNN fills up with NaN where the partitions searched hold fewer
    missing = ((0, 0), (0, k - found))
    return Ranking(
      np.pad(np.where(missing_QK, -1, ids_QK), missing, constant_values=-1),
      np.pad(np.where(missing_QK, -np.inf, scores_QK).astype(np.float32), missing, constant_values=-np.inf),
    )

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the index to a folder, whole or not at all."""
    about = {"kind": "scann", "space": self.space, "items": self.items, "width": self.width}
    with whole(folder, about) as temporary:
      (temporary / "scann").mkdir()
      self.searcher.serialize(str(temporary / "scann"), relative_path=True)

  @classmethod
  def load(cls, folder: str | os.PathLike, verify: bool = True) -> ScannIndex:
    """Returns the index that `save` wrote; the folder may have moved. `verify` reads all and names what was changed."""
    about = read_about(folder, "scann", verify)
    searcher = _scann().load_searcher(str(pathlib.Path(folder) / "scann"))
    return cls(searcher, about["items"], about["width"], about["space"])


def _scann() -> Any:
  return needed("scann", "ScannIndex", "pip install scann (Linux only), or use ExactIndex").scann_ops_pybind

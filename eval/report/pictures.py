"""Contact sheets of a run: the queries that changed most, where their images are at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from eval.report.results import Result
from eval.report.sheets import Sheet, build_sheets
from qat_jax.features.store import FeatureStore
from qat_jax.types import Relevance


class Pictures:
  """The pictures of a store's items, by position; `source` gives records with the same ids."""

  def __init__(self, store: FeatureStore, source: Sequence[dict]) -> None:
    self.store, self.source = store, source
    self.aligned = len(source) == len(store)  # unreadable images are left out of a store

  def __call__(self, position: int) -> Image.Image:
    """Returns the picture of a position."""
    from qat_jax.datasets.pictures import decode

    return decode(self.source[position if self.aligned else self._find(self.store.ids[position])])

  def _find(self, item: str) -> int:
    return next(i for i in range(len(self.source)) if self.source[i]["id"] == item)


def sheets(
  queries: FeatureStore,
  rows_Q: np.ndarray,
  relevance: Relevance,
  before: Result,
  after: Result,
  gallery_pictures: Pictures,
  query_pictures: Pictures,
) -> list[Sheet]:
  """Returns sheets from one method's ranking to another's; text queries are shown by their caption."""
  captions = queries.column("caption") if after.query_type == "text" else None

  def query_of(query: int) -> Image.Image | str:
    row = int(rows_Q[query])
    return query_pictures(row) if captions is None else str(captions[row])

  return build_sheets(before, after, relevance, query_of, gallery_pictures)

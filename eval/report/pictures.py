"""Contact sheets of a run: what the queries that changed most found, where their images are at hand."""

from __future__ import annotations

import numpy as np
from PIL import Image

from eval.cache import Found
from eval.report.sheets import Sheet, build_sheets
from qat_jax.features.store import FeatureStore
from qat_jax.types import Relevance


class Pictures:
  """The pictures of a store's items, by position; `source` gives records with the same ids."""

  def __init__(self, store: FeatureStore, source) -> None:
    self.store, self.source = store, source
    self.aligned = len(source) == len(store)  # unreadable images are left out of a store

  def __call__(self, position: int) -> Image.Image:
    """Returns the picture of a position."""
    from qat_jax.datasets import decode

    return decode(self.source[position if self.aligned else self._find(self.store.ids[position])])

  def _find(self, item: str) -> int:
    return next(i for i in range(len(self.source)) if self.source[i]["id"] == item)


def sheets(
  query_type: str,
  queries: FeatureStore,
  rows_Q: np.ndarray,
  relevance: Relevance,
  before: Found,
  after: Found,
  gallery_pictures: Pictures,
  query_pictures: Pictures | None,
) -> list[Sheet]:
  """Returns sheets from what one method found to what another did; text queries are shown by their caption."""
  captions = queries.column("caption") if query_type == "text" else None

  def query_of(query: int) -> Image.Image | str:
    row = int(rows_Q[query])
    return str(captions[row]) if captions is not None else query_pictures(row)

  return build_sheets(
    query_type,
    before.ids,
    after.ids,
    relevance,
    before.results[0].ap_Q,
    after.results[0].ap_Q,
    query_of,
    gallery_pictures,
  )

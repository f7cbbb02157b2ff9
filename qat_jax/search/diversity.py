"""Results that differ from each other: maximal marginal relevance on top of any ranking.

After Carbonell and Goldstein, "The use of MMR, diversity-based reranking" (SIGIR 1998).
"""

from __future__ import annotations

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.search.rank import GalleryLike
from qat_jax.types import Ranking, as_gallery

DECIMALS = 9  # of a cosine: copies are equally alike, whatever rounding says


def diverse(ranking: Ranking, gallery: GalleryLike, k: int, diversity: float) -> Ranking:
  """Returns k items of a ranking, each next one the best by (1 − diversity) · score − diversity · likeness.

  The likeness is the greatest cosine with an item that was taken before, in the gallery's own space. Of equal ones the
  first of the ranking is taken. Scores stay those of the ranking, so they no longer fall.

  Args:
    ranking: positions in the gallery, a few hundred a query (QS).
    gallery: what was ranked.
    k: how many to take; where the ranking has fewer, ids are filled up with −1 and scores with −inf.
    diversity: 0 leaves the order as it is, 1 looks at likeness alone.

  Raises ValueError for a diversity that is not from 0 to 1, or k below 1.
  """
  if not 0 <= diversity <= 1 or k < 1:
    raise ValueError(f"diversity is {diversity}, k is {k}; give a number from 0 to 1, and k at least 1")
  rows, queries = as_gallery(gallery), len(ranking.ids)
  place_QK = np.full((queries, k), -1)
  for query, ids_S in enumerate(np.asarray(ranking.ids)):
    there = np.flatnonzero(ids_S >= 0)
    item_SD = unit(np.asarray(rows[ids_S[there]], np.float32))
    value_S = (1 - diversity) * np.asarray(ranking.scores[query][there], np.float64)
    likeness_S = np.full(len(there), -1.0)
    for place in range(min(k, len(there))):
      best = int(np.argmax(value_S - diversity * likeness_S))
      place_QK[query, place] = there[best]
      value_S[best] = -np.inf
      likeness_S = np.maximum(likeness_S, np.round(item_SD @ item_SD[best], DECIMALS))
  return ranking.taken(place_QK)

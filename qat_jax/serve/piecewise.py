"""Shortlists of a gallery that grows: its large pieces have an index each, the others are searched exactly."""

from collections.abc import Mapping

import numpy as np

from qat_jax.adaptation import fold
from qat_jax.search.index import Index
from qat_jax.search.rank import rank
from qat_jax.types import Adaptation, Pieces


def shortlist(indexes: Mapping[int, Index], adaptation: Adaptation, gallery: Pieces, most: int, k: int) -> np.ndarray:
  """Returns positions (QS, −1 as padding) that hold the best of what is not indexed, and what the indexes find.

  Args:
    indexes: by the places of the pieces that they are of.
    adaptation: Q queries.
    gallery: the pieces.
    most: items that the indexes give together, each as many as its piece has of their items, but `k` at least.
    k: the best items of the other pieces.
  """
  starts, folded_QD, found = gallery.starts, np.asarray(fold(adaptation)), []
  indexed = sum(gallery.counts[place] for place in indexes)
  for place, index in indexes.items():
    alive_N, count = gallery.alive[place], gallery.counts[place]
    if not alive_N.any():
      continue
    share = max(k, most * count // indexed) * count // int(alive_N.sum())  # the dead are found too
    ids_QS = np.array(index.search(folded_QD, min(count, share + 1)).ids)
    there_QS = (ids_QS >= 0) & alive_N[ids_QS]
    found.append(np.where(there_QS, ids_QS + starts[place], -1))
  rest = [place for place, count in enumerate(gallery.counts) if place not in indexes and count]
  if rest:
    pick = lambda of: tuple(of[place] for place in rest)
    others = Pieces(pick(gallery.arrays), pick(gallery.counts), pick(gallery.alive), gallery.space)
    ids_QK = np.asarray(rank(adaptation, others, k).ids)
    place_QK = np.searchsorted(others.starts, ids_QK, "right") - 1
    moved = np.array([starts[place] for place in rest]) - others.starts[:-1]
    found.append(np.where(ids_QK < 0, -1, ids_QK + moved[np.maximum(place_QK, 0)]))
  return np.concatenate(found, axis=1)

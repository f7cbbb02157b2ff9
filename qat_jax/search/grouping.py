"""Groups of items, such as the tiles of a picture: which items belong together, and rankings of one item a group.

`rank` ranks groups exactly by itself. Whatever else gives rankings (an index, a cluster, a sum of scores) is asked for
more and more items until there are k groups: the first item of each group is its best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.types import MISSING, Gallery, Ranking

GROWTH = 4  # how many times more items are asked for, while there are too few groups


def groups_of(group: str | npt.ArrayLike, gallery: Gallery) -> np.ndarray:
  """Returns a number for each item (N, int64, below 2 N) that is equal for items of one group.

  Args:
    group: a metadata column of the gallery, or a value for each item (N). Items without a value (None, NaN, or −1 among
      integers) are groups by themselves.
    gallery: N items.

  Raises ValueError for values that do not fit the gallery, TypeError for a column of a gallery without columns.
  """
  items = len(gallery)
  if isinstance(group, str):
    if not hasattr(gallery, "column"):
      raise TypeError(
        f"group is {group!r}, but the gallery is a {type(gallery).__name__} without columns; give a value for each item"
      )
    value_N = gallery.column(group)
  else:
    value_N = np.asarray(group)
  if value_N.shape != (items,):
    raise ValueError(f"group has shape {value_N.shape}; wanted ({items},), a value for each gallery item")
  alone_N = items + np.arange(items)
  if value_N.dtype.kind in "iu":
    if value_N.min() >= -1 and value_N.max() < items:
      return np.where(value_N < 0, alone_N, value_N).astype(np.int64)
    known_N = value_N != -1
    return np.where(known_N, np.unique(value_N, return_inverse=True)[1], alone_N)
  try:
    codes = pa.array(value_N, from_pandas=True).dictionary_encode().indices
  except (pa.ArrowException, TypeError) as error:
    raise ValueError(f"group holds {value_N.dtype} that cannot be compared ({error}); give text or numbers") from error
  return np.where(pc.is_valid(codes).to_numpy(False), pc.fill_null(codes, 0).to_numpy().astype(np.int64), alone_N)


def grouped(fetch: Callable[[int], Ranking], k: int, group: np.ndarray | Mapping[Any, Any]) -> Ranking:
  """Returns the best k groups of each query, each by its best item, from rankings of as many items as that takes.

  Args:
    fetch: returns the best items of each query, as many as it is asked for; padded where there are fewer.
    k: how many groups.
    group: of each position (N), as `groups_of` returns it; or of each id of an index. An id that it lacks is a group by
      itself.
  """
  depth, most = k, max(len(group), k) if isinstance(group, np.ndarray) else np.iinfo(np.int32).max
  while True:
    depth = min(GROWTH * depth, most)
    ranking = fetch(depth)
    first_QS = _firsts(ranking.ids, group)
    enough_Q = (first_QS.sum(axis=1) >= k) | (ranking.ids[:, -1] == MISSING[ranking.ids.dtype.kind in "iu"])
    if enough_Q.all() or ranking.ids.shape[1] < depth or depth == most:
      break
  order_QS = np.argsort(~first_QS, axis=1, kind="stable")[:, :k]
  there_QK = np.take_along_axis(first_QS, order_QS, axis=1)
  missing: Any = MISSING[ranking.ids.dtype.kind in "iu"]
  ids_QK = np.where(there_QK, np.take_along_axis(ranking.ids, order_QS, axis=1), missing)
  score_QK = np.where(there_QK, np.take_along_axis(ranking.scores, order_QS, axis=1), np.float32(-np.inf))
  beyond = ((0, 0), (0, k - ids_QK.shape[1]))
  return ranking.replace(
    ids=np.pad(ids_QK, beyond, constant_values=missing), scores=np.pad(score_QK, beyond, constant_values=-np.inf)
  )


def _firsts(ids_QS: np.ndarray, group: np.ndarray | Mapping[Any, Any]) -> np.ndarray:
  """Returns which ids are the first of their group (QS, bool); padding is none."""
  first_QS = np.zeros(ids_QS.shape, bool)
  missing = MISSING[ids_QS.dtype.kind in "iu"]
  for row, ids in enumerate(ids_QS.tolist()):
    seen: set[Any] = set()
    for place, name in enumerate(ids):
      if name == missing:
        continue
      value = ("item", name) if isinstance(group, Mapping) and name not in group else ("group", group[name])
      first_QS[row, place] = value not in seen
      seen.add(value)
  return first_QS

"""Results that differ from each other: near-duplicates as one result, and diversity, on top of any ranking.

Only the best LOOKED items are looked at, so that the time does not grow with the gallery.
"""

import dataclasses
from collections.abc import Container
from typing import Self

import numpy as np

from qat_jax.adaptation import power_of_two
from qat_jax.duplicates import distinct
from qat_jax.search.diversity import diverse
from qat_jax.types import ArrayGallery, Gallery, Ranking

LOOKED = 1000  # items of a ranking, at least; a service has compiled for so many
DUPLICATES = "duplicates"  # as a group: near-duplicates are one result, unless a metadata column has this name


@dataclasses.dataclass(frozen=True)
class Variety:
  """How results shall differ: whether near-duplicates are one result, and how much the others shall differ (0 to 1)."""

  duplicates: bool = False
  diversity: float = 0.0

  def __post_init__(self) -> None:
    if not 0 <= self.diversity <= 1:
      raise ValueError(f"diversity is {self.diversity}; give a number from 0 to 1")

  def __bool__(self) -> bool:
    return self.duplicates or self.diversity > 0

  @classmethod
  def asked(cls, group: str | None, columns: Container[str], diversity: float) -> tuple[str | None, Self]:
    """Returns the column that groups results, None for none, and what they are asked to differ in.

    Args:
      group: a column, or DUPLICATES, which a column of that name hides.
      columns: of the gallery.
      diversity: 0 to 1.
    """
    duplicates = group == DUPLICATES and group not in columns
    return None if duplicates else group, cls(duplicates, diversity)

  def depth(self, k: int) -> int:
    """Returns how many items have to be ranked for k results."""
    return max(k, LOOKED) if self else k

  def of(self, ranking: Ranking, gallery: Gallery, k: int) -> tuple[Ranking, np.ndarray | None]:
    """Returns the best k results of Q queries, and how many of the looked at each stands for (QK), itself counted.

    These numbers are None where near-duplicates are not grouped.

    Args:
      ranking: positions in the gallery, `depth(k)` a query.
      gallery: the frozen one: features tell what is alike.
      k: how many results.
    """
    if not self or not (ranking.ids >= 0).any():
      return ranking, np.zeros_like(ranking.ids) if self.duplicates else None
    place_U = np.unique(ranking.ids[ranking.ids >= 0])
    padded = np.resize(place_U, power_of_two(max(len(place_U), LOOKED)))  # one shape for a service, as a rule
    items = ArrayGallery(np.asarray(gallery[padded], np.float32)[: len(place_U)])
    local = ranking.replace(ids=np.where(ranking.ids < 0, -1, np.searchsorted(place_U, ranking.ids)))
    count_QU = np.ones((len(local.ids), len(place_U) + 1), np.int64)
    if self.duplicates:
      local, count_QS = distinct(local, items)
      np.put_along_axis(count_QU, local.ids, count_QS, axis=1)
    local = diverse(local, items, k, self.diversity)
    ids_QK = np.where(local.ids < 0, -1, place_U[local.ids]).astype(ranking.ids.dtype)
    return local.replace(ids=ids_QK), np.take_along_axis(count_QU, local.ids, axis=1) if self.duplicates else None

"""Which items a query may find: what it excludes, and what it is allowed."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from qat_jax.search.top import ItemPairs
from qat_jax.types import Adaptation, Ranking


@runtime_checkable
class Elsewhere(Protocol):
  """A gallery that ranks its items where they lie, on other machines."""

  def rank(self, adaptation: Adaptation, k: int, masks: Masks) -> Ranking:
    """Returns what `search.rank.rank` does, of arguments that it has checked."""

  def warm(self, adaptation: Adaptation) -> None:
    """Compiles what `search.warming.warm` does, where the items lie."""


class Masks(NamedTuple):
  """What a call masks, checked."""

  excluded: ItemPairs
  wanted_N: np.ndarray | None  # bool, for all queries; None where nothing is masked
  allowed: ItemPairs | None  # all that the queries may find, where each has its own list

  @classmethod
  def of(cls, exclude: npt.ArrayLike | None, allowed: npt.ArrayLike | None, queries: int, items: int) -> Masks:
    """Returns the masks of a call; raises ValueError for shapes and positions that do not fit Q queries and N items."""
    nothing = np.zeros((queries, 0), np.int64)
    exclude_QE = nothing if exclude is None else np.asarray(exclude)
    exclude_QE = exclude_QE[:, None] if exclude_QE.ndim == 1 else exclude_QE
    excluded = _pairs("exclude", exclude_QE, queries, items)
    if allowed is None:
      return cls(excluded, None, None)
    allowed_QA = np.asarray(allowed)
    if allowed_QA.dtype == bool:
      if allowed_QA.shape != (items,):
        raise ValueError(f"allowed is bool {allowed_QA.shape}; wanted ({items},), one for each gallery item")
      return cls(excluded, allowed_QA, None)
    if allowed_QA.ndim == 1:
      wanted_N = np.zeros(items, bool)
      wanted_N[_pairs("allowed", allowed_QA[None], 1, items).item] = True
      return cls(excluded, wanted_N, None)
    return cls(excluded, None, _pairs("allowed", allowed_QA, queries, items).without(excluded, items))

  def within(self, first: int, items: int) -> Masks:
    """Returns the masks of consecutive items, by their positions among these."""
    here = lambda pairs: (pairs.item >= first) & (pairs.item < first + items)
    shifted = lambda pairs: ItemPairs(pairs.query[here(pairs)], pairs.item[here(pairs)] - first)
    wanted_N = None if self.wanted_N is None else self.wanted_N[first : first + items]
    return Masks(shifted(self.excluded), wanted_N, None if self.allowed is None else shifted(self.allowed))

  def of_queries(self, block: range) -> Masks:
    """Returns the masks of some consecutive queries, by their places among these."""

    def theirs(pairs: ItemPairs) -> ItemPairs:
      first, last = np.searchsorted(pairs.query, [block.start, block.stop])
      return ItemPairs(pairs.query[first:last] - block.start, pairs.item[first:last])

    return Masks(theirs(self.excluded), self.wanted_N, None if self.allowed is None else theirs(self.allowed))


def _pairs(name: str, position_QE: np.ndarray, queries: int, items: int) -> ItemPairs:
  """Returns positions (QE, −1 as padding) as pairs, each once."""
  if position_QE.dtype.kind not in "iu":
    raise ValueError(f"{name} is {position_QE.dtype} {position_QE.shape}; give gallery positions as integers")
  if position_QE.ndim != 2 or len(position_QE) != queries:
    raise ValueError(f"{name} has shape {position_QE.shape}; wanted one row for each of {queries} queries")
  if position_QE.size and (position_QE.min() < -1 or position_QE.max() >= items):
    raise ValueError(
      f"{name} holds positions {position_QE.min()} to {position_QE.max()}; the gallery has {items} items, −1 is padding"
    )
  return ItemPairs.of(position_QE.astype(np.int64))

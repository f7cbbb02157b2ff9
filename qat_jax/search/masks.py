"""Which items a query may find: what it excludes, and what it is allowed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Masks(NamedTuple):
  """Positions, −1 as padding; None where nothing is masked."""

  exclude_QE: np.ndarray | None
  allowed_N: np.ndarray | None  # bool, for all queries
  allowed_QA: np.ndarray | None

  @classmethod
  def of(cls, exclude: Any, allowed: Any, queries: int, items: int) -> Masks:
    """Returns the masks of a call; raises ValueError for shapes and positions that do not fit Q queries and N items."""
    exclude_QE = None if exclude is None else np.asarray(exclude)
    if exclude_QE is not None:
      exclude_QE = _positions("exclude", exclude_QE[:, None] if exclude_QE.ndim == 1 else exclude_QE, items)
      _check_rows("exclude", exclude_QE, queries)
    if allowed is None:
      return cls(exclude_QE, None, None)
    allowed = np.asarray(allowed)
    if allowed.dtype == bool:
      if allowed.shape != (items,):
        raise ValueError(f"allowed is bool {allowed.shape}; wanted ({items},), one for each gallery item")
      return cls(exclude_QE, allowed, None)
    if allowed.ndim == 1:
      allowed_N = np.zeros(items, bool)
      positions_A = _positions("allowed", allowed, items)
      allowed_N[positions_A[positions_A >= 0]] = True
      return cls(exclude_QE, allowed_N, None)
    _check_rows("allowed", allowed, queries)
    return cls(exclude_QE, None, _positions("allowed", allowed, items))

  def queries(self, rows: np.ndarray) -> Masks:
    """Returns the masks of some of the queries."""
    pick = lambda x: None if x is None else x[rows]
    return Masks(pick(self.exclude_QE), self.allowed_N, pick(self.allowed_QA))

  def part(self, start: int, count: int, rows: int, queries: int) -> np.ndarray:
    """Returns what may be found (bool; 11, 1N or QN) among `rows` rows from `start`, of which `count` are items."""
    if self.exclude_QE is None and self.allowed_QA is None:
      if self.allowed_N is None and count == rows:
        return np.ones((1, 1), bool)
      wanted_N = np.arange(rows) < count
      if self.allowed_N is not None:
        wanted_N[:count] &= self.allowed_N[start : start + count]
      return wanted_N[None]
    wanted_QN = np.zeros((queries, rows), bool)
    if self.allowed_QA is not None:
      _mark(wanted_QN, self.allowed_QA, start, count, True)
    else:
      wanted_QN[:, :count] = True if self.allowed_N is None else self.allowed_N[start : start + count]
    if self.exclude_QE is not None:
      _mark(wanted_QN, self.exclude_QE, start, count, False)
    return wanted_QN


def _mark(wanted_QN: np.ndarray, position_QE: np.ndarray, start: int, count: int, value: bool) -> None:
  query, place = np.nonzero((position_QE >= start) & (position_QE < start + count))
  wanted_QN[query, position_QE[query, place] - start] = value


def _positions(name: str, positions: np.ndarray, items: int) -> np.ndarray:
  if positions.dtype.kind not in "iu":
    raise ValueError(f"{name} is {positions.dtype} {positions.shape}; give gallery positions as integers")
  if positions.size and (positions.min() < -1 or positions.max() >= items):
    raise ValueError(
      f"{name} holds positions {positions.min()} to {positions.max()}; the gallery has {items} items, −1 is padding"
    )
  return positions.astype(np.int64)


def _check_rows(name: str, positions: np.ndarray, queries: int) -> None:
  if positions.ndim != 2 or len(positions) != queries:
    raise ValueError(f"{name} has shape {positions.shape}; wanted one row for each of {queries} queries")

"""Metrics of rankings: of gallery positions, best first, or of the whole gallery by score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from qat_jax.types import Relevance


def average_precision(ids_QK: np.ndarray, relevance: Relevance, k: int | None = None) -> np.ndarray:
  """Returns each query's step average precision (Q, float64): the mean of the precision at every positive.

  `ids_QK` are gallery positions, best first; −1 is skipped, ignored items are removed before anything is counted. A
  positive that the ranking does not hold counts 0. With `k` only the first k of what is left count, over min(k,
  positives).
  """
  hits = _hits(ids_QK, relevance)
  if k is not None:
    hits = hits.within(k)
  number_Q = _counts(relevance.positives)
  possible_Q = number_Q if k is None else np.minimum(number_Q, k)
  total_Q = np.bincount(hits.row, hits.number / hits.rank, minlength=len(ids_QK))
  return ratio(total_Q, possible_Q)


def average_precision_of_scores(score_QN: np.ndarray, relevance: Relevance) -> np.ndarray:
  """Returns `average_precision` of the whole gallery ranked by score (QN), equal scores by position, without a sort.

  Where a query has P positives, finding their ranks takes O(N log P), a fraction of ordering the gallery. NaN
  scores stand last.
  """
  return average_precision_of_parts(lambda: [(0, score_QN)], relevance)


def average_precision_of_parts(
  parts: Callable[[], Iterable[tuple[int, np.ndarray]]], relevance: Relevance
) -> np.ndarray:
  """Returns `average_precision_of_scores` of a gallery that comes in parts: (position of the first item, scores QN).

  They are gone through twice, and have to be the same both times: first for the scores of the positives, then to count
  what stands before them.
  """
  standings = [_Standing(np.setdiff1d(*lists)) for lists in zip(relevance.positives, relevance.ignored, strict=True)]
  for first, score_QN in parts():
    for standing, score_N in zip(standings, score_QN, strict=True):
      standing.look(score_N, first)
  for first, score_QN in parts():
    for standing, score_N, ignored in zip(standings, score_QN, relevance.ignored, strict=True):
      standing.count(score_N, first, ignored)
  total_Q = np.array([np.sum(np.arange(1, len(one.positives) + 1) / one.ranks()) for one in standings])
  return ratio(total_Q, _counts(relevance.positives))


def recall_at(ids_QK: np.ndarray, relevance: Relevance, k: int) -> np.ndarray:
  """Returns 1.0 for each query with a positive among its first k items (ignored ones removed), else 0.0 (Q)."""
  if k < 1:
    raise ValueError(f"recall_at: k is {k}; give 1 or more")
  recall_Q = np.zeros(len(ids_QK))
  recall_Q[_hits(ids_QK, relevance).within(k).row] = 1.0
  return np.where(_counts(relevance.positives) > 0, recall_Q, np.nan)


def trapezoid_average_precision(ids_QK: np.ndarray, relevance: Relevance) -> np.ndarray:
  """Returns the average precision of revisited and original Oxford/Paris and of INSTRE (Q).

  Ignored items (junk) are removed. Each positive adds the mean of the precision just before it and at it, the area
  of a trapezoid under the precision-recall curve; before the first item the precision is 1.
  """
  hits = _hits(ids_QK, relevance)
  before = np.where(hits.rank > 1, (hits.number - 1) / np.maximum(hits.rank - 1, 1), 1.0)
  total_Q = np.bincount(hits.row, (before + hits.number / hits.rank) / 2, minlength=len(ids_QK))
  return ratio(total_Q, _counts(relevance.positives))


def precision_at_shrinking(ids_QK: np.ndarray, relevance: Relevance, ks: Sequence[int] = (1, 5, 10)) -> np.ndarray:
  """Returns mP@k of revisited Oxford/Paris by query and k: the share of positives in the first k (ignored removed).

  As there, a k beyond the last positive found shrinks to its rank, so a query is not blamed for having few positives.
  """
  hits = _hits(ids_QK, relevance)
  last_Q = np.zeros(len(ids_QK), int)
  np.maximum.at(last_Q, hits.row, hits.rank)
  columns = []
  for k in ks:
    shrunk_Q = np.minimum(last_Q, k)
    inside_Q = np.bincount(hits.row[hits.rank <= shrunk_Q[hits.row]], minlength=len(ids_QK))
    columns.append(np.where(_counts(relevance.positives) > 0, inside_Q / np.maximum(shrunk_Q, 1), np.nan))
  return np.stack(columns, axis=1)


def landmark_average_precision(ids_QK: np.ndarray, relevance: Relevance, k: int = 100) -> np.ndarray:
  """Returns the AP@k of Google Landmarks v2 (Q): the step form, over min(k, positives).

  A prediction made before adds nothing, yet takes up a rank; here that holds for every metric.
  """
  return average_precision(ids_QK, relevance, k)


def ratio(total: np.ndarray, possible: np.ndarray) -> np.ndarray:
  """Returns total / possible in float64, NaN where nothing is possible."""
  total, possible = np.broadcast_arrays(np.asarray(total, np.float64), possible)
  return np.divide(total, possible, out=np.full(total.shape, np.nan), where=possible > 0)


class _Standing:
  """Where some items of a gallery (P positions, ascending) stand in the ranking of one query."""

  def __init__(self, positives: np.ndarray):
    self.positives, self.cost_P = positives, np.full(len(positives), np.nan)
    self.before_P = np.zeros(len(positives) + 1, np.int64)  # items that stand behind so many of them
    self.tied: list[tuple[np.ndarray, np.ndarray]] = []  # positions and costs of items that cost what one of them does

  def look(self, score_N: np.ndarray, first: int) -> None:
    """Takes the scores of the items from a part of the gallery."""
    inside_P = (self.positives >= first) & (self.positives < first + len(score_N))
    self.cost_P[inside_P] = _cost(score_N[self.positives[inside_P] - first])

  def count(self, score_N: np.ndarray, first: int, ignored: np.ndarray) -> None:
    """Counts a part of the gallery, when all have been looked at."""
    order_P = np.argsort(self.cost_P, kind="stable")
    self.positives, self.cost_P = self.positives[order_P], self.cost_P[order_P]
    cost_N = _cost(score_N)
    before_N = np.searchsorted(self.cost_P, cost_N)
    here = ignored[(ignored >= first) & (ignored < first + len(score_N))]
    before_N[here - first] = len(self.positives)
    self.before_P += np.bincount(before_N, minlength=len(self.before_P))
    counted = np.flatnonzero(before_N < len(self.positives))
    tied = counted[cost_N[counted] == self.cost_P[before_N[counted]]]
    self.tied.append((tied + first, cost_N[tied]))

  def ranks(self) -> np.ndarray:
    """Returns the ranks (P, from 1, ascending) by score, of equal scores the earlier first."""
    rank_P = np.cumsum(self.before_P)[:-1]  # items with its score counted in
    tied, cost = (np.concatenate(one) for one in zip(*self.tied, strict=True))
    if len(tied) > len(np.unique(self.cost_P)):
      rank_P = rank_P - ((cost == self.cost_P[:, None]) & (tied > self.positives[:, None])).sum(axis=1)
    return rank_P


def _cost(score_N: np.ndarray) -> np.ndarray:
  return np.where(np.isnan(score_N), np.inf, -score_N)


class _Hits:
  """Where positives stand, one entry a positive found: its query, its rank from 1, and how many were found by then."""

  def __init__(self, row: np.ndarray, rank: np.ndarray, number: np.ndarray):
    self.row, self.rank, self.number = row, rank, number

  def within(self, k: int) -> _Hits:
    """Returns the hits of rank k or better."""
    inside = self.rank <= k
    return _Hits(self.row[inside], self.rank[inside], self.number[inside])


def _hits(ids_QK: np.ndarray, relevance: Relevance) -> _Hits:
  ids_QK = np.asarray(ids_QK)
  if ids_QK.ndim != 2 or len(ids_QK) != len(relevance.positives):
    raise ValueError(
      f"a ranking of shape {ids_QK.shape} does not fit relevance for {len(relevance.positives)} queries; "
      "give one row of gallery positions for each query, in the same order"
    )
  lists = [*relevance.positives, *relevance.ignored]
  size = 1 + max(int(np.max(x, initial=0)) for x in (ids_QK, *lists))
  marked = np.zeros(size + 1, bool)  # the last place is that of −1 and never marked
  hit_QK, dropped_QK = np.zeros(ids_QK.shape, bool), ids_QK < 0
  for query, ids_K in enumerate(ids_QK):
    positives, ignored = relevance.positives[query], relevance.ignored[query]
    marked[positives] = True
    hit_QK[query] = marked[ids_K]
    marked[positives] = False
    if len(ignored):
      marked[ignored] = True
      dropped_QK[query] |= marked[ids_K]
      marked[ignored] = False
  row, column = np.nonzero(hit_QK & ~dropped_QK)
  first = np.sort(np.unique(row * size + ids_QK[row, column], return_index=True)[1])  # an item counts once
  row, column = row[first], column[first]
  rank = column + 1
  if dropped_QK.any():
    rank = rank - np.cumsum(dropped_QK, axis=1, dtype=np.int32)[row, column]
  starts_Q = np.searchsorted(row, np.arange(len(ids_QK)))
  return _Hits(row, rank, np.arange(len(row)) - starts_Q[row] + 1)


def _counts(lists: Sequence[np.ndarray]) -> np.ndarray:
  return np.array([len(x) for x in lists], int)

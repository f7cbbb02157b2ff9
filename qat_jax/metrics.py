"""Metrics of a ranking, each by the rule of the benchmark that it comes from.

There are three average precisions in use, and they differ: the step form (`average_precision`, and
`average_precision_at_k` with tied scores grouped), the trapezoid of Oxford/Paris (`trapezoid_average_precision`) and
that of GLDv2 (`landmark_average_precision`). All are fractions of 1. A query without positives has NaN, and means and
intervals leave it out.
"""

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
  return _ratio(total_Q, possible_Q)


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
  return _ratio(total_Q, _counts(relevance.positives))


def recall_at(ids_QK: np.ndarray, relevance: Relevance, k: int) -> np.ndarray:
  """Returns 1.0 for each query with a positive among its first k items (ignored ones removed), else 0.0 (Q)."""
  if k < 1:
    raise ValueError(f"recall_at: k is {k}; give 1 or more")
  found_Q = np.zeros(len(ids_QK))
  found_Q[_hits(ids_QK, relevance).within(k).row] = 1.0
  return np.where(_counts(relevance.positives) > 0, found_Q, np.nan)


def trapezoid_average_precision(ids_QK: np.ndarray, relevance: Relevance) -> np.ndarray:
  """Returns the average precision of revisited and original Oxford/Paris and of INSTRE (Q).

  Ignored items (junk) are removed. Each positive adds the mean of the precision just before it and at it, the area
  of a trapezoid under the precision-recall curve; before the first item the precision is 1.
  """
  hits = _hits(ids_QK, relevance)
  before = np.where(hits.rank > 1, (hits.number - 1) / np.maximum(hits.rank - 1, 1), 1.0)
  total_Q = np.bincount(hits.row, (before + hits.number / hits.rank) / 2, minlength=len(ids_QK))
  return _ratio(total_Q, _counts(relevance.positives))


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


def average_precision_at_k(relevant_K: np.ndarray, score_K: np.ndarray, positives: int, k: int) -> np.ndarray | float:
  """Returns the step average precision at k over min(k, positives), tied scores as one step (ILIAS, INQUIRE).

  `relevant_K` is 0 or 1, `score_K` the scores, larger is better, in any order. Which of the tied items that straddle
  k count is left to NumPy's default sort, as the official programs leave it. Rows of several queries at once (QK,
  with `positives` of length Q) give Q values.
  """
  relevant_K, score_K = (x_K[..., :k] for x_K in _sorted(relevant_K, score_K))
  ends_K = _ends_of_ties(score_K)
  precision_K = np.take_along_axis(np.cumsum(relevant_K, axis=-1), ends_K, -1) / (ends_K + 1)
  return _plain(_ratio(np.sum(relevant_K * precision_K, axis=-1), np.minimum(positives, k)))


def ndcg_at_k(relevant_K: np.ndarray, score_K: np.ndarray, positives: int, k: int) -> np.ndarray | float:
  """Returns DCG at k over that of min(k, positives) hits on top; items with tied scores share their mean gain.

  Arguments as in `average_precision_at_k`.
  """
  relevant_K, score_K = _sorted(relevant_K, score_K)
  ends_K = _ends_of_ties(score_K)
  starts_K = score_K.shape[-1] - 1 - _ends_of_ties(score_K[..., ::-1])[..., ::-1]
  until_K = np.concatenate([np.zeros_like(relevant_K[..., :1]), np.cumsum(relevant_K, axis=-1)], axis=-1)
  inside_K = np.take_along_axis(until_K, ends_K + 1, -1) - np.take_along_axis(until_K, starts_K, -1)
  gain_K = inside_K / (ends_K - starts_K + 1)
  ideal = np.concatenate([[0], np.cumsum(_discount(k))])[np.minimum(positives, k)]
  return _plain(_ratio(gain_K[..., :k] @ _discount(min(k, gain_K.shape[-1])), ideal))


def reciprocal_rank(relevant_K: np.ndarray, score_K: np.ndarray) -> np.ndarray | float:
  """Returns 1 / rank of the first relevant item by score, 0 where there is none (INQUIRE)."""
  relevant_K, score_K = _checked(relevant_K, score_K)
  order_K = np.argsort(score_K, axis=-1)[..., ::-1]  # from the end, as the official program: it decides between ties
  relevant_K = np.take_along_axis(relevant_K, order_K, -1)
  return _plain(np.max(relevant_K / np.arange(1, relevant_K.shape[-1] + 1), axis=-1, initial=0.0))


def landmark_average_precision(ids_QK: np.ndarray, relevance: Relevance, k: int = 100) -> np.ndarray:
  """Returns the AP@k of Google Landmarks v2 (Q): the step form, over min(k, positives).

  A prediction made before adds nothing, yet takes up a rank; here that holds for every metric.
  """
  return average_precision(ids_QK, relevance, k)


def bootstrap_interval(values_Q: np.ndarray, seed: int = 0, samples: int = 10_000) -> tuple[float, float]:
  """Returns the 95% bootstrap interval (lo, hi) of the mean over queries; NaN queries are left out."""
  values_Q = np.asarray(values_Q, np.float64)
  values_Q = values_Q[~np.isnan(values_Q)]
  if not len(values_Q):
    return float("nan"), float("nan")
  rng = np.random.default_rng(seed)
  means = np.empty(samples)
  step = max(1, 2_000_000 // len(values_Q))
  for start in range(0, samples, step):
    size = min(step, samples - start)
    drawn = rng.integers(0, len(values_Q), (size, len(values_Q)), dtype=np.int32)
    means[start : start + size] = values_Q[drawn].mean(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def paired_interval(
  a_Q: np.ndarray, b_Q: np.ndarray, seed: int = 0, samples: int = 10_000
) -> tuple[float, float, float]:
  """Returns the mean of a − b over queries and its 95% bootstrap interval (mean, lo, hi), query by query."""
  a_Q, b_Q = np.asarray(a_Q, np.float64), np.asarray(b_Q, np.float64)
  if a_Q.shape != b_Q.shape:
    raise ValueError(f"paired values of {a_Q.shape} and {b_Q.shape}; give both for the same queries, in the same order")
  difference_Q = a_Q - b_Q
  difference_Q = difference_Q[~np.isnan(difference_Q)]
  mean = float(difference_Q.mean()) if len(difference_Q) else float("nan")
  return mean, *bootstrap_interval(difference_Q, seed, samples)


def clustered_error(values_Q: np.ndarray, group_Q: np.ndarray) -> float:
  """Returns the standard error of the mean of values of which those of one group go together (NaN: no values).

  Queries that ask for the same instance are right and wrong together, so they count for less than as many others. With
  a group for each value it is the ordinary standard error.

  >>> clustered_error(np.array([1.0, 3.0]), np.array([0, 1])), clustered_error(np.array([1.0, 3.0]), np.array([0, 0]))
  (1.0, 0.0)
  """
  deviation_Q = np.asarray(values_Q, np.float64) - np.mean(values_Q)
  _, code_Q = np.unique(group_Q, return_inverse=True)
  groups = int(code_Q.max()) + 1
  total = float(np.sum(np.square(np.bincount(code_Q, deviation_Q))))
  return float(np.sqrt(total * groups / max(groups - 1, 1)) / len(deviation_Q))


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
  size = 1 + max([int(ids_QK.max(initial=0))] + [int(np.max(x)) for x in _all_lists(relevance) if len(x)])
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


def _all_lists(relevance: Relevance) -> list[np.ndarray]:
  return [*relevance.positives, *relevance.ignored]


def _sorted(relevant_K: np.ndarray, score_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  relevant_K, score_K = _checked(relevant_K, score_K)
  order_K = np.argsort(-score_K, axis=-1)
  return np.take_along_axis(relevant_K, order_K, -1), np.take_along_axis(score_K, order_K, -1)


def _checked(relevant_K: np.ndarray, score_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  relevant_K, score_K = np.asarray(relevant_K, np.float64), np.asarray(score_K)
  if relevant_K.shape != score_K.shape:
    raise ValueError(f"relevant is of shape {relevant_K.shape}, score of {score_K.shape}; give one score an item")
  if np.isnan(score_K).any():
    raise ValueError("a score is NaN; a ranking by it has no meaning")
  return relevant_K, score_K


def _ends_of_ties(score_K: np.ndarray) -> np.ndarray:
  """Returns for each item the place of the last item with the same score (scores sorted)."""
  size = score_K.shape[-1]
  last_K = np.ones(score_K.shape, bool)
  last_K[..., :-1] = score_K[..., 1:] != score_K[..., :-1]
  place_K = np.where(last_K, np.arange(size), size)
  return np.minimum.accumulate(place_K[..., ::-1], axis=-1)[..., ::-1]


def _discount(size: int) -> np.ndarray:
  return 1 / np.log2(np.arange(2, size + 2))


def _counts(lists: Sequence[np.ndarray]) -> np.ndarray:
  return np.array([len(x) for x in lists], int)


def _ratio(total: np.ndarray, possible: np.ndarray) -> np.ndarray:
  total, possible = np.broadcast_arrays(np.asarray(total, np.float64), possible)
  return np.divide(total, possible, out=np.full(total.shape, np.nan), where=possible > 0)


def _plain(value: np.ndarray) -> np.ndarray | float:
  return value if value.ndim else float(value)

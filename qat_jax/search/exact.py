"""The exact top k of a part of a gallery by filter and refine: the one search loop.

An upper bound of every score costs one product of the part with a few columns a query. What may still win is bounded
again by the cut maps' own lengths, then scored by the full formula, the likeliest first. Nothing outside the best so
far can win that the loop has passed: so parts come in any order, on any device, and the best of several parts merge.

With groups of items the loop ranks groups, each by its best item: the threshold is the K-th group's score, and an item
that cannot reach the best of its group so far is not scored.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import NamedTuple

import numpy as np

from qat_jax.search.bounds import Prepared
from qat_jax.search.gallery import Part
from qat_jax.search.kernels import Uppers, upper_bounds
from qat_jax.search.scores import ITEMS, all_scores, refined_bounds, scores

FIRST = 28  # items beyond k, at least, that are scored before there is a threshold
STEP = 512  # items a query that are scored between two looks at the threshold
LEAST_STEP = 2048  # items: to look costs as much as to score so many
MANY = 1 / 32  # of the bounds: where so many from 8 bits reach the threshold, float32 takes a look
DEEP = 0.25  # of a gallery: to find more of it, every item is scored
SAMPLE = 4096  # items by which the size of groups is guessed
CERTAIN = (
  8.0  # a map's size over an item's length, up to which float32 scores hold to MARGIN; others are taken in float64
)
MARGIN = 2e-6  # what a float32 score may be wrong by


class ItemPairs(NamedTuple):
  """Some items of some queries: P of each, in the order of the queries."""

  query: np.ndarray  # P
  item: np.ndarray  # P

  @classmethod
  def of(cls, item_QE: np.ndarray) -> ItemPairs:
    """Returns each query's items (QE, −1 as padding), each once."""
    item_QE = np.sort(item_QE, axis=1)
    item_QE[:, 1:][item_QE[:, 1:] == item_QE[:, :-1]] = -1
    query_P, column_P = np.nonzero(item_QE >= 0)
    return cls(query_P, item_QE[query_P, column_P])

  def take(self, which: np.ndarray) -> ItemPairs:
    """Returns some of the pairs, by a mask or by places in rising order."""
    return ItemPairs(self.query[which], self.item[which])

  def places(self) -> np.ndarray:
    """Returns the place of each pair among its query's (P)."""
    count_Q = np.bincount(self.query)
    return np.arange(len(self.query)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)

  def among(self, others: ItemPairs, items: int) -> np.ndarray:
    """Returns which of the pairs are among others (P, bool); all positions are below `items`."""
    if not len(others.query) or not len(self.query):
      return np.zeros(len(self.query), bool)
    own_P, other_P = (pairs.query.astype(np.int64) * items + pairs.item for pairs in (self, others))
    other_P = np.sort(other_P)
    return other_P[np.minimum(np.searchsorted(other_P, own_P), len(other_P) - 1)] == own_P

  def firsts(self, group_N: np.ndarray) -> np.ndarray:
    """Returns which pairs are the first of their query and group (P, bool)."""
    group_P = group_N[self.item]
    order_P = np.lexsort((group_P, self.query))
    first_P = np.ones(len(order_P), bool)
    first_P[1:] = (np.diff(self.query[order_P]) != 0) | (np.diff(group_P[order_P]) != 0)
    firsts_P = np.zeros(len(order_P), bool)
    firsts_P[order_P[first_P]] = True
    return firsts_P

  def without(self, others: ItemPairs, items: int) -> ItemPairs:
    """Returns the pairs that are not among others; all positions are below `items`."""
    return self.take(~self.among(others, items))


class TopK(NamedTuple):
  """The best K items of each query among those looked at; −1 and −inf where there are fewer."""

  ids: np.ndarray  # QK, int64
  scores: np.ndarray  # QK, float32
  floor: np.ndarray  # Q, float32: below it nobody wants an item, since K better ones were found elsewhere
  group_N: np.ndarray | None = None  # the group of each gallery item: of a group only the best item is kept

  @classmethod
  def empty(cls, queries: int, k: int, floor: np.ndarray | None = None, group_N: np.ndarray | None = None) -> TopK:
    """Returns the best of nothing."""
    floor = np.full(queries, -np.inf, np.float32) if floor is None else floor
    return cls(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32), floor, group_N)

  @property
  def threshold(self) -> np.ndarray:
    """The k-th best score of each query (Q), or its floor; −inf while there are fewer than k."""
    return np.maximum(self.scores[:, -1], self.floor)

  def merge(self, other: TopK) -> TopK:
    """Returns the best K of both, lower id first where scores are equal; associative, in any order (lemma 5)."""
    there_QJ = other.ids >= 0
    return self.with_pairs(ItemPairs(np.nonzero(there_QJ)[0], other.ids[there_QJ]), other.scores[there_QJ])

  def with_pairs(self, pairs: ItemPairs, score_P: np.ndarray) -> TopK:
    """Returns the best K of these and of scored pairs."""
    queries, k = self.ids.shape
    there_QK = self.ids >= 0
    query_P = np.concatenate([np.nonzero(there_QK)[0], pairs.query])
    item_P = np.concatenate([self.ids[there_QK], pairs.item])
    score_P = np.concatenate([self.scores[there_QK], score_P])
    order_P = np.lexsort((item_P, -score_P, query_P))
    pairs, score_P = ItemPairs(query_P[order_P], item_P[order_P]), score_P[order_P]
    once_P = np.ones(len(score_P), bool)
    once_P[1:] = (np.diff(pairs.query) != 0) | (np.diff(pairs.item) != 0)
    pairs, score_P = pairs.take(once_P), score_P[once_P]
    if self.group_N is not None:
      once_P = pairs.firsts(self.group_N)
      pairs, score_P = pairs.take(once_P), score_P[once_P]
    place_P = pairs.places()
    best_P, best = place_P < k, TopK.empty(queries, k, self.floor, self.group_N)
    best.ids[pairs.query[best_P], place_P[best_P]] = pairs.item[best_P]
    best.scores[pairs.query[best_P], place_P[best_P]] = score_P[best_P]
    return best

  def least(self, pairs: ItemPairs) -> np.ndarray:
    """Returns the score (P) below which a pair changes nothing: the threshold, or what its group has already."""
    least_P = self.threshold[pairs.query]
    if self.group_N is None or not len(pairs.query):
      return least_P
    query_J, place_J = np.nonzero(self.ids >= 0)
    key = lambda query, item: query.astype(np.int64) * 2 * len(self.group_N) + self.group_N[item]
    key_J, score_J = key(query_J, self.ids[query_J, place_J]), self.scores[query_J, place_J]
    if not len(key_J):
      return least_P
    order_J, key_P = np.argsort(key_J), key(pairs.query, pairs.item)
    at_P = order_J[np.minimum(np.searchsorted(key_J, key_P, sorter=order_J), len(key_J) - 1)]
    return np.where(key_J[at_P] == key_P, np.maximum(score_J[at_P], least_P), least_P)


def search(prepared: Prepared, part: Part, best: TopK, excluded: ItemPairs, deep: bool) -> TopK:
  """Returns the best K of those so far and of a part's items.

  Args:
    prepared: Q queries, or more: those beyond the best's are padding; on the part's device.
    part: rows of a gallery; ids in the result are positions in the whole gallery.
    best: what other parts gave; it spares work, and says whether groups are ranked.
    excluded: positions that a query shall not find.
    deep: whether every item is scored. The same for all parts of a gallery: equal items then have equal scores.
  """
  bounds, trial = prepared.bounds, part.trial
  if part.coarse is None or trial is None or deep or bounds.square is not None:
    return _search(prepared, part, best, excluded, deep)
  kind = (bounds.columns.shape, len(bounds.floor), part.window, prepared.tight is None, best.ids.shape)
  eight_bits, start = trial.pick(kind), time.perf_counter()
  part = part if eight_bits else dataclasses.replace(part, coarse=None)
  best = _search(prepared, part, best, excluded, deep)
  trial.tell(kind, eight_bits, time.perf_counter() - start)
  return best


def _search(prepared: Prepared, part: Part, best: TopK, excluded: ItemPairs, deep: bool) -> TopK:
  queries, k = best.ids.shape
  here_P = (excluded.item >= part.first) & (excluded.item < part.first + part.items)
  excluded = ItemPairs(excluded.query[here_P], excluded.item[here_P] - part.first)
  if deep:
    return best.merge(_deep(prepared, part, excluded, best))
  margin_Q = MARGIN * np.asarray(prepared.bounds.most)[:queries]
  uppers = upper_bounds(prepared.bounds, part, queries)
  done = ItemPairs(*np.zeros((2, 0), np.int64))
  if (best.threshold == -np.inf).any():
    count = k + FIRST + int(np.bincount(excluded.query, minlength=1).max())
    count = -(-count // ITEMS) * ITEMS  # so many are scored at once: one more would cost as much as all
    done = _likeliest(uppers, part, best, count, excluded)
    best = _with(best, prepared, part, done)
  query_P, item_P, upper_P = uppers.reaching(best.threshold - margin_Q)
  if uppers.coarse and len(query_P) > MANY * queries * part.items:
    uppers = upper_bounds(prepared.bounds, dataclasses.replace(part, coarse=None), queries)
    query_P, item_P, upper_P = uppers.reaching(best.threshold - margin_Q)
  left = ItemPairs(query_P, item_P)
  new_P = ~(left.among(done, part.items) | left.among(excluded, part.items))
  left, upper_P = left.take(new_P), upper_P[new_P]
  if prepared.tight is not None and len(left.query):
    upper_P = np.minimum(upper_P, refined_bounds(prepared, part, left.query, left.item))
  step = max(STEP * queries, LEAST_STEP)
  while True:
    least_P = best.least(ItemPairs(left.query, left.item + part.first))
    alive_P = upper_P >= least_P - margin_Q[left.query]
    left, upper_P = left.take(alive_P), upper_P[alive_P]
    if not len(left.query):
      return best
    next_P = np.ones(len(upper_P), bool)
    if len(upper_P) > step:
      next_P = upper_P >= -np.partition(-upper_P, step - 1)[step - 1]
    best = _with(best, prepared, part, left.take(next_P))
    left, upper_P, step = left.take(~next_P), upper_P[~next_P], 2 * step


def _likeliest(uppers: Uppers, part: Part, best: TopK, count: int, excluded: ItemPairs) -> ItemPairs:
  """Returns up to `count` items of each query without a threshold, by their bounds; of a group the likeliest."""
  reach = count
  if best.group_N is not None:  # neighbours are often of one group, and bounds of one group alike
    some_N = best.group_N[part.first : part.first + min(part.items, SAMPLE)]
    reach *= math.isqrt(len(some_N) // len(np.unique(some_N)))
  while True:
    least_Q = np.where(best.threshold == -np.inf, uppers.greatest(reach), np.inf)
    query_P, item_P, upper_P = uppers.reaching(least_Q)
    order_P = np.lexsort((-upper_P, query_P))
    first = ItemPairs(query_P[order_P], item_P[order_P])
    if best.group_N is None:
      return first.take(first.places() < count).without(excluded, part.items)
    first = first.without(excluded, part.items)
    first = first.take(first.firsts(best.group_N[part.first : part.first + part.items]))
    few_Q = np.bincount(first.query, minlength=len(least_Q)) < count
    if not (few_Q & np.isfinite(least_Q)).any():
      return first.take(first.places() < count)
    reach *= 4


def score_pairs(prepared: Prepared, part: Part, pairs: ItemPairs) -> np.ndarray:
  """Returns the exact scores (P, float32) of some of a part's items; NaN where an item is."""
  score_P, length_P = scores(prepared.factors, part, pairs.query, pairs.item)
  size_Q = np.asarray(prepared.factors.size)
  doubtful_P = np.flatnonzero(CERTAIN * length_P < size_Q[pairs.query])
  if len(doubtful_P):
    score_P = score_P.copy()
    doubtful = pairs.take(doubtful_P)
    start_Q = np.searchsorted(doubtful.query, np.arange(len(size_Q) + 1))
    for query in np.flatnonzero(np.diff(start_Q)):
      rows = slice(start_Q[query], start_Q[query + 1])
      score_P[doubtful_P[rows]] = _in_float64(prepared, int(query), part.rows(doubtful.item[rows]))
  return score_P


def _in_float64(prepared: Prepared, query: int, item_BD: np.ndarray) -> np.ndarray:
  """Returns the scores of items (B) in float64, where float32 would round away what decides.

  Item by item, so that equal items have equal scores, whichever others they come with. A length that may be rounding
  alone counts as zero; without factors none is.
  """
  query_D, gate_D, left_DR, right_DR, size = (np.asarray(np.asarray(x)[query], np.float64) for x in prepared.factors)
  item_BD1 = np.asarray(item_BD, np.float64)[:, :, None]
  mapped_BD = (gate_D[:, None] * item_BD1 + left_DR @ (right_DR.T @ item_BD1))[:, :, 0]
  least = 1e-14 * size if left_DR.shape[1] else 0
  length_B = np.maximum(np.sqrt(np.square(mapped_BD).sum(axis=1)), least + 1e-300)
  return (mapped_BD[:, None] @ query_D)[:, 0] / length_B


def exact_scores(prepared: Prepared, part: Part, queries: int) -> np.ndarray:
  """Returns the exact scores (QN, float32) of all of a part's items."""
  score_QN, length_QN = all_scores(prepared.factors, part, queries)
  size_Q = np.asarray(prepared.factors.size)[:queries]
  doubtful_QN = CERTAIN * length_QN < size_Q[:, None]
  score_QN = score_QN.copy()
  for query in np.flatnonzero(doubtful_QN.any(axis=1)):
    item_B = np.flatnonzero(doubtful_QN[query])
    score_QN[query, item_B] = _in_float64(prepared, int(query), part.rows(item_B))
  return score_QN


def _with(best: TopK, prepared: Prepared, part: Part, pairs: ItemPairs) -> TopK:
  score_P = score_pairs(prepared, part, pairs)
  worth_P = score_P >= best.threshold[pairs.query]
  return best.with_pairs(ItemPairs(pairs.query, pairs.item + part.first).take(worth_P), score_P[worth_P])


def _deep(prepared: Prepared, part: Part, excluded: ItemPairs, so_far: TopK) -> TopK:
  """Returns the best K of a part by scoring every item."""
  queries, k = so_far.ids.shape
  score_QN = exact_scores(prepared, part, queries)
  score_QN[excluded.query, excluded.item] = -np.inf
  if part.wanted is not None:
    score_QN[:, ~part.wanted] = -np.inf
  best = TopK.empty(queries, k)
  order_QN = np.argsort(-score_QN, axis=1, kind="stable")
  if so_far.group_N is not None:
    group_N = so_far.group_N[part.first : part.first + part.items]
    firsts = [np.sort(np.unique(group_N[order_N], return_index=True)[1]) for order_N in order_QN]
    order_QN = np.stack([order_N[first] for order_N, first in zip(order_QN, firsts, strict=True)])
  order_QK = order_QN[:, :k]
  score_QK = np.take_along_axis(score_QN, order_QK, axis=1)
  best.scores[:, : order_QK.shape[1]] = score_QK
  best.ids[:, : order_QK.shape[1]] = np.where(score_QK > -np.inf, order_QK + part.first, -1)
  return best

"""Items of queries as flat pairs, and the best K of what a search has looked at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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
    order_P = _best_first(query_P, item_P, score_P)
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


def _best_first(query_P: np.ndarray, item_P: np.ndarray, score_P: np.ndarray) -> np.ndarray:
  """Returns the order (P) by query, falling score, NaN last, and rising item.

  Query and score are sorted by as one whole number, which takes a fourth of the time of `lexsort`: float32 are ordered
  as their bits are, the negative ones the other way round. Those of equal numbers are sorted by item then.
  """
  score_P = np.asarray(score_P, np.float32)
  bits_P = (0 - score_P).view(np.int32)  # 0 for −0, too
  bits_P = np.where(bits_P < 0, bits_P ^ np.int32(0x7FFFFFFF), bits_P)
  bits_P[np.isnan(score_P)] = 0x7FFFFFFF
  key_P = (query_P.astype(np.int64) << 32) + bits_P
  order_P = np.argsort(key_P)
  after_P, key_P = np.zeros(len(order_P), bool), key_P[order_P]
  after_P[1:] = key_P[1:] == key_P[:-1]
  tied_T = np.flatnonzero(after_P | np.append(after_P[1:], False)) if after_P.any() else np.zeros(0, int)
  order_P[tied_T] = order_P[tied_T[np.lexsort((item_P[order_P[tied_T]], key_P[tied_T]))]]
  return order_P

"""The exact top k of a part of a gallery by filter and refine: the one search loop.

An upper bound of every score costs one product of the part with a few columns a query. What may still win is bounded
again by the cut maps' own lengths, then scored by the full formula, the likeliest first. Nothing outside the best so
far can win that the loop has passed: so parts come in any order, on any device, and the best of several parts merge.

With groups of items the loop ranks groups, each by its best item: the threshold is the K-th group's score, and an item
that cannot reach the best of its group so far is not scored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qat_jax.search.bounds import UNIT, Prepared
from qat_jax.search.copies import of_pairs, read
from qat_jax.search.gallery import Part
from qat_jax.search.kernels import filtered
from qat_jax.search.scores import ITEMS, all_scores, refined_bounds, scores
from qat_jax.search.top import ItemPairs, TopK
from qat_jax.search.uppers import Uppers, bounds_of_sums

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


class Weighted(NamedTuple):
  """Scores of a part's items that count in a sum; without a weight, alone."""

  prepared: Prepared  # Q queries, or more: those beyond the search's are padding; on the part's device
  part: Part
  weight: np.ndarray | None = None  # Q, none negative


def search(terms: Sequence[Weighted], best: TopK, excluded: ItemPairs, deep: bool) -> TopK:
  """Returns the best K of those so far and of a part's items.

  Args:
    terms: what an item's score is the weighted sum of. Their parts hold the same items, of a gallery each, on one
      device. Ids in the result are positions in the whole gallery.
    best: what other parts gave; it spares work, and says whether groups are ranked.
    excluded: positions that a query shall not find.
    deep: whether every item is scored. The same for all parts of a gallery: equal items then have equal scores.
  """
  trial = terms[0].part.trial
  copied = all(one.part.coarse is not None for one in terms)
  if trial is None or not copied or deep:
    return _search(terms, best, excluded, deep)
  each = [one.prepared.bounds for one in terms]
  sizes = [(bounds.columns.shape, bounds.square is None) for bounds in each]
  # what a bound lets through costs more where maps have factors
  costs = [(one.prepared.tight is None, one.prepared.factors.left.shape[2]) for one in terms]
  kind = (*sizes, *costs, len(each[0].floor), terms[0].part.window, best.ids.shape)
  return trial.quicker(kind, lambda coarse: _search(terms if coarse else _in_float32(terms), best, excluded, deep))


def _search(terms: Sequence[Weighted], best: TopK, excluded: ItemPairs, deep: bool) -> TopK:
  queries, k = best.ids.shape
  part, (prepared, *others) = terms[0].part, [one.prepared for one in terms]
  here_P = (excluded.item >= part.first) & (excluded.item < part.first + part.items)
  excluded = ItemPairs(excluded.query[here_P], excluded.item[here_P] - part.first)
  if deep:
    return best.merge(_deep(terms, excluded, best))
  margin_Q = _margin(terms, queries)
  uppers = _uppers(terms, queries)
  done = ItemPairs(*np.zeros((2, 0), np.int64))
  if (best.threshold == -np.inf).any():
    count = k + FIRST + int(np.bincount(excluded.query, minlength=1).max())
    count = -(-count // ITEMS) * ITEMS  # so many are scored at once: one more would cost as much as all
    done = _likeliest(uppers, part, best, count, excluded)
    best = _with(best, terms, done)
  query_P, item_P, upper_P = uppers.reaching(best.threshold - margin_Q)
  if uppers.coarse and len(query_P) > MANY * queries * part.items:
    terms = _in_float32(terms)
    part, uppers = terms[0].part, _uppers(terms, queries)
    query_P, item_P, upper_P = uppers.reaching(best.threshold - margin_Q)
  left = ItemPairs(query_P, item_P)
  new_P = ~(left.among(done, part.items) | left.among(excluded, part.items))
  left, upper_P = left.take(new_P), upper_P[new_P]
  if prepared.tight is not None and not others and len(left.query):
    refine = lambda part, some: refined_bounds(prepared, part, some.query, some.item)
    upper_P = np.minimum(upper_P, of_pairs(refine, part, left))
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
    best = _with(best, terms, left.take(next_P))
    left, upper_P, step = left.take(~next_P), upper_P[~next_P], 2 * step


def _in_float32(terms: Sequence[Weighted]) -> list[Weighted]:
  return [one._replace(part=read(one.part)) for one in terms]


def _margin(terms: Sequence[Weighted], queries: int) -> np.ndarray:
  """Returns what a score, or a sum of them and of their bounds in float32, may be wrong by (Q)."""
  most_SQ = np.stack([np.asarray(one.prepared.bounds.most)[:queries] for one in terms])
  if terms[0].weight is None:
    return MARGIN * most_SQ[0]
  weight_SQ = np.stack([np.asarray(one.weight) for one in terms])
  return (MARGIN + 4 * len(terms) * UNIT) * (weight_SQ * most_SQ).sum(axis=0)


def _uppers(terms: Sequence[Weighted], queries: int) -> Uppers:
  uppers = [filtered(one.prepared, one.part, queries) for one in terms]
  if terms[0].weight is None:
    return uppers[0]
  return bounds_of_sums(uppers, np.stack([np.asarray(one.weight) for one in terms]), terms[0].part.items)


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


def score_pairs(prepared: Prepared, part: Part, pairs: ItemPairs, least_Q: np.ndarray | None = None) -> np.ndarray:
  """Returns the exact scores (P, float32) of some of a part's items; NaN where an item is.

  What float32 says to be below a query's `least_Q`, by more than it may be wrong by, is not taken in float64.
  """
  score_P, length_P = scores(prepared.factors, part, pairs.query, pairs.item)
  size_P = np.asarray(prepared.factors.size)[pairs.query]
  doubtful_P = CERTAIN * length_P < size_P
  if least_Q is not None and doubtful_P.any():
    margin_P = 2 * MARGIN * np.asarray(prepared.bounds.most)[pairs.query] * size_P  # over CERTAIN · length
    with np.errstate(over="ignore", invalid="ignore"):  # −∞ · 0: nothing is known of such an item
      doubtful_P &= ~((least_Q[pairs.query] - score_P) * CERTAIN * length_P > margin_P)
  doubtful_P = np.flatnonzero(doubtful_P)
  if len(doubtful_P):
    score_P = score_P.copy()
    doubtful = pairs.take(doubtful_P)
    start_Q = np.searchsorted(doubtful.query, np.arange(len(prepared.factors.size) + 1))
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


def _with(best: TopK, terms: Sequence[Weighted], pairs: ItemPairs) -> TopK:
  """Returns the best K with the scores of some of a part's items."""
  least_Q = best.threshold if terms[0].weight is None else None
  scored = (functools.partial(score_pairs, one.prepared, least_Q=least_Q) for one in terms)
  score_P, *each = (of_pairs(score, one.part, pairs) for score, one in zip(scored, terms, strict=True))
  if terms[0].weight is not None:
    score_P = weighted_sum((score_P, *each), [np.asarray(one.weight)[pairs.query] for one in terms])
  worth_P = score_P >= best.threshold[pairs.query]
  first = terms[0].part.first
  return best.with_pairs(ItemPairs(pairs.query, pairs.item + first).take(worth_P), score_P[worth_P])


def weighted_sum(scores: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
  """Returns Σ weight · score in float64, rounded to float32: the same wherever it is taken."""
  total = np.zeros(scores[0].shape)
  for score, weight in zip(scores, weights, strict=True):
    total += weight * score.astype(np.float64)
  return total.astype(np.float32)


def _deep(terms: Sequence[Weighted], excluded: ItemPairs, so_far: TopK) -> TopK:
  """Returns the best K of a part by scoring every item."""
  (queries, k), part = so_far.ids.shape, terms[0].part
  score_QN = exact_scores(*terms[0][:2], queries)
  if terms[0].weight is not None:
    each = (exact_scores(prepared, part, queries) for prepared, part, _ in terms[1:])
    score_QN = weighted_sum((score_QN, *each), [np.asarray(one.weight)[:, None] for one in terms])
  score_QN[excluded.query, excluded.item] = -np.inf
  wanted = [one.part.wanted for one in terms if one.part.wanted is not None]
  if wanted:
    score_QN[:, ~np.all(wanted, axis=0)] = -np.inf
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

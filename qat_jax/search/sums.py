"""Scores that add: the exact top k of a weighted sum of several adaptations' scores.

Several parts of a query (a picture and a word, a query and its marks) have an adaptation each, and an item's score is
the weighted sum of theirs. Adaptations with the same map T are one adaptation: Σ w (q'·T z) / |T z| is |Σ w q'| times
the cosine of Σ w q' and T z. In other sums each term has its own filter, and what bounds a sum is the sum of the terms'
bounds: the search is that of one adaptation, and costs as much as its terms.

Where each query has a list of its own, or a gallery lies on other machines, the sum is ranked term by term. The union
of what each term finds is ordered by the exact sums. An item outside all of these lists scores at most the weighted sum
of the lists' last scores. So the best k are proven as soon as the k-th sum is greater; until then the lists grow. After
Fagin, Lotem and Naor, "Optimal aggregation algorithms for middleware" (PODS 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from qat_jax.adaptation import power_of_two, unit
from qat_jax.search.exact import DEEP, weighted_sum
from qat_jax.search.gallery import device_count
from qat_jax.search.grouping import grouped, groups_of
from qat_jax.search.masks import Elsewhere, Masks
from qat_jax.search.rank import GalleryLike, check_search, rank, rerank
from qat_jax.search.top import TopK
from qat_jax.search.whole import QUERY_BLOCK, aligned, best_of_sum, blocks, ranking_of
from qat_jax.types import Adaptation, Pieces, Ranking, as_gallery

FIRST = 64  # items of each term's first list, at least
GROWTH = 8  # how much longer the next list is: every item but the last is found anew
HELD = 1 << 26  # numbers of a block of queries with whole galleries: 0.5 GB for ids and scores of a term
ROUNDING = 4e-6  # times the sum of the weights: what sums of exact scores may be wrong by, generously
FLAT = 1e-6  # spread of scores below which they tell items apart by rounding alone; they are not scaled then
CANCELLED = 1e-6  # length of a sum, beside the sum of its weights, below which nothing but rounding is left of it


class Term(NamedTuple):
  """A summand of the scores of Q queries."""

  adaptation: Adaptation
  gallery: GalleryLike  # each term's own, in the adaptation's space; all hold the same items in the same order
  weight: float | np.ndarray = 1.0  # or one for each query (Q); may be negative


def spreads(adaptation: Adaptation, item_ND: npt.ArrayLike) -> np.ndarray:
  """Returns the standard deviation (Q) of each query's scores, cosine(q', T z), over items (ND), in float64.

  Scores of two heads may differ in spread by a factor of sixty. The one that spreads less would not count in their sum,
  so each is scaled to the spread of its plain score.
  """
  item_ND = np.asarray(item_ND, np.float64)
  spread_Q = np.empty(len(adaptation))
  for number, query_D in enumerate(np.asarray(adaptation.query, np.float64)):
    gate_D, left_DR, right_DR = (
      np.asarray(x[number], np.float64) for x in (adaptation.gate, adaptation.left, adaptation.right)
    )
    mapped_ND = item_ND * gate_D + (item_ND @ right_DR) @ left_DR.T
    length_N = np.linalg.norm(mapped_ND, axis=1)
    spread_Q[number] = np.std(mapped_ND @ query_D / np.where(length_N > 0, length_N, 1))
  return spread_Q


def rank_sum(
  terms: Sequence[Term],
  k: int = 100,
  *,
  exclude: npt.ArrayLike | None = None,
  allowed: npt.ArrayLike | None = None,
  group: str | npt.ArrayLike | None = None,
  depth: int | None = None,
) -> tuple[Ranking, np.ndarray]:
  """Returns the top k by the sum of weighted scores, and for each query whether it is proven to be exact (Q, bool).

  Of equal sums the lower id is first. All queries are proven unless `depth` ends the search.

  Args:
    terms: the summands. Those with one gallery and the same map are ranked as one.
    k: how many; where there are fewer items, ids are filled up with −1 and scores with −inf.
    exclude: positions that a query must not find, as `rank` takes them.
    allowed: all that may be found, as `rank` takes it.
    group: what makes items one group, as `rank` takes it: the best k groups are ranked.
    depth: items of a term's list, at most. None: as many as the proof needs, in the end all.

  Raises ValueError as `rank` does, for galleries that differ in length, for terms that differ in queries, and where
  the terms of a query cancel each other.
  """
  if not len(terms):
    raise ValueError("there are no terms; give at least one")
  kept = combined(terms)
  for term in kept:
    check_search(term.adaptation, term.gallery, k)
  galleries = [as_gallery(term.gallery) for term in kept]
  queries, items = len(kept[0].adaptation), len(galleries[0])
  if lengths := {len(gallery) for gallery in galleries} - {items}:
    raise ValueError(f"the galleries have {items} and {lengths.pop()} items; all terms need the same items")
  masks = Masks.of(exclude, allowed, queries, items)
  group_N = None if group is None else groups_of(group, galleries[0])
  if len(kept) == 1:
    ranking = rank(kept[0].adaptation, galleries[0], k, exclude=exclude, allowed=allowed, group=group)
    weight_Q1 = np.asarray(kept[0].weight, np.float32)[:, None]
    return ranking.replace(scores=ranking.scores * weight_Q1), np.ones(queries, bool)
  if masks.allowed is None and not any(isinstance(gallery, Elsewhere) for gallery in galleries):
    all_parts = aligned(galleries, power_of_two(min(QUERY_BLOCK, queries)))
    empty = [TopK.empty(len(block), min(k, items), None, group_N) for block in blocks(queries)]
    weighted = [(term.adaptation, np.asarray(term.weight)) for term in kept]
    deep = k >= DEEP * items and not isinstance(galleries[0], Pieces)
    best = best_of_sum(weighted, all_parts, device_count(galleries[0], None), empty, masks, deep)
    return ranking_of(best, k, items), np.ones(queries, bool)
  return _by_lists(kept, k, items if depth is None else min(items, max(depth, k)), exclude, allowed, group_N)


def _by_lists(
  terms: list[Term], k: int, most: int, exclude: Any, allowed: Any, group_N: np.ndarray | None
) -> tuple[Ranking, np.ndarray]:
  """Returns what `rank_sum` does, of lists of each term's best, `most` items long at most."""
  if group_N is not None:
    proof: list[np.ndarray] = []

    def fetch(deeper: int) -> Ranking:
      ranking, proven_Q = _by_lists(terms, deeper, min(len(group_N), max(most, deeper)), exclude, allowed, None)
      proof.append(proven_Q)
      return ranking

    return grouped(fetch, k, group_N), proof[-1]
  queries, rows, parts = len(terms[0].adaptation), max(1, HELD // len(terms[0].gallery)), []
  for block in blocks(queries):
    for first in range(block.start, block.stop, rows):
      some = slice(first, min(first + rows, block.stop))
      masks = {"exclude": None if exclude is None else np.asarray(exclude)[some], "allowed": allowed}
      if allowed is not None and np.ndim(allowed) == 2:  # each query's own
        masks["allowed"] = np.asarray(allowed)[some]
      parts.append(_ranked([Term(a[some], g, np.asarray(w)[some]) for a, g, w in terms], k, most, masks))
  ids, scores, proven = (np.concatenate(x) for x in zip(*parts, strict=True))
  return Ranking(ids, scores), proven


def combined(terms: Sequence[Term]) -> list[Term]:
  """Returns fewer terms of the same sum, their weights not negative (Q): one for each gallery and map."""
  queries = len(terms[0].adaptation)
  groups: list[list[tuple[Adaptation, GalleryLike, np.ndarray]]] = []
  for number, term in enumerate(terms):
    if len(term.adaptation) != queries:
      raise ValueError(f"term {number} has {len(term.adaptation)} queries, the first one {queries}; give all the same")
    weight_Q = np.broadcast_to(np.asarray(term.weight, np.float64), (queries,))
    if not np.isfinite(weight_Q).all():
      raise ValueError(f"the weight of term {number} is NaN or infinite; give a finite number")
    like = lambda group, term=term: group[0][1] is term.gallery and same_map(group[0][0], term.adaptation)
    group = next((group for group in groups if like(group)), None)
    if group is None:
      groups.append(group := [])
    group.append((term.adaptation, term.gallery, weight_Q))
  made, length_Q = [], np.zeros(queries)
  for group in groups:
    adaptation, weight_Q = add([a for a, _, _ in group], [w for _, _, w in group])
    made.append(Term(adaptation, group[0][1], weight_Q))
    length_Q += weight_Q
  if not (length_Q > 0).all():
    raise ValueError(f"the parts of query {np.argmin(length_Q)} cancel each other; change their weights")
  return made


def add(adaptations: Sequence[Adaptation], weights: Sequence[np.ndarray]) -> tuple[Adaptation, np.ndarray]:
  """Returns one adaptation, and numbers (Q) that times its scores are the weighted sum of those with the same map.

  A number is 0 where nothing is left of the sum; the first adaptation's query then stands there.
  """
  first, weight_SQ = adaptations[0], np.stack(list(weights))
  query_SQD = np.stack([np.asarray(one.query) for one in adaptations])
  if len(adaptations) == 1:  # keeps its bits
    sign_Q1 = np.where(weight_SQ[0] < 0, -1, 1).astype(np.float32)[:, None]
    return first.replace(query=jnp.asarray(sign_Q1 * query_SQD[0]), frozen=None), np.abs(weight_SQ[0])
  total_QD = np.einsum("SQ,SQD->QD", weight_SQ, query_SQD.astype(np.float64))
  length_Q = np.linalg.norm(total_QD, axis=1)
  length_Q[length_Q <= CANCELLED * np.abs(weight_SQ).sum(axis=0)] = 0
  query_QD = np.where(length_Q[:, None] > 0, unit(total_QD), query_SQD[0]).astype(np.float32)
  return first.replace(query=jnp.asarray(query_QD), frozen=None), length_Q


def same_map(one: Adaptation, other: Adaptation) -> bool:
  """Says whether each query has the same map in both adaptations, for the same items."""
  if one.space != other.space or one.query.shape != other.query.shape:
    return False
  if is_identity(one) and is_identity(other):
    return True
  maps = [[np.asarray(x) for x in (of.gate, of.left, of.right)] for of in (one, other)]
  return all(np.array_equal(x, y) for x, y in zip(*maps, strict=True))


def is_identity(adaptation: Adaptation) -> bool:
  """Says whether T is a positive multiple of the identity for every query, so that it changes no cosine."""
  gate_QD = np.asarray(adaptation.gate)
  mixes = np.asarray(adaptation.left).any() and np.asarray(adaptation.right).any()
  return not mixes and bool((gate_QD > 0).all() and (gate_QD == gate_QD[:, :1]).all())


def _ranked(terms: list[Term], k: int, most: int, masks: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns ids, sums and whether they are proven, for one block of queries."""
  items, depth = len(terms[0].gallery), max(FIRST, power_of_two(2 * k))
  while True:
    depth = items if depth >= DEEP * items else depth
    depth = min(depth, most)
    rankings = [rank(term.adaptation, term.gallery, depth, **masks) for term in terms]
    if depth < items:
      union_QU = np.concatenate([ranking.ids for ranking in rankings], axis=1)
      scored = [rerank(term.adaptation, term.gallery, union_QU) for term in terms]
    else:
      scored = rankings
    ids_QU, score_QU = _added(terms, scored)
    order_QU = np.lexsort((ids_QU, -score_QU))[:, :k]
    ids_QK, score_QK = (np.take_along_axis(x, order_QU, axis=1) for x in (ids_QU, score_QU))
    ids_QK = np.pad(ids_QK, ((0, 0), (0, k - ids_QK.shape[1])), constant_values=-1)
    score_QK = np.pad(score_QK, ((0, 0), (0, k - score_QK.shape[1])), constant_values=-np.inf)
    proven_Q = _proven(terms, rankings, score_QK[:, -1]) | (depth == items)
    if proven_Q.all() or depth == most:
      return ids_QK.astype(rankings[0].ids.dtype), score_QK.astype(np.float32), proven_Q
    depth *= GROWTH


def _added(terms: list[Term], scored: list[Ranking]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids of items that every term has scored (QU, −1 as padding), and their sums (−inf there)."""
  order = [np.argsort(ranking.ids, axis=1) for ranking in scored]
  scores = [np.take_along_axis(one.scores, order_QU, axis=1) for one, order_QU in zip(scored, order, strict=True)]
  ids_QU = np.take_along_axis(scored[-1].ids, order[-1], axis=1)
  there_QU = ids_QU >= 0
  total_QU = weighted_sum(
    [np.where(there_QU, score_QU, 0) for score_QU in scores], [np.asarray(term.weight)[:, None] for term in terms]
  )
  return ids_QU, np.where(there_QU, total_QU, -np.inf)


def _proven(terms: list[Term], rankings: list[Ranking], least_Q: np.ndarray) -> np.ndarray:
  """Returns for which queries no item outside the lists can reach the least sum (Q, bool)."""
  weight_TQ = np.stack([np.asarray(term.weight) for term in terms])
  whole_TQ = np.stack([ranking.ids[:, -1] < 0 for ranking in rankings])  # the list holds all that may be found
  last_TQ = np.where(whole_TQ, 0, np.stack([ranking.scores[:, -1].astype(np.float64) for ranking in rankings]))
  bound_Q = (weight_TQ * (last_TQ + ROUNDING)).sum(axis=0)
  return whole_TQ.any(axis=0) | (least_Q > bound_Q)

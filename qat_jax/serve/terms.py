"""A query's score as a sum: each part through its own head, its score times its weight.

A term is one adaptation, the gallery that it is for, and a weight. Terms with the same gallery and the same map T are
one term: Σ w (q'·T z) / |T z| = |Σ w q'| times the cosine of Σ w q' and T z. So several parts are mostly one inner
product. Terms that stay apart are ranked one by one, and the union of what each finds is ordered by the exact sums
(`proven` says how far that order is the whole gallery's).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.types import Adaptation, Ranking

CANCELLED = 1e-6  # length of a sum, beside the sum of its weights, below which nothing but rounding is left of it


@dataclasses.dataclass(frozen=True)
class Term:
  """A summand of a query's score."""

  adaptation: Adaptation  # of one query, NumPy arrays
  gallery: str  # its name in the service: frozen, or the query type that it was prepared for
  weight: float = 1.0
  head: str | None = None  # the query type of the head that made it; its index may find a shortlist


def rows_of(adaptation: Adaptation, count: int) -> list[Adaptation]:
  """Returns the first `count` queries of an adaptation as adaptations of one query, NumPy arrays."""
  on_host = jax.tree.map(np.asarray, adaptation.replace(frozen=None))
  return [on_host[row : row + 1] for row in range(count)]


def stacked(adaptations: Sequence[Adaptation], size: int) -> Adaptation:
  """Returns adaptations of one query each as one adaptation of `size` queries; the last one fills it up."""
  rows = [adaptations[min(row, len(adaptations) - 1)] for row in range(size)]
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


def combined(terms: Sequence[Term]) -> list[Term]:
  """Returns fewer terms of the same sum: those with one gallery and one map are added. None are left of a zero sum."""
  groups: list[list[Term]] = []
  for term in terms:
    group = next((group for group in groups if _alike(group[0], term)), None)
    if group is None:
      groups.append([term])
    else:
      group.append(term)
  return [one for group in groups if (one := _sum(group)) is not None]


def added(terms: Sequence[Term], scores: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the weighted mean of the terms' scores of the same items."""
  total = sum(term.weight for term in terms)
  return np.sum(
    [term.weight / total * np.asarray(one, np.float64) for term, one in zip(terms, scores, strict=True)], axis=0
  )


def proven(terms: Sequence[Term], rankings: Sequence[Ranking], depth: int, score_U: np.ndarray) -> int:
  """Returns how many of the best sums no item outside the union of the rankings can beat.

  Such an item scores no more than the last item of each ranking, so its sum is at most the sum of those. A ranking
  shorter than `depth` holds every item that may be found: then all sums are proven. After Fagin, Lotem and Naor,
  "Optimal aggregation algorithms for middleware" (PODS 2001).
  """
  if any(len(ranking.ids) < depth for ranking in rankings):
    return len(score_U)
  bound = added(terms, [ranking.scores[-1] for ranking in rankings])
  return int((score_U >= bound).sum())


def _alike(one: Term, other: Term) -> bool:
  """Says whether two terms have the same gallery and the same map."""
  if one.gallery != other.gallery or one.adaptation.space != other.adaptation.space:
    return False
  maps = [(term.adaptation.gate, term.adaptation.left, term.adaptation.right) for term in (one, other)]
  return all(np.array_equal(a, b) for a, b in zip(*maps, strict=True))


def _sum(terms: list[Term]) -> Term | None:
  if len(terms) == 1 and terms[0].weight > 0:
    return terms[0]
  weights = [term.weight for term in terms]
  total_D = np.sum([term.weight * np.asarray(term.adaptation.query[0], np.float64) for term in terms], axis=0)
  length = float(np.linalg.norm(total_D))
  if length <= CANCELLED * sum(map(abs, weights)):
    return None
  adaptation = terms[0].adaptation.replace(query=unit(total_D, np.float32)[None])
  return dataclasses.replace(terms[0], adaptation=adaptation, weight=length)

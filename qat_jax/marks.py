"""Marks: pictures that a person called right refine a query, and several pictures of one thing make one query.

Each marked picture is an image query, and scores add: s(z) = s_query(z) + weight · mean_j s_image(right_j; z).
Where all of them have the same map T, that is one adaptation, normalise(q' + weight · mean_j q'_j): search costs what
it did. Otherwise the sum is ranked term by term (`qat_jax.search.sums`). What a person called wrong is excluded from
the answer and nothing more: to subtract it was measured to harm.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, plain, unit
from qat_jax.search.rank import GalleryLike
from qat_jax.search.sums import FLAT, Term, is_identity, same_map, spreads
from qat_jax.types import Adaptation

WEIGHT = 2.0  # all marks together, beside the query's 1; 1 to 4 were measured to be safe
SAMPLE = 2048  # items that tell how far scores spread
MOST = 100  # marks a query, at most: more say nothing new, and a mark can cost a search of its own

Rows = np.ndarray | jax.Array


def refine(adaptation: Adaptation, right: Rows | Sequence[Rows], weight: float = WEIGHT) -> Adaptation:
  """Returns queries refined by marks that go by each query's own map: for `plain` and `by_words`, without an adapter.

  Exactly the order of s_query + weight · mean of the marks' scores under the same T. A query without marks keeps its
  bits. `right` holds the features of the gallery's items as `rank` takes them: an array (RD) for one query, or a list
  of arrays, one for each query. Raises ValueError for other shapes, zero or NaN rows, and more than 100 marks a query.
  """
  row_MD, owner_M = listed_marks(right, len(adaptation), adaptation.query.shape[1])
  if not len(row_MD):
    return adaptation
  of_mark = jax.tree.map(lambda x: np.asarray(x)[owner_M], adaptation.replace(frozen=None))
  query_MD = unit(apply(of_mark, unit(row_MD)), np.float32)
  return refined(adaptation, of_mark.replace(query=query_MD), owner_M, weight)


def refined(adaptation: Adaptation, mark: Adaptation, owner_M: np.ndarray, weight: float) -> Adaptation:
  """Returns queries refined by the adaptations of M marks; `owner_M` says whose each mark is, queries in order.

  Raises ValueError where a mark's map is not its query's: then no single adaptation has the sum's order.
  """
  theirs = jax.tree.map(lambda x: np.asarray(x)[owner_M], adaptation.replace(frozen=None))
  if not same_map(theirs, mark):
    raise ValueError(
      "the marks' maps or items are other than the queries', so no single adaptation has the order of the sum; use "
      "adapter.refine_terms and qat_jax.rank_sum"
    )
  mean_QD, there_Q = _means(mark, owner_M, len(adaptation))
  before_QD = np.asarray(adaptation.query)
  after_QD = unit(before_QD + _checked(weight) * mean_QD, np.float32)
  query_QD = np.where(there_Q[:, None], after_QD, before_QD)
  return adaptation.replace(query=jnp.asarray(query_QD), frozen=None)


def terms(
  query: Term,
  mark: Adaptation,
  owner_M: np.ndarray,
  gallery: GalleryLike,
  weight: float,
  scale: np.ndarray | float = 1.0,
) -> list[Term]:
  """Returns the terms of queries refined by M marks: the marks' mean where no mark has its own map, else each mark.

  Args:
    query: Q queries.
    mark: M marks as image queries, maybe with padding after them.
    owner_M: whose each mark is, in rising order.
    gallery: the items for `mark`.
    weight: of the mean of a query's marks, beside 1 for the query.
    scale: what the marks' scores are multiplied by, or each mark's (M).
  """
  queries, weight = len(query.adaptation), _checked(weight)
  if not len(owner_M):
    return [query]
  scale_M = np.broadcast_to(scale, len(owner_M))
  count_Q = np.bincount(owner_M, minlength=queries)
  some = lambda row_Q: jax.tree.map(lambda x: np.asarray(x)[row_Q], mark.replace(frozen=None))
  if is_identity(mark):
    mean_QD, there_Q = _means(mark, owner_M, queries, scale_M)
    first = some(np.zeros(queries, int))
    query_QD = np.where(there_Q[:, None], unit(mean_QD), first.query).astype(np.float32)
    return [query, Term(first.replace(query=query_QD), gallery, weight * np.linalg.norm(mean_QD, axis=1))]
  first_Q, made = np.cumsum(count_Q) - count_Q, [query]
  for place in range(count_Q.max()):
    there_Q = count_Q > place
    mark_Q = np.where(there_Q, first_Q + place, 0)
    weight_Q = np.where(there_Q, weight * scale_M[mark_Q] / np.maximum(count_Q, 1), 0)
    made.append(Term(some(mark_Q), gallery, weight_Q))
  return made


def evened(query: Term, mark: Adaptation, gallery: Any, frozen: Any) -> tuple[Term, np.ndarray]:
  """Returns queries whose scores spread over a gallery as plain ones do, and the factors of marks that do (M)."""
  weight_Q = scale_to_plain(query.adaptation, query.gallery, frozen)
  return query._replace(weight=weight_Q), scale_to_plain(mark, gallery, frozen)


def scale_to_plain(adaptation: Adaptation, gallery: Any, frozen: Any) -> np.ndarray:
  """Returns what each query's scores are multiplied by (Q) to spread over a gallery as those of its feature do."""
  row_N = np.linspace(0, len(frozen) - 1, min(len(frozen), SAMPLE)).astype(int)
  spread_Q = spreads(adaptation, gallery[row_N])
  plain_Q = spreads(plain(jnp.asarray(adaptation.frozen)), frozen[row_N])
  return np.where((spread_Q > FLAT) & (plain_Q > FLAT), plain_Q / np.maximum(spread_Q, FLAT), 1.0)


def apply(adaptation: Adaptation, x_QD: np.ndarray) -> np.ndarray:
  """Returns T x of a row for each query (QD)."""
  along_QR = jnp.einsum("QD,QDR->QR", x_QD, adaptation.right, precision=HIGHEST)
  mapped_QD = jnp.einsum("QR,QDR->QD", along_QR, adaptation.left, precision=HIGHEST)
  return np.asarray(adaptation.gate * x_QD + mapped_QD)


def listed_marks(right: Rows | Sequence[Rows], queries: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the marks of all queries (MD, float32), and whose each is (M), in the order of the queries.

  Raises ValueError for what is no list of arrays of rows, one for each query.
  """
  arrays = [right] if isinstance(right, Rows) else list(right)
  if len(arrays) != queries:
    kind = "one array" if isinstance(right, Rows) else f"{len(arrays)} arrays"
    raise ValueError(f"the marks are {kind} for {queries} queries; give a list with one array (R×{width}) each")
  rows = []
  for number, array in enumerate(arrays):
    row_RD = np.asarray(array, np.float32).reshape(-1, width) if np.size(array) == 0 else np.asarray(array, np.float32)
    if row_RD.ndim != 2 or row_RD.shape[1] != width:
      raise ValueError(f"the marks of query {number} have shape {row_RD.shape}; wanted rows of width {width}")
    if len(row_RD) > MOST:
      raise ValueError(f"query {number} has {len(row_RD)} marks; {MOST} are the most: keep the latest")
    square_R = np.square(row_RD.astype(np.float64)).sum(axis=1)
    if not (np.isfinite(square_R) & (square_R > 1e-32)).all():
      raise ValueError(f"a mark of query {number} is NaN, infinite or zero; leave it out")
    rows.append(row_RD)
  owner_M = np.repeat(np.arange(queries), [len(row_RD) for row_RD in rows])
  return np.concatenate(rows), owner_M


def _means(
  mark: Adaptation, owner_M: np.ndarray, queries: int, scale: np.ndarray | float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean of the scaled marks (QD, float64; zero without marks), and which queries have marks (Q)."""
  count_Q = np.bincount(owner_M, minlength=queries)
  total_QD = np.zeros((queries, mark.query.shape[1]))
  scale_M1 = np.broadcast_to(scale, len(owner_M))[:, None]
  np.add.at(total_QD, owner_M, scale_M1 * np.asarray(mark.query, np.float64)[: len(owner_M)])
  return total_QD / np.maximum(count_Q, 1)[:, None], count_Q > 0


def _checked(weight: float) -> float:
  if not (np.isfinite(weight) and weight >= 0):
    raise ValueError(f"the weight of the marks is {weight}; give a number of at least 0, such as {WEIGHT}")
  return float(weight)

"""Validation: one number, mAP over queries, for a head while it trains and for one that is to serve."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax import metrics
from qat_jax.adaptation import power_of_two, score
from qat_jax.features.retrieval_set import Split
from qat_jax.models.head import Head
from qat_jax.types import Ranking, Relevance

QUERY_BLOCK = 64  # queries scored at once: their scores and factors are all that is held
RESIDENT = 1 << 29  # bytes of float32: a gallery of no more lies on the device, another is read in pieces
PIECE = 1 << 28  # bytes of a piece, or of what all queries score on it
FEW = 64  # items right for a query, whose ranks are counted one by one on the device


class Lists(NamedTuple):
  """What is right and what does not count for each query, where neither is much: −1 as padding."""

  positive: np.ndarray  # QP, but for what does not count
  ignored: np.ndarray  # QI
  number: np.ndarray  # Q: how many are right, those that do not count too

  @classmethod
  def of(cls, relevance: Relevance) -> Self | None:
    """Returns the lists of a relevance; None where one is so long that the host's way is quicker."""
    positives = [np.setdiff1d(*both) for both in zip(relevance.positives, relevance.ignored, strict=True)]
    longest = max(map(len, [*positives, *relevance.ignored]), default=0)
    if longest > FEW or not len(relevance):
      return None
    size = power_of_two(longest)
    padded = lambda lists: np.stack([np.pad(one, (0, size - len(one)), constant_values=-1) for one in lists])
    number_Q = np.array([len(one) for one in relevance.positives])
    return cls(padded(positives).astype(np.int32), padded(relevance.ignored).astype(np.int32), number_Q)


class Validator:
  """Queries, gallery and relevance of a split; calling it gives mAP over the whole ranking.

  A gallery of no more than half a gigabyte is held on the device. A larger one is read twice for each head, in pieces.
  """

  def __init__(self, query_QD: Any, gallery_ND: Any, relevance: Relevance, limit: int, seed: int) -> None:
    """Keeps `limit` queries that have something relevant (0: all), drawn with `seed`; takes arrays or FeatureStores."""
    usable = np.flatnonzero([len(p) > 0 for p in relevance.positives])
    if 0 < limit < len(usable):
      usable = np.sort(np.random.default_rng(seed).choice(usable, limit, replace=False))
    self.query_QD = np.asarray(query_QD[usable], np.float32)
    self.resident = 4 * len(gallery_ND) * self.query_QD.shape[1] <= RESIDENT
    self.gallery = jnp.asarray(gallery_ND[:], jnp.float32) if self.resident else gallery_ND
    self.relevance = relevance.take(usable)
    self.group_Q = groups(self.relevance)
    self.lists = Lists.of(self.relevance)

  @classmethod
  def of(cls, split: Split, query_type: str, limit: int, seed: int) -> Self:
    """Returns the validation on the queries of one type of a split."""
    return cls(split.queries[query_type], split.gallery, split.relevance(query_type), limit, seed)

  @property
  def gallery_ND(self) -> jax.Array:
    """The whole gallery (float32), read anew where it is not held on the device."""
    return jnp.asarray(self.gallery[:], jnp.float32)

  def __call__(self, head: Head) -> float:
    """Returns mAP, a fraction, of what a head makes of the queries and the gallery."""
    return float(self.precisions(head).mean())

  def precisions(self, head: Head) -> np.ndarray:
    """Returns the average precision of each query (Q)."""
    if self.resident:
      item_NE = head.prepare(self.gallery)
      return np.concatenate([self._block_precisions(*scored) for scored in self._scores(head, item_NE)])
    rows = max(1, PIECE // (4 * max(self.query_QD.shape)))

    def parts() -> Iterator[tuple[int, np.ndarray]]:
      for first in range(0, len(self.gallery), rows):
        piece_ND = jnp.asarray(self.gallery[first : first + rows], jnp.float32)
        blocks = [np.asarray(score_QN) for _, score_QN in self._scores(head, head.prepare(piece_ND))]
        yield first, np.concatenate(blocks)[: len(self.query_QD)]

    return metrics.average_precision_of_parts(parts, self.relevance)

  def _scores(self, head: Head, item_NE: jax.Array) -> Iterator[tuple[int, jax.Array]]:
    """Yields the number of the first of QUERY_BLOCK queries, the last one repeated, and their scores of items (QN)."""
    module = head.module(self.query_QD.shape[1])
    for start in range(0, len(self.query_QD), QUERY_BLOCK):
      rows = np.minimum(np.arange(start, start + QUERY_BLOCK), len(self.query_QD) - 1)
      yield start, _score(module, head.variables, jnp.asarray(self.query_QD[rows]), item_NE)

  def _block_precisions(self, start: int, score_QN: jax.Array) -> np.ndarray:
    """Returns the average precision of the queries from number `start` on, by their scores; others are padding."""
    queries = range(start, min(start + QUERY_BLOCK, len(self.query_QD)))
    if self.lists is None:
      return metrics.average_precision_of_scores(np.asarray(score_QN)[: len(queries)], self.relevance.take(queries))
    rows = np.minimum(np.arange(start, start + QUERY_BLOCK), len(self.query_QD) - 1)
    positive_QP = self.lists.positive[rows]
    rank_QP = np.asarray(_ranks(score_QN, positive_QP, self.lists.ignored[rows]))
    rank_QP = np.sort(np.where(positive_QP >= 0, rank_QP, np.inf), axis=1)[: len(queries)]
    return (np.arange(1, rank_QP.shape[1] + 1) / rank_QP).sum(axis=1) / self.lists.number[queries]

  def gain(self, precision_Q: np.ndarray, other_Q: np.ndarray) -> tuple[float, float]:
    """Returns the mean of the paired difference of two heads' precisions, and its standard error.

    Queries of one instance stand and fall together; the error counts them so (`metrics.clustered_error`).
    """
    return float(np.mean(precision_Q - other_Q)), metrics.clustered_error(precision_Q - other_Q, self.group_Q)

  def mildest(self, heads: Iterable[Head]) -> Head:
    """Returns the first of several heads, given from the mildest to the strongest, that the best does not clearly beat.

    By the one-standard-error rule: the best on validation wins, unless a milder one is within one standard error of the
    paired difference, since what looks best there is in part luck.
    """
    heads = list(heads)
    precision = [self.precisions(head) for head in heads]
    return heads[self.mildest_of(precision)]

  def mildest_of(self, precision: Sequence[np.ndarray]) -> int:
    """Returns which of several heads `mildest` takes, by their precisions."""
    best_Q = max(precision, key=np.mean)
    lost = (self.gain(best_Q, own_Q) for own_Q in precision)
    return next(i for i, (loss, error) in enumerate(lost) if loss <= error)

  def subset(self, count: int) -> Self:
    """Returns the same validation with `count` of its queries, evenly spaced; all if there are no more."""
    rows = np.unique(np.linspace(0, len(self.query_QD) - 1, min(count, len(self.query_QD))).astype(int))
    other = copy.copy(self)
    other.query_QD, other.relevance = self.query_QD[rows], self.relevance.take(rows)
    other.group_Q, other.lists = self.group_Q[rows], Lists.of(other.relevance)
    return other

  def of_search(self, search: Callable[[np.ndarray, int], Ranking]) -> float:
    """Returns mAP, a fraction, of what a search of this gallery, (query_QD, k) → Ranking, finds in all of it."""
    ids_QN = np.asarray(search(self.query_QD, len(self.gallery)).ids)
    return float(metrics.average_precision(ids_QN, self.relevance).mean())


def groups(relevance: Relevance) -> np.ndarray:
  """Returns a number for each query (Q), the same where all that is right or ignored is the same.

  Such queries ask for one instance, or have one list.
  """
  both = zip(relevance.positives, relevance.ignored, strict=True)
  sets = [tuple(np.unique(np.concatenate(items)).tolist()) for items in both]
  number_of = {items: number for number, items in enumerate(sorted(set(sets)))}
  return np.array([number_of[items] for items in sets], int)


@functools.partial(jax.jit, static_argnums=0)
def _score(module: nn.Module, variables: dict, query_QD: jax.Array, gallery_ND: jax.Array) -> jax.Array:
  return score(module.apply(variables, query_QD), gallery_ND)


@jax.jit
def _ranks(score_QN: jax.Array, positive_QP: jax.Array, ignored_QI: jax.Array) -> jax.Array:
  """Returns the rank (QP, from 1) of each positive by score, of equal scores the earlier first, NaN last."""
  cost_QN = jnp.where(jnp.isnan(score_QN), jnp.inf, -score_QN)
  row_Q1, place_1N = jnp.arange(len(cost_QN))[:, None], jnp.arange(cost_QN.shape[1])[None]
  beyond_QI = jnp.where(ignored_QI < 0, cost_QN.shape[1], ignored_QI)
  counted_QN = cost_QN.at[row_Q1, beyond_QI].set(jnp.nan, mode="drop")  # NaN stands before nothing

  def with_ranks(p: jax.Array, rank_PQ: jax.Array) -> jax.Array:
    position_Q1 = positive_QP[:, p][:, None]
    own_Q1 = jnp.take_along_axis(cost_QN, jnp.maximum(position_Q1, 0), axis=1)
    before_QN = jnp.where(place_1N < position_Q1, counted_QN <= own_Q1, counted_QN < own_Q1)
    return rank_PQ.at[p].set(1 + before_QN.astype(jnp.int8).sum(axis=1, dtype=jnp.int32))

  longest = (positive_QP >= 0).sum(axis=1).max()
  return jax.lax.fori_loop(0, longest, with_ranks, jnp.zeros(positive_QP.T.shape, jnp.int32)).T

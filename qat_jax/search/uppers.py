"""Upper bounds of the scores of a part's items: what reaches a threshold, and the bounds of sums."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import power_of_two
from qat_jax.search.bounds import Array
from qat_jax.search.cores import on_cores

GROUP = 16  # items whose greatest bound stands for them, where there are
PEAKS = 256  # groups or more
SORTED = 4096  # numbers a query that a device orders: of larger groups, where there are more
DENSE = 1 / 8  # of the groups: where so many reach a threshold, to look through all rows costs less
FOUND = 1 << 14  # bounds that a device finds at once, at first
COUNTED = 128  # bounds of a group that are counted by a product
PIECE_ROWS = 2048  # that a core of a CPU is given at least
SUMMED = 1 << 16  # bounds that are added up at once: they stay in a cache


def peaks(upper_NQ: Array) -> Array:
  """Returns the greatest bound of each group of GROUP rows (GQ), or the bounds of few rows.

  Row i is of group i mod G; the rows that are over, fewer than GROUP, are of none. It goes by halves: along a middle
  axis NumPy, and XLA's CPU code, take a greatest number by number.
  """
  if len(upper_NQ) < PEAKS * GROUP:
    return upper_NQ
  maximum = np.maximum if isinstance(upper_NQ, np.ndarray) else jnp.maximum
  groups = len(upper_NQ) // GROUP
  upper_NQ = upper_NQ[: groups * GROUP]
  while len(upper_NQ) > groups:
    half = len(upper_NQ) // 2
    upper_NQ = maximum(upper_NQ[:half], upper_NQ[half:])
  return upper_NQ


class Piece(NamedTuple):
  """Upper bounds of the scores of consecutive items, on their device."""

  first: int  # the item of a part that the first row is, where it is one
  upper: Array  # NQ; −inf for rows that are no items, no new ones, or not wanted
  peaks: Array | None = None  # GQ: on a CPU, what `peaks` returns of them


class Uppers(NamedTuple):
  """Upper bounds of the scores of a part's items: one piece, or on a CPU one of each call."""

  pieces: list[Piece]
  queries: int  # the other columns are padding
  on_host: bool
  coarse: bool  # whether they come from the 8-bit copy

  def greatest(self, count: int) -> np.ndarray:
    """Returns a bound that about `count` items of each query reach (Q), no fewer; −inf where there are not so many."""
    if not self.on_host:
      (piece,) = self.pieces
      few = len(piece.upper) <= count
      return np.full(self.queries, -np.inf, np.float32) if few else np.asarray(_kth(piece.upper, count))[: self.queries]
    value_QG = np.concatenate([np.asarray(piece.peaks)[:, : self.queries] for piece in self.pieces]).T
    if value_QG.shape[1] <= count:
      return np.full(self.queries, -np.inf, np.float32)
    return -np.partition(-value_QG, count - 1, axis=1)[:, count - 1]

  def reaching(self, least_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns query, item and bound (three P) of the items whose bound reaches a query's least, query by query.

    On a CPU the host looks through the bounds where they lie; elsewhere the device does, and gives the host what it
    found.
    """
    least_Q = np.maximum(least_Q, np.finfo(np.float32).min).astype(np.float32)
    look = self._by_host if self.on_host else self._by_device
    found = on_cores(functools.partial(look, least_Q), self.pieces)
    query_P, item_P, upper_P = (np.concatenate(x) for x in zip(*found, strict=True))
    order_P = np.argsort(query_P.astype(np.int16), kind="stable")
    return query_P[order_P], item_P[order_P], upper_P[order_P]

  def of_items(self, rows: range) -> Array:
    """Returns the bounds of consecutive items (NQ); on a CPU on the host."""
    if len(self.pieces) == 1:
      first, piece_NQ, _ = self.pieces[0]
      return (np.asarray(piece_NQ) if self.on_host else piece_NQ)[
        rows.start - first : rows.stop - first, : self.queries
      ]
    upper_NQ = np.full((len(rows), self.queries), -np.inf, np.float32)
    for first, piece_NQ, _ in self.pieces:  # a row that two pieces hold is −inf in one of them
      start, stop = max(rows.start, first), min(rows.stop, first + len(piece_NQ))
      if start < stop:
        there_NQ = upper_NQ[start - rows.start : stop - rows.start]
        np.maximum(there_NQ, np.asarray(piece_NQ)[start - first : stop - first, : self.queries], out=there_NQ)
    return upper_NQ

  def _by_host(self, least_Q: np.ndarray, piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Looks into the groups whose greatest bound reaches a query's least, or through all rows where many do."""
    upper_NQ, peak_GQ = (np.asarray(x) for x in piece[1:])
    least_Q = np.pad(least_Q, (0, upper_NQ.shape[1] - self.queries), constant_values=np.inf)
    queries, groups, reached_R = len(least_Q), len(peak_GQ), np.flatnonzero(peak_GQ >= least_Q)
    first = groups * GROUP
    if groups == len(upper_NQ) or len(reached_R) > DENSE * peak_GQ.size:
      first, reached_R = 0, reached_R[:0]
    place_RE = reached_R[:, None] + groups * queries * np.arange(GROUP)
    place_P = place_RE[upper_NQ.ravel()[place_RE] >= least_Q[reached_R % queries, None]]
    over_P = np.flatnonzero(upper_NQ[first:] >= least_Q) + first * queries
    place_P = np.concatenate([place_P, over_P])
    row_P, query_P = np.divmod(place_P, queries)
    return query_P, row_P + piece.first, upper_NQ.ravel()[place_P]

  def _by_device(self, least_Q: np.ndarray, piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    least_Q = np.pad(least_Q, (0, piece.upper.shape[1] - self.queries), constant_values=np.inf)
    most = FOUND
    while True:
      count, place_P, upper_P = _reaching(piece.upper, least_Q, most)
      if int(count) <= most:
        break
      most = power_of_two(int(count))
    row_P, query_P = np.divmod(np.asarray(place_P)[: int(count)], piece.upper.shape[1])
    return query_P, row_P + piece.first, np.asarray(upper_P)[: int(count)]


@functools.partial(jax.jit, static_argnames="count")
def _kth(value_GQ: jax.Array, count: int) -> jax.Array:
  """Returns a number that `count` values of each query reach, or a few more (Q)."""
  groups = max(SORTED, 4 * power_of_two(count))
  size = -(-len(value_GQ) // groups)
  if size > 1:
    value_GQ = jnp.pad(value_GQ, ((0, groups * size - len(value_GQ)), (0, 0)), constant_values=-jnp.inf)
    value_GQ = value_GQ.reshape(size, groups, -1).max(axis=0)  # a group is spread out: its neighbours are in others
  return jax.lax.top_k(value_GQ.T, count)[0][:, -1]


@functools.partial(jax.jit, static_argnames="most")
def _reaching(upper_NQ: jax.Array, least_Q: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns how many bounds reach their query's least, and the places (row by row) and values of `most` of them.

  A place among what is found is the sum of the counts of all groups before, and of the flags before in its own: a
  product with ones. No running sum over all bounds, and no counter that all of them would add to.
  """
  reached_NQ = upper_NQ >= least_Q[None]
  reached_GE = jnp.pad(reached_NQ.ravel(), (0, -reached_NQ.size % COUNTED)).reshape(-1, COUNTED)
  before_EE = jnp.triu(jnp.ones((COUNTED, COUNTED), jnp.bfloat16), 1)
  before_GE = jnp.matmul(reached_GE.astype(jnp.bfloat16), before_EE, preferred_element_type=jnp.float32)
  count_G = reached_GE.sum(axis=1)
  found_GE = (jnp.cumsum(count_G) - count_G)[:, None] + before_GE.astype(jnp.int32)
  found_GE = jnp.where(reached_GE, found_GE, most)
  flat = jnp.arange(reached_GE.size, dtype=jnp.int32).reshape(reached_GE.shape)
  place_P = jnp.zeros(most, jnp.int32).at[found_GE.ravel()].set(flat.ravel(), mode="drop")
  return count_G.sum(), place_P, upper_NQ.ravel()[place_P]


def bounds_of_sums(uppers: Sequence[Uppers], weight_SQ: np.ndarray, items: int) -> Uppers:
  """Returns upper bounds of sums of S scores of the same items; their weights are not negative."""
  queries, on_host = uppers[0].queries, uppers[0].on_host
  weight_SQ = np.maximum(weight_SQ, 1e-30).astype(np.float32)  # what is no item stays −inf
  layouts = [[(piece.first, len(piece.upper)) for piece in one.pieces] for one in uppers]
  if all(layout == layouts[0] for layout in layouts):
    alike = zip(*(one.pieces for one in uppers), strict=True)
    pieces = [(some[0].first, [piece.upper for piece in some]) for some in alike]
  else:
    pieces = [(0, [one.of_items(range(items)) for one in uppers])]

  def summed(piece: tuple[int, list[Array]]) -> Piece:
    first, upper_SNQ = piece[0], [x[:, :queries] for x in piece[1]]
    if not on_host:
      return Piece(first, sum(weight_Q * upper_NQ for weight_Q, upper_NQ in zip(weight_SQ, upper_SNQ, strict=True)))
    upper_SNQ = [np.asarray(x) for x in upper_SNQ]
    total_NQ = np.empty(upper_SNQ[0].shape, np.float32)
    rows = max(1, SUMMED // queries)
    for start in range(0, len(total_NQ), rows):
      some = slice(start, start + rows)
      np.multiply(weight_SQ[0], upper_SNQ[0][some], out=total_NQ[some])
      for weight_Q, upper_NQ in zip(weight_SQ[1:], upper_SNQ[1:], strict=True):
        total_NQ[some] += weight_Q * upper_NQ[some]
    return Piece(first, total_NQ, peaks(total_NQ))

  return Uppers(on_cores(summed, pieces), queries, on_host, any(one.coarse for one in uppers))

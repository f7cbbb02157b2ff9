"""The filter of search, jitted: an upper bound of every item's score, and the items whose bound reaches a threshold.

It walks through blocks that a cache holds, so that what is read is the gallery, once; on a CPU each core through rows
of its own, since XLA's loop would share out every small block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, power_of_two
from qat_jax.search.bounds import LENGTHS, UNIT, Array, Bounds
from qat_jax.search.coarse import Coarse, CutColumns, cut_columns, intervals
from qat_jax.search.cores import cores, on_cores
from qat_jax.search.gallery import Part

BLOCK_ROWS = {"cpu": 128}  # of a block of items: on a CPU, what the cache of a core holds, and a copy of it
BLOCK_ROWS_ELSEWHERE = 1 << 14
COARSE_ROWS = 1024  # of a block of the 8-bit copy
PIECE_ROWS = 2048  # that a core of a CPU is given at least
FEW_COLUMNS = 80  # so few of a float32 gallery that XLA's CPU product is fastest in one piece
GROUP = 16  # items whose greatest bound stands for them, where there are
PEAKS = 256  # groups or more
SORTED = 4096  # numbers a query that a device orders: of larger groups, where there are more
ON_HOST = ("cpu",)  # where the host looks through bounds: XLA's CPU code for it takes ten times as long
FOUND = 1 << 14  # bounds that a device finds at once, at first
COUNTED = 128  # bounds of a group that are counted by a product
# bytes of a block's products that a GPU's cache holds: blocks of few columns are longer, since it takes longer to begin
PRODUCTS, LONGEST_BLOCK = 1 << 23, 1 << 17  # one than to read it


class Piece(NamedTuple):
  """Upper bounds of the scores of consecutive items, on their device."""

  first: int  # the item of a part that the first row is, where it is one
  upper: Array  # NQ; −inf for rows that are no items, no new ones, or not wanted
  peak: Array  # GQ: the greatest of groups; or no groups


class Uppers(NamedTuple):
  """Upper bounds of the scores of a part's items: one piece, or on a CPU one a core."""

  pieces: list[Piece]
  queries: int  # the other columns are padding
  on_host: bool
  coarse: bool  # whether they come from the 8-bit copy

  def greatest(self, count: int) -> np.ndarray:
    """Returns a bound that about `count` items of each query reach (Q), no fewer; −inf where there are not so many."""
    by_groups = all(len(piece.peak) for piece in self.pieces)
    values: list[Array] = [piece.peak if by_groups else piece.upper for piece in self.pieces]
    if sum(map(len, values)) <= count:
      return np.full(self.queries, -np.inf, np.float32)
    if not self.on_host:
      return np.asarray(_kth(values[0], count))[: self.queries]
    value_QG = np.concatenate([np.asarray(value)[:, : self.queries] for value in values]).T
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
    upper_NQ = np.asarray(piece.upper)[:, : self.queries]
    row_P, query_P = np.divmod(np.flatnonzero(upper_NQ >= least_Q), self.queries)
    return query_P, row_P + piece.first, upper_NQ[row_P, query_P]

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


def upper_bounds(bounds: Bounds, part: Part, queries: int) -> Uppers:
  """Returns what no score of a part's items exceeds, from the part's 8-bit copy where there is one.

  Gates as wide as features ask for sums of squares, which 8 bits do not hold.
  """
  rows, on_host, columns = part.window, part.platform in ON_HOST, bounds.columns.shape[1]
  coarse = part.coarse is not None and bounds.square is None
  items: jax.Array | Coarse = part.coarse if coarse and part.coarse is not None else part.features
  few = part.platform == "cpu" and bounds.square is None and columns <= FEW_COLUMNS and not coarse
  whole = few and rows == len(part.features) and part.features.dtype == jnp.float32  # a slice would be a copy
  count = 1 if whole or not on_host else max(1, min(cores(), rows // PIECE_ROWS))
  each = -(-rows // count)
  block = rows if whole else min(each, COARSE_ROWS if coarse else block_rows(part, columns))
  wanted_N = None
  if part.wanted is not None:
    wanted_N = np.pad(part.wanted, (part.skipped, rows - part.skipped - part.items))

  def piece(i: int) -> Piece:
    at = min(i * each, rows - each)  # the last piece goes over some rows again
    new = np.array([max(i * each, part.skipped) - at, part.skipped + part.items - at], np.int32)
    wanted_B = None if wanted_N is None else wanted_N[at : at + each]
    start = np.int32(part.offset - part.skipped + at)
    found = _upper_bounds(bounds, items, start, part.lengths, new, wanted_B, each, block)
    return Piece(at - part.skipped, *(jax.block_until_ready(found) if count > 1 else found))

  return Uppers(on_cores(piece, range(count)), queries, on_host, coarse)


def bounds_of_sums(uppers: Sequence[Uppers], weight_SQ: np.ndarray, items: int) -> Uppers:
  """Returns upper bounds of sums of S scores of the same items; their weights are not negative."""
  queries, on_host = uppers[0].queries, uppers[0].on_host
  weight_SQ = np.maximum(weight_SQ, 1e-30).astype(np.float32)  # what is no item stays −inf
  count = max(1, min(cores(), items // PIECE_ROWS)) if on_host else 1
  each = -(-items // count)

  def piece(i: int) -> Piece:
    rows = range(i * each, min((i + 1) * each, items))
    upper_SNQ = [one.of_items(rows) for one in uppers]
    total_NQ = weight_SQ[0] * upper_SNQ[0]
    for weight_Q, upper_NQ in zip(weight_SQ[1:], upper_SNQ[1:], strict=True):
      total_NQ += weight_Q * upper_NQ
    grouped = len(rows) - len(rows) % GROUP if items >= PEAKS * GROUP else 0
    return Piece(rows.start, total_NQ, total_NQ[:grouped].reshape(-1, GROUP, queries).max(axis=1))

  return Uppers(on_cores(piece, range(count)), queries, on_host, any(one.coarse for one in uppers))


def block_rows(part: Part, columns: int) -> int:
  """Returns how many items are bounded at once."""
  rows = BLOCK_ROWS.get(part.platform, BLOCK_ROWS_ELSEWHERE)
  if part.platform != "gpu":
    return rows
  bytes_each = 4 * columns * (1 if part.features.dtype == jnp.float32 else 3)
  return max(rows, min(LONGEST_BLOCK, power_of_two(PRODUCTS // bytes_each + 1) // 2))


@functools.partial(jax.jit, static_argnames=("rows", "block"))
def _upper_bounds(
  bounds: Bounds,
  gallery: jax.Array | Coarse,
  start: jax.Array,
  lengths: np.ndarray,
  new: np.ndarray,
  wanted_N: np.ndarray | None,
  rows: int,
  block: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the bounds (NQ) of some rows, and the greatest of groups of them; −inf but from new[0] to new[1]."""
  blocks, queries = -(-rows // block), bounds.floor.shape[0]
  columns = cut_columns(bounds.columns, gallery) if isinstance(gallery, Coarse) else None

  def some(at: jax.Array) -> jax.Array | Coarse:
    if isinstance(gallery, Coarse):
      return gallery.block(at, block)
    return jax.lax.dynamic_slice_in_dim(gallery, at, block)

  def one(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    upper_NQ, peak_GQ = found
    at = jnp.minimum(i * block, rows - block)  # the last block goes over some rows again
    upper_BQ = upper(bounds, some(start + at), lengths, columns)
    row_B = at + jnp.arange(block)
    there_B = (row_B >= new[0]) & (row_B < new[1])
    if wanted_N is not None:
      there_B &= jax.lax.dynamic_slice_in_dim(wanted_N, at, block)
    upper_BQ = jnp.where(there_B[:, None], upper_BQ, -jnp.inf)
    upper_NQ = jax.lax.dynamic_update_slice_in_dim(upper_NQ, upper_BQ, at, 0)
    if not peak_GQ.size:
      return upper_NQ, peak_GQ
    peak_BQ = jnp.where((row_B >= i * block)[:, None], upper_BQ, -jnp.inf)
    peak_BQ = peak_BQ[: block - block % GROUP].reshape(-1, GROUP, queries).max(axis=1)
    return upper_NQ, jax.lax.dynamic_update_slice_in_dim(peak_GQ, peak_BQ, i * (block // GROUP), 0)

  peak_GQ = jnp.zeros((blocks * (block // GROUP) if rows >= PEAKS * GROUP else 0, queries))
  return jax.lax.fori_loop(0, blocks, one, (jnp.zeros((rows, queries)), peak_GQ))


def upper(bounds: Bounds, items: jax.Array | Coarse, lengths: Array, columns: CutColumns | None = None) -> jax.Array:
  """Returns upper bounds (BQ) of the scores of items whose squared lengths lie between two `lengths`.

  Items are features (BD), or their 8-bit copy, which the bounds' columns are then cut for (lemma 9).
  """
  queries = bounds.floor.shape[0]
  square_BQ = (bounds.floor * jnp.where(bounds.floor >= 0, lengths[0], lengths[1]) - bounds.slack)[None]
  if isinstance(items, Coarse):
    assert columns is not None
    product_BC, doubt_BC = intervals(items, columns)
    least_BC = jnp.maximum(jnp.abs(product_BC) - doubt_BC, 0)
    most_BC = jnp.minimum(jnp.abs(product_BC) + doubt_BC, LENGTHS)
    numerator_BQ = product_BC[:, :queries] + doubt_BC[:, :queries]
  else:
    product_BC = least_BC = most_BC = _product(items, bounds.columns)
    numerator_BQ = product_BC[:, :queries]
    if bounds.square is not None:
      square_BQ += jnp.matmul(jnp.square(items.astype(jnp.float32)), bounds.square, precision=HIGHEST)
  each = (product_BC.shape[1] - queries) // max(1, len(bounds.weight))  # columns a direction: 1 where queries share it
  for i in range(len(bounds.weight)):
    own, weight_1Q = slice(queries + each * i, queries + each * (i + 1)), bounds.weight[i][None]
    along_BQ = product_BC[:, own] if columns is None else jnp.where(weight_1Q >= 0, least_BC[:, own], most_BC[:, own])
    square_BQ += weight_1Q * jnp.square(along_BQ)
    if bounds.doubt is not None:
      square_BQ -= bounds.doubt[i][None] * jnp.abs(along_BQ)
  numerator_BQ += bounds.numerator_slack[None]
  return jnp.minimum(_bound(numerator_BQ, square_BQ, bounds.cut[None], bounds.longest[None]), bounds.most[None])


def _bound(numerator: Array, square: Array, cut: Array, longest: Array) -> jax.Array:
  """Returns the numerator over the least length, √square − cut; a negative one over the greatest (lemma 4)."""
  length = jnp.sqrt(jnp.maximum(square, 0)) - cut
  length = jnp.where(numerator > 0, length, jnp.maximum(longest, 1e-30))
  quotient = jnp.where(length > 0, numerator / length, jnp.inf)
  return quotient + 8 * UNIT * jnp.abs(quotient)


def _product(item_BD: jax.Array, column_DC: Array) -> jax.Array:
  """Returns items @ columns (BC, float32).

  Half-precision items are multiplied as they are where hardware does that, with as many bits of the columns as float32
  has: no copy of them is made.
  """
  single = lambda x, y: jnp.matmul(x.astype(jnp.float32), y, precision=HIGHEST)
  if item_BD.dtype == jnp.float32:
    return single(item_BD, column_DC)

  def split(item_BD: jax.Array, column_DC: jax.Array) -> jax.Array:
    scale_1C = jnp.maximum(jnp.abs(column_DC).max(axis=0, keepdims=True), 1e-30)
    kind = jnp.finfo(item_BD.dtype)
    rest, step, parts = column_DC / scale_1C, 2.0 ** (kind.nmant + 1), []
    for _ in range(3):
      # a plain conversion there and back may be taken out by the compiler
      rounded = jax.lax.reduce_precision(rest, kind.nexp, kind.nmant)
      parts.append(rounded.astype(item_BD.dtype))
      rest = (rest - rounded) * step
    product_B3C = jnp.matmul(item_BD, jnp.concatenate(parts, axis=1), preferred_element_type=jnp.float32)
    first_BC, second_BC, third_BC = jnp.split(product_B3C, 3, axis=1)
    return scale_1C * (first_BC + (second_BC + third_BC / step) / step)

  return jax.lax.platform_dependent(item_BD, column_DC, cpu=single, default=split)

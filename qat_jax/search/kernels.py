"""The filter of search, jitted: an upper bound of every item's score.

It walks through blocks that a cache holds, so that what is read is the gallery, once; on a CPU each core through rows
of its own, since XLA's loop would share out every small block.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, power_of_two
from qat_jax.search.bounds import LENGTHS, UNIT, Array, Bounds, OneMap, Prepared
from qat_jax.search.coarse import EXACT, Coarse, CutColumns, cut_columns, intervals, quicker_kind
from qat_jax.search.cores import cores, on_cores
from qat_jax.search.gallery import Part
from qat_jax.search.spectrum import remember
from qat_jax.search.uppers import PIECE_ROWS, Piece, Uppers

BLOCK_ROWS = {"cpu": 128}  # of a block of items: on a CPU, what the cache of a core holds, and a copy of it
BLOCK_ROWS_ELSEWHERE = 1 << 14
COARSE_ROWS = 1024  # of a block of the 8-bit copy
FEW_COLUMNS = 80  # so few of a float32 gallery that XLA's CPU product is fastest in one piece
ON_HOST = ("cpu",)  # where the host looks through bounds: XLA's CPU code for it takes ten times as long
# bytes of a block's products that a GPU's cache holds: blocks of few columns are longer, since it takes longer to begin
PRODUCTS, LONGEST_BLOCK = 1 << 23, 1 << 17  # one than to read it


def filtered(prepared: Prepared, part: Part, queries: int) -> Uppers:
  """Returns what no score of a part's items exceeds; one map's lengths are taken once for a gallery on a device."""
  if prepared.one_map is None or part.squares is None:
    return upper_bounds(prepared.bounds, part, queries)
  return upper_bounds(prepared.one_map.numerators, part, queries, squares_of(prepared.one_map, part))


def squares_of(one: OneMap, part: Part) -> jax.Array:
  """Returns lower bounds of the squared lengths that one map gives the rows of a part's array (N).

  They are kept for the maps that were used last: people ask for few aspects, again and again.
  """
  known = part.squares
  assert known is not None
  if (square_N := known.get(one.key)) is None:
    rows = len(part.features)
    whole = dataclasses.replace(part, first=0, items=rows, offset=0, window=rows, wanted=None, coarse=None)
    square_N = jnp.asarray(upper_bounds(one.map, whole, 1, lengths_only=True).of_items(range(rows))[:, 0])
  remember(known, one.key, square_N)
  return square_N


def upper_bounds(
  bounds: Bounds, part: Part, queries: int, square_N: jax.Array | None = None, lengths_only: bool = False
) -> Uppers:
  """Returns what no score of a part's items exceeds, from the part's 8-bit copy where there is one.

  Gates as wide as features ask for sums of squares, which 8 bits do not hold.

  Args:
    bounds: of Q queries, or more: padding.
    part: the items.
    queries: Q.
    square_N: a lower bound of the squared length of each row of the part's array, where the bounds have none.
    lengths_only: whether to return lower bounds of squared lengths, by bounds that have directions alone.
  """
  rows, on_host, columns = part.window, part.platform in ON_HOST, bounds.columns.shape[1]
  coarse = part.coarse is not None and bounds.square is None
  items: jax.Array | Coarse = part.coarse if coarse and part.coarse is not None else part.features
  few = part.platform == "cpu" and bounds.square is None and columns <= FEW_COLUMNS and not coarse
  whole = few and rows == len(part.features) and part.features.dtype == jnp.float32  # a slice would be a copy
  count = 1 if whole or not on_host else max(1, min(cores(), rows // PIECE_ROWS))
  each = -(-rows // count)
  block = rows if whole else min(each, COARSE_ROWS if coarse else block_rows(part, columns))
  kind = quicker_kind() if coarse and bounds.columns.shape[0] <= EXACT else "int8"
  wanted_N = None
  if part.wanted is not None:
    wanted_N = np.pad(part.wanted, (part.skipped, rows - part.skipped - part.items))

  def piece(i: int) -> Piece:
    at = min(i * each, rows - each)  # the last piece goes over some rows again
    new = np.array([max(i * each, part.skipped) - at, part.skipped + part.items - at], np.int32)
    wanted_B = None if wanted_N is None else wanted_N[at : at + each]
    start = np.int32(part.offset - part.skipped + at)
    found = _upper_bounds(bounds, items, start, part.lengths, new, wanted_B, each, block, square_N, lengths_only, kind)
    return Piece(at - part.skipped, jax.block_until_ready(found) if count > 1 else found)

  return Uppers(on_cores(piece, range(count)), queries, on_host, coarse)


def block_rows(part: Part, columns: int) -> int:
  """Returns how many items are bounded at once."""
  rows = BLOCK_ROWS.get(part.platform, BLOCK_ROWS_ELSEWHERE)
  if part.platform != "gpu":
    return rows
  bytes_each = 4 * columns * (1 if part.features.dtype == jnp.float32 else 3)
  return max(rows, min(LONGEST_BLOCK, power_of_two(PRODUCTS // bytes_each + 1) // 2))


@functools.partial(jax.jit, static_argnames=("rows", "block", "lengths_only", "kind"))
def _upper_bounds(
  bounds: Bounds,
  gallery: jax.Array | Coarse,
  start: jax.Array,
  lengths: np.ndarray,
  new: np.ndarray,
  wanted_N: np.ndarray | None,
  rows: int,
  block: int,
  square_N: jax.Array | None = None,
  lengths_only: bool = False,
  kind: str = "int8",
) -> jax.Array:
  """Returns the bounds (NQ) of some rows; −inf but from new[0] to new[1]."""
  blocks, queries = -(-rows // block), bounds.floor.shape[0]
  columns = cut_columns(bounds.columns, gallery, kind) if isinstance(gallery, Coarse) else None

  def some(at: jax.Array) -> jax.Array | Coarse:
    if isinstance(gallery, Coarse):
      return gallery.block(at, block)
    return jax.lax.dynamic_slice_in_dim(gallery, at, block)

  def one(i: jax.Array, upper_NQ: jax.Array) -> jax.Array:
    at = jnp.minimum(i * block, rows - block)  # the last block goes over some rows again
    square_B = None if square_N is None else jax.lax.dynamic_slice_in_dim(square_N, start + at, block)
    upper_BQ = upper(bounds, some(start + at), lengths, columns, square_B, lengths_only)
    row_B = at + jnp.arange(block)
    there_B = (row_B >= new[0]) & (row_B < new[1])
    if wanted_N is not None:
      there_B &= jax.lax.dynamic_slice_in_dim(wanted_N, at, block)
    return jax.lax.dynamic_update_slice_in_dim(upper_NQ, jnp.where(there_B[:, None], upper_BQ, -jnp.inf), at, 0)

  return jax.lax.fori_loop(0, blocks, one, jnp.zeros((rows, queries)))


def upper(
  bounds: Bounds,
  items: jax.Array | Coarse,
  lengths: Array,
  columns: CutColumns | None = None,
  square_B: jax.Array | None = None,
  lengths_only: bool = False,
) -> jax.Array:
  """Returns upper bounds (BQ) of the scores of items.

  Args:
    bounds: of Q queries.
    items: features (BD), or their 8-bit copy.
    lengths: between which two the items' squared lengths lie.
    columns: of the bounds, cut for an 8-bit copy (lemma 9).
    square_B: a lower bound of each item's squared length in the map, where the bounds have no directions.
    lengths_only: whether to return lower bounds of squared lengths (BQ); the bounds then have directions alone.
  """
  queries = bounds.floor.shape[0]
  numerators = 0 if lengths_only else queries
  square_BQ = (bounds.floor * jnp.where(bounds.floor >= 0, lengths[0], lengths[1]) - bounds.slack)[None]
  if isinstance(items, Coarse):
    assert columns is not None
    product_BC, doubt_BC = intervals(items, columns)
    least_BC = jnp.maximum(jnp.abs(product_BC) - doubt_BC, 0)
    most_BC = jnp.minimum(jnp.abs(product_BC) + doubt_BC, LENGTHS)
    numerator_BQ = product_BC[:, :numerators] + doubt_BC[:, :numerators]
  else:
    product_BC = least_BC = most_BC = _product(items, bounds.columns)
    numerator_BQ = product_BC[:, :numerators]
    if bounds.square is not None:
      square_BQ += jnp.matmul(jnp.square(items.astype(jnp.float32)), bounds.square, precision=HIGHEST)
  # columns a direction: 1 where queries share it
  each = (product_BC.shape[1] - numerators) // max(1, len(bounds.weight))
  for i in range(len(bounds.weight)):
    own, weight_1Q = slice(numerators + each * i, numerators + each * (i + 1)), bounds.weight[i][None]
    along_BQ = product_BC[:, own] if columns is None else jnp.where(weight_1Q >= 0, least_BC[:, own], most_BC[:, own])
    square_BQ += weight_1Q * jnp.square(along_BQ)
    if bounds.doubt is not None:
      square_BQ -= bounds.doubt[i][None] * jnp.abs(along_BQ)
  if lengths_only:
    return jnp.broadcast_to(square_BQ, (product_BC.shape[0], queries))
  if square_B is not None:
    square_BQ = square_B[:, None]
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

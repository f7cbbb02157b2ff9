"""The filter of search, jitted: an upper bound of every item's score.

It walks through blocks that a cache holds, so that what is read is the gallery, once; on a CPU each core through rows
of its own, since XLA's loop would share out every small block.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, power_of_two
from qat_jax.search.bounds import LENGTHS, UNIT, Array, Bounds, OneMap, Prepared
from qat_jax.search.coarse import (
  EXACT,
  Coarse,
  CutColumns,
  cut_columns,
  intervals,
  quicker_kind,
  row_view,
)
from qat_jax.search.cores import cores, on_cores
from qat_jax.search.gallery import Part
from qat_jax.search.gates import CutGates, cut_gates, least_squares
from qat_jax.search.spectrum import remember
from qat_jax.search.uppers import PIECE_ROWS, Piece, Uppers, peaks

BLOCK_ROWS = {"cpu": 128}  # of a block of items: on a CPU, what the cache of a core holds, and a copy of it
BLOCK_ROWS_ELSEWHERE = 1 << 14
COARSE_ROWS = 1024  # of a block of the 8-bit copy, where it is multiplied as float32
RESULTS = 1 << 22  # bytes of 8-bit products that a call makes: a cache holds them
EVEN = 64  # rows: where so many begin, the bytes of any width lie as XLA wants them, and are not copied
FEW = 4  # columns in 8 bits: as long as the sums take to read the gallery, what is left of a column is one, too
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
  bounds: Bounds,
  part: Part,
  queries: int,
  square_N: jax.Array | None = None,
  lengths_only: bool = False,
) -> Uppers:
  """Returns what no score of a part's items exceeds, from the part's 8-bit copy where there is one.

  Args:
    bounds: of Q queries, or more: padding.
    part: the items.
    queries: Q.
    square_N: a lower bound of the squared length of each row of the part's array, where the bounds have none.
    lengths_only: whether to return lower bounds of squared lengths, by bounds that have directions alone.
  """
  coarse, portions = part.coarse, 2 if bounds.columns.shape[1] <= FEW else 1
  kind = "int8" if coarse is None or len(bounds.columns) > EXACT else quicker_kind()
  cut = None if coarse is None else _cut(bounds, coarse, kind, portions)
  layout = _layout(part, bounds, kind, portions)
  host = part.platform in ON_HOST
  if cut is not None:  # which stands for the columns
    bounds = dataclasses.replace(bounds, columns=np.zeros((len(bounds.columns), 0), np.float32), square=None)
  wanted_N = None
  if part.wanted is not None:
    wanted_N = np.pad(part.wanted, (part.skipped, part.window - part.skipped - part.items))

  def piece(i: int) -> Piece:
    each = layout.each
    at = min(i * each, part.window - each)  # the last piece goes over some rows again
    new = np.array([max(i * each, part.skipped) - at, part.skipped + part.items - at], np.int32)
    wanted_B = None if wanted_N is None else wanted_N[at : at + each]
    start, items = part.offset - part.skipped + at, part.features if coarse is None else coarse
    if layout.viewed and each < len(part.features):
      items = row_view(part.features, start, each) if coarse is None else coarse.with_values(start, each)
    found = _upper_bounds(
      bounds, items, np.int32(start), part.lengths, new, wanted_B, each, layout.block, square_N, lengths_only, cut, host
    )
    return Piece(at - part.skipped, *(found if layout.viewed or not host else jax.block_until_ready(found)))

  all_pieces = range(-(-part.window // layout.each))
  pieces = [piece(i) for i in all_pieces] if layout.viewed else on_cores(piece, all_pieces)
  return Uppers(pieces, queries, host, coarse is not None)


class _Layout(NamedTuple):
  """How a part is walked through."""

  each: int  # rows of a call
  block: int  # rows that a call bounds at once
  viewed: bool  # whether a call is given its own rows, and XLA shares them out


def _layout(part: Part, bounds: Bounds, kind: str, portions: int) -> _Layout:
  rows, columns = part.window, bounds.columns.shape[1]
  if part.platform not in ON_HOST:
    return _Layout(rows, min(rows, block_rows(part, columns)), False)
  coarse = part.coarse is not None
  few = bounds.square is None and columns <= FEW_COLUMNS and part.features.dtype == jnp.float32
  if (coarse and kind == "int8" and bounds.square is None) or (few and not coarse):
    most = max(EVEN, RESULTS // (4 * columns * (portions if coarse else 1)))
    each = -(-rows // -(-rows // most))
    each = min(rows, -(-each // EVEN) * EVEN)
    return _Layout(each, each, True)
  each = -(-rows // max(1, min(cores(), rows // PIECE_ROWS)))
  return _Layout(each, min(each, COARSE_ROWS if coarse else block_rows(part, columns)), False)


def block_rows(part: Part, columns: int) -> int:
  """Returns how many items are bounded at once."""
  rows = BLOCK_ROWS.get(part.platform, BLOCK_ROWS_ELSEWHERE)
  if part.platform != "gpu":
    return rows
  bytes_each = 4 * columns * (1 if part.features.dtype == jnp.float32 else 3)
  return max(rows, min(LONGEST_BLOCK, power_of_two(PRODUCTS // bytes_each + 1) // 2))


@functools.partial(jax.jit, static_argnames=("kind", "portions"))
def _cut(bounds: Bounds, items: Coarse, kind: str, portions: int) -> tuple[CutColumns, CutGates | None]:
  """Returns the bounds' columns and gates in 8 bits; a gate's own column, gate² ∘ centre, comes after the others."""
  if bounds.square is None:
    return cut_columns(bounds.columns, items, kind, portions), None
  column_DC = jnp.concatenate([bounds.columns, bounds.square * items.centre[:, None]], axis=1)
  return cut_columns(column_DC, items, kind, portions), cut_gates(bounds.square, items, kind)


@functools.partial(jax.jit, static_argnames=("rows", "block", "lengths_only", "peaked"))
def _upper_bounds(
  bounds: Bounds,
  gallery: jax.Array | Coarse,
  start: jax.Array,
  lengths: np.ndarray,
  new: np.ndarray,
  wanted_N: np.ndarray | None,
  rows: int,
  block: int,
  square_N: Array | None = None,
  lengths_only: bool = False,
  cut: tuple[CutColumns, CutGates | None] | None = None,
  peaked: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Returns the bounds (NQ) of some rows, −inf but from new[0] to new[1]; and if asked for, their peaks."""

  def some(at: jax.Array) -> jax.Array | Coarse:
    if isinstance(gallery, Coarse):
      return gallery.block(at, block)
    return gallery if block == len(gallery) else jax.lax.dynamic_slice_in_dim(gallery, at, block)

  def one(i: jax.Array, upper_NQ: jax.Array) -> jax.Array:
    at = jnp.minimum(i * block, rows - block)  # the last block goes over some rows again
    square_B = None if square_N is None else jax.lax.dynamic_slice_in_dim(square_N, start + at, block)
    upper_BQ = upper(bounds, some(start + at), lengths, cut, square_B, lengths_only)
    row_B = at + jnp.arange(block)
    there_B = (row_B >= new[0]) & (row_B < new[1])
    if wanted_N is not None:
      there_B &= jax.lax.dynamic_slice_in_dim(wanted_N, at, block)
    upper_BQ = jnp.where(there_B[:, None], upper_BQ, -jnp.inf)
    return upper_BQ if block == rows else jax.lax.dynamic_update_slice_in_dim(upper_NQ, upper_BQ, at, 0)

  empty_NQ = jnp.zeros((rows, bounds.floor.shape[0]))
  upper_NQ = one(jnp.int32(0), empty_NQ) if block == rows else jax.lax.fori_loop(0, -(-rows // block), one, empty_NQ)
  return upper_NQ, jnp.asarray(peaks(upper_NQ)) if peaked else None


def upper(
  bounds: Bounds,
  items: jax.Array | Coarse,
  lengths: Array,
  cut: tuple[CutColumns, CutGates | None] | None = None,
  square_B: jax.Array | None = None,
  lengths_only: bool = False,
) -> jax.Array:
  """Returns upper bounds (BQ) of the scores of items.

  Args:
    bounds: of Q queries.
    items: features (BD), or their 8-bit copy.
    lengths: between which two the items' squared lengths lie.
    cut: the bounds' columns and gates for an 8-bit copy (lemmas 9 and 11).
    square_B: a lower bound of each item's squared length in the map, where the bounds have no directions.
    lengths_only: whether to return lower bounds of squared lengths (BQ); the bounds then have directions alone.
  """
  queries = bounds.floor.shape[0]
  numerators = 0 if lengths_only else queries
  square_BQ = (bounds.floor * jnp.where(bounds.floor >= 0, lengths[0], lengths[1]) - bounds.slack)[None]
  if isinstance(items, Coarse):
    assert cut is not None
    product_BC, doubt_BC = intervals(items, cut[0])
    if cut[1] is not None:
      square_BQ += least_squares(items, cut[1], (product_BC - doubt_BC)[:, -queries:])
      product_BC, doubt_BC = product_BC[:, :-queries], doubt_BC[:, :-queries]
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
    along_BQ = product_BC[:, own] if cut is None else jnp.where(weight_1Q >= 0, least_BC[:, own], most_BC[:, own])
    square_BQ += weight_1Q * jnp.square(along_BQ)
    if bounds.doubt is not None:
      square_BQ -= bounds.doubt[i][None] * jnp.abs(along_BQ)
  if lengths_only:
    return jnp.broadcast_to(square_BQ, (product_BC.shape[0], queries))
  if square_B is not None:
    square_BQ = square_B[:, None]
  numerator_BQ += bounds.numerator_slack[None]
  # what is no number claims nothing
  return jnp.fmin(_bound(numerator_BQ, square_BQ, bounds.cut[None], bounds.longest[None]), bounds.most[None])


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

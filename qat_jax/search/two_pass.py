"""Exact top-k in two passes: bounds from a few columns for every item, the full formula for the few that may win.

An upper bound of every score costs one product of the gallery with 1 + M columns a query. The B items with the largest
bounds are scored exactly. If the largest bound among the others lies below the k-th exact score, no other item can be
among the best k: the result is proven. Else B grows, and at last every item is scored by the full formula.
"""

from __future__ import annotations

import functools
import threading

import jax
import jax.numpy as jnp
from flax import struct

from qat_jax.adaptation import HIGHEST, TINY, Leading, fold, leading, score
from qat_jax.adaptation import bounds as length_bounds
from qat_jax.types import Adaptation

COLUMNS = 8  # products are padded to a multiple of this: XLA's CPU product of 8 columns is as fast as that of one

BLOCK_ROWS = 1024
BLOCK_ROWS_HALF = 1 << 16  # half-precision galleries lie whole on accelerators only, which want larger blocks
GROUP = 16  # items whose greatest number stands for them


@struct.dataclass
class Bounding:
  """What the first pass needs of Q adaptations."""

  columns: jax.Array  # DC: the folded queries, then the first direction of each query, …
  gate: jax.Array  # QD, or Q1
  leading: Leading | None  # None where there are no factors
  slack: jax.Array  # Q: rounding of the numerator


@struct.dataclass
class Candidates:
  """The items with the B largest upper bounds so far; −1 and −inf where there are fewer."""

  ids: jax.Array  # QB, int32
  upper: jax.Array  # QB


# XLA's CPU eigenproblems and QRs wait for its thread pool from within it: as many at once as it has threads never end
decomposing = threading.Lock()


def prepare(adaptation: Adaptation, kept: int) -> Bounding:
  """Returns the first pass of an adaptation with `kept` directions; 0 where it has no factors."""
  with decomposing:
    return jax.block_until_ready(_prepare(adaptation, kept))


@functools.partial(jax.jit, static_argnames="kept")
def _prepare(adaptation: Adaptation, kept: int) -> Bounding:
  folded_QD = fold(adaptation)
  lead = leading(adaptation, kept) if kept else None
  groups = [folded_QD.T] + ([] if lead is None else [lead.directions[:, :, i].T for i in range(kept)])
  columns_DC = jnp.concatenate(groups, axis=1)
  columns_DC = jnp.pad(columns_DC, ((0, 0), (0, -columns_DC.shape[1] % COLUMNS)))
  length_Q = jnp.linalg.norm(folded_QD, axis=1)
  return Bounding(columns_DC, adaptation.gate, lead, folded_QD.shape[1] * jnp.finfo(jnp.float32).eps * length_Q)


@jax.jit
def product(gallery_ND: jax.Array, column_DC: jax.Array) -> jax.Array:
  """Returns gallery @ columns (NC); a program of its own, since XLA's CPU product is slower where others follow it.

  A half-precision gallery is multiplied as it is, with as many exact bits of the columns as float32 has: no copy of it.
  """
  if gallery_ND.dtype == jnp.float32:
    return jnp.matmul(gallery_ND, column_DC, precision=HIGHEST)
  scale_C = jnp.maximum(jnp.abs(column_DC).max(axis=0), TINY)
  parts, step = split(column_DC / scale_C, gallery_ND.dtype)
  product_NC = jnp.matmul(gallery_ND, jnp.concatenate(parts, axis=1), preferred_element_type=jnp.float32)
  first_NC, second_NC, third_NC = jnp.split(product_NC, len(parts), axis=1)
  return scale_C * (first_NC + (second_NC + third_NC / step) / step)


def split(value: jax.Array, dtype: jnp.dtype) -> tuple[list[jax.Array], float]:
  """Returns three arrays of a half-precision type, and a step: value = first + second / step + third / step²."""
  kind = jnp.finfo(dtype)
  step, parts = float(2 ** (kind.nmant + 1)), []
  for _ in range(3):
    # a plain conversion there and back may be taken out by the compiler
    rounded = jax.lax.reduce_precision(value, kind.nexp, kind.nmant)
    parts.append(rounded.astype(dtype))
    value = (value - rounded) * step
  return parts, step


def upper_bounds(bounding: Bounding, gallery_ND: jax.Array, product_NC: jax.Array, square_N: jax.Array) -> jax.Array:
  """Returns numbers (NQ) that no exact score exceeds; `product_NC` is gallery @ columns, `square_N` is |z|²."""
  queries = len(bounding.gate)
  numerator_NQ = product_NC[:, :queries] + bounding.slack
  if bounding.gate.shape[1] == 1:
    gated_NQ = square_N[:, None] * jnp.square(bounding.gate[:, 0])
  else:
    gated_NQ = _squares_product(gallery_ND, jnp.square(bounding.gate).T)
  if bounding.leading is None:
    rounding_Q = 4 * gallery_ND.shape[1] * jnp.finfo(jnp.float32).eps * jnp.square(bounding.gate).max(axis=1)
    low_NQ, high_NQ = gated_NQ - rounding_Q, gated_NQ + rounding_Q
  else:
    kept = bounding.leading.values.shape[1]
    along = [product_NC[:, queries * i : queries * (i + 1)] for i in range(1, kept + 1)]
    low_NQ, high_NQ = length_bounds(bounding.leading, along, gated_NQ, square_N[:, None])
  # a negative numerator is least negative over the greatest length
  square_NQ = jnp.where(numerator_NQ > 0, low_NQ, jnp.maximum(high_NQ, 1e-30))
  return jnp.where(square_NQ > 0, numerator_NQ * jax.lax.rsqrt(square_NQ), jnp.inf)


def _squares_product(gallery_ND: jax.Array, gate_DQ: jax.Array) -> jax.Array:
  """Returns (z∘z)·gate (NQ), block by block, so that the squares of a block stay in the cache."""
  square_product = lambda x: jnp.matmul(jnp.square(x.astype(jnp.float32)), gate_DQ, precision=HIGHEST)
  rows = BLOCK_ROWS if gallery_ND.dtype == jnp.float32 else BLOCK_ROWS_HALF
  blocks, rest = divmod(len(gallery_ND), rows)
  if not blocks:
    return square_product(gallery_ND)
  slices = lambda i: jax.lax.dynamic_slice_in_dim(gallery_ND, i * rows, rows)
  whole = jax.lax.map(lambda i: square_product(slices(i)), jnp.arange(blocks)).reshape(-1, gate_DQ.shape[1])
  return jnp.concatenate([whole, square_product(gallery_ND[len(gallery_ND) - rest :])]) if rest else whole


def first_pass(bounding: Bounding, gallery_ND: jax.Array, square_N: jax.Array, wanted: jax.Array) -> jax.Array:
  """Returns upper bounds (QN); −inf where not `wanted` (bool, 1N or QN)."""
  return _wanted_bounds(bounding, gallery_ND, product(gallery_ND, bounding.columns), square_N, wanted)


@jax.jit
def _wanted_bounds(
  bounding: Bounding, gallery_ND: jax.Array, product_NC: jax.Array, square_N: jax.Array, wanted: jax.Array
) -> jax.Array:
  return jnp.where(wanted, upper_bounds(bounding, gallery_ND, product_NC, square_N).T, -jnp.inf)


@jax.jit
def full_pass(adaptation: Adaptation, gallery_ND: jax.Array, wanted: jax.Array) -> jax.Array:
  """Returns what `first_pass` does, with the scores themselves as bounds."""
  return jnp.where(wanted, score(adaptation, gallery_ND), -jnp.inf)


@functools.partial(jax.jit, static_argnames="count")
def greatest(value_QN: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Returns the greatest values and their places (two QC, C = count ≤ N), greatest first.

  They lie in the C groups with the greatest maxima, so that only these are sorted.
  """
  queries, items = value_QN.shape
  if items < 4 * GROUP * count:
    return jax.lax.top_k(value_QN, count)
  value_QXG = jnp.pad(value_QN, ((0, 0), (0, -items % GROUP)), constant_values=-jnp.inf).reshape(queries, -1, GROUP)
  _, group_QC = jax.lax.top_k(value_QXG.max(axis=2), count)
  inside_QCG = jnp.take_along_axis(value_QXG, group_QC[:, :, None], axis=1)
  value_QC, place_QC = jax.lax.top_k(inside_QCG.reshape(queries, -1), count)
  return value_QC, jnp.take_along_axis(group_QC, place_QC // GROUP, axis=1) * GROUP + place_QC % GROUP


@functools.partial(jax.jit, static_argnames="buffer")
def keep(upper_QN: jax.Array, start: jax.Array, earlier: Candidates | None, buffer: int) -> Candidates:
  """Returns the `buffer` items with the largest bounds, of earlier ones and those at `start` and after."""
  before = 0 if earlier is None else earlier.upper.shape[1]
  if earlier is not None:
    upper_QN = jnp.concatenate([earlier.upper, upper_QN], axis=1)
  upper_QN = jnp.pad(upper_QN, ((0, 0), (0, max(0, buffer - upper_QN.shape[1]))), constant_values=-jnp.inf)
  upper_QB, place_QB = greatest(upper_QN, buffer)
  id_QB = (place_QB - before + start).astype(jnp.int32)
  if earlier is not None:
    earlier_QB = jnp.take_along_axis(earlier.ids, jnp.minimum(place_QB, before - 1), axis=1)
    id_QB = jnp.where(place_QB < before, earlier_QB, id_QB)
  return Candidates(jnp.where(upper_QB > -jnp.inf, id_QB, -1), upper_QB)


@jax.jit
def survivors(upper_QN: jax.Array, threshold_Q: jax.Array) -> jax.Array:
  """Returns how many items (Q) the bounds cannot rule out."""
  return jnp.sum(upper_QN >= threshold_Q[:, None], axis=1)


@jax.jit
def ordered(id_QB: jax.Array, score_QB: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns ids and scores (QB), best first, lower id first where scores are equal; −1 and −inf at the end."""
  negative_QB, id_QB = jax.lax.sort((jnp.where(id_QB < 0, jnp.inf, -score_QB), id_QB), dimension=1, num_keys=2)
  return id_QB, -negative_QB


@jax.jit
def finite(adaptation: Adaptation) -> jax.Array:
  """Returns which queries (Q) have an adaptation without NaN and infinities."""
  leaves = jax.tree.leaves(adaptation)
  return jnp.stack([jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]).all(axis=0)


@jax.jit
def as_float(gallery_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the features in float32, and their squared lengths (N)."""
  return gallery_ND.astype(jnp.float32), squares(gallery_ND)


@jax.jit
def squares(gallery_ND: jax.Array) -> jax.Array:
  """Returns the features' squared lengths (N, float32)."""
  return jnp.sum(jnp.square(gallery_ND.astype(jnp.float32)), axis=1)

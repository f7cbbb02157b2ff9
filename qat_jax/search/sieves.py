"""The exact top k of a gallery on one device by three sieves: each finer than the one before, and for fewer items.

First the folded query's inner product with every item, the price of a plain search: as no item gets shorter than the
square root of TᵀT's least eigenvalue, it bounds the score. Then the bounds of a few directions, for the items that are
left. Then the full formula. A query whose map can make items so short that the first sieve keeps too many is given
back unproven; `qat_jax.search.proof` goes on with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, Leading, fold, leading, score_own, truncated
from qat_jax.adaptation import bounds as length_bounds
from qat_jax.search.two_pass import decomposing, greatest, product
from qat_jax.types import Adaptation

RANK = 7  # that maps are cut down to, for the bounds of the second sieve
KEPT = 7  # directions of a map that cannot be cut down without
ERROR = 0.1  # a greater change of lengths
MOST = {"cpu": 4096}  # items of a query that pass the first sieve
MOST_ELSEWHERE = 1 << 14
WORTH = 0.25  # of the gate's mean square: below it most items of a gallery would pass the first sieve
NUMBERS = {"cpu": 1 << 20}  # of items that are worked on at once: on a CPU, those that its cache holds
NUMBERS_ELSEWHERE = 1 << 25


class Sieves(NamedTuple):
  """What the sieves need of Q adaptations."""

  folded: jax.Array  # QD
  gate: jax.Array  # QD, or Q1
  leading: Leading | None  # None where there are no factors
  error: jax.Array  # Q: |T z| differs by so much at most from that of the map which `leading` is of
  shortest: jax.Array  # Q: |T z|² of a unit item is no less
  worth: jax.Array  # Q, bool: whether that bounds scores well enough for the first sieve to be of use
  slack: jax.Array  # Q: rounding of the numerator


def prepare(adaptation: Adaptation) -> Sieves:
  """Returns the sieves of adaptations of any rank: of their maps cut down, where these are nearly the same."""
  with decomposing:
    cut, error_Q = _truncated(adaptation, RANK)
    if np.asarray(error_Q).max() > ERROR:
      return jax.block_until_ready(_sieves(adaptation, adaptation, jnp.zeros_like(error_Q), KEPT))
    return jax.block_until_ready(_sieves(adaptation, cut, error_Q, min(2 * cut.left.shape[2], cut.left.shape[1])))


_truncated = jax.jit(truncated, static_argnums=1)


@functools.partial(jax.jit, static_argnames="kept")
def _sieves(adaptation: Adaptation, similar: Adaptation, error_Q: jax.Array, kept: int) -> Sieves:
  folded_QD = fold(adaptation)
  slack_Q = folded_QD.shape[1] * jnp.finfo(jnp.float32).eps * jnp.linalg.norm(folded_QD, axis=1)
  square = jnp.square(adaptation.gate)
  shortest_Q, lead = square.min(axis=1), None
  if kept:
    lead = leading(similar, kept)
    least_Q = jnp.minimum(jnp.minimum(lead.values.min(axis=1), lead.low), 0)
    shortest_Q += least_Q - lead.mixed - lead.slack
  shortest_Q = jnp.square(jnp.maximum(jnp.sqrt(jnp.maximum(shortest_Q, 0)) - error_Q, 0))
  worth_Q = shortest_Q > WORTH * square.mean(axis=1)
  return Sieves(folded_QD, adaptation.gate, lead, error_Q, shortest_Q, worth_Q, slack_Q)


def search(
  adaptation: Adaptation, gallery_ND: jax.Array, square_N: jax.Array, wanted: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns ids and exact scores (two QK), best first, and which queries (Q) are proven; the others' rows mean nothing.

  Args:
    adaptation: Q queries.
    gallery_ND, square_N: unit items on one device, and |z|² (float32).
    wanted: which items may be found (bool; 11, 1N or QN).
    k: how many, at most N.
  """
  few = min(len(gallery_ND), max(16, 1 << (k + k // 4 - 1).bit_length()))
  numbers = at_once(gallery_ND)
  sieves = prepare(adaptation)
  worth_Q = np.asarray(sieves.worth)
  if not worth_Q.any():
    nothing_QK = np.zeros((len(adaptation), k))
    return nothing_QK.astype(np.int32), nothing_QK, worth_Q
  product_NQ = product(gallery_ND, sieves.folded.T)
  numerator_QN, *first = _first(adaptation, gallery_ND, product_NQ, wanted, few, numbers)
  first_QF, score_QF = map(np.asarray, first)
  # the k-th best of any items is at most the k-th best of all
  threshold_Q = np.maximum(-np.partition(-score_QF, k - 1, axis=1)[:, k - 1], 0)
  proven_Q = (threshold_Q > 0) & worth_Q
  shortest_Q = np.asarray(sieves.shortest) * float(square_N.min())
  least_Q = np.full(len(adaptation), np.inf)
  least_Q[proven_Q] = (threshold_Q * np.sqrt(np.abs(shortest_Q)) - np.asarray(sieves.slack))[proven_Q]
  position_QB, whole_Q = reaching(numerator_QN, least_Q)
  upper_QB = np.asarray(upper_bounds(sieves, gallery_ND, position_QB, numbers))
  left_QB = (position_QB >= 0) & (upper_QB >= threshold_Q[:, None])
  rest_QB = together(position_QB, left_QB)
  rest_score_QB = np.asarray(_scores_at(adaptation, gallery_ND, rest_QB, numbers))
  ids_QB = np.concatenate([first_QF, rest_QB], axis=1)
  score_QB = np.concatenate([score_QF, rest_score_QB], axis=1)
  best_QK = np.lexsort((ids_QB, -score_QB))[:, :k]
  take = lambda x_QB: np.take_along_axis(x_QB, best_QK, axis=1)
  return take(ids_QB), take(score_QB), proven_Q & whole_Q


@functools.partial(jax.jit, static_argnames=("few", "numbers"))
def _first(
  adaptation: Adaptation, gallery_ND: jax.Array, product_NQ: jax.Array, wanted: np.ndarray, few: int, numbers: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns w·z of the others (QN), the wanted items with the greatest (QF, −1 for none), and their exact scores (QF).

  The others are what is wanted and not among these items; elsewhere −inf.
  """
  numerator_QN = jnp.where(wanted, product_NQ.T, -jnp.inf)
  value_QF, place_QF = greatest(numerator_QN, few)
  first_QF = jnp.where(value_QF > -jnp.inf, place_QF, -1)
  numerator_QN = numerator_QN.at[jnp.arange(len(place_QF))[:, None], place_QF].set(-jnp.inf)
  return numerator_QN, first_QF, _scores_at(adaptation, gallery_ND, first_QF, numbers)


def reaching(numerator_QN: jax.Array, least_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the items (QB, −1 as padding) whose numerator reaches `least_Q`, and whether these are all of them (Q).

  None, where there are more than `MOST`.
  """
  most = min(MOST.get(_platform(numerator_QN), MOST_ELSEWHERE), numerator_QN.shape[1])
  if _platform(numerator_QN) == "cpu":  # where a sort for the greatest takes ten times as long as looking at all
    rows = zip(np.asarray(numerator_QN), least_Q, strict=True)
    found = [np.flatnonzero(numerator_N >= least) for numerator_N, least in rows]
    whole_Q = np.array([len(row) <= most for row in found])
    return _side_by_side([row if whole else row[:0] for row, whole in zip(found, whole_Q, strict=True)]), whole_Q
  value_QB, position_QB = (np.asarray(x) for x in greatest(numerator_QN, most))
  reached_QB = value_QB >= least_Q[:, None]
  whole_Q = ~reached_QB[:, -1] | (most == numerator_QN.shape[1])
  return together(position_QB, reached_QB & whole_Q[:, None]), whole_Q


def together(position_QB: np.ndarray, flag_QB: np.ndarray) -> np.ndarray:
  """Returns each query's flagged positions side by side (QC, int32), −1 as padding."""
  return _side_by_side([row[flags] for row, flags in zip(position_QB, flag_QB, strict=True)])


def _side_by_side(rows: list[np.ndarray]) -> np.ndarray:
  result_QC = np.full((len(rows), width_for(max(map(len, rows)))), -1, np.int32)
  for row_C, row in zip(result_QC, rows, strict=True):
    row_C[: len(row)] = row
  return result_QC


def width_for(most: int) -> int:
  """Returns one of few widths that hold `most` items, so that few shapes are ever compiled."""
  step = max(32, (1 << most.bit_length()) // 8)
  return step * max(1, -(-most // step))


@functools.partial(jax.jit, static_argnames="numbers")
def upper_bounds(sieves: Sieves, gallery_ND: jax.Array, position_QB: jax.Array, numbers: int) -> jax.Array:
  """Returns numbers (QB) that no exact score of the items at `position_QB` exceeds; anything for −1."""
  return _by_query(_bound, sieves, gallery_ND, position_QB, numbers)


def scores_at(adaptation: Adaptation, gallery_ND: jax.Array, position_QB: np.ndarray) -> jax.Array:
  """Returns the exact scores (QB) of each query's own items, −inf for −1."""
  return _scores_at(adaptation, gallery_ND, position_QB, at_once(gallery_ND))


def at_once(gallery_ND: jax.Array) -> int:
  """Returns how many numbers of items are worked on at once."""
  return NUMBERS.get(_platform(gallery_ND), NUMBERS_ELSEWHERE)


def _platform(array: jax.Array) -> str:
  return next(iter(array.devices())).platform


@functools.partial(jax.jit, static_argnames="numbers")
def _scores_at(adaptation: Adaptation, gallery_ND: jax.Array, position_QB: jax.Array, numbers: int) -> jax.Array:
  return jnp.where(position_QB < 0, -jnp.inf, _by_query(score_own, adaptation, gallery_ND, position_QB, numbers))


def _by_query(
  function: Callable[[Any, jax.Array], jax.Array],
  tree: Any,
  gallery_ND: jax.Array,
  position_QB: jax.Array,
  numbers: int,
) -> jax.Array:
  """Returns function(tree, items of each query (QBD)) (QB): all at once if they are few enough, else one by one."""
  position_QB = jnp.maximum(position_QB, 0)
  rows = lambda position: gallery_ND[position].astype(jnp.float32)
  if position_QB.size * gallery_ND.shape[1] <= numbers:
    return function(tree, rows(position_QB))

  def one(query: tuple) -> jax.Array:
    own, position_B = query
    return function(jax.tree.map(lambda x: x[None], own), rows(position_B)[None])[0]

  return jax.lax.map(one, (tree, position_QB))


def _bound(sieves: Sieves, item_QBD: jax.Array) -> jax.Array:
  columns_QDC = sieves.folded[:, :, None]
  if sieves.leading is not None:
    columns_QDC = jnp.concatenate([columns_QDC, sieves.leading.directions], axis=2)
  square_QBD = jnp.square(item_QBD)
  product_CBQ = _products(item_QBD, columns_QDC)
  square_BQ = square_QBD.sum(axis=2).T
  if sieves.gate.shape[1] == 1:
    gated_BQ = square_BQ * jnp.square(sieves.gate[:, 0])
  else:
    gated_BQ = _products(square_QBD, jnp.square(sieves.gate)[:, :, None])[0]
  if sieves.leading is None:
    rounding_Q = 4 * item_QBD.shape[2] * jnp.finfo(jnp.float32).eps * jnp.square(sieves.gate).max(axis=1)
    low_BQ = gated_BQ - rounding_Q
  else:
    low_BQ, _ = length_bounds(sieves.leading, list(product_CBQ[1:]), gated_BQ, square_BQ)
  numerator_BQ = product_CBQ[0] + sieves.slack
  length_BQ = jnp.sqrt(jnp.maximum(low_BQ, 0)) - sieves.error * jnp.sqrt(square_BQ)
  # only items with a positive score are of interest here
  return jnp.where(length_BQ > 0, jnp.maximum(numerator_BQ, 0) / length_BQ, jnp.inf).T


def _products(item_QBD: jax.Array, column_QDC: jax.Array) -> jax.Array:
  return jnp.einsum("QBD,QDC->QBC", item_QBD, column_QDC, precision=HIGHEST).transpose(2, 1, 0)

"""What bounds a query's scores: a few directions of its map's spectrum.

With m eigenvectors e_i and eigenvalues λ_i of the cut map's TᵀT − diag(gate²) kept (the most negative, which make items
short, and the greatest), and λ* the least of the rest or 0,

    |T z| ≥ sqrt( |gate ∘ z|² + Σ_kept (λ_i − λ*) (e_i·z)² + λ* |z|² ) − δ |z| ,

and the numerator is w·z, w = Tᵀq'. So 1 + m columns a query bound every score; docs/proof.md has the proof, rounding
included.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from flax import struct

from qat_jax.search.cores import one_core
from qat_jax.search.spectrum import EACH_WIDE, RANK, SPARE_PART, WIDE, ExactMaps, decomposed, scaled
from qat_jax.types import Adaptation

WORTH = 0.7  # of an item's usual length: a bound that reaches it rules nearly everything out
WIDE_WORTH = 0.97  # the same of wide and of shared maps: of what is left of their items much scores alike
KEPT = (8, 16, 32, WIDE)  # numbers of directions that are kept of these, filled up with zeros: few programs
ALIKE = 10.0  # how much better than a random item, in squared cosine to w, those items are that nearly win
Array = jax.Array | np.ndarray  # on the host when it is made, on a device when it is used

UNIT = 2.0**-24  # the relative rounding of float32
LENGTHS = 1.02  # |z| of a unit item, at most


class Factors(NamedTuple):
  """The maps themselves, for exact scores: scaled by a power of two, factors of equal length (float32)."""

  query: Array  # QD
  gate: Array  # QD, or Q1
  left: Array  # QDR
  right: Array  # QDR
  size: Array  # Q: how large the terms are that an item's map is a sum of; over its length, what rounding costs


@struct.dataclass
class Bounds:
  """What the filter needs of Q maps (float32): the terms of the module's formula, and the rounding of each."""

  # DC: every query's w, then every query's first direction, …, C = Q (1 + m); or the directions of all, C = Q + m
  columns: Array
  weight: Array  # MQ: λ_i − λ*
  floor: Array  # Q: λ*, with gate² added where `square` is None
  square: Array | None  # DQ: gate∘gate, where |gate ∘ z|² is asked for
  cut: Array  # Q: δ
  longest: Array  # Q: |T z| / |z| at most
  slack: Array  # Q: rounding of the squared length
  numerator_slack: Array  # Q: rounding of w·z
  most: Array  # Q: no score is greater, |q'| and rounding
  # MQ: the rounding of a direction's square over |e_i·z|, of wide and shared maps; None: it is in the slack
  doubt: Array | None = None


@struct.dataclass
class OneMap:
  """The bounds of queries that have one map. A gallery's lengths in it are taken once, whatever the queries."""

  numerators: Bounds  # of Q queries, without directions
  map: Bounds  # of one query, its directions alone
  key: str = struct.field(pytree_node=False)


class Prepared(NamedTuple):
  """All that a search needs of Q adaptations, on the host."""

  bounds: Bounds
  factors: Factors
  tight: Bounds | None  # `each_query`, all directions of the cut maps: where cheaper than scores, and nearly as good
  one_map: OneMap | None = None  # the bounds once more, where all queries have one map


def prepare(adaptation: Adaptation) -> Prepared:
  """Returns bounds and factors of Q adaptations (finite; any scale that float32 holds)."""
  adaptation = scaled(adaptation)
  with one_core():
    maps = decomposed(adaptation)
    bounds, tight = _bounds(maps)
  size_Q = np.abs(maps.gate).max(axis=1) + np.linalg.norm(maps.strength, axis=1)
  query, gate, left, right = (np.asarray(getattr(adaptation, name)) for name in ("query", "gate", "left", "right"))
  only = one_map(bounds, maps.key) if maps.one else None
  return Prepared(bounds, Factors(query, gate, left, right, np.asarray(size_Q, np.float32)), tight, only)


def one_map(bounds: Bounds, key: str) -> OneMap:
  """Returns the bounds of queries with one map, in two parts."""
  queries = len(bounds.floor)
  numerators = dataclasses.replace(
    bounds,
    columns=bounds.columns[:, :queries],
    weight=bounds.weight[:0],
    floor=0 * bounds.floor,
    slack=0 * bounds.slack,
    square=None,
    doubt=None,
  )
  first = jax.tree.map(lambda x: x[..., :1], bounds)
  return OneMap(numerators, dataclasses.replace(first, columns=bounds.columns[:, queries:]), key)


class _Choice(NamedTuple):
  """Which directions are kept, and what is to be known of the others."""

  places: np.ndarray  # M
  rest: np.ndarray  # Q: λ*
  cut: np.ndarray  # Q: δ
  scalar: bool  # whether min gate² |z|² stands for |gate ∘ z|²


def _bounds(maps: ExactMaps) -> tuple[Bounds, Bounds | None]:
  """Returns the bounds with as few directions as are worth it; and with all, for each query, where these bound well."""
  queries, width = maps.folded.shape
  if not maps.gram_left.shape[1] and maps.gate.shape[1] == 1:  # no length to bound: nothing to choose
    nothing = _Choice(np.zeros(0, int), np.zeros(queries), maps.cut, True)
    return _keeping(maps, np.square(maps.gate), nothing), None
  square_QD = np.square(np.broadcast_to(maps.gate, (queries, width)))
  # how much of an item that the query would like lies along each direction
  aligned_QE = np.square((maps.folded[:, None] @ maps.directions)[:, 0]) / np.maximum(
    np.square(maps.folded).sum(axis=1, keepdims=True), np.finfo(float).tiny
  )
  energy_QE = (1 + ALIKE * aligned_QE) / width
  mean_Q = square_QD.mean(axis=1)
  usual_Q = np.sqrt(np.maximum(mean_Q + (maps.values * energy_QE).sum(axis=1), np.finfo(float).tiny))
  tight = None
  if maps.gram_left.shape[1] > 2 * RANK and not maps.wide and (maps.cut <= (1 - WORTH) * usual_Q).all():
    every = _Choice(np.arange(maps.values.shape[1]), np.zeros(queries), maps.cut, maps.gate.shape[1] == 1)
    tight = each_query(_keeping(maps._replace(key=""), square_QD, every))
  if not maps.one:
    return _keeping(maps, square_QD, _chosen(maps, square_QD, energy_QE, usual_Q)), tight
  # the choice for one map hangs on nothing but the map, so that lengths that were taken serve all queries
  first = maps.first
  even_1E, mean_1 = np.full_like(first.values, 1 / width), mean_Q[:1] + maps.values[:1].sum(axis=1) / width
  choice = _chosen(first, square_QD[:1], even_1E, np.sqrt(np.maximum(mean_1, np.finfo(float).tiny)))
  rest_Q, cut_Q = (np.repeat(x, queries) for x in (choice.rest, choice.cut))
  return _keeping(maps, square_QD, choice._replace(rest=rest_Q, cut=cut_Q)), tight


def _chosen(maps: ExactMaps, square_QD: np.ndarray, energy_QE: np.ndarray, usual_Q: np.ndarray) -> _Choice:
  """Returns the directions that are worth it.

  Args:
    maps: Q maps.
    square_QD: gate².
    energy_QE: how much of a near-winner's squared length lies along each direction.
    usual_Q: how long a map makes such an item.
  """
  least_Q, mean_Q = square_QD.min(axis=1), square_QD.mean(axis=1)
  worth = WIDE_WORTH if maps.wide or maps.one else WORTH
  most = WIDE if maps.one else EACH_WIDE if maps.wide else RANK
  kept, rest_CQ, expected_CQ = _choices(maps.values, energy_QE, most)
  reach_CQ = lambda start_Q: np.sqrt(np.maximum(start_Q + expected_CQ, 0)) - maps.cut
  share_C = lambda start_Q: (reach_CQ(start_Q) / usual_Q).min(axis=1)
  shares_C, scalar = share_C(least_Q), True
  if maps.gate.shape[1] > 1 and shares_C.max() < worth:
    shares_C, scalar = share_C(mean_Q), False
  # the fewest that reach `worth`, else those that reach furthest
  place = int(np.argmax(np.minimum(shares_C, worth)))
  if shares_C[place] < worth and maps.cut.any():
    whole_Q = maps.uncut()
    if ((np.sqrt(least_Q) - whole_Q) / usual_Q).min() > shares_C[place]:
      # no directions: the gate alone, with all of left rightᵀ cut off
      return _Choice(np.zeros(0, int), np.zeros(len(whole_Q)), whole_Q, True)
  return _Choice(np.flatnonzero(kept[place]), rest_CQ[place], maps.cut, scalar)


def _keeping(maps: ExactMaps, square_QD: np.ndarray, choice: _Choice) -> Bounds:
  """Returns the bounds of some directions (lemmas 3 and 4, and their rounding)."""
  places, rest_Q, cut_Q, scalar = choice
  terms_Q, in_single = maps.terms, (maps.folded.shape[1] + 16) * UNIT
  most_Q = np.linalg.norm(maps.query, axis=1)
  square_doubt_Q = 16 * maps.rounding * np.square(terms_Q)
  largest_Q = square_QD.max(axis=1)
  longest_Q = np.sqrt(largest_Q + np.maximum(maps.values.max(axis=1, initial=0), 0) + square_doubt_Q)
  single = lambda x: np.asarray(x, np.float32)
  large = maps.wide or maps.one
  added = next(size for size in KEPT if size >= len(places)) - len(places) if large else 0
  own = slice(1 if maps.one else None)  # whose directions have columns
  columns = [maps.folded.T, *(maps.directions[own, :, i].T for i in places)]
  weight_QM, cut_Q = maps.values[:, places] - rest_Q[:, None], cut_Q + maps.rounding * terms_Q
  columns += added * [np.zeros_like(maps.folded[own].T)]
  floor_Q = rest_Q + (square_QD.min(axis=1) if scalar else 0)
  weights_Q = np.abs(weight_QM).sum(axis=1)
  squares_Q = np.abs(floor_Q) + (0 if scalar else largest_Q) + (16 / 6 * in_single if large else 1) * weights_Q
  weight_MQ = np.concatenate([weight_QM.T, np.zeros((added, len(floor_Q)))])
  return Bounds(
    columns=single(np.concatenate(columns, axis=1)),
    weight=single(weight_MQ),
    floor=single(floor_Q),
    square=None if scalar else single(square_QD.T),
    cut=single(LENGTHS * cut_Q * (1 + SPARE_PART)),
    longest=single(LENGTHS * (longest_Q + cut_Q) * (1 + SPARE_PART)),
    slack=single(6 * in_single * squares_Q + square_doubt_Q),
    doubt=single(6 * in_single * np.abs(weight_MQ)) if large else None,
    numerator_slack=single(4 * in_single * np.linalg.norm(maps.folded, axis=1) + maps.rounding * terms_Q * most_Q),
    most=single(most_Q * (1 + 1e-5)),
  )


def each_query(bounds: Bounds) -> Bounds:
  """Returns bounds of Q queries as Q bounds of one query, stacked along a new first axis."""
  width, queries = len(bounds.columns), len(bounds.floor)
  stacked = jax.tree.map(lambda x: x.T[..., None], bounds)
  return stacked.replace(columns=bounds.columns.reshape(width, -1, queries).transpose(2, 0, 1))


def _choices(value_QE: np.ndarray, energy_QE: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the sets of directions that may be kept (CE, bool), fewest first, and what each of the C comes to.

  A set is the lowest and the highest so many of them, at most `most` in all. With it come λ* (CQ), and what is to be
  expected of the bound beyond the gate's term (CQ).
  """
  size = value_QE.shape[1]
  counts = [(low, count - low) for count in range(min(size, most) + 1) for low in range(count + 1)]
  place_E = np.arange(size)
  kept_CE = np.stack([(place_E < low) | (place_E >= size - high) for low, high in counts])
  least_QE = np.minimum(np.pad(value_QE, ((0, 0), (0, 1))), 0)  # in rising order, and 0 where nothing is left
  rest_CQ = least_QE.T[[low if low + high < size else size for low, high in counts]]
  expected_CQ = rest_CQ + kept_CE @ (value_QE * energy_QE).T - rest_CQ * (kept_CE @ energy_QE.T)
  return kept_CE, rest_CQ, expected_CQ

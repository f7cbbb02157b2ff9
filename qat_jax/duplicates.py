"""Near-duplicates within a gallery: every pair above a threshold, and the groups that such pairs make. Exact.

Items are sorted by the nearest of some centres and cut into tiles. Two items can be alike only if their angles with
every centre differ by no more than the threshold's angle (triangle inequality on the sphere): so two tiles are compared
only where the spans of their angles come near enough with each centre. A product in a few directions, those that hold
most of the items' lengths, and of the lengths that are left in the others, bounds each cosine from above
(Cauchy-Schwarz). Only items that may reach the threshold by it are compared in all dimensions.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, normalise, unit
from qat_jax.quicker import multiplies_faster
from qat_jax.search.cores import on_cores
from qat_jax.search.rank import GalleryLike
from qat_jax.types import Gallery, Ranking, as_gallery

THRESHOLD = 0.95  # cosine of features; docs/duplicates.md says what it finds
TILE = 1024  # items that are compared at once; a power of two
BLOCK = 2048  # items that are read and turned at once
CENTRES = 512  # at most; one for EACH items
EACH = 512
ROUNDS = 4  # of k-means, which decides how quick it is, never what is found
SAMPLE = 16384  # items that centres and directions are made of
HEADS = (16, 24, 32, 48, 64, 96, 128)  # numbers of directions that are compared first, or all
TRIED = 2048  # items of the sample that say how many pairs each of these leaves
AGAIN = 4.0  # times as long as a number of the first product takes one of the second, whose items lie apart
SLACK = 1e-4  # what rounding may add to a cosine's bound
HALF_SLACK = 2.0**-7 + 2.0**-16  # the same of two factors that are rounded to bfloat16, each by 2⁻⁸ of a number
ANGLE_SLACK = 3e-3  # radians that rounding may add to the difference of two angles


class Pairs(NamedTuple):
  """P pairs of near-duplicates, the lower position first, in rising order."""

  first: np.ndarray  # P, int64
  second: np.ndarray  # P, int64
  cosine: np.ndarray  # P, float32


def pairs(gallery: GalleryLike, threshold: float = THRESHOLD) -> Pairs:
  """Returns all pairs of items whose cosine is at least `threshold`, each once.

  `gallery` has N items of any length; rows that are zero are like nothing. Holds 2 N × D numbers in float32. Raises
  ValueError for a threshold that is no cosine from 0.5 to 1, and for an item that is not finite.
  """
  if not 0.5 <= threshold <= 1:
    raise ValueError(f"the threshold is {threshold}; give a cosine from 0.5 to 1")
  rows = as_gallery(gallery)
  sample_MD = _unit(rows, np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)))
  vector_DD = np.linalg.eigh(np.asarray(sample_MD, np.float64).T @ np.asarray(sample_MD, np.float64))[1]
  turn_DD = jnp.asarray(vector_DD[:, ::-1], jnp.float32)
  centre_CD = _centres(_turned(sample_MD, turn_DD), max(1, min(CENTRES, len(rows) // EACH)))
  item_ND, own_N = np.empty((len(rows), rows.width), np.float32), np.empty(len(rows), np.int32)
  own_angle_N = np.empty(len(rows), np.float32)
  for start in range(0, len(rows), BLOCK):
    turned_BD = _turned(_unit(rows, np.arange(start, min(start + BLOCK, len(rows)))), turn_DD)
    angle_BC, some = np.asarray(_angles(turned_BD, centre_CD)), slice(start, start + BLOCK)
    item_ND[some], own_N[some], own_angle_N[some] = turned_BD, angle_BC.argmin(axis=1), angle_BC.min(axis=1)
  order_N = np.lexsort((own_angle_N, own_N))
  item_ND = item_ND[order_N]
  compare = functools.partial(_of_tile, _Tiles.of(item_ND, centre_CD, threshold, sample_MD @ turn_DD), threshold)
  found = on_cores(compare, range(-(-len(rows) // TILE)))
  some_P2, cosine_P = (np.concatenate(x) for x in zip(*found, strict=True))
  both_P2 = np.sort(order_N[some_P2], axis=1)
  order = np.lexsort((both_P2[:, 1], both_P2[:, 0]))
  first, second = both_P2[order].T
  return Pairs(first, second, cosine_P[order].astype(np.float32))


def groups(items: int, of: Pairs) -> np.ndarray:
  """Returns the group of each item (N): the position of its first member; items joined by pairs are of one group."""
  root_N = np.arange(items)
  while True:  # each round gives both of a pair the lower root, and follows the roots to their own
    before = root_N.copy()
    low_P = np.minimum(root_N[of.first], root_N[of.second])
    np.minimum.at(root_N, before[of.first], low_P)
    np.minimum.at(root_N, before[of.second], low_P)
    while not np.array_equal(root_N, root_N[root_N]):
      root_N = root_N[root_N]
    if np.array_equal(before, root_N):
      return root_N


def distinct(ranking: Ranking, gallery: GalleryLike, threshold: float = THRESHOLD) -> tuple[Ranking, np.ndarray]:
  """Returns a ranking without near-duplicates of an item before them, and how many items each one stands for (QS).

  An item stands for itself and for those behind it whose cosine with it is at least `threshold` and that no item before
  it stands for. What is left out makes room: ids are filled up with −1, scores with −inf, and such places stand for 0.

  Args:
    ranking: positions in the gallery (QS), −1 as padding.
    gallery: what was ranked, frozen.
    threshold: a cosine.
  """
  rows = as_gallery(gallery)
  place_QS, count_QS = np.full(ranking.ids.shape, -1), np.zeros(ranking.ids.shape, np.int64)
  for query, ids_S in enumerate(ranking.ids):
    left_M, kept = np.flatnonzero(ids_S >= 0), 0
    item_MD = unit(np.asarray(rows[ids_S[left_M]], np.float32))
    while len(left_M):
      like_M = item_MD @ item_MD[0] >= threshold
      like_M[0] = True  # which rounding may not say
      place_QS[query, kept], count_QS[query, kept] = left_M[0], like_M.sum()
      left_M, item_MD, kept = left_M[~like_M], item_MD[~like_M], kept + 1
  return ranking.taken(place_QS), count_QS


class _Tiles(NamedTuple):
  """Items in the order of their tiles, and what tells which tiles and items have to be compared."""

  item_ND: np.ndarray  # unit, or zero
  head_TBK: jax.Array  # the first directions, and the length of the rest; the last tile is filled up with zeros
  least: float  # product of two heads below which the cosine is below the threshold
  span_2TC: jax.Array  # the least and the greatest angle of a tile's items with each centre
  reach: float  # radians

  @classmethod
  def of(cls, item_ND: np.ndarray, centre_CD: jax.Array, threshold: float, sample_MD: jax.Array) -> _Tiles:
    """Returns the tiles of items that are sorted; `sample_MD` are some, which tell how many directions pay."""
    width = item_ND.shape[1]
    half = jax.default_backend() != "cpu" or multiplies_faster("bfloat16", "float32", (TILE, 64, TILE))
    least = threshold - SLACK - (HALF_SLACK if half else 0)
    head = _best_head(np.asarray(sample_MD[:: max(1, len(sample_MD) // TRIED)]), least)
    heads, spans = [], []
    for start in range(0, len(item_ND), TILE):
      tile_BD = item_ND[start : start + TILE]
      angle_BC = _angles(jnp.asarray(np.pad(tile_BD, ((0, TILE - len(tile_BD)), (0, 0)), mode="edge")), centre_CD)
      spans.append(np.stack([angle_BC.min(axis=0), angle_BC.max(axis=0)]))
      head_BK = _heads(tile_BD, head) if head < width else tile_BD
      heads.append(np.pad(head_BK, ((0, TILE - len(tile_BD)), (0, 0))))
    head_TBK = jnp.asarray(np.stack(heads), jnp.bfloat16 if half else jnp.float32)
    reach = float(np.arccos(threshold)) + ANGLE_SLACK
    return cls(item_ND, head_TBK, least, jnp.asarray(np.stack(spans, axis=1)), reach)


def _heads(item_BD: np.ndarray, head: int) -> np.ndarray:
  """Returns the first directions but one of items, and the length of the rest (BK)."""
  rest_B1 = np.linalg.norm(item_BD[:, head - 1 :], axis=1, keepdims=True)
  return np.concatenate([item_BD[:, : head - 1], rest_B1], axis=1)


def _best_head(sample_MD: np.ndarray, least: float) -> int:
  """Returns how many directions are best compared first: few are quick, and leave more items."""
  width = sample_MD.shape[1]

  def cost(head: int) -> float:
    if head == width:
      return float(width)
    head_MK = _heads(sample_MD, head)
    left = np.triu(head_MK @ head_MK.T >= least, 1).sum() / max(1, len(sample_MD) * (len(sample_MD) - 1) / 2)
    return head + AGAIN * width * min(1.0, TILE * left)

  return min((*(head for head in HEADS if head < width), width), key=cost)


def _of_tile(tiles: _Tiles, threshold: float, tile: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pairs (P2, the earlier item first) of a tile's items with those behind them, and the cosines (P)."""
  item_ND = tiles.item_ND
  near = np.flatnonzero(np.asarray(_near(tiles.span_2TC, np.int32(tile), tiles.reach)))
  near_T = np.pad(near, (0, len(tiles.head_TBK) - len(near))).astype(np.int32)
  likely_TB = np.asarray(_likely(tiles.head_TBK, np.int32(tile), near_T, np.int32(len(near)), tiles.least))
  slot_J, column_J = np.nonzero(likely_TB[: len(near)])
  second_J = near[slot_J] * TILE + column_J
  first_B = np.arange(tile * TILE, min((tile + 1) * TILE, len(item_ND)))
  pairs, cosines = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
  for start in range(0, len(second_J), TILE):
    some_C = second_J[start : start + TILE]
    row_P, column_P = np.nonzero(item_ND[first_B] @ item_ND[some_C].T >= threshold - SLACK)
    pair_P2 = np.stack([first_B[row_P], some_C[column_P]], axis=1)
    pair_P2 = pair_P2[pair_P2[:, 0] < pair_P2[:, 1]]
    for at in range(0, len(pair_P2), BLOCK):
      some_P2 = pair_P2[at : at + BLOCK]
      cosine_P = np.einsum("PD,PD->P", *(item_ND[place_P].astype(np.float64) for place_P in some_P2.T))
      pairs.append(some_P2[cosine_P >= threshold])
      cosines.append(cosine_P[cosine_P >= threshold])
  return np.concatenate(pairs), np.concatenate(cosines)


@jax.jit
def _near(span_2TC: jax.Array, tile: jax.Array, reach: float) -> jax.Array:
  """Returns which tiles, from one on, may hold items like those of that one (T, bool)."""
  (low_TC, high_TC), (low_C, high_C) = span_2TC, span_2TC[:, tile]
  apart_TC = (low_TC > high_C[None] + reach) | (high_TC + reach < low_C[None])
  return ~apart_TC.any(axis=1) & (jnp.arange(len(low_TC)) >= tile)


@jax.jit
def _likely(head_TBK: jax.Array, tile: jax.Array, near_T: jax.Array, count: jax.Array, least: float) -> jax.Array:
  """Returns which items of the first `count` of some tiles may be like any of a tile's (TB, bool)."""
  one_BK, precision = head_TBK[tile], None if head_TBK.dtype == jnp.bfloat16 else HIGHEST

  def step(i: jax.Array, found_TB: jax.Array) -> jax.Array:
    bound_BC = jax.lax.dot_general(
      one_BK, head_TBK[near_T[i]], (((1,), (1,)), ((), ())), precision, preferred_element_type=jnp.float32
    )
    while len(bound_BC) > 1:  # by halves: XLA's CPU code takes a greatest along an axis number by number
      half = len(bound_BC) // 2
      bound_BC = jnp.maximum(bound_BC[:half], bound_BC[half:])
    return found_TB.at[i].set(bound_BC[0] >= least)

  return jax.lax.fori_loop(0, count, step, jnp.zeros(head_TBK.shape[:2], bool))


def _centres(item_MD: jax.Array, number: int) -> jax.Array:
  """Returns unit centres (CD) of unit items, by a few rounds of k-means."""
  centre_CD = item_MD[np.random.default_rng(0).choice(len(item_MD), number, replace=False)]
  for _ in range(ROUNDS):
    own_M = jnp.argmax(jnp.matmul(item_MD, centre_CD.T), axis=1)
    total_CD = jax.ops.segment_sum(item_MD, own_M, number)
    empty_C1 = (jnp.abs(total_CD).max(axis=1) == 0)[:, None]
    centre_CD = jnp.where(empty_C1, centre_CD, normalise(total_CD))
  return centre_CD


def _unit(rows: Gallery, place_M: np.ndarray) -> jax.Array:
  """Returns some items at unit length (MD). Raises ValueError for NaN, which would hide the others of its tile."""
  row_MD = np.asarray(rows[place_M], np.float32)
  if len(bad := np.flatnonzero(~np.isfinite(row_MD).all(axis=1))):
    raise ValueError(f"item {place_M[bad[0]]} has NaN or infinity; leave it out, or encode it again")
  return normalise(jnp.asarray(row_MD))


@jax.jit
def _turned(unit_BD: jax.Array, turn_DD: jax.Array) -> jax.Array:
  return jnp.matmul(unit_BD, turn_DD, precision=HIGHEST)


@jax.jit
def _angles(item_BD: jax.Array, centre_CD: jax.Array) -> jax.Array:
  return jnp.arccos(jnp.clip(jnp.matmul(item_BD, centre_CD.T, precision=HIGHEST), -1, 1))

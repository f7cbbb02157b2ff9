"""Near-duplicates within a gallery: every pair above a threshold, and the groups that such pairs make. Exact.

Items are put to the nearest of some centres. An item x can be like an item y of centre c only if the angles of both
with c differ by no more than the threshold's angle (triangle inequality on the sphere). So the items of a centre are
compared with those alone whose angle with it is near enough to theirs, and whose angle with their own centre is not
much smaller than all of theirs. A product in some of the directions, those that hold
most of the items' lengths, bounds each cosine from above (Cauchy-Schwarz for the rest); what may reach the threshold
is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, normalise, unit
from qat_jax.search.rank import GalleryLike
from qat_jax.types import Gallery, Ranking, as_gallery

THRESHOLD = 0.95  # cosine of features; docs/duplicates.md says what it finds
TILE = 2048  # items that are compared at once
ROWS = (256, 512, 1024, TILE)  # with so many of a centre's: few numbers, so that few shapes are compiled for
CENTRES = 1024  # at most; one for EACH items
EACH = 512
ROUNDS = 4  # of k-means, which decides how quick it is, never what is found
SAMPLE = 16384  # items that centres and directions are made of
HEAD = 4  # a part of the dimensions, one in so many, is compared first
SLACK = 1e-4  # what rounding may add to a cosine's bound
ANGLE_SLACK = 2e-3  # radians that rounding may add to an angle


class Pairs(NamedTuple):
  """P pairs of near-duplicates, the lower position first, in rising order."""

  first: np.ndarray  # P, int64
  second: np.ndarray  # P, int64
  cosine: np.ndarray  # P, float32


def pairs(gallery: GalleryLike, threshold: float = THRESHOLD) -> Pairs:
  """Returns all pairs of items whose cosine is at least `threshold`, each once.

  `gallery` has N items of any length; rows that are zero are like nothing. Holds N × D numbers in float32. Raises
  ValueError for a threshold that is no cosine from 0.5 to 1.
  """
  if not 0.5 <= threshold <= 1:
    raise ValueError(f"the threshold is {threshold}; give a cosine from 0.5 to 1")
  rows = as_gallery(gallery)
  sample_MD = _unit(np.asarray(rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]))
  vector_DD = np.linalg.eigh(np.asarray(sample_MD, np.float64).T @ np.asarray(sample_MD, np.float64))[1]
  turn_DD = jnp.asarray(vector_DD[:, ::-1], jnp.float32)
  centre_CD = _centres(_turned(sample_MD, turn_DD), max(1, min(CENTRES, len(rows) // EACH)))
  item_ND = np.empty((len(rows), rows.width), np.float32)
  angle_NC = np.empty((len(rows), len(centre_CD)), np.float16)
  for start, block_BD in _blocks(rows):
    turned_BD = _turned(block_BD, turn_DD)
    angles = np.asarray(_angles(turned_BD, centre_CD), np.float16)
    item_ND[start : start + TILE], angle_NC[start : start + TILE] = np.asarray(turned_BD), angles
  own_N = np.argmin(angle_NC, axis=1)
  own_angle_N = np.take_along_axis(angle_NC, own_N[:, None], axis=1)[:, 0].astype(np.float32)
  reach = float(np.arccos(threshold)) + ANGLE_SLACK
  found = [np.zeros((0, 3))]
  for centre in range(len(centre_CD)):
    mine = np.flatnonzero(own_N == centre)
    if not len(mine):
      continue
    # those of lower centres were compared with this one's items when it was their turn
    angle_MC, reached_N = angle_NC[mine].astype(np.float32), angle_NC[:, centre]
    least, most = angle_MC[:, centre].min() - reach, angle_MC[:, centre].max() + reach
    near_N = (own_N >= centre) & (reached_N >= least) & (reached_N <= most)
    near = np.flatnonzero(near_N & (own_angle_N >= (angle_MC.min(axis=0) - reach)[own_N]))
    found += _among(item_ND, mine, near, own_N[near] == centre, threshold)
  all_P3 = np.concatenate(found)
  order = np.lexsort((all_P3[:, 1], all_P3[:, 0]))
  first, second = all_P3[order, :2].astype(np.int64).T
  return Pairs(first, second, all_P3[order, 2].astype(np.float32))


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


def _among(
  item_ND: np.ndarray, mine: np.ndarray, near: np.ndarray, same_M: np.ndarray, threshold: float
) -> Iterator[np.ndarray]:
  """Yields the pairs (P3: both positions and the cosine) of a centre's items with those near it; of its own each once.

  Args:
    item_ND: all items.
    mine: positions of the centre's items.
    near: positions of what they may be like.
    same_M: which of these are the centre's own.
    threshold: a cosine.
  """
  for left in range(0, len(mine), TILE):
    one = mine[left : left + TILE]
    one_BD = _filled(item_ND[one], next(rows for rows in ROWS if rows >= len(one)))
    for right in range(0, len(near), TILE):
      two, same = near[right : right + TILE], same_M[right : right + TILE]
      two_BD = _filled(item_ND[two], TILE)
      flag_BC = np.asarray(_likely(one_BD, two_BD, threshold - SLACK, max(1, item_ND.shape[1] // HEAD)))
      row_P, column_P = np.divmod(np.flatnonzero(flag_BC), TILE)
      one_P, two_P = one[row_P], two[column_P]
      kept = ~same[column_P] | (one_P < two_P)
      one_P, two_P = one_P[kept], two_P[kept]
      for start in range(0, len(one_P), 1 << 18):
        some = slice(start, start + (1 << 18))
        x_PD, y_PD = (item_ND[place[some]].astype(np.float64) for place in (one_P, two_P))
        cosine_P = np.einsum("PD,PD->P", x_PD, y_PD)
        enough = cosine_P >= threshold
        both = np.sort(np.stack([one_P[some], two_P[some]], axis=1)[enough], axis=1)
        yield np.column_stack([both, cosine_P[enough]])


def _centres(item_MD: jax.Array, number: int) -> jax.Array:
  """Returns unit centres (CD) of unit items, by a few rounds of k-means."""
  centre_CD = item_MD[np.random.default_rng(0).choice(len(item_MD), number, replace=False)]
  for _ in range(ROUNDS):
    own_M = jnp.argmax(jnp.matmul(item_MD, centre_CD.T), axis=1)
    total_CD = jax.ops.segment_sum(item_MD, own_M, number)
    empty_C1 = (jnp.abs(total_CD).max(axis=1) == 0)[:, None]
    centre_CD = jnp.where(empty_C1, centre_CD, normalise(total_CD))
  return centre_CD


def _blocks(rows: Gallery) -> Iterator[tuple[int, jax.Array]]:
  for start in range(0, len(rows), TILE):
    yield start, _unit(np.asarray(rows[start : start + TILE]))


def _unit(rows_ND: np.ndarray) -> jax.Array:
  return normalise(jnp.asarray(rows_ND, jnp.float32))


def _filled(rows_BD: np.ndarray, rows: int) -> np.ndarray:
  return np.pad(rows_BD, ((0, rows - len(rows_BD)), (0, 0)))


@jax.jit
def _turned(unit_BD: jax.Array, turn_DD: jax.Array) -> jax.Array:
  return jnp.matmul(unit_BD, turn_DD, precision=HIGHEST)


@jax.jit
def _angles(item_BD: jax.Array, centre_CD: jax.Array) -> jax.Array:
  return jnp.arccos(jnp.clip(jnp.matmul(item_BD, centre_CD.T, precision=HIGHEST), -1, 1))


@functools.partial(jax.jit, static_argnames="head")
def _likely(one_BD: jax.Array, two_BD: jax.Array, threshold: float, head: int) -> jax.Array:
  """Returns which pairs may reach the threshold (BC, bool), by the first dimensions and the lengths of the others."""
  rest = lambda x: jnp.sqrt(jnp.sum(jnp.square(x[:, head:]), axis=1))
  near_BC = jnp.matmul(one_BD[:, :head], two_BD[:, :head].T, precision=HIGHEST)
  return near_BC + rest(one_BD)[:, None] * rest(two_BD)[None] >= threshold

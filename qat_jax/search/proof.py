"""The exact top k of a block of queries: bounds, candidates, exact scores, and the proof that nothing else is better.

An item that the first pass dropped has an upper bound no larger than the smallest one kept. If that lies below the
k-th exact score, the result is proven. Else the buffer grows to what the bounds cannot rule out, and at last every
item is scored by the full formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import score_own
from qat_jax.search import sieves
from qat_jax.search.gallery import Part, Resident, Streamed
from qat_jax.search.masks import Masks
from qat_jax.search.two_pass import Candidates, first_pass, full_pass, keep, ordered, prepare, survivors
from qat_jax.types import Adaptation

BUFFER = 512
LARGEST_BUFFER = 8192
FULL_ROWS = 4096  # rows scored by the full formula at once
NUMBERS = 1 << 20  # float32 numbers of items that the second pass holds

Uppers = Iterable[tuple[int, jax.Array]]  # first position, bounds QN


def search(
  adaptation: Adaptation, masks: Masks, parts: Resident | Streamed, k: int, kept: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids and scores (two QK) of the exact top k, k ≤ N, best first; −1 and −inf where masks leave fewer.

  By sieves where the gallery lies on one device; what they cannot prove, by two passes.
  """
  changes_lengths = kept or adaptation.gate.shape[1] > 1
  if not changes_lengths or not isinstance(parts, Resident) or len(parts.shards) > 1:
    return two_passes(adaptation, masks, parts, k, kept)
  part = next(parts.parts())
  wanted = masks.part(part.start, part.items, len(part.features), len(adaptation))
  ids_QK, score_QK, proven_Q = sieves.search(adaptation, part.features, part.square, wanted, k)
  if not proven_Q.all():
    rows = padded(np.flatnonzero(~proven_Q))
    found = two_passes(take_queries(adaptation, rows), masks.queries(rows), parts, k, kept)
    ids_QK[rows], score_QK[rows] = found
  return ids_QK, score_QK


def two_passes(
  adaptation: Adaptation, masks: Masks, parts: Resident | Streamed, k: int, kept: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what `search` does, by bounds of every item from `kept` directions."""
  queries = len(adaptation)
  every_Q = np.arange(queries)
  buffer = power(k + 32) if kept == 0 else max(BUFFER, power(2 * k))
  uppers: Uppers = _first(adaptation, masks, parts, kept)
  if isinstance(parts, Resident):
    uppers = list(uppers)  # a second look is free
  if kept:
    buffer *= 2 if isinstance(parts, Resident) else 4  # a second look is a second reading
  ids_QB, score_QB, proven_Q = _best(adaptation, parts, uppers, buffer, k)
  if not proven_Q.all():
    rows = padded(every_Q[~proven_Q])
    some, threshold_Q = take_queries(adaptation, rows), score_QB[rows, k - 1]
    if isinstance(parts, Resident):
      uppers = [(start, upper_QN[rows]) for start, upper_QN in uppers]
      left_Q = sum(np.asarray(survivors(upper_QN, threshold_Q)) for _, upper_QN in uppers)
      buffer = power(int(np.max(left_Q)))
    else:
      uppers, buffer = _first(some, masks.queries(rows), parts, kept), 4 * buffer
    if buffer <= LARGEST_BUFFER:
      found = _best(some, parts, uppers, buffer, k)
      ids_QB, score_QB, proven_Q = _replace((ids_QB, score_QB, proven_Q), found, rows)
  if not proven_Q.all():
    rows = padded(every_Q[~proven_Q])
    some = take_queries(adaptation, rows)
    found = _best(some, parts, _full(some, masks.queries(rows), parts), max(128, power(2 * k)), k)
    ids_QB, score_QB, _ = _replace((ids_QB, score_QB, proven_Q), found, rows)
  return ids_QB[:, :k], score_QB[:, :k]


def exact(adaptation: Adaptation, parts: Resident | Streamed, position_QB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids and exact scores (two QB) of the items at `position_QB`, best first; −1 is padding, and comes last."""
  return _ordered(position_QB, _scored(adaptation, parts, position_QB))


def _scored(adaptation: Adaptation, parts: Resident | Streamed, position_QB: np.ndarray) -> np.ndarray:
  """Returns the exact scores (QB) of each query's own items, −inf for padding."""
  if isinstance(parts, Resident) and len(parts.shards) == 1:
    return np.asarray(sieves.scores_at(adaptation, parts.shards[0][1], position_QB))
  queries, buffer = position_QB.shape
  width = adaptation.query.shape[1]
  columns = min(buffer, max(1, NUMBERS // width))
  block = max(1, min(queries, NUMBERS // (width * columns)))
  score_QB = np.empty((queries, buffer), np.float32)
  for start in range(0, queries, block):
    rows, some = slice(start, start + block), adaptation[start : start + block]
    for place in range(0, buffer, columns):
      piece = (rows, slice(place, place + columns))
      score_QB[piece] = score_own(some, parts.rows(position_QB[piece]))  # waits: one step's items at a time
  return np.where(position_QB < 0, -np.inf, score_QB)


def _ordered(position_QB: np.ndarray, score_QB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  ids_QB, ordered_QB = ordered(jnp.asarray(position_QB, jnp.int32), jnp.asarray(score_QB))
  return np.asarray(ids_QB), np.asarray(ordered_QB)


def take_queries(adaptation: Adaptation, rows: np.ndarray) -> Adaptation:
  """Returns the adaptation of some of the queries, in the order of `rows`."""
  if np.array_equal(rows, np.arange(len(adaptation))):
    return adaptation
  return jax.tree.map(lambda x: x[rows], adaptation)


def power(n: int) -> int:
  """Returns the smallest power of two that is at least n and at least 1."""
  return 1 << max(0, n - 1).bit_length()


def padded(rows: np.ndarray) -> np.ndarray:
  """Returns rows with the last one repeated up to a power of two, so that few shapes are ever compiled."""
  return np.concatenate([rows, np.repeat(rows[-1:], power(len(rows)) - len(rows))])


def _first(
  adaptation: Adaptation, masks: Masks, parts: Resident | Streamed, kept: int
) -> Iterator[tuple[int, jax.Array]]:
  bounding = _everywhere(prepare(adaptation, kept))
  for part in parts.parts():
    yield part.start, first_pass(bounding(part), part.features, part.square, _wanted(masks, part, len(adaptation)))


def _full(adaptation: Adaptation, masks: Masks, parts: Resident | Streamed) -> Iterator[tuple[int, jax.Array]]:
  copies = _everywhere(adaptation)
  for part in parts.parts(FULL_ROWS):
    yield part.start, full_pass(copies(part), part.features, _wanted(masks, part, len(adaptation)))


def _best(
  adaptation: Adaptation, parts: Resident | Streamed, uppers: Uppers, buffer: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns ids and exact scores (QB) of the items with the largest bounds, and whether the first k are proven."""
  of_device: dict[jax.Device, Candidates] = {}
  for start, upper_QN in uppers:
    earlier = of_device.get(upper_QN.device)
    of_device[upper_QN.device] = keep(upper_QN, start, earlier, buffer)
    jax.block_until_ready(earlier)  # JAX would run ahead of the device, and hold all the chunks on the way
  if len(of_device) == 1:
    (candidates,) = of_device.values()
  else:
    candidates = _merged(list(of_device.values()), buffer)
  # the largest bounds come first: a part of them may do to see that the others do not matter
  position_QB, upper_QB = np.asarray(candidates.ids), np.asarray(candidates.upper)
  some = min(buffer, max(BUFFER, power(2 * k)))
  score_QB = _scored(adaptation, parts, position_QB[:, :some])
  threshold_Q1 = -np.partition(-score_QB, k - 1, axis=1)[:, k - 1 : k]
  needed = int(np.sum(upper_QB >= threshold_Q1, axis=1).max())
  if needed > some:
    stop = some + power(needed - some)
    score_QB = np.concatenate([score_QB, _scored(adaptation, parts, position_QB[:, some:stop])], axis=1)
  ids_QB, score_QB = _ordered(position_QB[:, : score_QB.shape[1]], score_QB)
  dropped_Q = upper_QB[:, -1]
  return ids_QB, score_QB, (dropped_Q < score_QB[:, k - 1]) | (dropped_Q == -np.inf)


def _merged(several: list[Candidates], buffer: int) -> Candidates:
  ids = np.concatenate([x.ids for x in several], axis=1)
  upper = np.concatenate([x.upper for x in several], axis=1)
  order_QB = np.argsort(-upper, axis=1, kind="stable")[:, :buffer]
  return Candidates(jnp.take_along_axis(ids, order_QB, axis=1), jnp.take_along_axis(upper, order_QB, axis=1))


Tree = TypeVar("Tree")


def _everywhere(tree: Tree) -> Callable[[Part], Tree]:
  """Returns a function that gives the copy of `tree` on a part's device."""
  copies: dict[jax.Device, Tree] = {}

  def copy(part: Part) -> Tree:
    device = part.features.device
    if device not in copies:
      copies[device] = jax.device_put(tree, device)
    return copies[device]

  return copy


def _wanted(masks: Masks, part: Part, queries: int) -> jax.Array:
  return jax.device_put(masks.part(part.start, part.items, len(part.features), queries), part.features.device)


def _replace(
  whole: tuple[np.ndarray, np.ndarray, np.ndarray], some: tuple[np.ndarray, np.ndarray, np.ndarray], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns `whole` (ids, scores, proven) with some queries' results in their place."""
  buffer = max(whole[0].shape[1], some[0].shape[1])
  result = []
  for before, after, filling in zip(whole, some, (-1, -np.inf, False), strict=True):
    if before.ndim == 2:
      before, after = (np.pad(x, ((0, 0), (0, buffer - x.shape[1])), constant_values=filling) for x in (before, after))
    before = before.copy()
    before[rows] = after
    result.append(before)
  return result[0], result[1], result[2]

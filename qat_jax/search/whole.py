"""The best items of a whole gallery: its parts one after another, or side by side where they lie on several devices."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from qat_jax.adaptation import power_of_two
from qat_jax.search.bounds import Prepared, prepare
from qat_jax.search.coarse import stored_copy
from qat_jax.search.copies import GATHERED, copied_parts, gathered
from qat_jax.search.exact import Weighted, score_pairs, search
from qat_jax.search.gallery import COUNTABLE, Part, device_count, in_place, parts, rows_of_chunk, shards
from qat_jax.search.masks import Masks
from qat_jax.search.top import ItemPairs, TopK
from qat_jax.types import Adaptation, ArrayGallery, Gallery, Pieces, Ranking

QUERY_BLOCK = 64


def best_of(
  adaptation: Adaptation,
  gallery: Gallery,
  best: list[TopK],
  masks: Masks,
  deep: bool,
  devices: Sequence[jax.Device] | None = None,
  chunk_rows: int | None = None,
) -> list[TopK]:
  """Returns the best of each of the `blocks` of queries, of those so far and of a gallery that was checked.

  `deep` says whether every item is scored, as `search` takes it; where each query has its own list, that alone is.
  """
  if masks.allowed is not None:
    return best_among(adaptation, gallery, masks.allowed, best)
  queries = power_of_two(min(QUERY_BLOCK, len(adaptation)))

  def searched(own: Iterable[Part]) -> list[TopK]:
    each = ((part,) for part in own)
    return best_of_sum([(adaptation, None)], each, device_count(gallery, devices), best, masks, deep)

  there = devices or [jax.numpy.zeros(()).device]
  copy = None if deep else stored_copy(gallery, there[0].platform)
  if copy is None:
    return searched(parts(gallery, devices, chunk_rows, queries))
  kind = (
    queries,
    len(best),
    best[0].ids.shape,
    adaptation.gate.shape[1],
    adaptation.left.shape[2],
    masks.wanted_N is None,
    chunk_rows,
  )
  stream = lambda: copied_parts(gallery, copy, there, chunk_rows, COUNTABLE // queries)
  return copy.trial.quicker(
    kind, lambda coarse: searched(stream() if coarse else parts(gallery, devices, chunk_rows, queries))
  )


def best_of_sum(
  terms: Sequence[tuple[Adaptation, np.ndarray | None]],
  all_parts: Iterable[tuple[Part, ...]],
  devices: int,
  best: list[TopK],
  masks: Masks,
  deep: bool,
) -> list[TopK]:
  """Returns the best of each of the `blocks` of queries, of those so far and of the items of parts, by summed scores.

  Args:
    terms: adaptations of Q queries, and what their scores count in the sum (Q, none negative); None for the only one.
    all_parts: parts of the same items, one for each term's gallery.
    devices: on how many the parts lie.
    best: so far.
    masks: without a list for each query.
    deep: whether every item is scored, as `search` takes it.
  """
  queries = blocks(len(terms[0][0]))
  excluded = [masks.of_queries(block).excluded for block in queries]
  prepared = [[prepare(padded(adaptation, block)) for adaptation, _ in terms] for block in queries]
  weights = [[None if x is None else x[block.start : block.stop] for _, x in terms] for block in queries]
  on_device: dict[jax.Device, list[list[Prepared]]] = {}

  def searched(some: Sequence[Part], best: list[TopK]) -> list[TopK]:
    if some[0].device not in on_device:
      on_device[some[0].device] = some[0].placed(prepared)
    some = [masked(part, masks) for part in some]
    blockwise = zip(on_device[some[0].device], weights, best, excluded, strict=True)
    return [
      search([Weighted(*one) for one in zip(bounds, some, weight, strict=True)], top, without, deep)
      for bounds, weight, top, without in blockwise
    ]

  # what a part may build on is settled when it is handed out, so that every call does, and compiles, the same
  tasks = (functools.partial(searched, some, best) for some in all_parts)
  for results in _side_by_side(tasks, devices):
    # one device's parts come in turn: what each returns holds what the others before it found
    best = results if devices == 1 else [one.merge(other) for one, other in zip(best, results, strict=True)]
  return best


def aligned(galleries: Sequence[Gallery], queries: int) -> Iterator[tuple[Part, ...]]:
  """Yields parts of the same items of several galleries, as `parts` does.

  Raises ValueError for a gallery that grows in pieces, beside one whose pieces are others.
  """
  places = [_places(gallery) for gallery in galleries]
  if all(place is not None and place == places[0] for place in places):
    return zip(*(parts(gallery, None, None, queries) for gallery in galleries), strict=True)
  if any(isinstance(gallery, Pieces) for gallery in galleries):
    raise ValueError("the galleries are of different collections, which grow apart; give those of one collection")
  device = jax.numpy.zeros(()).device
  rows = min(rows_of_chunk(gallery.width, device) for gallery in galleries)
  return zip(*(parts(gallery, [device], rows, queries) for gallery in galleries), strict=True)


def _places(gallery: Gallery) -> list[tuple] | None:
  """Returns where each run of rows of a gallery lies on devices; None where it has to be streamed."""
  arrays: Sequence[Any] = [gallery.array] if isinstance(gallery, ArrayGallery) else getattr(gallery, "arrays", [None])
  if not all(isinstance(array, jax.Array) for array in arrays):
    return None
  counts = getattr(gallery, "counts", (len(gallery),))
  return [
    (count, first, len(data), data.devices())
    for array, count in zip(arrays, counts, strict=False)
    for first, data in shards(array)
  ]


def masked(part: Part, masks: Masks) -> Part:
  """Returns a part of what all queries may find."""
  if masks.wanted_N is None:
    return part
  wanted_N = masks.wanted_N[part.first : part.first + part.items]
  return dataclasses.replace(part, wanted=wanted_N if part.wanted is None else wanted_N & part.wanted)


def best_among(adaptation: Adaptation, gallery: Gallery, pairs: ItemPairs, best: list[TopK]) -> list[TopK]:
  """Returns the best of each block of queries, of those so far and of each query's own items."""
  found, own = [], Masks(ItemPairs(*np.zeros((2, 0), np.int64)), None, pairs)
  for block, top in zip(blocks(len(adaptation)), best, strict=True):
    prepared, theirs = prepare(padded(adaptation, block)), own.of_queries(block).allowed
    assert theirs is not None
    for part, local, position_P in _where_they_lie(gallery, theirs):
      score_P = score_pairs(part.placed(prepared), part, local)
      top = top.with_pairs(ItemPairs(local.query, position_P), score_P)
    found.append(top)
  return found


def _where_they_lie(gallery: Gallery, pairs: ItemPairs) -> Iterator[tuple[Part, ItemPairs, np.ndarray]]:
  """Yields parts that hold the items of some pairs, these pairs by their place in the part, and in the gallery."""
  if (there := in_place(gallery)) is not None:
    for part in there:
      here = pairs.take((pairs.item >= part.first) & (pairs.item < part.first + part.items))
      yield part, ItemPairs(here.query, here.item - part.first), here.item
    return
  for start in range(0, len(pairs.query), GATHERED[-1]):
    some = pairs.take(np.arange(start, min(start + GATHERED[-1], len(pairs.query))))
    yield gathered(gallery, some.item), ItemPairs(some.query, np.arange(len(some.query))), some.item


def _side_by_side(tasks: Iterable[Callable[[], list[TopK]]], devices: int) -> Iterator[list[TopK]]:
  """Yields what the tasks return, in order, as many of them at work at once as there are devices."""
  if devices == 1:
    for task in tasks:
      yield task()
    return
  with concurrent.futures.ThreadPoolExecutor(devices) as pool:
    running: collections.deque[concurrent.futures.Future] = collections.deque()
    for task in tasks:
      if len(running) == devices:
        yield running.popleft().result()
      running.append(pool.submit(task))
    for future in running:
      yield future.result()


def blocks(queries: int) -> list[range]:
  """Returns which queries are searched for together."""
  return [range(start, min(start + QUERY_BLOCK, queries)) for start in range(0, queries, QUERY_BLOCK)]


def padded(adaptation: Adaptation, block: range) -> Adaptation:
  """Returns a block of queries, the last one repeated up to a power of two, so that few shapes are compiled for."""
  if len(block) == len(adaptation) == power_of_two(len(block)):
    return adaptation
  rows = np.minimum(np.arange(block.start, block.start + power_of_two(len(block))), block.stop - 1)
  return jax.tree.map(lambda x: np.asarray(x)[rows], adaptation)


def ranking_of(best: list[TopK], k: int, items: int) -> Ranking:
  """Returns the best of blocks of queries as one Ranking, filled up to k."""
  ids_QB, score_QB = (np.concatenate(x) for x in ([top.ids for top in best], [top.scores for top in best]))
  kind = np.int32 if items <= np.iinfo(np.int32).max else np.int64
  if missing := k - ids_QB.shape[1]:
    ids_QB, score_QB = (
      np.pad(x, ((0, 0), (0, missing)), constant_values=value) for x, value in ((ids_QB, -1), (score_QB, -np.inf))
    )
  return Ranking(ids_QB.astype(kind), score_QB)

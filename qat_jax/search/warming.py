"""Compiles, ahead of the first query, every program that searches of a gallery may need.

How many directions are worth keeping, and how many items stay alive, is each batch's own: no sample of queries meets
them all.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from qat_jax.search.bounds import KEPT, RANK, Bounds, each_query, one_map, prepare
from qat_jax.search.coarse import stored_copy
from qat_jax.search.copies import GATHERED, copied_parts, of_pairs
from qat_jax.search.exact import score_pairs
from qat_jax.search.gallery import COUNTABLE, Part, expect_searches, parts
from qat_jax.search.kernels import filtered
from qat_jax.search.masks import Elsewhere
from qat_jax.search.rank import rerank
from qat_jax.search.scores import ITEMS, PIECE, refined_bounds
from qat_jax.search.top import ItemPairs
from qat_jax.types import Adaptation, Gallery

SCORED = 2048  # items a query, on average, up to which all shapes are compiled off a CPU; rarely are there more


def warm(adaptation: Adaptation, gallery: Gallery) -> None:
  """Compiles for as many queries as the adaptation has, a power of two up to 64; what they are does not matter.

  Filtering by one mask for all queries, and k of a fourth of the gallery or more, are left out: two shapes more.
  """
  if isinstance(gallery, Elsewhere):
    gallery.warm(adaptation)
    return
  queries, (width, rank) = len(adaptation), adaptation.left.shape[1:]
  expect_searches(gallery)
  part = next(iter(parts(gallery, None, None, queries)))
  looked = [dataclasses.replace(part, coarse=copy) for copy in {id(x): x for x in (None, part.coarse)}.values()]
  streamed: list[Part] = []
  if (copy := stored_copy(gallery, part.platform)) is not None:
    streamed = [next(copied_parts(gallery, copy, [part.device], None, COUNTABLE // queries))]
  prepared = prepare(adaptation)
  wide = adaptation.gate.shape[1] > 1
  shapes = [(kept, queries, False) for kept in range(min(RANK, 2 * rank, width) + 1)]
  whole = [kept for kept in KEPT if kept < 2 * min(2 * rank, width)]
  shapes += [(kept, each, True) for kept in whole for each in {1, queries} if rank > RANK or (rank and each < queries)]
  for kept, each, whole_maps in shapes:
    for square in sorted({False, wide}):
      bounds = _shaped(prepared.bounds, kept, square, each, whole_maps)
      only = one_map(bounds, "") if whole_maps and each == 1 else None
      for either in looked + streamed:
        either = dataclasses.replace(either, squares=None if part.squares is None else {})
        filtered(part.placed(prepared._replace(bounds=bounds, one_map=only)), either, queries)
  if rank > 2 * RANK:
    prepared = prepared._replace(tight=each_query(_shaped(prepared.bounds, min(2 * RANK, width), wide, queries, False)))
  prepared = part.placed(prepared)
  chunks = 1
  while chunks <= queries * max(1, min(SCORED, part.items) // ITEMS):
    each = (max(1, chunks // queries) - 1) * ITEMS + 1
    query_P = np.repeat(np.arange(min(chunks, queries)), each)
    pairs = ItemPairs(query_P, np.arange(len(query_P)) % part.items)
    score_pairs(prepared, part, pairs)
    if prepared.tight is not None:
      refined_bounds(prepared, part, pairs.query, pairs.item)
    if part.platform in PIECE:  # where one program takes any number of them
      break
    chunks *= 2
  for rows in GATHERED:
    for part in streamed:
      few = ItemPairs(*np.stack([np.zeros(rows, np.int64), np.arange(rows)])[:, : part.items])
      of_pairs(functools.partial(score_pairs, prepared), part, few)
      if prepared.tight is not None:
        of_pairs(lambda near, some: refined_bounds(prepared, near, some.query, some.item), part, few)
    few_S = np.arange(min(len(gallery), -(-rows // queries)))
    rerank(adaptation, gallery, np.tile(few_S, (queries, 1)))


def _shaped(bounds: Bounds, kept: int, square: bool, each: int, whole: bool) -> Bounds:
  """Returns bounds of the shape that some maps give.

  Args:
    bounds: of the same queries.
    kept: how many directions there are.
    square: whether the gate is as wide as features.
    each: how many columns a direction has: one for each query, or 1 where they share a map.
    whole: whether maps are wide or shared.
  """
  queries, width = len(bounds.floor), len(bounds.columns)
  zeros = lambda *shape: np.zeros(shape, np.float32)
  return dataclasses.replace(
    bounds,
    columns=zeros(width, queries + each * kept),
    weight=zeros(kept, queries),
    square=zeros(width, queries) if square else None,
    doubt=zeros(kept, queries) if whole else None,
  )

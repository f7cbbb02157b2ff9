"""Compiles, ahead of the first query, every program that searches of a gallery may need.

How many directions are worth keeping, and how many items stay alive, is each batch's own: no sample of queries meets
them all.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qat_jax.search.bounds import RANK, Bounds, prepare
from qat_jax.search.exact import Pairs, score_pairs
from qat_jax.search.gallery import GATHERED, parts
from qat_jax.search.kernels import upper_bounds
from qat_jax.search.rank import rerank
from qat_jax.search.scores import ITEMS, PIECE, refined_bounds
from qat_jax.types import Adaptation, Gallery

SCORED = 2048  # items a query, on average, up to which all shapes are compiled off a CPU; rarely are there more


def warm(adaptation: Adaptation, gallery: Gallery) -> None:
  """Compiles for as many queries as the adaptation has, a power of two up to 64; what they are does not matter.

  Filtering by one mask for all queries, and k of a fourth of the gallery or more, are left out: two shapes more.
  """
  queries, (width, rank) = len(adaptation), adaptation.left.shape[1:]
  part = next(iter(parts(gallery, None, None, queries)))
  prepared = prepare(adaptation)
  for bounds in _all_bounds(prepared.bounds, min(RANK, 2 * rank, width), adaptation.gate.shape[1] > 1):
    upper_bounds(part.placed(bounds), part, queries)
  if rank > 2 * RANK and width > RANK:
    cut_QDC = np.zeros((queries, width, RANK), np.float32)
    prepared = prepared._replace(similar=prepared.factors._replace(left=cut_QDC, right=cut_QDC))
  prepared = part.placed(prepared)
  chunks = 1
  while chunks <= queries * max(1, min(SCORED, part.items) // ITEMS):
    each = (max(1, chunks // queries) - 1) * ITEMS + 1
    query_P = np.repeat(np.arange(min(chunks, queries)), each)
    pairs = Pairs(query_P, np.arange(len(query_P)) % part.items)
    score_pairs(prepared, part, pairs)
    if prepared.similar is not None:
      refined_bounds(prepared, part, pairs.query, pairs.item)
    if part.platform in PIECE:  # where one program takes any number of them
      break
    chunks *= 2
  for rows in GATHERED:
    few_S = np.arange(min(len(gallery), -(-rows // queries)))
    rerank(adaptation, gallery, np.tile(few_S, (queries, 1)))


def _all_bounds(bounds: Bounds, most: int, wide: bool) -> list[Bounds]:
  """Returns bounds of every shape that up to `most` directions give, the gate a number or, where wide, columns."""
  queries, width = len(bounds.floor), len(bounds.columns)
  zeros = lambda *shape: np.zeros(shape, np.float32)
  return [
    dataclasses.replace(bounds, columns=zeros(width, queries * (1 + kept)), weight=zeros(kept, queries), square=square)
    for kept in range(most + 1)
    for square in ((None, zeros(width, queries)) if wide else (None,))
  ]

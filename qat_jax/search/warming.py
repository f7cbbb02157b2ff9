"""Compiles, ahead of the first query, what searches of a gallery need: how many items stay alive decides the shapes."""

from __future__ import annotations

import jax
import numpy as np

from qat_jax.search.bounds import RANK, prepare
from qat_jax.search.exact import Pairs, score_pairs
from qat_jax.search.gallery import parts
from qat_jax.search.kernels import ITEMS, refined_bounds, upper_bounds
from qat_jax.types import Adaptation, Gallery

SCORED = 2048  # items a query, on average, up to which all shapes are compiled; rarely are there more


def warm(adaptation: Adaptation, gallery: Gallery) -> None:
  """Compiles for as many queries as the adaptation has, a power of two; what they are does not matter."""
  queries = len(adaptation)
  part = next(iter(parts(gallery, None, None, queries)))
  prepared = jax.device_put(prepare(adaptation), part.device)
  bounds = prepared.bounds
  directions = range(RANK + 1) if adaptation.left.shape[2] else range(1)
  for kept in directions:  # how many are worth it is each batch's own
    columns = jax.device_put(np.zeros((bounds.columns.shape[0], queries * (1 + kept)), np.float32), part.device)
    weight = jax.device_put(np.zeros((kept, queries), np.float32), part.device)
    upper_bounds(bounds.replace(columns=columns, weight=weight), part, queries)
  chunks = 1
  while chunks <= queries * max(1, min(SCORED, part.items) // ITEMS):
    each = (max(1, chunks // queries) - 1) * ITEMS + 1
    query_P = np.repeat(np.arange(min(chunks, queries)), each)
    pairs = Pairs(query_P, np.arange(len(query_P)) % part.items)
    score_pairs(prepared, part, pairs)
    if prepared.similar is not None:
      refined_bounds(prepared, part, pairs.query, pairs.item)
    chunks *= 2

"""How a method ranks: what it does with a gallery, and rankings to any depth.

`qat_jax.rank` where few items are wanted, sorted blocks of scores where nearly all are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import qat_jax
from qat_jax.search.gallery import check_lengths
from qat_jax.search.proof import take_queries
from qat_jax.search.rank import check
from qat_jax.types import Adaptation, Ranking

Search = Callable[[np.ndarray, int], Ranking]  # (query_QD float32 as stored, k) → the best k positions of the gallery
DEEP = 0.1  # of the gallery: to rank more of it, every score is computed and sorted
SCORES = 1 << 28  # how many scores are held at once
FACTORS = 1 << 24  # how many numbers the scores of a block are computed with at once
QUERY_BLOCK = 64


class Method(NamedTuple):
  """What answers queries: a head or a way to search, fitted; ready for any gallery of its width."""

  prepare: Callable[[Any], Search]  # the offline work on a gallery: a FeatureStore, an array
  note: str = ""  # what fitting chose
  parameters: int = 0  # learned or fitted numbers
  bytes_per_item: float = 0.0  # of the gallery, beside one copy of its features
  seconds: float | None = None  # of training; None: it was fitted just now


def ranked(adaptation: Adaptation, gallery: Any, k: int) -> Ranking:
  """Returns what `qat_jax.rank` does, in the same order (lower id first where scores are equal), at any depth."""
  if k <= max(1, DEEP * len(gallery)):
    return qat_jax.rank(adaptation, gallery, k)
  check(adaptation, gallery, k)
  block = max(1, min(len(adaptation), SCORES // len(gallery)))
  ids, scores = [], []
  for start in range(0, len(adaptation), block):
    score_QN = _scores(adaptation[start : start + block], gallery)
    for score_N in score_QN:
      order_K = np.argsort(-score_N, kind="stable")[:k]
      ids.append(order_K.astype(np.int32))
      scores.append(score_N[order_K])
  missing = ((0, 0), (0, max(0, k - len(gallery))))
  return Ranking(
    np.pad(np.stack(ids), missing, constant_values=-1), np.pad(np.stack(scores), missing, constant_values=-np.inf)
  )


def _scores(adaptation: Adaptation, gallery: Any) -> np.ndarray:
  """Returns every score (QN); a gallery that is not on the device is read in chunks, once."""
  items, queries = len(gallery), len(adaptation)
  size = min(QUERY_BLOCK, 1 << (queries - 1).bit_length())
  rows = min(items, max(256, FACTORS // (size * (2 * adaptation.left.shape[2] + 1))))
  places = [np.minimum(np.arange(first, first + size), queries - 1) for first in range(0, queries, size)]
  blocks = [take_queries(adaptation, rows_Q) for rows_Q in places]
  score_QN = np.empty((queries, items), np.float32)
  for start in range(0, items, rows):
    chunk_ND = jnp.asarray(gallery[start : start + rows], jnp.float32)
    check_lengths(np.asarray(jnp.sum(jnp.square(chunk_ND), axis=1)), start)
    for first, part in zip(range(0, queries, size), blocks, strict=True):
      own = min(size, queries - first)
      score_QN[first : first + own, start : start + rows] = qat_jax.score(part, chunk_ND)[:own]
  return score_QN

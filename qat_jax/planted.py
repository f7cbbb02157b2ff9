"""Planted queries: queries of validation that an adapter keeps, with images of what each looks for and of a rival.

`qat_jax.evidence` asks them of a new gallery to learn what scores are worth there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.features.retrieval_set import Split
from qat_jax.features.store import FeatureStore
from qat_jax.types import Relevance

MOST = 1500  # queries of a type
OWN = 3  # images of each, at most


@dataclasses.dataclass(frozen=True)
class Planted:
  """Q queries and M images of what they look for: frozen features, half precision."""

  query: np.ndarray  # QD
  own: np.ndarray  # MD
  owner: np.ndarray  # M, int32: the query of each image, in rising order; each query has one at least
  rival: np.ndarray | None = None  # QD: the likest image of something else; None in adapters of earlier versions

  def __len__(self) -> int:
    return len(self.query)

  @classmethod
  def none(cls, width: int) -> Planted:
    """Returns no queries."""
    return cls(np.zeros((0, width), np.float16), np.zeros((0, width), np.float16), np.zeros(0, np.int32))

  @classmethod
  def of(cls, split: Split, query_type: str, most: int = MOST, seed: int = 0) -> Planted:
    """Returns up to `most` queries of a split that have something relevant, drawn with `seed`."""
    relevance, queries = split.relevance(query_type), split.queries[query_type]
    usable = np.flatnonzero([len(rows) > 0 for rows in relevance.positives])
    if len(usable) > most:
      usable = np.sort(np.random.default_rng(seed).choice(usable, most, replace=False))
    if not len(usable):
      return cls.none(split.gallery.width)
    mine = [np.asarray(relevance.positives[i])[:OWN] for i in usable]
    owner_M = np.repeat(np.arange(len(usable)), [len(rows) for rows in mine]).astype(np.int32)
    half = lambda rows_ND: np.asarray(rows_ND, np.float16)
    query_QD = half(queries[usable])
    rival_Q = _rivals(query_QD, split.gallery, relevance.take(usable))
    rival_QD = None if rival_Q is None else half(split.gallery[rival_Q])
    return cls(query_QD, half(split.gallery[np.concatenate(mine)]), owner_M, rival_QD)

  @property
  def digest(self) -> str:
    """What tells these queries and images from others."""
    digest = hashlib.blake2b(digest_size=16)
    for array in _there(self).values():
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _rivals(query_QD: np.ndarray, gallery: FeatureStore, relevance: Relevance) -> np.ndarray | None:
  """Returns the item most like each query of those that are not relevant to it (Q); None where one has no such item."""
  best_Q, row_Q = np.full(len(query_QD), -np.inf), np.zeros(len(query_QD), np.int64)
  queries_QD, every_Q = unit(query_QD, np.float32), np.arange(len(query_QD))
  for start, rows_ND in gallery.chunks(8192):
    cosine_QN = queries_QD @ unit(rows_ND, np.float32).T
    for query, places in enumerate(map(np.concatenate, zip(relevance.positives, relevance.ignored, strict=True))):
      here = places[(places >= start) & (places < start + len(rows_ND))]
      cosine_QN[query, here.astype(np.int64) - start] = -np.inf
    top_Q = cosine_QN.argmax(axis=1)
    better_Q = cosine_QN[every_Q, top_Q] > best_Q
    best_Q[better_Q], row_Q[better_Q] = cosine_QN[every_Q, top_Q][better_Q], start + top_Q[better_Q]
  return row_Q if np.isfinite(best_Q).all() else None


def _there(planted: Planted) -> dict[str, np.ndarray]:
  return {name: array for name, array in vars(planted).items() if array is not None}


def arrays(planted: Mapping[str, Planted]) -> dict[str, dict[str, np.ndarray]]:
  """Returns planted queries as trees of arrays, by query type, for a file; types without any are left out."""
  return {name: _there(one) for name, one in planted.items() if len(one)}

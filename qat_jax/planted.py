"""Planted queries: queries of validation that an adapter keeps, with images of what each looks for.

`qat_jax.evidence` asks them of a new gallery to learn what scores are worth there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np

from qat_jax.features.retrieval_set import Split

MOST = 1500  # queries of a type
OWN = 3  # images of each, at most


@dataclasses.dataclass(frozen=True)
class Planted:
  """Q queries and M images of what they look for: frozen features, half precision."""

  query: np.ndarray  # QD
  own: np.ndarray  # MD
  owner: np.ndarray  # M, int32: the query of each image, in rising order; each query has one at least

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
    return cls(half(queries[usable]), half(split.gallery[np.concatenate(mine)]), owner_M)

  @property
  def digest(self) -> str:
    """What tells these queries and images from others."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (self.query, self.own, self.owner):
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def arrays(planted: Mapping[str, Planted]) -> dict[str, dict[str, np.ndarray]]:
  """Returns planted queries as trees of arrays, by query type, for a file; types without any are left out."""
  return {name: vars(one) for name, one in planted.items() if len(one)}

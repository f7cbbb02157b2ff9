"""What the heads of one query type are fitted on, and its moments; read in chunks, so that it may be a FeatureStore."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.models.head import Head
from qat_jax.types import Relevance

CHUNK_ROWS = 65536
PLAIN = Head("plain", {}, {"params": {}, "constants": {}})  # the frozen feature, as it is


class Training(NamedTuple):
  """Training features of one query type: row i of the queries belongs to image i (both ND, an array or a FeatureStore).

  Where `relevant` is given, the queries are rows of their own (QD), and it says which images are right for each.
  `queries` is None for text queries without captions.
  """

  query_type: str
  queries: Any | None
  images: Any
  instance: np.ndarray  # N
  relevant: Relevance | None = None  # Q, by position in the images

  @classmethod
  def of(cls, data: RetrievalSet, query_type: str) -> Self:
    """Returns the training features of a retrieval set."""
    images, listed = data.train_images, data.train_listed
    if query_type in listed.queries:
      relevant = listed.relevance(query_type)
      return cls(query_type, listed.queries[query_type], images, images.column("instance"), relevant)
    own = data.train_texts if query_type == "text" else images
    return cls(query_type, own, images, images.column("instance"))

  @property
  def width(self) -> int:
    """How wide the features are."""
    return int(self.images[:1].shape[1])

  @property
  def pairs(self) -> int:
    """How many rows there are to train on: images with their queries, or queries with their lists."""
    return len(self.instance if self.relevant is None else self.relevant)

  @property
  def second_views(self) -> float:
    """The share of training images whose instance has another image."""
    _, code_N, count = np.unique(self.instance, return_inverse=True, return_counts=True)
    return float(np.mean(count[code_N] >= 2))

  def means(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of unit queries and that of unit images (each D, float64).

    Texts lie apart from images (the modality gap), so text queries have a mean of their own; that of the images where
    there are no captions.
    """
    image_D = mean_of_rows(self.images)
    apart = self.query_type == "text" and self.queries is not None
    return (mean_of_rows(self.queries) if apart else image_D), image_D


def evenly(rows: int, most: int) -> np.ndarray:
  """Returns up to `most` of so many rows, evenly spaced."""
  return np.linspace(0, rows - 1, min(rows, most)).astype(int)


def mean_of_rows(features: Any) -> np.ndarray:
  """Returns the mean (D, float64) of the unit rows of a FeatureStore or array."""
  return sum(chunk_ND.sum(axis=0) for chunk_ND in _unit_chunks(features)) / len(features)


def covariance_of(features: Any, mean_D: np.ndarray) -> np.ndarray:
  """Returns the covariance (D×D float64, over N, not N − 1) of the unit rows."""
  total_DD = np.zeros((len(mean_D), len(mean_D)))
  for chunk_ND in _unit_chunks(features):
    total_DD += (chunk_ND - mean_D).T @ (chunk_ND - mean_D)
  return total_DD / len(features)


def _unit_chunks(features: Any) -> Iterator[np.ndarray]:
  for start in range(0, len(features), CHUNK_ROWS):
    yield unit(features[start : start + CHUNK_ROWS])

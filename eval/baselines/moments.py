"""Mean and covariance of stored features, read in chunks; float64, rows scaled to unit length first."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.baselines.types import Train
from qat_jax.fit.closed_form import unit

CHUNK_ROWS = 65536


def mean_of(features: Any) -> np.ndarray:
  """Returns the mean (D) of the unit rows of a FeatureStore or array."""
  return sum(unit(features[start : start + CHUNK_ROWS]).sum(axis=0) for start in _starts(features)) / len(features)


def covariance_of(features: Any, mean_D: np.ndarray) -> np.ndarray:
  """Returns the covariance (D×D, over N, not N − 1) of the unit rows."""
  total_DD = np.zeros((len(mean_D), len(mean_D)))
  for start in _starts(features):
    centred_ND = unit(features[start : start + CHUNK_ROWS]) - mean_D
    total_DD += centred_ND.T @ centred_ND
  return total_DD / len(features)


def means_of(train: Train) -> tuple[np.ndarray, np.ndarray]:
  """Returns what is subtracted from queries and from the gallery (each D).

  Texts lie apart from images (the modality gap), so text queries lose the mean of the training captions; where there
  are none, that of the images.
  """
  image_D = mean_of(train.images)
  apart = train.query_type == "text" and train.texts is not None
  return (mean_of(train.texts) if apart else image_D), image_D


def _starts(features: Any) -> range:
  return range(0, len(features), CHUNK_ROWS)

"""PCA whitening of queries and gallery, fitted on training images: directions that vary less count more.

A text query is mapped like an image, save that the mean of the captions is subtracted instead (the modality gap).
Offline O(M·D² + D³) to fit on M images and O(N·D·E) for N items.
"""

from __future__ import annotations

import itertools

import numpy as np

from eval.baselines.both_sides import affine, index_with
from eval.baselines.moments import covariance_of, means_of
from eval.baselines.types import Baseline, Train
from qat_jax.validation import Validator

KEPT = (1.0, 0.5, 0.25)  # of the dimensions, the widest ones
SHRINKAGE = (0.01, 0.1, 1.0)  # of the mean variance, added to each variance
POWERS = (0.25, 0.5, 1.0)  # 1 whitens, less goes part of the way


def fit(train: Train, validator: Validator) -> Baseline:
  """Returns whitening with the dimensions, shrinkage and power that do best on validation."""
  query_D, image_D = means_of(train)
  covariance_DD = covariance_of(train.images, image_D)
  width = len(image_D)

  def index_of(kept: float, shrinkage: float, power: float):
    map_DE = whitening_map(covariance_DD, max(1, round(kept * width)), shrinkage, power)
    return index_with(affine(query_D, map_DE), affine(image_D, map_DE))

  def value(choice: tuple[float, float, float]) -> float:
    return validator.of_search(index_of(*choice)(validator.gallery_ND))

  kept, shrinkage, power = max(itertools.product(KEPT, SHRINKAGE, POWERS), key=value)
  dimensions = max(1, round(kept * width))
  note = f"{dimensions} dimensions, shrinkage {shrinkage}, power {power}"
  return Baseline(index_of(kept, shrinkage, power), width * dimensions + 2 * width, 0.0, note)


def whitening_map(covariance_DD: np.ndarray, dimensions: int, shrinkage: float, power: float) -> np.ndarray:
  """Returns the eigenvectors of the largest variances, each over (variance + shrinkage · mean variance)^(power/2) (DE).

  Safe for fewer rows than dimensions while the shrinkage is positive: a variance of zero only meets the shrinkage.
  """
  value_D, vector_DD = np.linalg.eigh(covariance_DD)
  value_E, vector_DE = np.maximum(value_D[::-1][:dimensions], 0), vector_DD[:, ::-1][:, :dimensions]
  return vector_DE / (value_E + shrinkage * np.maximum(value_D.mean(), 1e-12)) ** (power / 2)

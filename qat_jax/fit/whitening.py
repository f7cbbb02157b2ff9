"""PCA whitening of queries and gallery, fitted on training images: directions that vary less count more.

A text query is mapped like an image, save that the mean of the captions is subtracted instead (the modality gap).
Offline O(M·D² + D³) to fit on M images and O(N·D·E) for N items.
"""

import itertools

import numpy as np

from qat_jax.fit.training import Training, covariance_of
from qat_jax.models.closed_forms import affine_variables
from qat_jax.models.head import Head
from qat_jax.validation import Validator

SHARES = (1.0, 0.5, 0.25)  # of the dimensions, the widest ones
SHRINKAGE = (0.01, 0.1, 1.0)  # of the mean variance, added to each variance
EXPONENTS = (0.25, 0.5, 1.0)  # 1 whitens, less goes part of the way


def fit_whitening(training: Training, validator: Validator) -> Head:
  """Returns whitening with the dimensions, shrinkage and exponent that do best on validation."""
  query_D, image_D = training.means()
  covariance_DD = covariance_of(training.images, image_D)

  def made(share: float, shrinkage: float, exponent: float) -> Head:
    dimensions = max(1, round(share * training.width))
    map_DE = whitening_map(covariance_DD, dimensions, shrinkage, exponent)
    note = f"{dimensions} dimensions, shrinkage {shrinkage}, power {exponent}"
    return Head("affine", {"dimensions": dimensions}, affine_variables(query_D, image_D, map_DE), note)

  return max(itertools.starmap(made, itertools.product(SHARES, SHRINKAGE, EXPONENTS)), key=validator)


def whitening_map(covariance_DD: np.ndarray, dimensions: int, shrinkage: float, exponent: float) -> np.ndarray:
  """Returns the eigenvectors of the largest variances, each over (variance + shrinkage · mean variance)^(exponent/2).

  DE, E the dimensions. Safe for fewer rows than dimensions while the shrinkage is positive: a variance of zero only
  meets the shrinkage.
  """
  value_D, vector_DD = np.linalg.eigh(covariance_DD)
  value_E, vector_DE = np.maximum(value_D[::-1][:dimensions], 0), vector_DD[:, ::-1][:, :dimensions]
  return vector_DE / (value_E + shrinkage * np.maximum(value_D.mean(), 1e-12)) ** (exponent / 2)

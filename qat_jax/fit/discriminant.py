"""Shrinkage LDA, a closed form: directions in which images of one instance differ count less. Strong with few labels.

It rests on S_w, the scatter of images around their instance's mean, scaled to trace D. A text query is mapped like an
image, save that the mean of the captions is subtracted instead. Float64 inside, O(M·D² + D³) to fit on M images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit.training import Training
from qat_jax.models.closed_forms import affine_variables
from qat_jax.models.head import Head
from qat_jax.validation import Validator

SHRINKAGE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean variance
RESIDUAL = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 3.0)


def both_sides(training: Training, validator: Validator, shrinkage: Sequence[float] = SHRINKAGE) -> Head | None:
  """Returns the head that maps queries and gallery alike: normalise((x − mean)(S_w + shrinkage·I)^(−½)).

  The shrinkage is the best on validation. None where no training instance has two images.
  """
  if not training.second_views:
    return None
  scatter_DD, means = within_scatter(training.images[:], training.instance), training.means()

  def heads() -> Iterator[Head]:
    for number in shrinkage:
      variables = affine_variables(*means, inverse_root(scatter_DD, number))
      yield Head("affine", {"dimensions": training.width}, variables, f"shrinkage {number}")

  return max(heads(), key=validator)


def query_alone(
  training: Training,
  validator: Validator,
  shrinkage: Sequence[float] = SHRINKAGE,
  residual: Sequence[float] = RESIDUAL,
) -> Head | None:
  """Returns the head that leaves the gallery alone: q' = normalise((q − mean)(S_w + shrinkage·I)⁻¹) + residual·q.

  Both numbers are the best on validation. None where no training instance has two images.
  """
  if not training.second_views:
    return None
  scatter_DD, (query_D, _) = within_scatter(training.images[:], training.instance), training.means()

  def heads() -> Iterator[Head]:
    for pair in itertools.product(shrinkage, residual):
      variables = {"params": {}, "constants": query_map(scatter_DD, query_D, *pair)}
      yield Head("closed_form", {}, variables, f"shrinkage {pair[0]}, residual {pair[1]}")

  return max(heads(), key=validator)


def within_scatter(image_ND: Any, instance_N: np.ndarray, chunk: int = 65536) -> np.ndarray:
  """Returns S_w (D×D float64, trace D) of unit images, from instances with two images or more.

  Raises ValueError if there are none: then nothing is known of how one instance varies.
  """
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  used = np.flatnonzero(count[code_N] >= 2)
  if len(used) == 0:
    raise ValueError(
      f"none of the {len(count)} training instances has two images, so there is no within-instance scatter; "
      "use a form that does not need it"
    )
  width = image_ND.shape[1]
  total = np.zeros((width, width))
  mean_ID = np.zeros((len(count), width))
  for rows in np.array_split(used, -(-len(used) // chunk)):
    np.add.at(mean_ID, code_N[rows], unit(image_ND[rows]))
  mean_ID /= count[:, None]
  for rows in np.array_split(used, -(-len(used) // chunk)):
    deviation_ND = unit(image_ND[rows]) - mean_ID[code_N[rows]]
    total += deviation_ND.T @ deviation_ND
  return total * (width / np.trace(total))


def query_map(scatter_DD: np.ndarray, mean_D: np.ndarray, shrinkage: float, residual: float) -> dict:
  """Returns the constants of the form `closed_form`."""
  inverse_DD = np.linalg.inv(scatter_DD + shrinkage * np.eye(len(scatter_DD)))
  return {
    "mean": jnp.asarray(mean_D, jnp.float32),
    "map": jnp.asarray(inverse_DD, jnp.float32),
    "residual": jnp.asarray(residual, jnp.float32),
  }


def inverse_root(scatter_DD: np.ndarray, shrinkage: float) -> np.ndarray:
  """Returns (S_w + shrinkage·I)^(−½), symmetric; safe for a scatter of low rank."""
  value_D, vector_DD = np.linalg.eigh(scatter_DD)
  return (vector_DD / np.sqrt(np.maximum(value_D, 0) + shrinkage)) @ vector_DD.T

"""Shrinkage LDA and PLDA, closed forms: directions in which images of one instance differ count less.

Strong with few labels. They rest on S_w, the scatter of images around their instance's mean. LDA maps a text query like
an image, save that the mean of the captions is subtracted instead. Float64 inside, O(M·D² + D³) to fit on M images.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit.training import Training, covariance_of, evenly
from qat_jax.models.closed_forms import affine_variables
from qat_jax.models.head import Head
from qat_jax.validation import Validator

SHRINKAGE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean variance
PLDA_SHRINKAGE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RESIDUAL = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 3.0)
LENGTH_ROWS, LONGEST = 8192, 1.25  # training images whose greatest length, so many times, is an item's in PLDA


def both_sides(training: Training, validator: Validator, shrinkage: Sequence[float] = SHRINKAGE) -> Head | None:
  """Returns the head that maps queries and gallery alike: normalise((x − mean)(S_w + shrinkage·I)^(−½)).

  The shrinkage is the best on validation. None where no training instance has two images.
  """
  if not training.second_views:
    return None
  scatter_DD, means = within_scatter(training.images, training.instance), training.means()

  def made(number: float) -> Head:
    variables = affine_variables(*means, inverse_root(scatter_DD, number))
    return Head("affine", {"dimensions": training.width}, variables, f"shrinkage {number}")

  return max(map(made, shrinkage), key=validator)


def query_alone(
  training: Training, validator: Validator, shrinkage: Sequence[float] = SHRINKAGE, residual: Sequence[float] = RESIDUAL
) -> Head | None:
  """Returns the head that leaves the gallery alone: q' = normalise((q − mean)(S_w + shrinkage·I)⁻¹) + residual·q.

  Both numbers are the best on validation. None where no training instance has two images.
  """
  if not training.second_views:
    return None
  scatter_DD, (query_D, _) = within_scatter(training.images, training.instance), training.means()

  def made(number: float, share: float) -> Head:
    variables = {"params": {}, "constants": query_map(scatter_DD, query_D, number, share)}
    return Head("closed_form", {}, variables, f"shrinkage {number}, residual {share}")

  return max(itertools.starmap(made, itertools.product(shrinkage, residual)), key=validator)


def probabilistic(training: Training, validator: Validator, shrinkage: Sequence[float] = PLDA_SHRINKAGE) -> Head | None:
  """Returns PLDA, for image queries: the log likelihood ratio of one instance against two, as an inner product.

  The shrinkage, added to the covariance of one instance's images, is the best on validation. None for text queries, and
  where no training instance has two images.
  """
  if training.query_type != "image" or not training.second_views:
    return None
  _, mean_D = training.means()
  within_DD = within_covariance(training.images, training.instance)
  between_DD = covariance_of(training.images, mean_D) - within_DD
  row_MD = unit(training.images[evenly(len(training.instance), LENGTH_ROWS)])

  def made(number: float) -> Head:
    return Head("plda", {}, plda_variables(within_DD, between_DD, mean_D, number, row_MD), f"shrinkage {number}")

  return max(map(made, shrinkage), key=validator)


def within_scatter(image_ND: Any, instance_N: np.ndarray, chunk: int = 65536) -> np.ndarray:
  """Returns S_w (D×D float64, trace D) of unit images, from instances with two images or more.

  Raises ValueError if there are none: then nothing is known of how one instance varies.
  """
  scatter_DD = within_covariance(image_ND, instance_N, chunk)
  return scatter_DD * (len(scatter_DD) / np.trace(scatter_DD))


def within_covariance(image_ND: Any, instance_N: np.ndarray, chunk: int = 65536) -> np.ndarray:
  """Returns the covariance of unit images around their instance's mean (D×D float64), unbiased.

  From instances with two images or more; raises ValueError if there are none, or if such images do not differ. Reads
  `chunk` images at a time, of one instance after the other, each once.
  """
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  used = np.flatnonzero(count[code_N] >= 2)
  if len(used) == 0:
    raise ValueError(
      f"none of the {len(count)} training instances has two images, so there is no within-instance scatter; "
      "use a form that does not need it"
    )
  width = image_ND[:1].shape[1]
  total_DD, order_N = np.zeros((width, width)), used[np.argsort(code_N[used], kind="stable")]
  open_D, going_on = np.zeros(width), -1  # the sum of an instance that goes on in the next chunk, and its code
  for start in range(0, len(order_N), chunk):
    code_M, row_MD = code_N[order_N[start : start + chunk]], unit(image_ND[order_N[start : start + chunk]])
    first_I = np.flatnonzero(np.diff(code_M, prepend=-1))
    sum_ID = np.add.reduceat(row_MD, first_I)
    if code_M[0] == going_on:
      sum_ID[0] += open_D
    else:
      total_DD -= np.outer(open_D, open_D) / max(count[going_on], 1)
    open_D, going_on = sum_ID[-1], code_M[-1]
    mean_ID = sum_ID[:-1] / np.sqrt(count[code_M[first_I[:-1]], None])
    total_DD += row_MD.T @ row_MD - mean_ID.T @ mean_ID
  total_DD -= np.outer(open_D, open_D) / count[going_on]
  if not np.trace(total_DD) > 1e-12 * len(used):
    raise ValueError(
      "the images of every training instance have the same features, so there is no within-instance scatter; "
      "use a form that does not need it"
    )
  return total_DD / (len(used) - np.sum(count >= 2))


def plda_variables(
  within_DD: np.ndarray, between_DD: np.ndarray, mean_D: np.ndarray, shrinkage: float, row_MD: np.ndarray
) -> dict:
  """Returns the variables of the form `plda`, for covariances within and between instances (float64).

  `shrinkage` times the mean variance of images of one instance is added to each; unit rows (MD) say how long items get.
  """
  width = len(mean_D)
  whiten_DD = inverse_root(within_DD, shrinkage * np.trace(within_DD) / width)
  value_D, vector_DD = np.linalg.eigh(whiten_DD @ between_DD @ whiten_DD)
  ratio_D = np.maximum(value_D, 0)  # λ: what instances differ by, over what images of one do
  map_DD = whiten_DD @ vector_DD * np.sqrt(ratio_D / (1 + 2 * ratio_D))
  weight_D = ratio_D / (1 + ratio_D)
  y_MD = (row_MD - mean_D) @ map_DD
  off_M = np.square(y_MD) @ weight_D / 2
  typical = max(float(np.sqrt(np.mean(np.square(y_MD).sum(axis=1)))), 1e-12)
  centre = off_M.mean()
  longest = LONGEST * np.sqrt(np.max(np.square(y_MD).sum(axis=1) + np.square((off_M - centre) / typical)))
  inner = {"mean": mean_D, "map": map_DD, "weight": weight_D, "scale": 1 / typical, "centre": centre}
  params = {"gallery_map": inner | {"longest": max(float(longest), 1e-12)}}
  return {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), "constants": {}}


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

"""Shrinkage LDA: directions in which images of one instance differ count less. On both sides, or on the query alone.

The scatter is that of training images around their instance's mean; a text query is mapped like an image, save that the
mean of the captions is subtracted instead (the modality gap). Offline O(M·D² + D³) to fit on M images; `lda` maps the
gallery once, O(N·D²), `lda_query` leaves it alone.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import qat_jax
from eval.baselines.both_sides import affine, index_with
from eval.baselines.moments import means_of
from eval.baselines.types import Baseline, Gallery, Search, Train
from eval.ranking import ranked
from qat_jax.adaptation import normalise
from qat_jax.fit import closed_form
from qat_jax.models import forms as hypernetwork
from qat_jax.types import Ranking
from qat_jax.validation import Validator

SHRINKAGE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean variance
RESIDUAL = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 3.0)


def fit_both(train: Train, validator: Validator) -> Baseline | None:
  """Returns LDA on queries and gallery: normalise((x − mean)(S_w + shrinkage·I)^(−½)), shrinkage from validation.

  None where no training instance has two images.
  """
  if not has_pairs(train.instance):
    return None
  query_D, image_D = means_of(train)
  scatter_DD = closed_form.within_scatter(train.images[:], train.instance)

  def index_of(shrinkage: float):
    map_DD = inverse_root(scatter_DD, shrinkage)
    return index_with(affine(query_D, map_DD), affine(image_D, map_DD))

  shrinkage = max(SHRINKAGE, key=lambda s: validator.of_search(index_of(s)(validator.gallery_ND)))
  width = len(image_D)
  return Baseline(index_of(shrinkage), width * (width + 2), 0.0, f"shrinkage {shrinkage}")


def fit_query(train: Train, validator: Validator) -> Baseline | None:
  """Returns LDA as a query map with a residual on an untouched gallery, both numbers from validation.

  w = normalise((q − mean)(S_w + shrinkage·I)⁻¹) + residual·q. None where no training instance has two images.
  """
  if not has_pairs(train.instance):
    return None
  query_D, _ = means_of(train)
  scatter_DD = closed_form.within_scatter(train.images[:], train.instance)
  module = hypernetwork.ClosedForm(len(query_D))
  adapt = jax.jit(module.apply)

  def variables_of(pair: tuple[float, float]) -> dict:
    return {"constants": closed_form.query_map(scatter_DD, query_D, *pair)}

  shrinkage, residual = max(
    itertools.product(SHRINKAGE, RESIDUAL), key=lambda pair: validator(module, variables_of(pair))
  )
  variables = variables_of((shrinkage, residual))

  def index(gallery: Gallery) -> Search:
    gallery_ND = normalise(jnp.asarray(gallery[:]))

    def search(query_QD: np.ndarray, k: int) -> Ranking:
      return ranked(qat_jax.plain(adapt(variables, jnp.asarray(query_QD)).query), gallery_ND, k)

    return search

  width = len(query_D)
  return Baseline(index, width * (width + 1) + 1, 0.0, f"shrinkage {shrinkage}, residual {residual}")


def has_pairs(instance_N: np.ndarray) -> bool:
  """Returns whether some instance has two images or more."""
  return len(np.unique(instance_N)) < len(instance_N)


def inverse_root(scatter_DD: np.ndarray, shrinkage: float) -> np.ndarray:
  """Returns (S_w + shrinkage·I)^(−½), symmetric; safe for a scatter of low rank."""
  value_D, vector_DD = np.linalg.eigh(scatter_DD)
  return (vector_DD / np.sqrt(np.maximum(value_D, 0) + shrinkage)) @ vector_DD.T

import numpy as np
import pytest

from eval.baselines import discriminant
from eval.baselines.types import Train
from qat_jax.fit.closed_form import unit
from qat_jax.models import forms as hypernetwork
from qat_jax.types import Relevance
from qat_jax.validation import Validator

WIDTH, INSTANCES = 8, 30


@pytest.fixture
def toy():
  """Instances that differ in the first half of the dimensions, and images of one in the other half, more strongly."""
  rng = np.random.default_rng(0)
  class_ID = rng.normal(size=(INSTANCES, WIDTH)) * ([1] * 4 + [0] * 4)

  def images():
    return (class_ID + 3 * rng.normal(size=class_ID.shape) * ([0.05] * 4 + [1] * 4)).astype(np.float32)

  train = Train("image", None, np.concatenate([images(), images()]), np.tile(np.arange(INSTANCES), 2))
  relevance = Relevance([np.array([i]) for i in range(INSTANCES)], [np.array([], int)] * INSTANCES)
  return train, Validator(images(), images(), relevance, limit=0, seed=0)


def test_the_inverse_root_whitens_the_scatter():
  root = np.random.default_rng(0).normal(size=(5, 5))
  scatter_DD = root @ root.T
  map_DD = discriminant.inverse_root(scatter_DD, 0.3)
  np.testing.assert_allclose(map_DD @ (scatter_DD + 0.3 * np.eye(5)) @ map_DD, np.eye(5), atol=1e-9)


def test_a_scatter_of_rank_one_gives_a_finite_map():
  np.testing.assert_allclose(discriminant.inverse_root(np.diag([3.0, 0.0]), 1.0), np.diag([0.5, 1.0]), atol=1e-12)


@pytest.mark.parametrize("fit", [discriminant.fit_both, discriminant.fit_query])
def test_instances_hidden_by_strong_variation_are_told_apart(toy, fit):
  train, validator = toy
  fitted = fit(train, validator)
  plain = validator(hypernetwork.Plain(WIDTH), {})
  assert validator.of_search(fitted.index(validator.gallery_ND)) > plain + 0.2


def test_the_query_map_alone_ranks_by_the_formula(toy):
  train, validator = toy
  fitted = discriminant.fit_query(train, validator)
  shrinkage, residual = (float(part.split()[1]) for part in fitted.note.split(", "))
  image_ND = unit(train.images)
  mean_ID = image_ND.reshape(2, INSTANCES, WIDTH).mean(axis=0)
  deviation_ND = image_ND - np.tile(mean_ID, (2, 1))
  scatter_DD = deviation_ND.T @ deviation_ND
  inverse_DD = np.linalg.inv(scatter_DD * WIDTH / np.trace(scatter_DD) + shrinkage * np.eye(WIDTH))
  query_QD = unit(validator.query_QD)
  moved_QD = unit((query_QD - image_ND.mean(axis=0)) @ inverse_DD) + residual * query_QD
  found = fitted.index(validator.gallery_ND)(validator.query_QD, 5)
  expected_QN = unit(moved_QD) @ unit(validator.gallery_ND).T
  np.testing.assert_allclose(found.scores, -np.sort(-expected_QN, axis=1)[:, :5], atol=1e-4)


@pytest.mark.parametrize("fit", [discriminant.fit_both, discriminant.fit_query])
def test_without_two_images_of_an_instance_there_is_no_fit(toy, fit):
  train, validator = toy
  assert fit(train._replace(instance=np.arange(len(train.images))), validator) is None

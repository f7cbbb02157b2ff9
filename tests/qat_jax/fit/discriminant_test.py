import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.adaptation import unit
from qat_jax.fit import discriminant
from qat_jax.fit.training import PLAIN, Training
from qat_jax.models.closed_forms import ClosedForm, Plda
from qat_jax.types import Relevance
from qat_jax.validation import Validator

WIDTH, INSTANCES = 8, 30
FITS = [discriminant.both_sides, discriminant.query_alone, discriminant.probabilistic]


@pytest.fixture
def images():
  rng = np.random.default_rng(0)
  instance_N = np.repeat(np.arange(40), 3)
  noise_D = np.array([3.0, 1.0, 0.3, 0.1, 0.1, 0.1])
  image_ND = rng.normal(size=(40, 6))[instance_N] + rng.normal(size=(120, 6)) * noise_D
  return unit(image_ND), np.concatenate([instance_N[:-1], [99]])  # 99 has one image alone


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_within_scatter_is_that_of_the_definition(images, chunk):
  image_ND, instance_N = images
  expected_DD = np.zeros((6, 6))
  for instance in range(40):
    rows = image_ND[instance_N == instance]
    for row in rows:
      expected_DD += np.outer(row - rows.mean(axis=0), row - rows.mean(axis=0))
  expected_DD *= 6 / np.trace(expected_DD)
  np.testing.assert_allclose(discriminant.within_scatter(image_ND, instance_N, chunk), expected_DD, atol=1e-12)


def test_the_form_computes_what_its_formula_says(images):
  image_ND, instance_N = images
  scatter_DD, mean_D = discriminant.within_scatter(image_ND, instance_N), image_ND.mean(axis=0)
  module = ClosedForm(6)
  variables = {"params": {}, "constants": discriminant.query_map(scatter_DD, mean_D, 0.03, 0.75)}
  query_D = image_ND[4]
  moved_D = np.linalg.solve(scatter_DD + 0.03 * np.eye(6), query_D - mean_D)
  expected_D = moved_D / np.linalg.norm(moved_D) + 0.75 * query_D
  got_QD = module.apply(variables, jnp.asarray(query_D[None], jnp.float32)).query
  np.testing.assert_allclose(got_QD[0], expected_D / np.linalg.norm(expected_D), atol=1e-5)


def test_instances_of_one_image_each_are_refused():
  with pytest.raises(ValueError, match="none of the 3 training instances has two images"):
    discriminant.within_scatter(np.eye(3), np.arange(3))


@pytest.fixture
def toy():
  """Instances that differ in the first half of the dimensions, and images of one in the other half, more strongly."""
  rng = np.random.default_rng(0)
  class_ID = rng.normal(size=(INSTANCES, WIDTH)) * ([1] * 4 + [0] * 4)

  def images():
    return (class_ID + 3 * rng.normal(size=class_ID.shape) * ([0.05] * 4 + [1] * 4)).astype(np.float32)

  image_ND = np.concatenate([images(), images()])
  training = Training("image", image_ND, image_ND, np.tile(np.arange(INSTANCES), 2))
  relevance = Relevance([np.array([i]) for i in range(INSTANCES)], [np.array([], int)] * INSTANCES)
  return training, Validator(images(), images(), relevance, limit=0, seed=0)


def test_the_inverse_root_whitens_the_scatter():
  root = np.random.default_rng(0).normal(size=(5, 5))
  scatter_DD = root @ root.T
  map_DD = discriminant.inverse_root(scatter_DD, 0.3)
  np.testing.assert_allclose(map_DD @ (scatter_DD + 0.3 * np.eye(5)) @ map_DD, np.eye(5), atol=1e-9)


def test_a_scatter_of_rank_one_gives_a_finite_map():
  np.testing.assert_allclose(discriminant.inverse_root(np.diag([3.0, 0.0]), 1.0), np.diag([0.5, 1.0]), atol=1e-12)


@pytest.mark.parametrize("fit", FITS)
def test_instances_hidden_by_strong_variation_are_told_apart(toy, fit):
  training, validator = toy
  assert validator(fit(training, validator)) > validator(PLAIN) + 0.2


def test_the_query_map_alone_ranks_by_the_formula(toy):
  training, validator = toy
  head = discriminant.query_alone(training, validator)
  shrinkage, residual = (float(part.split()[1]) for part in head.note.split(", "))
  image_ND = unit(training.images)
  mean_ID = image_ND.reshape(2, INSTANCES, WIDTH).mean(axis=0)
  deviation_ND = image_ND - np.tile(mean_ID, (2, 1))
  scatter_DD = deviation_ND.T @ deviation_ND
  inverse_DD = np.linalg.inv(scatter_DD * WIDTH / np.trace(scatter_DD) + shrinkage * np.eye(WIDTH))
  query_QD = unit(validator.query_QD)
  moved_QD = unit((query_QD - image_ND.mean(axis=0)) @ inverse_DD) + residual * query_QD
  got_QD = head.module(WIDTH).apply(head.variables, validator.query_QD).query
  np.testing.assert_allclose(got_QD, unit(moved_QD), atol=1e-4)


@pytest.mark.parametrize("fit", FITS)
def test_without_two_images_of_an_instance_there_is_no_fit(toy, fit):
  training, validator = toy
  assert fit(training._replace(instance=np.arange(len(training.images))), validator) is None


def log_likelihood_ratio(x_D, z_D, within_DD, between_DD):
  """That of one instance against two, up to a constant, from the joint normal of two images."""
  total_DD = within_DD + between_DD
  joint = np.block([[total_DD, between_DD], [between_DD, total_DD]])
  apart = np.block([[total_DD, 0 * total_DD], [0 * total_DD, total_DD]])
  both = np.concatenate([x_D, z_D])
  return (both @ np.linalg.inv(apart) @ both - both @ np.linalg.inv(joint) @ both) / 2


def test_plda_scores_items_by_the_log_likelihood_ratio(images):
  image_ND, _ = images
  rng = np.random.default_rng(1)
  root_DD, other_DD = rng.normal(size=(2, 6, 6))
  within_DD, between_DD = 0.02 * root_DD @ root_DD.T + 0.01 * np.eye(6), 0.05 * other_DD @ other_DD.T
  mean_D = image_ND.mean(axis=0)
  variables = discriminant.plda_variables(within_DD, between_DD, mean_D, 0.0, image_ND)
  module, rows = Plda(6), jnp.asarray(image_ND, jnp.float32)
  query_QF = np.asarray(module.apply(variables, rows[:5]).query, np.float64)
  item_NF = np.asarray(module.apply(variables, rows, method="prepare"), np.float64)
  np.testing.assert_allclose(np.linalg.norm(item_NF, axis=1), 1, atol=1e-6)
  for query in range(5):
    expected_N = [log_likelihood_ratio(image_ND[query] - mean_D, z - mean_D, within_DD, between_DD) for z in image_ND]
    slope, offset = np.polyfit(expected_N, item_NF @ query_QF[query], 1)
    assert slope > 0
    np.testing.assert_allclose(item_NF @ query_QF[query], slope * np.array(expected_N) + offset, atol=2e-6)


def test_plda_shortens_an_item_longer_than_any_in_training(images):
  image_ND, _ = images
  variables = discriminant.plda_variables(0.01 * np.eye(6), np.eye(6), np.zeros(6), 0.0, 0.01 * image_ND)
  item_NF = Plda(6).apply(variables, jnp.asarray(image_ND, jnp.float32), method="prepare")
  assert np.isfinite(item_NF).all()
  np.testing.assert_allclose(np.linalg.norm(item_NF, axis=1), 1, atol=1e-6)


def test_the_within_covariance_is_unbiased(images):
  image_ND, instance_N = images
  pairs = [image_ND[instance_N == i] for i in range(39)]
  deviations = np.concatenate([rows - rows.mean(axis=0) for rows in [*pairs, image_ND[117:119]]])
  expected_DD = deviations.T @ deviations / (len(deviations) - 40)
  np.testing.assert_allclose(discriminant.within_covariance(image_ND, instance_N, chunk=7), expected_DD, atol=1e-12)


def test_plda_is_for_images_alone(toy):
  training, validator = toy
  assert discriminant.probabilistic(training._replace(query_type="text"), validator) is None


def test_images_of_instances_that_never_differ_are_refused(images):
  with pytest.raises(ValueError, match="have the same features"):
    discriminant.within_scatter(np.repeat(np.eye(3), 2, axis=0), np.repeat(np.arange(3), 2))

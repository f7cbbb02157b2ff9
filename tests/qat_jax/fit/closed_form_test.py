import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.fit import closed_form
from qat_jax.models import forms as hypernetwork


@pytest.fixture
def images():
  rng = np.random.default_rng(0)
  instance_N = np.repeat(np.arange(40), 3)
  noise_D = np.array([3.0, 1.0, 0.3, 0.1, 0.1, 0.1])
  image_ND = rng.normal(size=(40, 6))[instance_N] + rng.normal(size=(120, 6)) * noise_D
  return closed_form.unit(image_ND), np.concatenate([instance_N[:-1], [99]])  # 99 has one image alone


def test_the_within_scatter_is_that_of_the_definition(images):
  image_ND, instance_N = images
  expected_DD = np.zeros((6, 6))
  for instance in range(40):
    rows = image_ND[instance_N == instance]
    for row in rows:
      expected_DD += np.outer(row - rows.mean(axis=0), row - rows.mean(axis=0))
  expected_DD *= 6 / np.trace(expected_DD)
  np.testing.assert_allclose(closed_form.within_scatter(image_ND, instance_N, chunk=7), expected_DD, atol=1e-12)


def test_whitening_makes_the_within_scatter_round(images):
  image_ND, instance_N = images
  scatter_DD = closed_form.within_scatter(image_ND, instance_N)
  params = closed_form.whitening(scatter_DD, image_ND.mean(axis=0), shrinkage=0.0)
  map_DD = np.eye(6) + np.asarray(params["query_map"]["residual"]["kernel"], np.float64)
  np.testing.assert_allclose(map_DD.T @ scatter_DD @ map_DD, np.eye(6), atol=1e-4)


def test_the_form_computes_what_its_formula_says(images):
  image_ND, instance_N = images
  scatter_DD, mean_D = closed_form.within_scatter(image_ND, instance_N), image_ND.mean(axis=0)
  module = hypernetwork.ClosedForm(6)
  variables = {"params": {}, "constants": closed_form.query_map(scatter_DD, mean_D, 0.03, 0.75)}
  query_D = image_ND[4]
  moved_D = np.linalg.solve(scatter_DD + 0.03 * np.eye(6), query_D - mean_D)
  expected_D = moved_D / np.linalg.norm(moved_D) + 0.75 * query_D
  got_QD = module.apply(variables, jnp.asarray(query_D[None], jnp.float32)).query
  np.testing.assert_allclose(got_QD[0], expected_D / np.linalg.norm(expected_D), atol=1e-5)


def test_instances_of_one_image_each_are_refused():
  with pytest.raises(ValueError, match="none of the 3 training instances has two images"):
    closed_form.within_scatter(np.eye(3), np.arange(3))

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit import whitening
from qat_jax.fit.training import PLAIN, Training, covariance_of, mean_of_rows
from qat_jax.types import Relevance
from qat_jax.validation import Validator

WIDTH = 6


def test_whitened_training_features_have_identity_covariance():
  image_ND = np.random.default_rng(0).normal(size=(50, WIDTH)) * np.arange(1, WIDTH + 1)
  mean_D = mean_of_rows(image_ND)
  map_DE = whitening.whitening_map(covariance_of(image_ND, mean_D), 4, shrinkage=0.0, exponent=1.0)
  np.testing.assert_allclose(np.cov(((unit(image_ND) - mean_D) @ map_DE).T, bias=True), np.eye(4), atol=1e-9)


def test_the_power_and_the_shrinkage_work_as_computed_by_hand():
  map_DE = whitening.whitening_map(np.diag([1.0, 7.0]), 1, shrinkage=0.5, exponent=0.5)
  np.testing.assert_allclose(np.abs(map_DE), [[0.0], [9**-0.25]])  # 7 + 0.5 · mean 4 = 9


def test_fewer_rows_than_dimensions_give_a_finite_map():
  image_ND = np.random.default_rng(0).normal(size=(3, WIDTH))
  covariance_DD = covariance_of(image_ND, mean_of_rows(image_ND))
  assert np.isfinite(whitening.whitening_map(covariance_DD, WIDTH, shrinkage=0.003, exponent=1.0)).all()


def test_tuned_whitening_beats_plain_where_noise_has_the_large_variance():
  rng = np.random.default_rng(0)
  signal_ID = rng.normal(size=(20, WIDTH)) * [1, 1, 1, 0, 0, 0]
  noisy = lambda: signal_ID + 4 * rng.normal(size=signal_ID.shape) * [0, 0, 0, 1, 1, 1]
  relevance = Relevance([np.array([i]) for i in range(20)], [np.array([], int)] * 20)
  query_QD, gallery_ND = noisy(), noisy()
  validator = Validator(query_QD, gallery_ND, relevance, limit=0, seed=0)
  train_ND = np.concatenate([noisy() for _ in range(10)])
  training = Training("image", train_ND, train_ND, np.arange(len(train_ND)))
  assert validator(whitening.fit_whitening(training, validator)) > validator(PLAIN) + 0.1

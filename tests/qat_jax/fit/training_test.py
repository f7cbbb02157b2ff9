import numpy as np
import pytest

from qat_jax.adaptation import unit
from qat_jax.fit import training
from qat_jax.fit.training import Training, covariance_of, mean_of_rows


def test_moments_read_in_chunks_equal_those_read_at_once(monkeypatch):
  image_ND = np.random.default_rng(0).normal(size=(7, 6))
  monkeypatch.setattr(training, "CHUNK_ROWS", 3)
  mean_D = mean_of_rows(image_ND)
  np.testing.assert_allclose(mean_D, unit(image_ND).mean(axis=0))
  np.testing.assert_allclose(covariance_of(image_ND, mean_D), np.cov(unit(image_ND).T, bias=True), atol=1e-12)


@pytest.mark.parametrize(
  ("query_type", "has_texts", "expected"), [("text", 1, 1.0), ("text", 0, 0.0), ("image", 1, 0.0)]
)
def test_only_text_queries_lose_the_mean_of_the_captions(query_type, has_texts, expected):
  image_ND, text_ND = np.tile([3.0, 0.0], (4, 1)), np.tile([0.0, 2.0], (4, 1))
  query_D, image_D = Training(query_type, text_ND if has_texts else None, image_ND, np.arange(4)).means()
  np.testing.assert_allclose(query_D, [1 - expected, expected])
  np.testing.assert_allclose(image_D, [1, 0])


def test_second_views_are_counted_by_images():
  image_ND = np.ones((5, 2))
  assert Training("image", image_ND, image_ND, np.array([*"aabcd"])).second_views == 0.4
  assert Training("image", image_ND, image_ND, np.array([*"abcde"])).second_views == 0.0

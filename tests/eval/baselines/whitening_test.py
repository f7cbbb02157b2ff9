import jax.numpy as jnp
import numpy as np
import pytest

from eval.baselines import whitening
from eval.baselines.both_sides import Affine, affine, apply, index_with
from eval.baselines.moments import covariance_of, mean_of, means_of
from eval.baselines.types import Train
from qat_jax.fit.closed_form import unit
from qat_jax.types import Relevance
from qat_jax.validation import Validator

WIDTH = 6


def test_whitened_training_features_have_identity_covariance():
  image_ND = np.random.default_rng(0).normal(size=(50, WIDTH)) * np.arange(1, WIDTH + 1)
  mean_D = mean_of(image_ND)
  map_DE = whitening.whitening_map(covariance_of(image_ND, mean_D), 4, shrinkage=0.0, power=1.0)
  np.testing.assert_allclose(np.cov(((unit(image_ND) - mean_D) @ map_DE).T, bias=True), np.eye(4), atol=1e-9)


def test_the_power_and_the_shrinkage_work_as_computed_by_hand():
  map_DE = whitening.whitening_map(np.diag([1.0, 7.0]), 1, shrinkage=0.5, power=0.5)
  np.testing.assert_allclose(np.abs(map_DE), [[0.0], [9**-0.25]])  # 7 + 0.5 · mean 4 = 9


def test_fewer_rows_than_dimensions_give_a_finite_map():
  image_ND = np.random.default_rng(0).normal(size=(3, WIDTH))
  covariance_DD = covariance_of(image_ND, mean_of(image_ND))
  assert np.isfinite(whitening.whitening_map(covariance_DD, WIDTH, shrinkage=0.003, power=1.0)).all()


def test_moments_read_in_chunks_equal_those_read_at_once(monkeypatch):
  image_ND = np.random.default_rng(0).normal(size=(7, WIDTH))
  monkeypatch.setattr("eval.baselines.moments.CHUNK_ROWS", 3)
  mean_D = mean_of(image_ND)
  np.testing.assert_allclose(mean_D, unit(image_ND).mean(axis=0))
  np.testing.assert_allclose(covariance_of(image_ND, mean_D), np.cov(unit(image_ND).T, bias=True), atol=1e-12)


@pytest.mark.parametrize(
  ("query_type", "has_texts", "expected"), [("text", 1, 1.0), ("text", 0, 0.0), ("image", 1, 0.0)]
)
def test_only_text_queries_lose_the_mean_of_the_captions(query_type, has_texts, expected):
  image_ND, text_ND = np.tile([3.0, 0.0], (4, 1)), np.tile([0.0, 2.0], (4, 1))
  query_D, image_D = means_of(Train(query_type, text_ND if has_texts else None, image_ND, np.arange(4)))
  np.testing.assert_allclose(query_D, [1 - expected, expected])
  np.testing.assert_allclose(image_D, [1, 0])


def test_an_affine_map_by_hand():
  mapped_NE = apply(
    Affine(jnp.array([1.0, 0.0]), jnp.diag(jnp.array([2.0, 3.0])), jnp.array([2.0, 0.0])), jnp.array([[0.0, 5.0]])
  )
  np.testing.assert_allclose(mapped_NE, [[0.0, 1.0]], atol=1e-6)  # (−1, 1) → (−2, 3) + (2, 0) → (0, 3)


def test_both_sides_rank_by_the_cosine_of_what_is_mapped(monkeypatch):
  monkeypatch.setattr("eval.baselines.both_sides.CHUNK_ROWS", 4)
  rng = np.random.default_rng(0)
  query_QD, gallery_ND, map_DE = rng.normal(size=(3, WIDTH)), rng.normal(size=(11, WIDTH)), rng.normal(size=(WIDTH, 2))
  mean_D = rng.normal(size=WIDTH)
  found = index_with(affine(mean_D, map_DE), affine(-mean_D, map_DE))(gallery_ND)(query_QD, 11)
  score_QN = unit((unit(query_QD) - mean_D) @ map_DE) @ unit((unit(gallery_ND) + mean_D) @ map_DE).T
  np.testing.assert_array_equal(found.ids, np.argsort(-score_QN, axis=1))


def test_tuned_whitening_beats_plain_where_noise_has_the_large_variance():
  rng = np.random.default_rng(0)
  signal_ID = rng.normal(size=(20, WIDTH)) * [1, 1, 1, 0, 0, 0]
  noisy = lambda: signal_ID + 4 * rng.normal(size=signal_ID.shape) * [0, 0, 0, 1, 1, 1]
  relevance = Relevance([np.array([i]) for i in range(20)], [np.array([], int)] * 20)
  query_QD, gallery_ND = noisy(), noisy()
  validator = Validator(query_QD, gallery_ND, relevance, limit=0, seed=0)
  train_ND = np.concatenate([noisy() for _ in range(10)])
  fitted = whitening.fit(Train("image", None, train_ND, np.arange(len(train_ND))), validator)
  cosine_QN = unit(query_QD) @ unit(gallery_ND).T
  plain = lambda query_QD, k: type("R", (), {"ids": np.argsort(-cosine_QN, axis=1)})
  assert validator.of_search(fitted.index(gallery_ND)) > validator.of_search(plain) + 0.1

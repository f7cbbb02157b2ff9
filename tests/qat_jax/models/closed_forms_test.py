import numpy as np

from qat_jax.adaptation import unit
from qat_jax.models.closed_forms import Affine, affine_variables
from qat_jax.models.head import Head
from qat_jax.types import Relevance
from qat_jax.validation import Validator


def test_an_affine_map_by_hand():
  variables = affine_variables(np.array([1.0, 0.0]), np.zeros(2), np.diag([2.0, 3.0]), np.array([2.0, 0.0]))
  query_QD = Affine(2, 2, bias=True).apply(variables, np.array([[0.0, 5.0]])).query
  np.testing.assert_allclose(query_QD, [[0.0, 1.0]], atol=1e-6)  # (−1, 1) → (−2, 3) + (2, 0) → (0, 3)


def test_both_sides_rank_by_the_cosine_of_what_is_mapped():
  rng = np.random.default_rng(0)
  query_QD, gallery_ND, map_DE = rng.normal(size=(3, 6)), rng.normal(size=(11, 6)), rng.normal(size=(6, 2))
  mean_D = rng.normal(size=6)
  head = Head("affine", {"dimensions": 2}, affine_variables(mean_D, -mean_D, map_DE))
  score_QN = unit((unit(query_QD) - mean_D) @ map_DE) @ unit((unit(gallery_ND) + mean_D) @ map_DE).T
  places = [np.flatnonzero(np.argsort(-score_N) == 4) + 1 for score_N in score_QN]
  validator = Validator(query_QD, gallery_ND, Relevance([np.array([4])] * 3, [np.array([], int)] * 3), 0, 0)
  np.testing.assert_allclose(validator.precisions(head), [1 / place[0] for place in places])
  assert head.space.startswith("mapped-")

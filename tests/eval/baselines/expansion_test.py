import jax.numpy as jnp
import numpy as np
import pytest

from eval.baselines import expansion
from qat_jax.types import Relevance
from qat_jax.validation import Validator


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_expansion_by_hand(alpha):
  gallery_ND = jnp.array([[0.8, 0.6], [-1.0, 0.0], [0.0, 1.0]])
  got_QD = expansion.expanded(
    jnp.array([[1.0, 0.0]]), gallery_ND, jnp.array([[0, 2, 1]]), jnp.array([[0.8, 0.0, -1.0]]), alpha
  )
  expected_D = np.array([1 + 0.8**alpha * 0.8, 0.8**alpha * 0.6])  # the orthogonal and the opposite item weigh nothing
  np.testing.assert_allclose(got_QD[0], expected_D / np.linalg.norm(expected_D), rtol=1e-6)


def test_expansion_finds_what_only_a_neighbour_is_near():
  angle = np.deg2rad([0, 25, 50, -40])  # the query at 0 sees −40 before 50, its neighbour at 25 pulls it over
  item_ND = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
  relevance = Relevance([np.array([0, 1])], [np.array([], int)])
  validator = Validator(item_ND[:1], item_ND[1:], relevance, limit=0, seed=0)
  fitted = expansion.fit(validator)
  assert validator.of_search(fitted.prepare(item_ND[1:])) == 1.0
  np.testing.assert_array_equal(fitted.prepare(item_ND[1:])(item_ND[:1], 3).ids, [[0, 1, 2]])

import numpy as np
import pytest

from qat_jax.search.top import _best_first


@pytest.mark.parametrize("pairs", [0, 1, 2, 3000])
def test_the_best_come_first_as_a_slower_sort_has_them(pairs):
  rng = np.random.default_rng(pairs)
  query_P, item_P = rng.integers(0, 5, pairs), rng.integers(0, 40, pairs)
  special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 0.5, -0.5], np.float32)
  score_P = np.where(rng.random(pairs) < 0.5, rng.choice(special, pairs), rng.standard_normal(pairs)).astype(np.float32)
  order_P, wanted_P = _best_first(query_P, item_P, score_P), np.lexsort((item_P, -score_P, query_P))
  assert sorted(order_P) == list(range(pairs))
  for values_P in (query_P, item_P, score_P):
    np.testing.assert_array_equal(values_P[order_P], values_P[wanted_P])

import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.models.head import Head
from qat_jax.models.levels import level_of
from qat_jax.models.memory import ROWS

PLAIN = ("plain", {})
WIDTH, QUERIES = 5, 7


def levelled(weight, centre=0.1, nearest=2, sharpness=0.0):
  """Returns a plain head, levelled by a few random training queries, and these."""
  folded_MD = unit(np.random.default_rng(0).normal(size=(QUERIES, WIDTH))).astype(np.float16)
  constants = {"folded": folded_MD, "weight": jnp.float32(weight), "centre": jnp.float32(centre)}
  own = {"form": "plain", "settings": {}, "queries": QUERIES, "items": WIDTH}
  settings = own | {"nearest": nearest} | ({"sharpness": sharpness} if sharpness else {})
  return Head("levelled", settings, {"params": {}, "constants": constants}), folded_MD.astype(np.float64)


def test_a_level_is_the_mean_of_the_best_scores():
  folded_ME = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
  np.testing.assert_allclose(level_of(folded_ME, jnp.array([[1.0, 0.0], [0.0, -1.0]]), 2, 0.0), [0.8, -0.4], atol=1e-6)


def test_a_sharp_level_is_the_soft_maximum():
  folded_ME = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  expected = np.log((np.exp(3.0) + 1) / 2) / 3
  np.testing.assert_allclose(level_of(folded_ME, jnp.array([[1.0, 0.0]]), 0, 3.0), [expected], rtol=1e-6)


@pytest.mark.parametrize("kind", [{"nearest": 2}, {"nearest": 0, "sharpness": 5.0}])
def test_the_score_is_the_cosine_less_the_level(kind):
  head, folded_MD = levelled(0.5, **kind)
  rng = np.random.default_rng(1)
  query_QD, item_ND = unit(rng.normal(size=(3, WIDTH))), unit(rng.normal(size=(ROWS + 9, WIDTH)))
  module = head.module(WIDTH)
  adaptation = module.apply(head.variables, query_QD)
  items = module.apply(head.variables, item_ND, method="prepare")
  assert items.shape == (len(item_ND), WIDTH + 2) == (len(item_ND), head.items_wide(WIDTH))
  np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, atol=1e-6)
  cosine_NM = item_ND @ folded_MD.T
  level_N = np.sort(cosine_NM, axis=1)[:, -2:].mean(axis=1)
  if "sharpness" in kind:
    level_N = np.log(np.exp(5 * cosine_NM).mean(axis=1)) / 5
  expected_QN = (query_QD @ item_ND.T - 0.5 * (level_N - 0.1)) / 2
  np.testing.assert_allclose(qat_jax.score(adaptation, items), expected_QN, atol=1e-6)
  np.testing.assert_allclose(qat_jax.fold(adaptation) @ items.T, expected_QN, atol=1e-6)


def test_without_weight_the_order_is_that_of_the_other_form():
  head, _ = levelled(0.0)
  rng = np.random.default_rng(2)
  query_QD, item_ND = unit(rng.normal(size=(2, WIDTH))), unit(rng.normal(size=(30, WIDTH)))
  items = head.module(WIDTH).apply(head.variables, item_ND, method="prepare")
  ranking = qat_jax.rank(head.module(WIDTH).apply(head.variables, query_QD), items, 30)
  np.testing.assert_array_equal(ranking.ids, np.argsort(-(query_QD @ item_ND.T), axis=1))


def test_what_levels_the_items_names_their_space():
  spaces = {levelled(weight, centre)[0].space for weight, centre in ((0.5, 0.1), (0.25, 0.1), (0.5, 0.2))}
  assert len(spaces) == 3
  assert "frozen" not in spaces

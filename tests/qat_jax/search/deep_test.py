"""Deep rankings are those of `qat_jax.rank`."""

import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from eval import ranking
from qat_jax.types import Adaptation


@pytest.fixture
def parts():
  rng = np.random.default_rng(0)
  unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
  gallery_ND = unit(rng.normal(size=(90, 6)))
  gallery_ND[[40, 70]] = gallery_ND[3]  # equal scores
  factors = (0.3 * rng.normal(size=(2, 5, 6, 2))).astype(np.float32)
  adaptation = Adaptation(jnp.asarray(unit(rng.normal(size=(5, 6)))), jnp.ones((5, 1)), *map(jnp.asarray, factors))
  return adaptation, gallery_ND


@pytest.mark.parametrize(
  "form", [jnp.asarray, np.asarray, lambda x: x.astype(np.float16)], ids=["jax", "numpy", "half"]
)
@pytest.mark.parametrize("k", [5, 60, 90, 95])
def test_the_order_is_that_of_rank_at_any_depth(parts, form, k, monkeypatch):
  adaptation, gallery_ND = parts
  gallery = form(gallery_ND)
  expected = qat_jax.rank(adaptation, gallery, k)
  monkeypatch.setattr(ranking, "SCORES", 200)  # blocks of two queries
  monkeypatch.setattr(ranking, "FACTORS", 1)  # chunks of the least size
  found = ranking.ranked(adaptation, gallery, k)
  np.testing.assert_array_equal(found.ids, expected.ids)
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
  assert found.ids.dtype == np.int32


def test_equal_items_come_in_the_order_of_their_ids(parts):
  adaptation, gallery_ND = parts
  for ids_K in ranking.ranked(adaptation, gallery_ND, 90).ids:
    assert [i for i in ids_K if i in (3, 40, 70)] == [3, 40, 70]


def test_a_row_that_is_not_of_unit_length_is_named(parts):
  adaptation, gallery_ND = parts
  gallery_ND[7] *= 2
  with pytest.raises(ValueError, match="gallery item 7 has length 2, wanted 1"):
    ranking.ranked(adaptation, gallery_ND, 90)

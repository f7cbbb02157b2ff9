import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.adapter import Adapter, load
from qat_jax.models.head import Head
from tests.heads import moved

WIDTH = 6


def inner(form: str) -> Head:
  """Returns a form of which nothing is zero."""
  settings = {"query_only": {"hidden": 4}, "adaptive": {"hidden": 4, "rank": 2, "token_hidden": 8}}[form]
  return moved(form, WIDTH, settings, by=1)


def projected(form: str, narrow: int, seed: int = 1) -> tuple[Head, Head, np.ndarray]:
  """Returns a head with items projected on random orthonormal directions, the head inside, and the directions (EF)."""
  head = inner(form)
  turn_FF = np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))[0]
  along_EF = turn_FF[:narrow].astype(np.float32)
  variables = {kind: {"head": tree} for kind, tree in head.variables.items()}
  variables["constants"] = variables["constants"] | {"directions": along_EF}
  settings = {"form": form, "settings": head.settings, "items": WIDTH, "narrow": narrow}
  return Head("projected", settings, variables), head, along_EF.astype(np.float64)


def rows():
  rng = np.random.default_rng(2)
  return unit(rng.normal(size=(3, WIDTH))).astype(np.float32), unit(rng.normal(size=(40, WIDTH))).astype(np.float32)


@pytest.mark.parametrize("form", ["query_only", "adaptive"])
def test_as_wide_as_before_the_scores_are_those_of_the_form_inside(form):
  (head, own, _), (query_QD, item_ND) = projected(form, WIDTH), rows()
  adapter, before = Adapter(WIDTH, {"text": head}), Adapter(WIDTH, {"text": own})
  expected = qat_jax.rank(before(query_QD), before.prepare(item_ND), 40)
  got = qat_jax.rank(adapter(query_QD), adapter.prepare(item_ND), 40)
  np.testing.assert_array_equal(got.ids, expected.ids)
  np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)


def test_the_score_is_the_cosine_of_the_projected_vectors():
  (head, own, along_EF), (query_QD, item_ND) = projected("query_only", 4), rows()
  adapter = Adapter(WIDTH, {"text": head})
  items, adaptation = adapter.prepare(item_ND), adapter(query_QD)
  assert items.shape == (40, 4) == (40, head.items_wide(WIDTH))
  np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, atol=1e-6)
  wide_QF = np.asarray(Adapter(WIDTH, {"text": own})(query_QD).query, np.float64)
  expected_QN = unit(wide_QF @ along_EF.T) @ unit(item_ND @ along_EF.T).T
  np.testing.assert_allclose(qat_jax.score(adaptation, items), expected_QN, atol=1e-5)
  np.testing.assert_allclose(qat_jax.fold(adaptation) @ items.T, expected_QN, atol=1e-5)


def test_a_map_is_projected_on_both_sides():
  (head, own, along_EF), (query_QD, item_ND) = projected("adaptive", 5), rows()
  adapter, alone = Adapter(WIDTH, {"text": head}), Adapter(WIDTH, {"text": own})(query_QD)
  left_QFR, right_QFR = (np.asarray(x, np.float64) for x in (alone.left, alone.right))
  map_QEE = np.eye(5) + along_EF @ np.einsum("QFR,QGR->QFG", left_QFR, right_QFR) @ along_EF.T
  mapped_QNE = np.einsum("QEG,NG->QNE", map_QEE, unit(item_ND @ along_EF.T))
  query_QE = unit(np.asarray(alone.query, np.float64) @ along_EF.T)
  expected_QN = np.einsum("QNE,QE->QN", unit(mapped_QNE), query_QE)
  np.testing.assert_allclose(qat_jax.score(adapter(query_QD), adapter.prepare(item_ND)), expected_QN, atol=1e-4)


def test_the_directions_name_the_space_of_the_items_and_are_saved(tmp_path):
  adapter = Adapter(WIDTH, {"text": projected("query_only", 4)[0]})
  assert adapter.head().space not in ("frozen", projected("query_only", 4, seed=3)[0].space)
  adapter.save(tmp_path)
  again, (query_QD, item_ND) = load(tmp_path), rows()
  np.testing.assert_array_equal(again.prepare(item_ND), adapter.prepare(item_ND))
  np.testing.assert_array_equal(again(query_QD).query, adapter(query_QD).query)
  assert again.head().space == adapter.head().space

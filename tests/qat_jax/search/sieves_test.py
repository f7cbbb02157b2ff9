import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.search import sieves
from qat_jax.search.two_pass import greatest, product
from qat_jax.types import Adaptation

ITEMS, WIDTH, QUERIES = 4096, 32, 3


def unit(rng: np.random.Generator, rows: int, width: int = WIDTH) -> np.ndarray:
  x = rng.standard_normal((rows, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def make(strength: float, rank: int = 4, gate: float = 0.0) -> Adaptation:
  rng = np.random.default_rng(3)
  left, right = np.linalg.qr(rng.standard_normal((2, QUERIES, WIDTH, rank)))[0] * strength**0.5
  gate_QD = 1 + gate * rng.uniform(-1, 1, (QUERIES, WIDTH if gate else 1))
  return Adaptation(unit(rng, QUERIES), *(jnp.asarray(x, jnp.float32) for x in (gate_QD, left, right)))


def dense(adaptation: Adaptation, gallery_ND: np.ndarray) -> np.ndarray:
  gate, left, right = (np.asarray(x, np.float64) for x in (adaptation.gate, adaptation.left, adaptation.right))
  map_QDE = np.stack([np.diag(np.broadcast_to(g, WIDTH)) for g in gate]) + left @ right.transpose(0, 2, 1)
  mapped_QND = np.einsum("QDE,NE->QND", map_QDE, gallery_ND.astype(np.float64))
  mapped_QND /= np.linalg.norm(mapped_QND, axis=2, keepdims=True)
  return np.einsum("QND,QD->QN", mapped_QND, np.asarray(adaptation.query, np.float64))


def found(adaptation: Adaptation, gallery_ND: np.ndarray, k: int, wanted: np.ndarray | None = None):
  wanted = np.ones((1, 1), bool) if wanted is None else wanted
  return sieves.search(adaptation, jnp.asarray(gallery_ND), jnp.ones(len(gallery_ND)), wanted, k)


@pytest.mark.parametrize(("strength", "rank", "gate"), [(0.4, 4, 0.0), (0.3, 12, 0.0), (0.3, 4, 0.2), (0.0, 0, 0.3)])
@pytest.mark.parametrize("platform", ["cpu", "elsewhere"])
def test_what_is_proven_is_the_dense_top_k(strength, rank, gate, platform, monkeypatch):
  monkeypatch.setattr(sieves, "_platform", lambda _: platform)
  adaptation, gallery_ND = make(strength, rank, gate), unit(np.random.default_rng(0), ITEMS)
  ids_QK, score_QK, proven_Q = found(adaptation, gallery_ND, 20)
  assert proven_Q.all()
  exact_QN = dense(adaptation, gallery_ND)
  np.testing.assert_array_equal(ids_QK, np.argsort(-exact_QN, axis=1)[:, :20])
  np.testing.assert_allclose(score_QK, -np.sort(-exact_QN, axis=1)[:, :20], atol=1e-6)


def test_items_that_the_map_makes_short_are_found_though_their_inner_products_are_small():
  rng = np.random.default_rng(1)
  right_QD, other_QD = unit(rng, QUERIES), unit(rng, QUERIES)
  near = lambda centre_D, count, spread: centre_D + spread * unit(rng, count)
  clusters = [part for q in range(QUERIES) for part in (near(right_QD[q], 300, 0.3), near(other_QD[q], 400, 0.5))]
  gallery_ND = np.concatenate([unit(rng, ITEMS // 2), *clusters])
  gallery_ND /= np.linalg.norm(gallery_ND, axis=1, keepdims=True)
  query_QD = (right_QD + other_QD) / np.linalg.norm(right_QD + other_QD, axis=1, keepdims=True)
  factors = (-0.4 * right_QD[:, :, None], right_QD[:, :, None])
  shortening = Adaptation(jnp.asarray(query_QD), jnp.ones((QUERIES, 1)), *map(jnp.asarray, factors))
  ids_QK, _, proven_Q = found(shortening, gallery_ND, 200)
  assert proven_Q.all()
  best_QK = np.argsort(-dense(shortening, gallery_ND), axis=1)[:, :200]
  np.testing.assert_array_equal(np.sort(ids_QK, axis=1), np.sort(best_QK, axis=1))
  folded_QN = np.asarray(sieves.prepare(shortening).folded) @ gallery_ND.T
  of_the_first = -np.sort(-folded_QN, axis=1)[:, 256]
  assert (np.take_along_axis(folded_QN, ids_QK, axis=1).min(axis=1) < of_the_first).all()


def test_masked_items_are_not_found():
  adaptation, gallery_ND = make(0.4), unit(np.random.default_rng(0), ITEMS)
  wanted_QN = np.ones((QUERIES, ITEMS), bool)
  before_QK, _, _ = found(adaptation, gallery_ND, 20)
  np.put_along_axis(wanted_QN, before_QK[:, ::2], False, axis=1)
  ids_QK, _, proven_Q = found(adaptation, gallery_ND, 20, wanted_QN)
  assert proven_Q.all()
  np.testing.assert_array_equal(ids_QK[:, :10], before_QK[:, 1::2])


@pytest.mark.parametrize("platform", ["cpu", "elsewhere"])
def test_what_cannot_be_proven_is_not_called_proven(platform, monkeypatch):
  monkeypatch.setattr(sieves, "_platform", lambda _: platform)
  gallery_ND = unit(np.random.default_rng(0), ITEMS)
  flattening = make(1.0)  # T maps some items to zero
  flattening = flattening.replace(left=-flattening.right)
  assert not found(flattening, gallery_ND, 20)[2].any()
  few_QN = np.arange(ITEMS)[None] < 15
  assert not found(make(0.4), gallery_ND, 20, few_QN)[2].any()
  monkeypatch.setattr(sieves, "MOST", {platform: 40})
  assert not found(make(0.4), gallery_ND, 20)[2].any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_half_precision_gallery_is_multiplied_with_every_bit_of_the_columns(dtype):
  rng = np.random.default_rng(0)
  gallery_ND = jnp.asarray(unit(rng, 200, 300), dtype)
  column_DC = (rng.standard_normal((300, 5)) * np.logspace(-6, 4, 5)).astype(np.float32)
  column_DC[0] = 1e-7 * np.abs(column_DC).max(axis=0)
  exact_NC = np.asarray(gallery_ND, np.float64) @ column_DC.astype(np.float64)
  error_NC = np.abs(np.asarray(product(gallery_ND, jnp.asarray(column_DC)), np.float64) - exact_NC)
  assert (error_NC <= 3e-7 * np.linalg.norm(column_DC.astype(np.float64), axis=0)).all()
  rounded_NC = np.asarray(gallery_ND, np.float64) @ np.asarray(jnp.asarray(column_DC, jnp.bfloat16), np.float64)
  assert (np.abs(rounded_NC - exact_NC) > 1e-4 * np.linalg.norm(column_DC.astype(np.float64), axis=0)).any()


@pytest.mark.parametrize("items", [1000, 5000, 5003])
@pytest.mark.parametrize("count", [1, 30, 70])
def test_the_greatest_are_those_of_a_sort(items, count):
  value_QN = np.random.default_rng(items).integers(0, 900, (2, items)).astype(np.float32)
  value_QN[:, ::7] = -np.inf
  value_QC, place_QC = (np.asarray(x) for x in greatest(value_QN, count))
  np.testing.assert_array_equal(value_QC, -np.sort(-value_QN, axis=1)[:, :count])
  np.testing.assert_array_equal(np.take_along_axis(value_QN, place_QC, axis=1), value_QC)
  assert all(len(set(row)) == count for row in place_QC)


def test_few_widths_are_ever_compiled():
  widths = {most: sieves.width_for(most) for most in range(4097)}
  assert len(set(widths.values())) <= 40
  assert all(most <= width <= most + max(32, most // 4 + 1) for most, width in widths.items())

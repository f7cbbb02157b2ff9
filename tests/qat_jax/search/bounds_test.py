"""What `prepare` says of maps holds for the dense maps, in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.search import kernels, spectrum
from qat_jax.search.bounds import KEPT, RANK, prepare
from qat_jax.search.coarse import copied
from qat_jax.search.gallery import Part
from qat_jax.search.kernels import filtered
from qat_jax.search.rank import rank as rank_of
from qat_jax.search.scores import refined_bounds
from qat_jax.search.spectrum import of_rank
from qat_jax.types import Adaptation
from tests.vectors import unit

QUERIES, WIDTH, ITEMS = 4, 40, 4096


def make(rank: int, gate: str, decay: float, shared: bool = False) -> Adaptation:
  rng = np.random.default_rng(rank)
  left, right = np.linalg.qr(rng.standard_normal((2, QUERIES, WIDTH, rank)))[0] * np.sqrt(
    0.8 * decay ** np.arange(rank)
  )
  gates = {
    "one": np.ones((QUERIES, 1)),
    "zero": np.zeros((QUERIES, 1)),
    "each": 1 + 0.3 * rng.standard_normal((QUERIES, WIDTH)),
  }
  maps = [np.repeat(x[:1], QUERIES, axis=0) if shared else x for x in (gates[gate], left, right)]
  return Adaptation(*(x.astype(np.float32) for x in (unit(rng.standard_normal((QUERIES, WIDTH))), *maps)))


def dense(adaptation: Adaptation) -> np.ndarray:
  gate, left, right = (np.asarray(x, np.float64) for x in (adaptation.gate, adaptation.left, adaptation.right))
  return np.stack([np.diag(np.broadcast_to(g, WIDTH)) for g in gate]) + left @ right.transpose(0, 2, 1)


CASES = pytest.mark.parametrize(
  ("rank", "gate", "decay"),
  [(0, "each", 1), (4, "one", 1), (4, "zero", 1), (4, "each", 1), (12, "one", 0.7), (30, "one", 1), (30, "each", 0.6)],
)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
@CASES
def test_no_score_exceeds_its_bounds_and_most_come_near(rank, gate, decay, bits, shared):
  """Lemmas 1 to 4, and 9 in 8 bits."""
  adaptation = make(rank, gate, decay, shared)
  gallery_ND = unit(np.random.default_rng(0).standard_normal((ITEMS, WIDTH)))
  mapped_QND = np.einsum("QDE,NE->QND", dense(adaptation), gallery_ND.astype(np.float64))
  exact_QN = np.einsum("QD,QND->QN", adaptation.query.astype(np.float64), mapped_QND) / np.linalg.norm(
    mapped_QND, axis=2
  )
  prepared = prepare(adaptation)
  part = Part(0, ITEMS, jnp.asarray(gallery_ND), 0, ITEMS, np.array([0.9999, 1.0001], np.float32))
  if bits == 8:
    part = dataclasses.replace(part, coarse=copied(part.features))
  upper_QN = np.full((QUERIES, ITEMS), -np.inf)
  for known in (None, {}):  # lengths taken with the products, or before
    looked = filtered(prepared, dataclasses.replace(part, squares=known), QUERIES)
    query_P, item_P, upper_P = looked.reaching(np.full(QUERIES, -np.inf))
    upper_QN[query_P, item_P] = upper_P
    assert (upper_QN >= exact_QN).all()
    assert not known or list(known) == [prepared.one_map.key]
  assert (prepared.one_map is not None) == (shared and rank > 0)
  if (rank, gate, bits) != (30, "one", 8):  # many directions in 8 bits: the bound holds, no more
    assert np.median((upper_QN - exact_QN)[exact_QN > 0]) < 0.35
  if prepared.tight is not None:
    query_P, item_P = np.divmod(np.arange(QUERIES * ITEMS), ITEMS)
    refined_QN = refined_bounds(prepared, part, query_P, item_P).reshape(QUERIES, ITEMS)
    assert (refined_QN >= np.where(exact_QN > 0, exact_QN, -1)).all()


@pytest.mark.parametrize("decay", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("rank", [12, 30])
def test_lengths_differ_from_those_of_the_cut_map_by_no_more_than_it_says(rank, decay):
  """Lemmas 1 and 2."""
  adaptation = make(rank, "one", decay)
  arrays = [np.asarray(getattr(adaptation, name)) for name in ("query", "gate", "left", "right")]
  cut_Q = of_rank(arrays, RANK).cut
  left_Q = np.linalg.svd(dense(adaptation) - np.eye(WIDTH), compute_uv=False)[:, RANK]
  assert (cut_Q >= left_Q).all()
  assert (cut_Q <= 1.15 * left_Q).all()


@pytest.mark.parametrize("rank", [9, 12])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_one_map_of_all_queries_is_taken_whole_and_its_directions_are_shared(rank, queries):
  """A map that words make: the identity without some directions, padded with zeros."""
  rng = np.random.default_rng(0)
  out_DR = np.linalg.qr(rng.standard_normal((WIDTH, rank)))[0]
  padded = np.tile(np.pad(out_DR, ((0, 0), (0, 100))), (queries, 1, 1)).astype(np.float32)
  query_QD = unit(rng.standard_normal((queries, WIDTH)))
  prepared = prepare(Adaptation(query_QD, np.ones((queries, 1), np.float32), -padded, padded))
  bounds, kept = prepared.bounds, next(size for size in KEPT if size >= rank)
  assert bounds.columns.shape == (WIDTH, queries + kept) and bounds.weight.shape == (kept, queries)
  np.testing.assert_allclose(bounds.columns[:, :queries], query_QD.T - out_DR @ (out_DR.T @ query_QD.T), atol=1e-6)
  assert bounds.cut.max() < 1e-6 and prepared.tight is None


def test_a_map_of_any_scale_is_prepared_to_the_same_bounds():
  adaptation = make(6, "each", 0.8)
  other = adaptation.replace(
    gate=adaptation.gate * 2.0**-40, left=adaptation.left * 2.0**20, right=adaptation.right * 2.0**-60
  )
  one, two = prepare(adaptation), prepare(other)
  np.testing.assert_allclose(
    one.bounds.weight / one.bounds.longest**2, two.bounds.weight / two.bounds.longest**2, rtol=1e-4
  )


def test_lengths_are_taken_once_for_a_map_and_forgotten_when_others_come(monkeypatch):
  monkeypatch.setattr(spectrum, "REMEMBERED", 2)
  taken, bounds_of = [], kernels.upper_bounds
  monkeypatch.setattr(kernels, "upper_bounds", lambda *args, **how: taken.append(how) or bounds_of(*args, **how))
  gallery_ND = jnp.asarray(unit(np.random.default_rng(0).standard_normal((ITEMS, WIDTH))))
  searched = lambda rank: rank_of(make(rank, "one", 1, shared=True), gallery_ND, 5)
  took = lambda: [how.get("lengths_only", False) for how in taken].count(True)
  first = searched(4)
  assert took() == 1
  np.testing.assert_array_equal(searched(4).ids, first.ids)
  assert took() == 1
  searched(5), searched(6)  # 4 is forgotten
  np.testing.assert_array_equal(searched(4).scores, first.scores)
  assert took() == 4

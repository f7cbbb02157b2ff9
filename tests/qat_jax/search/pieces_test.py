"""A gallery of pieces is ranked as the array of its living items is, bit for bit, and compiles nothing as it grows."""

import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.search import coarse, exact
from qat_jax.search.gallery import expect_searches
from qat_jax.search.kernels import _upper_bounds
from qat_jax.types import Adaptation, Pieces

CAPACITIES = (64, 512)


def pieces_of(rows_ND, counts, alive_N):
  starts, arrays, alive = np.cumsum([0, *counts]), [], []
  for first, count in zip(starts, counts, strict=False):
    capacity = next(c for c in CAPACITIES if c >= count)
    array_CD = np.eye(1, rows_ND.shape[1], dtype=np.float32).repeat(capacity, axis=0)
    array_CD[:count] = rows_ND[first : first + count]
    arrays.append(jnp.asarray(array_CD))
    alive.append(alive_N[first : first + count])
  return Pieces(tuple(arrays), tuple(counts), tuple(alive), "frozen")


@pytest.fixture
def some():
  rng = np.random.default_rng(0)
  rows_ND = unit(rng.standard_normal((700, 16)), np.float32)
  rows_ND[650:] = rows_ND[:50]  # equal scores: the first comes first
  alive_N = rng.random(700) < 0.8
  alive_N[512:520] = False
  queries_QD = unit(rng.standard_normal((4, 16)), np.float32)
  low_QDR = 0.3 * rng.standard_normal((2, 4, 16, 3)).astype(np.float32)
  adaptation = Adaptation(jnp.asarray(queries_QD), jnp.ones((4, 1)), *map(jnp.asarray, low_QDR))
  return rows_ND, alive_N, adaptation


@pytest.mark.parametrize("k", [1, 10, 200, 699])
def test_with_8_bit_copies_of_the_larger_pieces_no_bit_of_a_ranking_changes(some, k, monkeypatch):
  rows_ND, alive_N, adaptation = some
  gallery = pieces_of(rows_ND, (512, 64, 10, 64, 50), alive_N)
  wanted, looks, filtered = qat_jax.rank(adaptation, gallery, k), [], exact.filtered
  monkeypatch.setattr(coarse, "LEAST_NUMBERS", 512 * 16)
  monkeypatch.setattr(coarse, "multiplies_faster", lambda *_: True)
  monkeypatch.setattr(exact, "filtered", lambda *args: looks.append(filtered(*args)) or looks[-1])
  expect_searches(gallery)
  found = qat_jax.rank(adaptation, gallery, k)
  if k < 100:
    assert [look.coarse for look in looks if look.coarse] == [True]  # of the piece of 512 alone
  np.testing.assert_array_equal(found.ids, wanted.ids)
  np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.mark.parametrize("k", [1, 10, 200, 699])
def test_pieces_rank_as_the_living_items_alone_do(some, k):
  rows_ND, alive_N, adaptation = some
  living = np.flatnonzero(alive_N)
  fresh = pieces_of(rows_ND[living], (64, len(living) - 64 - 40, 40), np.ones(len(living), bool))
  wanted = qat_jax.rank(adaptation, fresh, k)
  if k < 100:  # of an array, where not every item is scored
    whole = qat_jax.rank(adaptation, jnp.asarray(rows_ND[living]), k)
    np.testing.assert_array_equal(whole.ids, wanted.ids)
    np.testing.assert_array_equal(whole.scores, wanted.scores)
  gallery = pieces_of(rows_ND, (512, 64, 10, 64, 50), alive_N)
  found = qat_jax.rank(adaptation, gallery, k)
  assert len(set(found.ids[0][found.ids[0] >= 0])) == min(k, len(living))
  np.testing.assert_array_equal(found.ids, np.where(wanted.ids < 0, -1, living[wanted.ids]))
  np.testing.assert_array_equal(found.scores, wanted.scores)
  exclude = found.ids[:, :1]
  again = qat_jax.rank(adaptation, gallery, k, exclude=exclude, allowed=alive_N | True)
  np.testing.assert_array_equal(again.scores[:, : k - 1], found.scores[:, 1:])
  some_items = np.array([[3, 520, 699, 515]] * 4)
  np.testing.assert_array_equal(
    qat_jax.rerank(adaptation, gallery, some_items).scores,
    qat_jax.rerank(adaptation, jnp.asarray(rows_ND), some_items).scores,
  )


def test_nothing_is_compiled_when_pieces_grow_or_items_go(some):
  rows_ND, alive_N, adaptation = some
  qat_jax.rank(adaptation, pieces_of(rows_ND, (512, 64, 3), alive_N), 10)
  before = _upper_bounds._cache_size()
  for count in (4, 20, 64):
    qat_jax.rank(adaptation, pieces_of(rows_ND, (512, 64, count), alive_N ^ (np.arange(700) == count)), 10)
  assert _upper_bounds._cache_size() == before


def test_positions_outside_of_pieces_are_refused(some):
  rows_ND, alive_N, _ = some
  gallery = pieces_of(rows_ND, (512, 64, 10), alive_N)
  np.testing.assert_array_equal(gallery[570:586], rows_ND[570:586])
  np.testing.assert_array_equal(gallery.living, np.flatnonzero(alive_N[:586]))
  with pytest.raises(IndexError, match="586"):
    gallery[np.array([586])]

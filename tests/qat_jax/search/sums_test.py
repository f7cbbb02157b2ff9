"""Sums of scores against the sums of `score` over whole galleries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qat_jax
from qat_jax.search import sums
from qat_jax.search.sums import Term, rank_sum
from qat_jax.types import Adaptation
from tests.vectors import features

QUERIES, ITEMS = 3, 700


def adaptation(rng, width, rank, queries=QUERIES):
  left, right = 0.3 * rng.standard_normal((2, queries, width, rank)).astype(np.float32)
  return Adaptation(features(queries, width, rng), np.ones((queries, 1), np.float32), left, right)


def sum_of(terms):
  return sum(
    np.reshape(t.weight, (-1, 1)) * np.asarray(qat_jax.score(t.adaptation, t.gallery), np.float64) for t in terms
  )


def check(ranking, expected_QN, k):
  for ids, scores, expected_N in zip(ranking.ids, ranking.scores, expected_QN, strict=True):
    order = np.lexsort((np.arange(len(expected_N)), -expected_N))[:k]
    order = order[np.isfinite(expected_N[order])]
    np.testing.assert_allclose(scores[: len(order)], expected_N[order], atol=3e-5)
    np.testing.assert_allclose(expected_N[ids[: len(order)]], expected_N[order], atol=3e-5)
    assert len(set(ids[: len(order)].tolist())) == len(order)
    assert (ids[len(order) :] == -1).all()


@settings(max_examples=12, deadline=None)
@given(
  ranks=st.lists(st.sampled_from([0, 0, 3]), min_size=1, max_size=4),
  weights=st.lists(st.floats(-2, 2).filter(lambda x: abs(x) > 0.05), min_size=4, max_size=4),
  two_galleries=st.booleans(),
  mask=st.sampled_from(["none", "exclude", "bool", "positions", "each"]),
  seed=st.integers(0, 99),
)
def test_the_ranking_has_the_order_of_the_added_scores(ranks, weights, two_galleries, mask, seed):
  rng = np.random.default_rng(seed)
  galleries = [features(ITEMS, 12, rng), features(ITEMS, 20, rng) if two_galleries else None]
  galleries[1] = galleries[0] if galleries[1] is None else galleries[1]
  terms = []
  for i, (rank, weight) in enumerate(zip(ranks, weights, strict=False)):
    gallery = galleries[i % 2]
    terms.append(Term(adaptation(rng, gallery.shape[1], rank), gallery, weight))
  expected_QN, masks = sum_of(terms), {}
  if mask == "exclude":
    masks["exclude"] = rng.integers(-1, ITEMS, (QUERIES, 5))
    for row, without in enumerate(masks["exclude"]):
      expected_QN[row, without[without >= 0]] = -np.inf
  elif mask != "none":
    wanted_QN = rng.random((QUERIES if mask == "each" else 1, ITEMS)) < 0.05
    expected_QN = np.where(wanted_QN, expected_QN, -np.inf)
    lists = [np.flatnonzero(row) for row in wanted_QN]
    padded = np.stack([np.pad(one, (0, max(map(len, lists)) - len(one)), constant_values=-1) for one in lists])
    masks["allowed"] = {"bool": wanted_QN[0], "positions": padded[0], "each": padded}[mask]
  ranking, proven_Q = rank_sum(terms, 10, **masks)
  assert proven_Q.all()
  check(ranking, expected_QN, 10)


def test_an_item_that_no_list_holds_is_found_by_growing_lists():
  # item 0 is second rate for both terms, after 100 items each that the other term dislikes, and best in sum
  side = np.array([0.8, -0.4, np.sqrt(1 - 0.8**2 - 0.4**2)])
  first, second = np.tile(side, (100, 1)), np.tile(side[[1, 0, 2]], (100, 1))
  best, rest = np.array([[0.6, 0.6, np.sqrt(1 - 0.72)]]), np.tile([[0.0, 0.0, 1.0]], (500, 1))
  gallery_ND = np.concatenate([rest, first, second, best]).astype(np.float32)
  ends = [qat_jax.plain(np.eye(3, dtype=np.float32)[[i]]) for i in (0, 1)]
  wide_NE = np.pad(gallery_ND, ((0, 0), (0, 1)))
  other = qat_jax.plain(np.eye(4, dtype=np.float32)[[1]])
  terms = [Term(ends[0], gallery_ND), Term(other, wide_NE)]
  ranking, proven_Q = rank_sum(terms, 1, depth=64)
  assert ranking.ids[0, 0] != 700
  assert not proven_Q[0]
  ranking, proven_Q = rank_sum(terms, 1)
  assert ranking.ids.tolist() == [[700]]
  assert proven_Q.all()


def test_one_term_of_weight_1_is_the_ranking_itself():
  rng = np.random.default_rng(1)
  gallery_ND, queries = features(ITEMS, 12, rng), adaptation(rng, 12, 3)
  ranking, _ = rank_sum([Term(queries, gallery_ND)], 20)
  expected = qat_jax.rank(queries, gallery_ND, 20)
  np.testing.assert_array_equal(ranking.ids, expected.ids)
  np.testing.assert_array_equal(ranking.scores, expected.scores)


def test_terms_with_one_map_are_one_search(monkeypatch):
  rng, calls = np.random.default_rng(2), []
  gallery_ND = features(ITEMS, 12, rng)
  rank = sums.rank
  monkeypatch.setattr(sums, "rank", lambda *args, **masks: calls.append(1) or rank(*args, **masks))
  rank_sum([Term(adaptation(rng, 12, 0), gallery_ND, w) for w in (1, -0.5, np.array([0.0, 1, 2]))], 5)
  assert len(calls) == 1


def test_equal_sums_are_in_the_order_of_their_ids():
  gallery_ND = np.tile(np.eye(4, dtype=np.float32), (30, 1))
  wide_NE = np.pad(gallery_ND, ((0, 0), (0, 1)))
  terms = [Term(qat_jax.plain(np.ones((1, 4), np.float32)), gallery_ND), Term(qat_jax.plain(np.ones((1, 5))), wide_NE)]
  ranking, proven_Q = rank_sum(terms, 7)
  assert ranking.ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
  assert proven_Q.all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda a, g: [], "no terms"),
    (lambda a, g: [Term(a, g), Term(a, g, -1.0)], "the parts of query 0 cancel each other"),
    (lambda a, g: [Term(a, g), Term(a[:1], g)], "term 1 has 1 queries, the first one 3"),
    (lambda a, g: [Term(a, g), Term(a, g, np.nan)], "the weight of term 1 is NaN"),
    (lambda a, g: [Term(a, g), Term(a, g[:9])], "700 and 9 items"),
  ],
)
def test_what_does_not_add_is_refused(change, message):
  rng = np.random.default_rng(3)
  with pytest.raises(ValueError, match=message):
    rank_sum(change(adaptation(rng, 12, 0), features(ITEMS, 12, rng)), 5)

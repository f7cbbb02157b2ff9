"""Sums of scores against the sums of `score` over whole galleries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qat_jax
from qat_jax.search import coarse, exact, gallery, sums, uppers, whole
from qat_jax.search.sums import Term, rank_sum
from qat_jax.types import Adaptation, Pieces
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


def test_an_item_that_no_list_holds_is_found_by_growing_lists(monkeypatch):
  # item 0 is second rate for both terms, after 100 items each that the other term dislikes, and best in sum
  side = np.array([0.8, -0.4, np.sqrt(1 - 0.8**2 - 0.4**2)])
  first, second = np.tile(side, (100, 1)), np.tile(side[[1, 0, 2]], (100, 1))
  best, rest = np.array([[0.6, 0.6, np.sqrt(1 - 0.72)]]), np.tile([[0.0, 0.0, 1.0]], (500, 1))
  gallery_ND = np.concatenate([rest, first, second, best]).astype(np.float32)
  ends = [qat_jax.plain(np.eye(3, dtype=np.float32)[[i]]) for i in (0, 1)]
  wide_NE = np.pad(gallery_ND, ((0, 0), (0, 1)))
  other = qat_jax.plain(np.eye(4, dtype=np.float32)[[1]])
  terms = [Term(ends[0], gallery_ND), Term(other, wide_NE)]
  assert rank_sum(terms, 1)[0].ids.tolist() == [[700]]
  monkeypatch.setattr(sums, "Elsewhere", object)  # everything is ranked by lists
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


def placed(item_ND, how):
  """Returns a gallery of rows: in the host's memory, on a device, on four, or in pieces with rows that are gone."""
  if how == "four devices":
    mesh = jax.make_mesh((4,), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.device_put(item_ND, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("gallery", None)))
  if how == "pieces":
    half = len(item_ND) // 2
    padded = [
      jnp.asarray(np.concatenate([part, np.tile(part[:1], (48, 1))])) for part in (item_ND[:half], item_ND[half:])
    ]
    alive = [np.arange(len(part) - 48) % 5 > 0 for part in padded]
    return Pieces(tuple(padded), (half, len(item_ND) - half), tuple(alive))
  return jnp.asarray(item_ND) if how == "device" else item_ND


@pytest.mark.parametrize("grouped", [False, True], ids=["items", "groups"])
@pytest.mark.parametrize(
  ("how", "other"),
  [("device", "device"), ("four devices", "four devices"), ("pieces", "pieces"), ("host", "host"), ("device", "host")],
)
def test_a_sum_over_two_galleries_is_that_of_lists_wherever_they_lie(monkeypatch, how, other, grouped):
  monkeypatch.setattr(whole, "QUERY_BLOCK", 2)
  monkeypatch.setattr(uppers, "PIECE_ROWS", 256)
  monkeypatch.setattr(gallery, "CHUNK_BYTES", {"cpu": 1 << 14})
  monkeypatch.setattr(gallery, "WINDOW", {"cpu": 2048})  # several windows a gallery
  rng, items = np.random.default_rng(4), 1400
  narrow_ND, wide_NE = features(items, 12, rng), features(items, 20, rng).astype(np.float16)
  narrow_ND[700:], wide_NE[700:] = narrow_ND[:700], wide_NE[:700]  # each item twice: ties
  terms = [
    Term(adaptation(rng, 12, 0), placed(narrow_ND, how), 0.7),
    Term(adaptation(rng, 20, 3), placed(wide_NE, other), np.array([0.4, 0, 2.0])),
  ]
  group = {"group": rng.integers(0, 300, items)} if grouped else {}
  exclude = rng.integers(-1, items, (QUERIES, 9))
  ranking, proven_Q = rank_sum(terms, 25, exclude=exclude, **group)
  monkeypatch.setattr(sums, "Elsewhere", object)  # everything is ranked by lists
  expected, _ = rank_sum(terms, 25, exclude=exclude, **group)
  np.testing.assert_array_equal(ranking.ids, expected.ids)
  np.testing.assert_allclose(ranking.scores, expected.scores, atol=5e-7)  # whole galleries round otherwise
  assert proven_Q.all()


def test_galleries_that_grow_apart_are_refused():
  rng = np.random.default_rng(5)
  terms = [Term(adaptation(rng, 12, 0), placed(features(ITEMS, 12, rng), "pieces"))]
  terms.append(Term(adaptation(rng, 20, 0), features(ITEMS, 20, rng)))
  with pytest.raises(ValueError, match="the galleries are of different collections"):
    rank_sum(terms, 10)


def test_8_bit_copies_change_no_bit_of_a_sum(monkeypatch):
  monkeypatch.setattr(coarse, "LEAST_NUMBERS", 0)
  monkeypatch.setattr(coarse, "multiplies_faster", lambda *_: True)
  rng, looks = np.random.default_rng(6), []
  galleries = [jnp.asarray(features(ITEMS, width, rng)) for width in (12, 20)]
  terms = [Term(adaptation(rng, one.shape[1], 0), one) for one in galleries]
  first, _ = rank_sum(terms, 10)
  bounds_of_sums = exact.bounds_of_sums
  monkeypatch.setattr(exact, "bounds_of_sums", lambda *args: looks.append(bounds_of_sums(*args)) or looks[-1])
  later = [rank_sum(terms, 10)[0] for _ in range(coarse.AFTER + 2)]
  assert any(look.coarse for look in looks) and not all(look.coarse for look in looks)
  for ranking in later:
    np.testing.assert_array_equal(ranking.ids, first.ids)
    np.testing.assert_array_equal(ranking.scores, first.scores)

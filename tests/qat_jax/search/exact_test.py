"""Families of maps that broke an earlier search, each against float64: the loop is exact for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.search import exact
from qat_jax.search.bounds import prepare
from qat_jax.search.gallery import in_place
from qat_jax.search.masks import Masks
from qat_jax.search.rank import rank
from qat_jax.search.top import ItemPairs, TopK
from qat_jax.search.whole import best_of
from qat_jax.types import Adaptation, as_gallery
from tests.faults.search import check
from tests.faults.search_cases import Case
from tests.vectors import unit

QUERIES, ITEMS = 3, 2048


def adaptation(query_QD, gate, left_QDR, right_QDR) -> Adaptation:
  return Adaptation(*(jnp.asarray(np.asarray(x, np.float32)) for x in (query_QD, gate, left_QDR, right_QDR)))


def random(width: int = 32, rank: int = 6, items: int = ITEMS, seed: int = 0):
  rng = np.random.default_rng(seed)
  return (
    unit(rng.standard_normal((QUERIES, width))),
    *(0.4 * rng.standard_normal((2, QUERIES, width, rank))),
    unit(rng.standard_normal((items, width))),
  )


CASES = {
  "more directions than dimensions": [{"width": w, "directions": r} for w in (2, 3, 6) for r in (8, 12)],
  "maps of any size": [{"gate": g, "size": s} for g in ("zero", "each") for s in (-18, -6, 6, 18)],
  "gates of any size": [{"gate": "each", "directions": 0, "size": s} for s in (-18, -6, 6, 18)],
  "factors of which one is large": [{"split": s} for s in (-18, -6, 6, 18)],
  "nearly blind along many items": [{"factors": "blind", "gallery": "near blind", "k": k} for k in (20, 100)],
  "factors that cancel": [{"factors": "cancel", "directions": r} for r in (4, 24)],
  "cut down for their bounds": [
    {"factors": "flat", "width": 64, "directions": r, "gate": g} for r in (12, 40) for g in ("zero", "one")
  ],
  "negative scores alone": [{"factors": "small", "gallery": "opposite"}],
  "levels and captions": [
    {"extra": "both", "gate": g, "directions": r} for g, r in (("each", 0), ("one", 0), ("each", 6))
  ],
}


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize("family", CASES)
def test_families_of_maps_that_broke_an_earlier_search(family, place):
  for fields in CASES[family]:
    check(Case(**({"width": 32, "directions": 6, "queries": 3, "items": ITEMS, "k": 20, "place": place} | fields)))


def test_what_float32_rules_out_is_not_scored_in_float64(monkeypatch):
  query_QD, left, right, gallery_ND = random()
  own = adaptation(query_QD, np.full((QUERIES, 1), 0.05), left / 4, right)  # short lengths, beside the map's terms
  prepared, (part,) = prepare(own), in_place(as_gallery(jnp.asarray(gallery_ND, jnp.float32)))
  pairs = ItemPairs(np.repeat(np.arange(QUERIES), ITEMS), np.tile(np.arange(ITEMS), QUERIES))
  looked, in_float64 = [], exact._in_float64
  monkeypatch.setattr(
    exact, "_in_float64", lambda *args: looked.append(len(args[2])) or np.asarray(in_float64(*args), np.float32)
  )
  all_P = exact.score_pairs(prepared, part, pairs)
  doubtful, looked[:] = sum(looked), []
  least_Q = -np.sort(-all_P.reshape(QUERIES, ITEMS), axis=1)[:, 20]
  some_P = exact.score_pairs(prepared, part, pairs, least_Q)
  assert doubtful > QUERIES * ITEMS / 10 and 0 < sum(looked) < doubtful / 10
  winning_P = all_P >= least_Q[pairs.query]
  np.testing.assert_array_equal(some_P[winning_P], all_P[winning_P])
  assert (some_P[~winning_P] < least_Q[pairs.query][~winning_P]).all()


def test_of_equal_items_the_first_come_first_wherever_they_lie():
  query_QD, left, right, gallery_ND = random()
  equal_ND = np.repeat(gallery_ND[:1], 20_008, 0)
  own = adaptation(query_QD, np.ones((QUERIES, 1)), left, right)
  mesh = jax.make_mesh((4,), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("gallery", None))
  for gallery in (equal_ND, jnp.asarray(equal_ND), jax.device_put(equal_ND, rows)):
    np.testing.assert_array_equal(rank(own, gallery, 100).ids, np.broadcast_to(np.arange(100), (QUERIES, 100)))
  ranking = rank(own, equal_ND, 100, devices=jax.devices(), chunk_rows=512)
  np.testing.assert_array_equal(ranking.ids, np.broadcast_to(np.arange(100), (QUERIES, 100)))


@pytest.mark.parametrize("deep", [False, True])
def test_what_was_found_elsewhere_spares_work_and_loses_nothing(deep):
  query_QD, left, right, gallery_ND = random()
  own, halves = adaptation(query_QD, np.ones((QUERIES, 1)), left, right), (gallery_ND[:1000], gallery_ND[1000:])
  gallery_ND[1500] = gallery_ND[rank(own, halves[0], 5).ids[0, -1]]  # of equal scores one is on either side
  nothing = Masks.of(None, None, QUERIES, 1000)
  (first,) = best_of(own, as_gallery(halves[0]), [TopK.empty(QUERIES, 5)], nothing, deep)
  (second,) = best_of(own, as_gallery(halves[1]), [TopK.empty(QUERIES, 5, first.threshold)], nothing, deep)
  there_QK = second.ids >= 0
  assert deep or (second.scores[there_QK] >= np.broadcast_to(first.threshold[:, None], (QUERIES, 5))[there_QK]).all()
  merged = first.merge(second._replace(ids=np.where(there_QK, second.ids + 1000, -1)))
  np.testing.assert_array_equal(merged.ids, rank(own, gallery_ND, 5).ids)


def test_merging_is_associative_and_counts_an_item_once():
  rng = np.random.default_rng(0)
  parts = [
    TopK.empty(2, 4).with_pairs(ItemPairs(np.array([0, 0, 0, 1, 1, 1]), rng.permutation(6)), rng.integers(0, 3, 6) / 4)
    for _ in range(3)
  ]
  parts[1] = parts[1].merge(parts[0])
  one = parts[0].merge(parts[1]).merge(parts[2])
  other = parts[2].merge(parts[1].merge(parts[0]))
  np.testing.assert_array_equal(one.ids, other.ids)
  np.testing.assert_array_equal(one.scores, other.scores)

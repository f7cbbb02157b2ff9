"""Families of maps that broke an earlier search, each against float64: the loop is exact for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.models.memory import widened
from qat_jax.search.exact import Pairs, TopK
from qat_jax.search.masks import Masks
from qat_jax.search.rank import best_of, rank, score
from qat_jax.types import Adaptation, as_gallery

QUERIES, ITEMS = 3, 2048


def unit(x: np.ndarray) -> np.ndarray:
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def adaptation(query_QD, gate, left_QDR, right_QDR) -> Adaptation:
  return Adaptation(*(jnp.asarray(np.asarray(x, np.float32)) for x in (query_QD, gate, left_QDR, right_QDR)))


def in_float64(adaptation: Adaptation, gallery_ND: np.ndarray) -> np.ndarray:
  scores = []
  gallery_ND = np.asarray(gallery_ND, np.float64)
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(adaptation)]
  for query_D, gate, left_DR, right_DR in zip(*leaves, strict=True):
    mapped_ND = gate * gallery_ND + (gallery_ND @ right_DR) @ left_DR.T
    length_N = np.linalg.norm(mapped_ND, axis=1)
    scores.append(mapped_ND @ query_D / np.where(length_N > 0, length_N, 1))
  return np.stack(scores)


def assert_exact(adaptation: Adaptation, gallery_ND: np.ndarray, k: int = 20) -> None:
  exact_QN = in_float64(adaptation, gallery_ND)
  for gallery in (gallery_ND, jnp.asarray(gallery_ND)):
    ranking = rank(adaptation, gallery, k)
    for ids_K, score_K, exact_N in zip(ranking.ids, ranking.scores, exact_QN, strict=True):
      assert len(set(ids_K)) == k
      np.testing.assert_allclose(score_K, exact_N[ids_K], rtol=0, atol=2e-6)
      assert np.delete(exact_N, ids_K).max(initial=-1) <= exact_N[ids_K].min() + 2e-6


def random(width: int = 32, rank: int = 6, items: int = ITEMS, seed: int = 0):
  rng = np.random.default_rng(seed)
  return (
    unit(rng.standard_normal((QUERIES, width))),
    *(0.4 * rng.standard_normal((2, QUERIES, width, rank))),
    unit(rng.standard_normal((items, width))),
  )


@pytest.mark.parametrize("width", [2, 3, 6])
@pytest.mark.parametrize("rank", [8, 12])
def test_with_more_directions_than_dimensions(width, rank):
  query_QD, left, right, gallery_ND = random(width, rank)
  assert_exact(adaptation(query_QD, np.ones((QUERIES, 1)), left, right), gallery_ND)


@pytest.mark.parametrize("exponent", [-18, -6, 6, 18])
@pytest.mark.parametrize("form", ["paper", "gated", "both"])
def test_the_size_of_a_map_does_not_matter(exponent, form):
  query_QD, left, right, gallery_ND = random()
  gate = (
    np.zeros((QUERIES, 1)) if form == "paper" else 1 + 0.3 * np.random.default_rng(1).standard_normal((QUERIES, 32))
  )
  left, right = (x[:, :, :0] if form == "gated" else 10.0 ** (exponent / 2) * x for x in (left, right))
  scaled = adaptation(query_QD, gate * 10.0**exponent, left, right)
  assert_exact(scaled, gallery_ND)
  np.testing.assert_allclose(score(scaled, gallery_ND), in_float64(scaled, gallery_ND), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("to_left", "to_right"), [(1e-20, 1e19), (1e18, 1e-18)])
def test_nor_how_it_is_shared_out_between_left_and_right(to_left, to_right):
  query_QD, left, right, gallery_ND = random()
  assert_exact(adaptation(query_QD, np.full((QUERIES, 1), 0.1), left * to_left, right * to_right), gallery_ND)


@pytest.mark.parametrize("sight", [1e-2, 1e-4, 0])
def test_maps_nearly_blind_along_many_items(sight):
  query_QD, _, _, gallery_ND = random()
  rng = np.random.default_rng(1)
  blind_QD1 = np.repeat(unit(rng.standard_normal((1, 32))), QUERIES, 0)[:, :, None]
  near_ND = blind_QD1[0, :, 0] + 10.0 ** rng.uniform(-5, -1, (ITEMS, 1)) * rng.standard_normal((ITEMS, 32))
  gallery_ND = np.concatenate([unit(near_ND), gallery_ND])
  assert_exact(adaptation(query_QD, np.ones((QUERIES, 1)), -(1 - sight) * blind_QD1, blind_QD1), gallery_ND, 100)


@pytest.mark.parametrize("rank", [4, 24])
def test_factors_that_cancel(rank):
  query_QD, left, right, gallery_ND = random(rank=rank // 2)
  rest = 0.05 * np.random.default_rng(1).standard_normal(left.shape)
  left, right = np.concatenate([9 * left, rest - 9 * left], 2), np.concatenate([9 * right, 9 * right], 2)
  assert_exact(adaptation(query_QD, np.ones((QUERIES, 1)), left, right), gallery_ND)


@pytest.mark.parametrize("rank", [12, 40])
@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_maps_that_are_cut_down_for_their_bounds(rank, gate):
  query_QD, left, right, gallery_ND = random(64, rank)
  left, right = (np.linalg.qr(x)[0] * 0.95 ** np.arange(rank) for x in (left, right))
  assert_exact(adaptation(query_QD, np.full((QUERIES, 1), gate), left, right), gallery_ND)


def test_scores_that_are_all_negative():
  query_QD, left, right, gallery_ND = random()
  gallery_ND = unit(0.3 * gallery_ND * 32**0.5 / 32**0.5 - query_QD[:1])
  assert_exact(
    adaptation(np.repeat(query_QD[:1], QUERIES, 0), np.ones((QUERIES, 1)), 0.1 * left, 0.1 * right), gallery_ND
  )


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
    TopK.empty(2, 4).with_pairs(Pairs(np.array([0, 0, 0, 1, 1, 1]), rng.permutation(6)), rng.integers(0, 3, 6) / 4)
    for _ in range(3)
  ]
  parts[1] = parts[1].merge(parts[0])
  one = parts[0].merge(parts[1]).merge(parts[2])
  other = parts[2].merge(parts[1].merge(parts[0]))
  np.testing.assert_array_equal(one.ids, other.ids)
  np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("part", ["gated", "plain", "both"])
def test_levelled_and_widened_items_are_ranked_exactly(part):
  query_QD, left, right, gallery_ND = random()
  rng = np.random.default_rng(3)
  gate = np.ones((QUERIES, 1)) if part == "plain" else 1 + 0.3 * rng.standard_normal((QUERIES, 32))
  alone = adaptation(query_QD, gate, *(x if part == "both" else x[:, :, :0] for x in (left, right)))
  level_N = np.float32(0.5) * np.abs(rng.standard_normal(ITEMS)).clip(max=1.5)
  called = lambda rows: unit(rng.standard_normal((rows, 32)))
  beside = lambda x, y: unit(np.concatenate([x, y], axis=1))
  captioned_ND = beside(gallery_ND, 0.6 * called(ITEMS))
  items_ND = beside(captioned_ND, np.stack([-level_N, np.sqrt(1 - np.square(level_N))], axis=1))
  captioned_QD = beside(query_QD, 0.6 * called(QUERIES))
  wide = widened(widened(alone, captioned_QD), beside(captioned_QD, np.tile(np.float32([1, 0]), (QUERIES, 1))))
  assert_exact(wide, items_ND)

"""Scores and rankings against float64 dense scoring, over every form of the map, dtype, mask and degenerate factor."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qat_jax.search import rank as scoring
from qat_jax.search import scores
from tests.faults import search_cases
from tests.faults.search import check, elsewhere, in_float64
from tests.faults.search_cases import CHOICES, Case
from tests.vectors import features

QUERIES, WIDTH = 4, 24
FORMS = {  # the gate, and directions
  **{"plain": ("one", 0), "scaled": ("scaled", 0), "gated": ("each", 0), "signed": ("signs", 0)},
  **{"adaptive": ("one", 4), "paper": ("zero", 4), "both": ("each", 4), "iterated": ("one", 20)},
}
AWKWARD = ("random", "random", "repeated", "opposite", "nothing", "blind", "cancel")


def case_of(form: str, **fields) -> Case:
  """Returns a case of the hunt of tests.faults.search, whose map has a form's gate and directions."""
  gate, directions = FORMS[form]
  return Case(**({"gate": gate, "directions": directions, "queries": 3, "width": 24} | fields))


make = lambda form, **fields: search_cases.make(case_of(form, **fields))[0]
dense_scores = lambda adaptation, gallery_ND: in_float64(adaptation, gallery_ND)[0]


@pytest.fixture
def adaptation():
  return make("adaptive")


@pytest.fixture
def gallery_ND():
  return features(50, 24, 1)


@pytest.mark.compile
@settings(max_examples=150, deadline=None, print_blob=True)
@given(
  form=st.sampled_from([*FORMS]),
  gate=st.sampled_from([None, None, "holes", "steep"]),
  factors=st.sampled_from(AWKWARD),
  gallery=st.sampled_from(["random", "copies", "equal", "near blind", "axes"]),
  dtype=st.sampled_from(CHOICES["dtype"]),
  place=st.sampled_from(["host", "device", "elsewhere"]),
  items=st.integers(1, 256),
  k=st.sampled_from([1, 3, 8, 50, 500]),
  mask=st.sampled_from(CHOICES["mask"]),
  seed=st.integers(0, 2**31),
)
@example(  # lengths of 0, and no threshold yet
  form="plain",
  gate="holes",
  factors="random",
  gallery="axes",
  dtype="float32",
  place="device",
  items=1,
  k=1,
  mask="nothing",
  seed=0,
)
def test_the_ranking_is_that_of_dense_float64_scores(form, gate, place, items, **fields):
  if place != "host":  # a device array's shape is compiled for: few of them
    items = 64 if items < 200 else 256
  case = case_of(form, place=place, items=items, queries=4, **fields)
  check(dataclasses.replace(case, gate=gate or case.gate))


def test_equal_items_come_in_the_order_of_their_ids():
  adaptation = make("adaptive", queries=QUERIES)
  few_ND = features(7, WIDTH, 0)
  gallery_ND = np.tile(few_ND, (40, 1))
  for gallery in (gallery_ND, jnp.asarray(gallery_ND)):
    ranking = scoring.rank(adaptation, gallery, 90)
    assert (np.sort(ranking.ids[:, :40] // 7) == np.arange(40)).all()
    assert (np.diff(ranking.ids[:, :40]) == 7).all()
    assert (np.diff(ranking.ids[:, 40:80]) == 7).all()
    assert (ranking.scores[:, 0] == ranking.scores[:, 39]).all()


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", ["plain", "iterated", "gated"])
def test_one_device_and_four_give_the_same(form, dtype):
  adaptation, gallery_ND = make(form, queries=QUERIES), features(1024, WIDTH, 2).astype(dtype)
  mesh = jax.make_mesh((4,), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("gallery", None))
  masks = {"exclude": np.arange(QUERIES), "allowed": np.arange(0, 1024, 2)}
  with elsewhere():
    one = scoring.rank(adaptation, jnp.asarray(gallery_ND), 20, **masks)
    sharded = scoring.rank(adaptation, jax.device_put(gallery_ND, rows), 20, **masks)
    streamed = scoring.rank(adaptation, gallery_ND, 20, devices=jax.devices(), chunk_rows=128, **masks)
  for other in (sharded, streamed):
    np.testing.assert_array_equal(other.ids, one.ids)
    np.testing.assert_allclose(other.scores, one.scores, atol=1e-6)


@pytest.mark.parametrize("form", ["adaptive", "iterated", "paper", "gated", "both"])
def test_scores_are_the_cosines_of_the_dense_map(form):
  adaptation, gallery_ND = make(form), features(50, 24, 1)
  np.testing.assert_allclose(scoring.score(adaptation, gallery_ND), dense_scores(adaptation, gallery_ND), atol=2e-6)


def test_scores_have_finite_gradients_even_where_the_map_is_zero():
  adaptation, gallery_ND = make("paper", factors="nothing"), features(50, 24, 1)
  gradient = jax.grad(lambda a: scoring.score(a, gallery_ND).sum())(adaptation)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_reranking_everything_is_ranking(adaptation, gallery_ND):
  ranking = scoring.rank(adaptation, gallery_ND, 50)
  shuffled_QS = np.stack([np.random.default_rng(i).permutation(50) for i in range(3)])
  reranked = scoring.rerank(adaptation, gallery_ND, shuffled_QS)
  np.testing.assert_array_equal(reranked.ids, ranking.ids)
  np.testing.assert_allclose(reranked.scores, ranking.scores, atol=1e-6)


def test_a_query_finds_of_its_own_list_what_it_does_not_exclude(adaptation, gallery_ND):
  masks = {"allowed": np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), "exclude": np.array([2, 5, 9])}
  ids_QK = scoring.rank(adaptation, gallery_ND, 3, **masks).ids
  np.testing.assert_array_equal(np.sort(ids_QK, axis=1), [[-1, 1, 3], [-1, 4, 6], [-1, 7, 8]])


def test_a_shortlist_may_be_padded_and_repeat_itself(adaptation, gallery_ND):
  shortlist_QS = np.array([[4, -1, 9, 4, 4], [-1, -1, -1, -1, -1], [3, 2, 1, 0, 5]])
  ranking = scoring.rerank(adaptation, gallery_ND, shortlist_QS)
  assert set(ranking.ids[0]) == {4, 9, -1}
  np.testing.assert_array_equal(ranking.ids[0, 2:], -1)
  np.testing.assert_array_equal(ranking.scores[1], -np.inf)
  np.testing.assert_array_equal(scoring.rerank(adaptation, gallery_ND, ranking, k=2).ids, ranking.ids[:, :2])
  np.testing.assert_array_equal(shortlist_QS[0], [4, -1, 9, 4, 4])


def test_shortlists_of_many_lengths_compile_a_few_times_only(adaptation, gallery_ND):
  for length in (16, 32):
    scoring.rerank(adaptation, gallery_ND, np.zeros((3, length), int))
  before = scores._by_chunks._cache_size()
  for length in range(3, 33):
    scoring.rerank(adaptation, gallery_ND, np.zeros((3, length), int))
  assert scores._by_chunks._cache_size() == before


def test_what_cannot_be_ranked_is_refused_before_any_work(adaptation, gallery_ND):
  broken_ND, long_ND = gallery_ND.copy(), 2 * gallery_ND
  broken_ND[17, 3] = np.nan
  bad_QDR = adaptation.left.copy()
  bad_QDR[1, 0, 0] = np.nan
  for arguments, words in [
    ((adaptation, gallery_ND[:, :8]), "the gallery is 8 wide, the adaptation 24"),
    ((adaptation, gallery_ND[:0]), "gallery is empty"),
    ((adaptation, gallery_ND, 0), "k is 0"),
    ((adaptation.replace(left=bad_QDR), gallery_ND), "adaptation of query 1 has NaN"),
    ((adaptation, broken_ND), "item 17 is NaN"),
    ((adaptation, long_ND), "item 0 has length 2, wanted 1"),
    ((adaptation, jnp.asarray(broken_ND)), "item 17 is NaN"),
    ((adaptation, jnp.asarray(long_ND)), "item 0 has length 2, wanted 1"),
  ]:
    with pytest.raises(ValueError, match=words):
      scoring.rank(*arguments)
  for masks, words in [
    ({"exclude": np.array([1, 2, 50])}, "exclude holds positions 1 to 50"),
    ({"exclude": np.zeros((2, 1), int)}, "one row for each of 3 queries"),
    ({"exclude": np.zeros(3)}, "give gallery positions as integers"),
    ({"allowed": np.ones(7, bool)}, "wanted .50,."),
  ]:
    with pytest.raises(ValueError, match=words):
      scoring.rank(adaptation, gallery_ND, **masks)
  for shortlist, words in [
    (np.zeros((2, 4), int), "one row for each of 3 queries"),
    (np.full((3, 4), 50), "50 to 50; the gallery has 50 items"),
    (np.zeros((3, 4)), "wanted integers"),
  ]:
    with pytest.raises(ValueError, match=words):
      scoring.rerank(adaptation, gallery_ND, shortlist)


MANY_THREADS = """
import concurrent.futures
import numpy as np
import qat_jax
from eval.speed.tools import make_adaptation, make_gallery

adaptation, gallery_ND = make_adaptation(4, 512, 64, 0.5 * 0.7 ** np.arange(64)), make_gallery(2000, 512, "float32")
galleries = [gallery_ND, np.asarray(gallery_ND)]
expected_QK = qat_jax.rank(adaptation, gallery_ND, 20).ids
with concurrent.futures.ThreadPoolExecutor(4) as pool:
  for ids_QK in pool.map(lambda i: qat_jax.rank(adaptation, galleries[i % 2], 20).ids, range(100)):
    assert (ids_QK == expected_QK).all()
"""


def test_many_threads_may_rank_at_once():
  """Where eigenproblems run side by side, two cores hang: in a process of its own, that can be given up."""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, "-c", MANY_THREADS], capture_output=True, text=True, timeout=240, env=environment
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("k", [2.5, "5", None, [3]])
def test_a_k_that_is_no_whole_number_is_refused(k, adaptation, gallery_ND):
  with pytest.raises(TypeError, match="must be a whole number"):
    scoring.rank(adaptation, gallery_ND, k)
  assert scoring.rank(adaptation, gallery_ND, np.int64(3)).ids.shape == (3, 3)


def test_what_is_no_adaptation_or_no_gallery_is_refused(adaptation, gallery_ND):
  with pytest.raises(TypeError, match="the adaptation is a ndarray; give what an adapter returns"):
    scoring.rank(adaptation.query, gallery_ND)
  with pytest.raises(TypeError, match="the gallery is a list"):
    scoring.rank(adaptation, gallery_ND.tolist())


def test_unsigned_and_long_positions_make_a_shortlist(adaptation, gallery_ND):
  shortlist_QS = np.array([[4, 9, 40], [1, 2, 3], [49, 0, 5]])
  expected = scoring.rerank(adaptation, gallery_ND, shortlist_QS)
  for kind in (np.uint8, np.uint32, np.uint64, np.int16):
    np.testing.assert_array_equal(scoring.rerank(adaptation, gallery_ND, shortlist_QS.astype(kind)).ids, expected.ids)


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_a_broken_item_of_a_shortlist_is_named(place, adaptation, gallery_ND):
  gallery_ND[17, 3] = np.nan
  with pytest.raises(ValueError, match="item 17 is NaN"):
    scoring.rerank(adaptation, place(gallery_ND), np.array([[3, 17, 5]] * 3))


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_second_call_compiles_nothing(queries, sharded):
  adaptation, gallery_ND = make("adaptive", queries=queries), jnp.asarray(features(8192, 24, 1))
  if sharded:
    mesh = jax.make_mesh((4,), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,))
    gallery_ND = jax.device_put(gallery_ND, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("gallery")))
  scoring.rank(adaptation, gallery_ND, 10)
  compiled: list[str] = []
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
  try:
    scoring.rank(adaptation, gallery_ND, 10)
  finally:
    jax.monitoring.clear_event_listeners()
  assert not [name for name in compiled if "backend_compile" in name]

"""Rankings of groups against a slow program in float64: ties, masks, groups over parts and shards, few groups."""

import functools
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_jax.features.store import write_features
from qat_jax.search.grouping import grouped, groups_of
from qat_jax.search.rank import rank
from qat_jax.search.sums import Term, rank_sum
from qat_jax.types import Ranking, as_gallery
from tests.faults import search_cases
from tests.faults.search import elsewhere
from tests.qat_jax.search.rank_test import case_of, dense_scores, make
from tests.vectors import features

SLACK = 2e-6


def check(ranking: Ranking, exact_QN: np.ndarray, group_N: np.ndarray, k: int) -> None:
  assert ranking.ids.shape == ranking.scores.shape == (len(exact_QN), k)
  for ids_K, score_K, exact_N in zip(ranking.ids, ranking.scores, exact_QN, strict=True):
    best = {g: exact_N[group_N == g].max() for g in np.unique(group_N[np.isfinite(exact_N)])}
    found = min(k, len(best))
    assert (ids_K[found:] == -1).all()
    assert (score_K[found:] == -np.inf).all()
    ids_K, score_K = ids_K[:found], score_K[:found]
    assert (ids_K >= 0).all()
    own = group_N[ids_K].tolist()
    assert len(set(own)) == found
    np.testing.assert_allclose(score_K, exact_N[ids_K], rtol=0, atol=SLACK)
    np.testing.assert_allclose(score_K, [best[g] for g in own], rtol=0, atol=SLACK)
    assert (np.diff(score_K) <= 0).all()
    assert (np.diff(ids_K)[np.diff(score_K) == 0] > 0).all()
    assert max((best[g] for g in best.keys() - set(own)), default=-2) <= min(score_K, default=2) + SLACK


@pytest.mark.compile
@settings(max_examples=120, deadline=None, print_blob=True)
@given(
  form=st.sampled_from(["plain", "adaptive", "iterated", "gated", "signed"]),
  place=st.sampled_from(["host", "chunks", "shards", "accelerator"]),
  groups=st.sampled_from([1, 3, 17, 64, 500]),
  k=st.sampled_from([1, 3, 8, 50, 500]),
  mask=st.sampled_from(["nothing", "exclude", "lists", "flags", "both"]),
  gallery=st.sampled_from(["random", "copies"]),  # of which there are ties over groups
  seed=st.integers(0, 2**31),
)
def test_the_groups_are_those_of_dense_float64_scores(form, place, groups, k, mask, gallery, seed):
  case = case_of(form, seed=seed, queries=4, items=512, gallery=gallery, mask=mask)
  adaptation, gallery_ND, masks, wanted_QN = search_cases.make(case)
  group_N = np.random.default_rng(seed).integers(0, groups, case.items)
  if seed % 2:
    group_N = np.sort(group_N)  # as tiles lie
  call = functools.partial(rank, adaptation, k=k, group=group_N, **masks)
  if place == "accelerator":
    with elsewhere():
      ranking = call(gallery=jnp.asarray(gallery_ND))
  elif place == "shards":
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("gallery",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("gallery", None))
    ranking = call(gallery=jax.device_put(gallery_ND, rows))
  else:
    ranking = call(gallery=gallery_ND, chunk_rows=128 if place == "chunks" else None)
  check(ranking, np.where(wanted_QN, dense_scores(adaptation, gallery_ND), -np.inf), group_N, k)


def test_what_cannot_rank_groups_by_itself_is_asked_for_more_until_there_are_enough():
  rng = np.random.default_rng(0)
  adaptation, gallery_ND, group_N = make("adaptive"), features(400, 24, rng), np.sort(rng.integers(0, 30, 400))
  exact_QN = dense_scores(adaptation, gallery_ND)
  depths = []

  def fetch(depth):
    depths.append(depth)
    return rank(adaptation, gallery_ND, depth)

  for k in (1, 10, 30, 50):
    check(grouped(fetch, k, groups_of(group_N, as_gallery(gallery_ND))), exact_QN, group_N, k)
  assert depths[0] == 4  # no more than it takes
  terms = [Term(adaptation, gallery_ND, 0.5), Term(make("gated"), gallery_ND, 0.5)]
  both_QN = (exact_QN + dense_scores(make("gated"), gallery_ND)) / 2
  ranking, proven_Q = rank_sum(terms, 10, group=group_N)
  assert proven_Q.all()
  check(ranking, both_QN, group_N, 10)


def test_an_index_that_knows_items_by_ids_of_its_own_is_grouped_by_them():
  names = [uuid.UUID(int=i) for i in range(5)]
  ids_QK = np.array([names], object)
  fetch = lambda depth: Ranking(ids_QK[:, :depth], np.arange(5, 0, -1, np.float32)[None, :depth])
  ranking = grouped(fetch, 3, {names[0]: "a", names[1]: "a", names[2]: "b", names[3]: "b"})
  assert ranking.ids.tolist() == [[names[0], names[2], names[4]]]  # the last is in no group
  assert grouped(fetch, 4, dict.fromkeys(names, "a")).ids.tolist() == [[names[0], None, None, None]]


def test_a_column_names_the_groups_and_items_without_a_value_stand_for_themselves(tmp_path):
  gallery_ND = features(6, 24, 0)
  columns = {"id": list("abcdef"), "picture": ["p", "p", None, None, "q", "q"], "number": [7, 7, 8, 9, 9, 8]}
  store = write_features(tmp_path / "tiles", {"img": gallery_ND}, columns)
  assert len(set(groups_of("picture", store).tolist())) == 4
  assert len(set(groups_of([1.0, 1.0, np.nan, np.nan, 2.0, 2.0], store).tolist())) == 4
  assert len(set(groups_of([-1, -1, 7, 7, 700, 700], store).tolist())) == 4
  ranking = rank(make("plain"), store, 6, group="picture")
  check(ranking, dense_scores(make("plain"), gallery_ND), np.array([0, 0, 1, 2, 3, 3]), 6)
  with pytest.raises(KeyError, match="no metadata column 'page'"):
    rank(make("plain"), store, group="page")
  with pytest.raises(TypeError, match="without columns; give a value for each item"):
    rank(make("plain"), gallery_ND, group="picture")
  with pytest.raises(ValueError, match=r"group has shape \(5,\); wanted \(6,\)"):
    rank(make("plain"), gallery_ND, group=np.arange(5))

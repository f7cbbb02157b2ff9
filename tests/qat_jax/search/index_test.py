import json

import numpy as np
import pytest

from qat_jax.search.index import ExactIndex, ScannIndex

BOTH = pytest.mark.parametrize("index_type", [ExactIndex, ScannIndex])


def features(rows: int, width: int = 32, seed: int = 0) -> np.ndarray:
  x = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@BOTH
def test_every_inner_product_of_a_small_gallery_is_compared(index_type):
  gallery_ND, query_QD = features(500), 3 * features(4, seed=1)
  ranking = index_type.build(gallery_ND).search(query_QD, 10)
  score_QN = query_QD @ gallery_ND.T
  expected_QK = np.argsort(-score_QN, axis=1)[:, :10]
  np.testing.assert_array_equal(ranking.ids, expected_QK)
  np.testing.assert_allclose(ranking.scores, np.take_along_axis(score_QN, expected_QK, 1), atol=1e-5)
  assert ranking.ids.dtype == np.int32
  assert ranking.scores.dtype == np.float32


@BOTH
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_more_items_than_there_are_come_back_as_minus_one(index_type, dtype):
  ranking = index_type.build(features(3).astype(dtype)).search(features(2, seed=1), 5)
  assert ranking.ids.shape == (2, 5)
  np.testing.assert_array_equal(np.sort(ranking.ids[:, :3]), [[0, 1, 2]] * 2)
  np.testing.assert_array_equal(ranking.ids[:, 3:], -1)
  np.testing.assert_array_equal(ranking.scores[:, 3:], -np.inf)


@BOTH
def test_a_saved_index_answers_the_same_after_its_folder_moved(index_type, tmp_path):
  index = index_type.build(features(300))
  index.save(tmp_path / "old")
  (tmp_path / "old").rename(tmp_path / "new")
  query_QD = features(4, seed=1)
  before, after = index.search(query_QD, 7), index_type.load(tmp_path / "new").search(query_QD, 7)
  np.testing.assert_array_equal(after.ids, before.ids)
  np.testing.assert_array_equal(after.scores, before.scores)
  assert json.loads((tmp_path / "new" / "index.json").read_text())["space"] == "frozen"


@BOTH
def test_an_index_says_what_is_wrong(index_type, tmp_path):
  with pytest.raises(ValueError, match="empty"):
    index_type.build(features(0))
  index = index_type.build(features(5))
  with pytest.raises(ValueError, match="k is 0"):
    index.search(features(2), 0)
  with pytest.raises(ValueError, match="32 wide"):
    index.search(features(2, width=16), 3)
  broken_QD = features(3)
  broken_QD[1, 4] = np.nan
  with pytest.raises(ValueError, match="query 1 has NaN"):
    index.search(broken_QD, 3)
  with pytest.raises(FileNotFoundError, match="no index in"):
    index_type.load(tmp_path / "nothing")


def test_an_index_of_the_other_kind_is_refused(tmp_path):
  ExactIndex.build(features(5)).save(tmp_path / "index")
  with pytest.raises(ValueError, match="'exact', not 'scann'"):
    ScannIndex.load(tmp_path / "index")


def test_a_large_gallery_is_partitioned_and_still_finds_most():
  gallery_ND, query_QD = features(25_000, width=16), features(20, width=16, seed=1)
  exact, scann = ExactIndex.build(gallery_ND), ScannIndex.build(gallery_ND, leaves_searched=0.3)
  pairs = zip(exact.search(query_QD, 10).ids, scann.search(query_QD, 10).ids, strict=True)
  found = np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])
  assert found > 0.7

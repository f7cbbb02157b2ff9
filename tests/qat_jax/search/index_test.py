import functools
import itertools
import json
import uuid

import numpy as np
import pytest

import qat_jax
from qat_jax.search.index import ExactIndex
from qat_jax.search.indexes.faiss import FaissIndex
from qat_jax.search.indexes.lancedb import LanceIndex
from qat_jax.search.indexes.pgvector import PgvectorIndex
from qat_jax.search.indexes.qdrant import QdrantIndex
from qat_jax.search.indexes.scann import ScannIndex
from qat_jax.search.indexes.table import INDEXES
from qat_jax.types import ArrayGallery
from tests import vectors

SAVED = [name for name, kind in INDEXES.items() if kind.saved]
OWN_IDS = [name for name, kind in INDEXES.items() if kind.own_ids]
FETCHES = [name for name, kind in INDEXES.items() if kind.fetches]

_number = itertools.count()

features = functools.partial(vectors.features, width=32)


class Maker:
  """Builds indexes of one kind, each in a place of its own, and opens them again from there."""

  def __init__(self, kind, folder, request):
    self.kind, self.type, self.folder, self.request = kind, INDEXES[kind].type, folder, request

  def where(self, name, stays=False):
    if self.kind == "pgvector":
      return {"location": self.request.getfixturevalue("postgres"), "table": name}
    if self.kind == "qdrant":  # which writes a hundred items a second to a folder
      return {"location": str(self.folder / name) if stays else ":memory:", "collection": name}
    return {"location": str(self.folder / name), "table": name}

  def __call__(self, gallery, stays=False, **options):
    place = {} if self.kind in SAVED else self.where(f"g{next(_number)}", stays)
    index = self.type.build(gallery, **place, **options)
    index.place = place
    return index

  def again(self, index):
    """Returns what another process would have: from a folder that moved, or by connecting."""
    if self.kind in SAVED:
      index.save(self.folder / "old")
      (self.folder / "old").rename(self.folder / "new")
      return self.type.load(self.folder / "new")
    if self.kind == "qdrant":
      index.client.close()  # the embedded mode lets one client in
    return self.type.connect(**index.place)


@pytest.fixture(params=INDEXES)
def make(request, tmp_path):
  for package in INDEXES[request.param].packages:
    pytest.importorskip(package, reason=f"pip install 'qat-jax[{request.param}]'")
  return Maker(request.param, tmp_path, request)


def of(*kinds):
  return pytest.mark.parametrize("make", kinds, indirect=True)


def best(query_QD, gallery_ND, k):
  score_QN = query_QD @ gallery_ND.T
  expected_QK = np.argsort(-score_QN, axis=1)[:, :k]
  return expected_QK, np.take_along_axis(score_QN, expected_QK, 1)


def test_every_inner_product_of_a_small_gallery_is_compared(make):
  gallery_ND, query_QD = features(500), 3 * features(4, seed=1)
  ranking = make(gallery_ND).search(query_QD, 10)
  expected_QK, score_QK = best(query_QD, gallery_ND, 10)
  np.testing.assert_array_equal(ranking.ids, expected_QK)
  np.testing.assert_allclose(ranking.scores, score_QK, atol=1e-5)
  assert ranking.ids.dtype == (np.int64 if make.kind in OWN_IDS else np.int32)
  assert ranking.scores.dtype == np.float32


def test_an_index_is_as_wide_as_its_gallery_whatever_the_length_of_queries(make):
  gallery_ND, query_QD = features(40, width=9), 0.01 * features(1, width=9, seed=1)
  index = make(gallery_ND)
  assert index.width == 9
  np.testing.assert_allclose(index.search(query_QD, 3).scores, best(query_QD, gallery_ND, 3)[1], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_more_items_than_there_are_come_back_as_minus_one(make, dtype):
  ranking = make(features(3).astype(dtype)).search(features(2, seed=1), 5)
  assert ranking.ids.shape == (2, 5)
  np.testing.assert_array_equal(np.sort(ranking.ids[:, :3]), [[0, 1, 2]] * 2)
  np.testing.assert_array_equal(ranking.ids[:, 3:], -1)
  np.testing.assert_array_equal(ranking.scores[:, 3:], -np.inf)


def test_an_index_answers_the_same_when_it_is_opened_again(make):
  index = make(ArrayGallery(features(60), "mapped-1"), stays=True)
  query_QD = features(4, seed=1)
  before = index.search(query_QD, 7)
  again = make.again(index)
  after = again.search(query_QD, 7)
  np.testing.assert_array_equal(after.ids, before.ids)
  np.testing.assert_array_equal(after.scores, before.scores)
  assert again.space == "mapped-1"
  if make.kind in SAVED:
    assert json.loads((make.folder / "new" / "index.json").read_text())["space"] == "mapped-1"


def test_an_index_says_what_is_wrong(make, tmp_path):
  with pytest.raises(ValueError, match="empty"):
    make(features(0))
  index = make(features(5))
  with pytest.raises(ValueError, match="k is 0"):
    index.search(features(2), 0)
  with pytest.raises(ValueError, match="32 wide"):
    index.search(features(2, width=16), 3)
  broken_QD = features(3)
  broken_QD[1, 4] = np.nan
  with pytest.raises(ValueError, match="query 1 has NaN"):
    index.search(broken_QD, 3)
  if make.kind in SAVED:
    with pytest.raises(FileNotFoundError, match="no index in"):
      make.type.load(tmp_path / "nothing")


@of(*OWN_IDS)
def test_a_broken_item_is_named_and_nothing_is_left_of_what_was_begun(make):
  gallery_ND = features(20)
  gallery_ND[13, 2] = np.inf
  place = {} if make.kind in SAVED else make.where("broken", stays=True)
  with pytest.raises(ValueError, match="item 13 is NaN or infinite"):
    make.type.build(gallery_ND, **place)
  if make.kind == "qdrant":  # whose embedded mode holds its folder until the client is collected
    import gc

    gc.collect()
  make.type.build(features(20), **place)


IDS = {
  "int": [7 * i + (1 << 40) for i in range(30)],
  "str": [f"it's {i}%" for i in range(30)],
  "uuid": [uuid.UUID(int=i << 64 | 5) for i in range(30)],
}


@of(*OWN_IDS)
@pytest.mark.parametrize("kind", IDS)
def test_a_gallerys_own_ids_come_back_and_find_its_vectors(make, kind):
  gallery_ND, ids = features(30), IDS[kind]
  index = make(gallery_ND, stays=True, ids=ids)
  wanted = [str(name) for name in ids] if (make.kind, kind) == ("lancedb", "uuid") else ids
  for again in (False, True):
    index = make.again(index) if again else index
    ranking = index.search(gallery_ND[[4, 11]], 2)
    assert ranking.ids[:, 0].tolist() == [wanted[4], wanted[11]]
    assert ranking.ids.dtype == (np.int64 if kind == "int" else object)
    assert index.search(gallery_ND[:1], 31).ids[0, -1] == (-1 if kind == "int" else None)
    np.testing.assert_allclose(index.fetch([ids[11], ids[4]]), gallery_ND[[11, 4]], atol=1e-6)
  with pytest.raises(KeyError, match="search again"):
    index.fetch([{"int": 5, "str": "nobody", "uuid": uuid.UUID(int=1)}[kind]])


@of(*FETCHES)
def test_a_position_that_is_not_there_has_no_vector(make):
  index = make(features(30))
  for position in (-1, 30, 1 << 40):
    with pytest.raises(KeyError, match="search again"):
      index.fetch(np.array([3, position]))


@of(*OWN_IDS)
def test_ids_that_are_no_names_are_refused(make):
  for ids, message in (
    (["a", "b"], "2 ids"),
    (["a", "b", "a"], "'a' occurs twice"),
    ([1, 2, -1], "negative"),
    (["a", 1, 2], "int, str"),
  ):
    with pytest.raises(ValueError, match=message):
      make(features(3), ids=ids)


@of(*FETCHES)
def test_a_shortlist_is_reranked_by_the_vectors_that_the_index_gives_back(make):
  gallery_ND, query_QD = features(200), features(3, seed=1)
  rng = np.random.default_rng(2)
  left_QDR, right_QDR = 0.3 * rng.standard_normal((2, 3, 32, 4)).astype(np.float32)
  adaptation = qat_jax.Adaptation(query_QD, np.ones((3, 1), np.float32), left_QDR, right_QDR)
  names = None if make.kind == "exact" else [f"item {i}" for i in range(200)]
  index = make(gallery_ND) if names is None else make(gallery_ND, ids=names)
  shortlist = index.search(qat_jax.fold(adaptation), 50)
  ranking = qat_jax.rerank(adaptation, index, shortlist, k=60)
  position_QS = shortlist.ids if names is None else np.vectorize(names.index)(shortlist.ids)
  expected = qat_jax.rerank(adaptation, gallery_ND, position_QS, k=60)
  np.testing.assert_allclose(ranking.scores, expected.scores, atol=1e-6)
  own = np.array([*(names or range(200)), -1 if names is None else None], None if names is None else object)
  np.testing.assert_array_equal(ranking.ids, own[expected.ids])
  with pytest.raises(ValueError, match="space 'frozen', the adaptation wants 'mapped-2'"):
    qat_jax.rerank(adaptation.replace(space="mapped-2"), index, shortlist)


def test_a_shortlist_of_nothing_reranks_to_nothing():
  index = ExactIndex.build(features(5))
  ranking = qat_jax.rerank(qat_jax.plain(features(2, seed=1)), index, np.full((2, 3), -1))
  assert (ranking.ids == -1).all() and np.isneginf(ranking.scores).all()


@of("qdrant", "pgvector", "lancedb")
def test_a_filter_is_the_indexs_own_and_holds_before_the_search(make):
  gallery_ND, columns = features(300), {"price": list(range(300)), "colour": ["red", "blue", None] * 100}
  index = make(gallery_ND, columns=columns)
  from qdrant_client import models

  few = {
    "qdrant": models.Filter(
      must=[
        models.FieldCondition(key="price", range=models.Range(lt=30)),
        models.FieldCondition(key="colour", match=models.MatchValue(value="red")),
      ]
    ),
    "pgvector": ("price < %s AND colour = %s", [30, "red"]),
    "lancedb": "price < 30 AND colour = 'red'",
  }[make.kind]
  ranking = index.search(features(2, seed=1), 20, filter=few)
  allowed = np.arange(0, 30, 3)
  expected_QK, score_QK = best(features(2, seed=1), gallery_ND[allowed], 10)
  np.testing.assert_array_equal(ranking.ids[:, :10], allowed[expected_QK])
  np.testing.assert_allclose(ranking.scores[:, :10], score_QK, atol=1e-5)
  assert (ranking.ids[:, 10:] == -1).all()


@of("qdrant", "pgvector", "lancedb")
def test_what_exists_is_never_written_over(make):
  index = make(features(5))
  place = index.place | ({"location": index.client} if make.kind == "qdrant" else {})
  with pytest.raises(ValueError, match="already"):
    make.type.build(features(5), **place)
  assert len(np.unique(index.search(features(1), 5).ids)) == 5
  with pytest.raises(ValueError, match="nobody"):
    make.type.connect(**{name: "nobody" if name in ("table", "collection") else at for name, at in place.items()})


@of("qdrant", "pgvector", "lancedb")
def test_columns_that_do_not_fit_are_refused(make):
  with pytest.raises(ValueError, match="4 rows"):
    make(features(5), columns={"price": [1, 2, 3, 4]})


@pytest.mark.parametrize(
  ("index_type", "package", "place"),
  [
    (ScannIndex, "scann", {}),
    (FaissIndex, "faiss", {}),
    (QdrantIndex, "qdrant_client", {}),
    (PgvectorIndex, "psycopg", {"location": ""}),
    (LanceIndex, "lancedb", {"location": "x"}),
  ],
)
def test_an_index_whose_package_is_missing_says_how_to_install_it(index_type, package, place, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, package, None)
  with pytest.raises(ImportError, match="pip install"):
    index_type.build(features(5), **place)


@of(*SAVED)
def test_a_changed_file_of_a_saved_index_is_named(make):
  make(features(5)).save(make.folder / "index")
  for path in (path for path in (make.folder / "index").rglob("*") if path.is_file() and path.stat().st_size):
    data = path.read_bytes()
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(ValueError, match=f"{path.name} is (not what was written|damaged)"):
      make.type.load(make.folder / "index")
    path.write_bytes(data)
  assert make.type.load(make.folder / "index", verify=False).search(features(1), 2).ids.shape == (1, 2)


def test_an_index_of_the_other_kind_is_refused(tmp_path):
  ExactIndex.build(features(5)).save(tmp_path / "index")
  with pytest.raises(ValueError, match="'exact', not 'scann'"):
    ScannIndex.load(tmp_path / "index")


def test_the_package_exports_every_index_of_the_table():
  assert {kind.type.__name__ for kind in INDEXES.values()} == {
    name for name in qat_jax.__all__ if name.endswith("Index")
  }

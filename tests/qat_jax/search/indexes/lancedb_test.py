import numpy as np
import pyarrow as pa
import pytest

from qat_jax.search.indexes import lancedb as module
from qat_jax.search.indexes.lancedb import LanceIndex
from tests.vectors import features

lancedb = pytest.importorskip("lancedb", reason="pip install 'qat-jax[lancedb]'")


def filled(folder, gallery_ND, ids=None):
  columns = {"name": ids or [f"n{i}" for i in range(len(gallery_ND))], "emb": list(gallery_ND)}
  schema = pa.schema([("name", pa.string()), ("emb", pa.list_(pa.float32(), gallery_ND.shape[1]))])
  return lancedb.connect(folder).create_table("own", pa.table(columns, schema=schema))


NAMED = {"id_column": "name", "vector": "emb"}


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("indexed", [False, True])
def test_every_distance_gives_inner_products(tmp_path, metric, indexed):
  from lancedb.index import IvfFlat

  gallery_ND, query_QD = features(300), 3 * features(4, seed=1)
  table = filled(tmp_path, gallery_ND)
  if indexed:
    table.create_index("emb", config=IvfFlat(distance_type=module.NAMES[metric], num_partitions=4))
  index = LanceIndex.connect(tmp_path, "own", metric=None if indexed else metric, **NAMED)
  assert index.metric == metric
  ranking = index.search(query_QD, 5)
  score_QN = query_QD @ gallery_ND.T
  position_QK = np.vectorize(lambda name: int(name[1:]))(ranking.ids)
  np.testing.assert_array_equal(position_QK, np.argsort(-score_QN, axis=1)[:, :5])
  np.testing.assert_allclose(ranking.scores, np.take_along_axis(score_QN, position_QK, 1), atol=1e-5)


def test_a_large_gallery_is_partitioned(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "SMALL", 1000)
  index = LanceIndex.build(features(2000), tmp_path)
  assert {i.index_type for i in index.table.list_indices()} == {"BTree", "IvfFlat"}
  best_QK = np.argsort(-features(20, seed=1) @ features(2000).T, axis=1)[:, :10]
  np.testing.assert_array_equal(index.search(features(20, seed=1), 10).ids, best_QK)
  index.table.create_index("vector", config=lancedb.index.IvfFlat(distance_type="dot", num_partitions=30))
  few, every = (index.search(features(20, seed=1), 10, nprobes=n).ids for n in (1, 30))
  np.testing.assert_array_equal(every, best_QK)
  assert not np.array_equal(few, best_QK)


def test_vectors_that_are_not_unit_or_lack_a_name_of_their_own_are_refused(tmp_path):
  filled(tmp_path, 4 * features(20), ids=["a", "a", *map(str, range(18))])
  with pytest.raises(ValueError, match="vectors of length 4"):
    LanceIndex.connect(tmp_path, "own", **NAMED)
  index = LanceIndex.connect(tmp_path, "own", unit=False, **NAMED)
  assert index.metric == "cosine"
  np.testing.assert_allclose(index.fetch(["3"]), features(20)[[5]], atol=1e-6)
  with pytest.raises(ValueError, match="several rows"):
    index.fetch(["a"])


def test_a_table_without_such_columns_is_refused_with_those_that_it_has(tmp_path):
  filled(tmp_path, features(5))
  with pytest.raises(ValueError, match="the columns name string, emb .* wanted id, and vector"):
    LanceIndex.connect(tmp_path, "own")

import itertools

import numpy as np
import pytest

import qat_jax
from qat_jax.search.indexes.pgvector import PgvectorIndex
from tests.vectors import features

psycopg = pytest.importorskip("psycopg", reason="pip install 'qat-jax[pgvector]'")

_number = itertools.count()


@pytest.fixture
def table():
  return f"own{next(_number)}"


def filled(postgres, table, gallery_ND, kind="vector(16)", index=""):
  with psycopg.connect(postgres) as connection:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(f"CREATE TABLE {table} (name text PRIMARY KEY, emb {kind})")
    rows = [(f"n{i}", str(row.tolist())) for i, row in enumerate(gallery_ND)]
    connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", rows)
    if index:
      connection.execute(f"CREATE INDEX ON {table} USING {index}")


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_every_operator_and_type_gives_inner_products(postgres, table, kind, metric):
  gallery_ND, query_QD = features(300), 3 * features(4, seed=1)
  filled(postgres, table, gallery_ND, f"{kind}(16)", f"hnsw (emb {kind}_{metric}_ops)")
  index = PgvectorIndex.connect(
    postgres, table, id_column="name", vector="emb", settings={"enable_seqscan": "off", "enable_sort": "off"}
  )
  assert index.metric == metric
  ranking = index.search(query_QD, 10)
  score_QN = query_QD @ gallery_ND.T
  position_QK = np.vectorize(lambda name: int(name[1:]))(ranking.ids)
  tolerance = 1e-5 if kind == "vector" else 1e-2
  np.testing.assert_allclose(ranking.scores, np.take_along_axis(score_QN, position_QK, 1), atol=tolerance)
  best_QK = np.argsort(-score_QN, axis=1)[:, :10]
  assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(position_QK, best_QK, strict=True)]) > 0.9
  index.close()


def test_a_graph_gives_as_many_items_as_are_asked_for_under_a_filter_too(postgres, table):
  gallery_ND = features(3000)
  index = PgvectorIndex.build(gallery_ND, postgres, table, columns={"part": [i % 10 for i in range(3000)]}, graph=True)
  index.settings = {"enable_seqscan": "off", "enable_sort": "off"}
  with index._connected() as connection:
    plan = connection.execute(
      f"EXPLAIN SELECT id FROM {table} ORDER BY embedding <#> %s::vector LIMIT 5", ["[" + "0," * 15 + "1]"]
    )
    assert "Index Scan" in str(plan.fetchall())
  ranking = index.search(features(2, seed=1), 500)  # 40 is what pgvector looks at by itself
  assert (ranking.ids >= 0).all()
  assert (np.diff(ranking.scores) <= 0).all()
  assert (index.search(features(2, seed=1), 200, filter=("part = %s", [3])).ids % 10 == 3).all()
  index.close()


def test_vectors_that_are_not_unit_are_refused_until_one_says_so(postgres, table):
  filled(postgres, table, 4 * features(20))
  named = {"id_column": "name", "vector": "emb"}
  with pytest.raises(ValueError, match="vectors of length 4"):
    PgvectorIndex.connect(postgres, table, **named)
  index = PgvectorIndex.connect(postgres, f"public.{table}", unit=False, **named)
  adaptation = qat_jax.plain(features(1, seed=1))
  ranking = qat_jax.rerank(adaptation, index, index.search(qat_jax.fold(adaptation), 20))
  assert [int(n[1:]) for n in ranking.ids[0]] == qat_jax.rank(adaptation, features(20), 20).ids[0].tolist()
  with pytest.raises(ValueError, match="compares distances"):
    PgvectorIndex.connect(postgres, table, unit=False, metric="l2", **named)
  index.close()


def test_what_is_wrong_with_a_table_is_said_in_one_line_and_without_a_password(postgres, table):
  filled(postgres, table, features(5))
  with pytest.raises(ValueError, match=r"the columns name text, emb vector; wanted id, and embedding"):
    PgvectorIndex.connect(postgres, table)
  index = PgvectorIndex.connect(postgres, table, id_column="name", vector="emb")
  with pytest.raises(ValueError, match='PostgreSQL: column "price" does not exist'):
    index.search(features(1), 3, filter="price < 3")
  assert index.search(features(1), 3).ids[0, 0] == "n0"  # the connection lives on
  with psycopg.connect(postgres) as connection:
    connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
    connection.execute(f"INSERT INTO {table} SELECT * FROM {table}")
  with pytest.raises(ValueError, match="name several rows"):
    index.fetch(["n1"])
  with pytest.raises(ConnectionError) as caught:
    PgvectorIndex.connect("postgresql://me:secret@127.0.0.1:1/nothing", "t")
  assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
  index.close()


def test_a_connection_that_the_server_ended_is_made_anew(postgres, table):
  index = PgvectorIndex.build(features(20), postgres, table)
  with psycopg.connect(postgres, autocommit=True) as other:
    other.execute(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = 'idle'"
    )
  with pytest.raises(ConnectionError, match="terminat"):
    index.search(features(1), 3)
  assert index.search(features(1), 3).ids[0, 0] == 0
  index.close()


def test_too_wide_for_a_graph_is_said_before_anything_is_written(postgres, table):
  with pytest.raises(ValueError, match="2000 dimensions, the gallery has 2001"):
    PgvectorIndex.build(np.eye(2, 2001, dtype=np.float32), postgres, table, graph=True)


@pytest.mark.parametrize(
  ("filter", "expected"),
  [
    ("name LIKE 'mug%'", {0, 1, 2}),
    ("name LIKE 'mug_%'", {1, 2}),
    (r"name LIKE 'mug\_%'", {1}),
    (r"name = 'a\b'", {3}),
    ("name = 'it''s 50%'", {4}),
    ('"name" = \'say "hi" {x}\'', {5}),
    ("id % 2 = 1 AND name LIKE '%u%s'", set()),
    (("name LIKE %s", ["mug%"]), {0, 1, 2}),
    (("name LIKE 'mug%%' AND id = %s", [2]), {2}),
    (("name = %s", ["it's 50%"]), {4}),
  ],
)
def test_signs_in_a_condition_mean_what_they_mean_in_sql(postgres, table, filter, expected):
  names = ["mug", "mug_1", "mugs", "a\\b", "it's 50%", 'say "hi" {x}']
  index = PgvectorIndex.build(features(6), postgres, table, columns={"name": names})
  ids = index.search(features(1), 6, filter=filter).ids[0]
  assert set(ids.tolist()) - {-1} == expected
  index.close()

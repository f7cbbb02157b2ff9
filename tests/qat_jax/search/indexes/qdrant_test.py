import subprocess
import sys
import uuid

import numpy as np
import pytest

import qat_jax
from qat_jax.search.indexes.qdrant import QdrantIndex
from tests.vectors import features

qdrant = pytest.importorskip("qdrant_client", reason="pip install 'qat-jax[qdrant]'")
models = qdrant.models


@pytest.fixture
def client():
  client = qdrant.QdrantClient(":memory:")
  yield client
  client.close()


def filled(client, config, gallery_ND, **options):
  client.create_collection("own", vectors_config=config)
  ids = options.pop("ids", list(range(len(gallery_ND))))
  client.upsert("own", points=models.Batch(ids=ids, vectors=options.pop("vectors", gallery_ND.tolist()), **options))


@pytest.mark.parametrize("distance", ["Dot", "Cosine", "Euclid"])
def test_every_kind_of_collection_gives_inner_products(client, distance):
  gallery_ND, query_QD = features(100), 3 * features(3, seed=1)
  filled(client, models.VectorParams(size=16, distance=distance), gallery_ND)
  ranking = QdrantIndex.connect(client, "own").search(query_QD, 5)
  score_QN = query_QD @ gallery_ND.T
  np.testing.assert_array_equal(ranking.ids, np.argsort(-score_QN, axis=1)[:, :5])
  np.testing.assert_allclose(ranking.scores, np.take_along_axis(score_QN, ranking.ids, 1), atol=1e-5)


def test_a_cosine_collection_of_any_vectors_serves_as_it_normalised_them(client):
  gallery_ND = features(50)
  lengths = np.linspace(0.5, 9, 50, dtype=np.float32)[:, None]
  filled(client, models.VectorParams(size=16, distance="Cosine"), lengths * gallery_ND)
  index = QdrantIndex.connect(client, "own")
  adaptation = qat_jax.plain(features(2, seed=1))
  ranking = qat_jax.rerank(adaptation, index, index.search(qat_jax.fold(adaptation), 50))
  np.testing.assert_array_equal(ranking.ids, qat_jax.rank(adaptation, gallery_ND, 50).ids)


def test_other_vectors_are_refused_until_one_says_that_they_are_not_unit(client):
  filled(client, models.VectorParams(size=16, distance="Dot"), 4 * features(5))
  with pytest.raises(ValueError, match="vectors of length 4"):
    QdrantIndex.connect(client, "own")
  index = QdrantIndex.connect(client, "own", unit=False)
  np.testing.assert_allclose(index.fetch([2]), features(5)[[2]], atol=1e-6)


def test_a_named_vector_and_a_field_of_the_payload_that_names_items(client):
  gallery_ND = features(30)
  both = {name: models.VectorParams(size=16, distance="Dot") for name in ("image", "text")}
  vectors = {"image": gallery_ND.tolist(), "text": features(30, seed=2).tolist()}
  filled(client, both, gallery_ND, vectors=vectors, payloads=[{"sku": f"s{i}"} for i in range(30)])
  index = QdrantIndex.connect(client, "own", vector="image", id_field="sku")
  assert index.search(gallery_ND[[7]], 1).ids.tolist() == [["s7"]]
  np.testing.assert_allclose(index.fetch(["s3", "s9"]), gallery_ND[[3, 9]], atol=1e-6)
  with pytest.raises(ValueError, match=r"vector=\['image', 'text'\]"):
    QdrantIndex.connect(client, "own")
  with pytest.raises(ValueError, match="no field 'nothing'"):
    QdrantIndex.connect(client, "own", vector="image", id_field="nothing")


def test_numbers_and_uuids_may_be_mixed(client):
  names = [5, str(uuid.UUID(int=9)), 2**64 - 1]
  filled(client, models.VectorParams(size=16, distance="Dot"), features(3), ids=names)
  index = QdrantIndex.connect(client, "own")
  assert set(index.search(features(1), 4).ids[0]) == {5, uuid.UUID(int=9), 2**64 - 1, None}
  np.testing.assert_allclose(index.fetch([uuid.UUID(int=9)]), features(3)[[1]], atol=1e-6)


def test_a_collection_that_was_not_written_to_its_end_is_refused(client, monkeypatch):
  monkeypatch.setattr(client, "update_collection", lambda *_, **__: None)  # as if it had been killed before
  QdrantIndex.build(features(5), client, "own")
  with pytest.raises(ValueError, match="not written to its end"):
    QdrantIndex.connect(client, "own")


@pytest.mark.parametrize(
  ("vectors", "message"),
  [
    (models.VectorParams(size=16, distance="Manhattan"), "distance Manhattan"),
    (
      models.VectorParams(size=16, distance="Dot", multivector_config={"comparator": "max_sim"}),
      "several vectors an item",
    ),
  ],
)
def test_a_collection_that_ranks_otherwise_is_refused(client, vectors, message):
  client.create_collection("own", vectors_config=vectors)
  with pytest.raises(ValueError, match=message):
    QdrantIndex.connect(client, "own")


def test_a_server_that_does_not_answer_is_named_in_one_line():
  with pytest.raises(ConnectionError, match=r"Qdrant \(http://127\.0\.0\.1:1\)") as caught:
    QdrantIndex.connect("http://127.0.0.1:1", "own", check_compatibility=False)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", [None, "sku"])
def test_points_that_lack_the_vector_are_not_found_and_stop_nothing(client, field):
  gallery_ND = features(40)
  params = models.VectorParams(size=16, distance="Cosine")
  client.create_collection("own", vectors_config={"image": params, "text": params})
  points = [
    models.PointStruct(
      id=i,
      vector={"image" if i % 3 else "text": gallery_ND[i].tolist()} if i != 1 else {},
      payload={"sku": f"s{i}"} if i % 3 else {},
    )
    for i in range(40)
  ]
  client.upsert("own", points=points)
  index = QdrantIndex.connect(client, "own", vector="image", id_field=field)
  name = lambda i: i if field is None else f"s{i}"
  there = {name(i) for i in range(2, 40) if i % 3}
  ranking = index.search(gallery_ND[[2, 5]], 40)
  assert [row[0] for row in ranking.ids.tolist()] == [name(2), name(5)]
  assert set(ranking.ids[0].tolist()) - {-1, None} == there
  np.testing.assert_allclose(index.fetch([name(5), name(2)]), gallery_ND[[5, 2]], atol=1e-6)
  with pytest.raises(KeyError, match="has no vector for the id"):
    index.fetch([name(2), name(1)])


def test_a_program_with_a_folder_of_qdrant_ends_without_a_word(tmp_path):
  program = (
    "import numpy as np; from qat_jax.search.indexes.qdrant import QdrantIndex\n"
    f"index = QdrantIndex.build(np.eye(3, 4, dtype='float32'), {str(tmp_path / 'q')!r})"
  )
  run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert run.stderr == ""


def named(client, names):
  points = [models.PointStruct(id=i, vector=ROWS[i], payload={"n": name}) for i, name in enumerate(names)]
  client.create_collection("named", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT))
  client.upsert("named", points=points)
  return QdrantIndex.connect(client, "named", id_field="n")


ROWS = np.eye(4).tolist()


def test_numbers_and_texts_may_name_items_together_and_minus_one_is_a_name_too(client):
  index = named(client, [7, "7", -1, "x'%"])
  ranking = index.search(np.eye(4, dtype=np.float32), 1)
  assert ranking.ids[:, 0].tolist() == [7, "7", -1, "x'%"]
  np.testing.assert_array_equal(index.fetch(["x'%", -1, 7, "7"]), np.eye(4)[[3, 2, 0, 1]])


def test_of_numbers_alone_minus_one_is_no_padding(client):
  ranking = named(client, [7, 8, -1, 9]).search(np.eye(4, dtype=np.float32)[2:3], 5)
  assert (ranking.ids[0, 0], ranking.ids[0, 4]) == (-1, None)


@pytest.mark.parametrize("name", [["a"], {"a": 1}, 1.5, True])
def test_what_is_no_name_is_told_at_once(client, name):
  with pytest.raises(ValueError, match=r"point 3 of 'named' has a (list|dict|float|bool) in 'n'; wanted int or str"):
    named(client, [0, 1, 2, name])


def test_a_condition_that_is_none_of_qdrants_is_named_in_one_line(client):
  with pytest.raises(TypeError, match=r"got a str 'k = 1'; wanted qdrant_client.models.Filter$"):
    named(client, [0, 1, 2, 3]).search(np.eye(4, dtype=np.float32), 1, filter="k = 1")


def test_connecting_makes_no_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"no folder localhost:6333; .*http://localhost:6333"):
    QdrantIndex.connect("localhost:6333", "gallery")
  assert not list(tmp_path.iterdir())

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qat_jax.features.retrieval_set import RetrievalSet, relevance
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.fit.training import Training
from tests.vectors import features


def put(folder, kinds, ids, instances, width=4, meta=None):
  shutil.rmtree(folder, ignore_errors=True)
  by_kind = {kind: features(len(ids), width).astype(np.float16) for kind in kinds}
  columns = {"id": ids} if instances is None else {"id": ids, "instance": pa.array(instances, pa.string())}
  return write_features(folder, by_kind, columns, meta)


def spoil(folder, row, value, kind="img"):
  """Overwrites a row as another program might: the checksums are not looked at when a set is opened."""
  path = folder / f"{kind}_emb/{kind}_emb_0000.npy"
  array = np.load(path)
  array[row] = value
  np.save(path, array)


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "set"
  put(root / "train", ["img", "text"], list("pqrs"), ["A", "A", "B", "C"])
  for split in ("val", "test"):
    put(root / split / "gallery", ["img"], ["g0", "g1", "g2", "g3", "g4"], ["x", "y", "x", None, "x"])
    put(root / split / "text_queries", ["text"], ["t0", "t1", "t2"], ["y", "x", "nowhere"])
    put(root / split / "image_queries", ["img"], ["g2", "other"], ["x", "x"])
  return root


def test_relevant_are_items_of_the_same_instance_but_not_the_query_itself(root):
  split = RetrievalSet.open(root).split("test")
  text, image = split.relevance("text"), split.relevance("image")
  assert [x.tolist() for x in text.positives] == [[1], [0, 2, 4], []]
  assert [x.tolist() for x in text.ignored] == [[], [], []]
  assert [x.tolist() for x in image.positives] == [[0, 4], [0, 2, 4]]
  assert [x.tolist() for x in image.ignored] == [[2], []]
  assert split.without_positives("text") == 1
  assert split.without_positives("image") == 0


def test_a_set_tells_its_parts(root):
  data = RetrievalSet.open(root)
  assert (len(data.train_images), len(data.train_texts), data.width) == (4, 4, 4)
  assert data.query_types == ("text", "image")
  assert len(data.split("val").gallery) == 5
  assert len(data.split("val").queries["text"]) == 3


def put_lists(folder, ids, lists, kind="img"):
  shutil.rmtree(folder, ignore_errors=True)
  columns = {"id": ids, "relevant": lists if isinstance(lists, pa.Array) else pa.array(lists, pa.list_(pa.string()))}
  return write_features(folder, {kind: features(len(ids), 4, 7).astype(np.float16)}, columns)


def test_queries_may_list_what_is_right_for_them_instead_of_an_instance(root):
  for split in ("val", "test"):
    lists = [["g4", "g1", "g4"], ["g2", "g0"], [], None]  # one item twice; one that is the query itself; nothing
    put_lists(root / split / "image_queries", ["a", "g2", "b", "c"], lists)
  put_lists(root / "train/image_queries", ["a", "p"], [["s", "p"], ["p", "q"]])
  data = RetrievalSet.open(root)
  image = data.split("test").relevance("image")
  assert [x.tolist() for x in image.positives] == [[1, 4], [0], [], []]
  assert [x.tolist() for x in image.ignored] == [[], [2], [], []]
  assert data.split("test").without_positives("image") == 2
  training = Training.of(data, "image")
  assert training.relevant is not None
  assert [x.tolist() for x in training.relevant.positives] == [[0, 3], [1]]
  assert [x.tolist() for x in training.relevant.ignored] == [[], [0]]
  assert (len(training.queries), len(training.images), training.pairs) == (2, 4, 2)
  assert Training.of(data, "text").relevant is None
  assert "queries" in data.fingerprint["train"]


def test_a_gallery_needs_no_instances_where_all_its_queries_have_lists(root):
  for split in ("val", "test"):
    shutil.rmtree(root / split / "text_queries")
    put(root / split / "gallery", ["img"], ["g0", "g1"], None)
    put_lists(root / split / "image_queries", ["a"], [["g1"]])
  assert RetrievalSet.open(root).split("val").relevance("image").positives[0].tolist() == [1]
  put(root / "val/image_queries", ["img"], ["a"], ["x"])
  with pytest.raises(ValueError, match=r"val/gallery \(img\) has no metadata column `instance`"):
    RetrievalSet.open(root)


def test_texts_and_one_type_of_queries_may_be_absent(root):
  shutil.rmtree(root / "train/text_emb")
  put(root / "train", ["img"], list("pqrs"), ["A", "A", "B", "C"])
  for split in ("val", "test"):
    shutil.rmtree(root / split / "text_queries")
  data = RetrievalSet.open(root)
  assert data.train_texts is None
  assert data.query_types == ("image",)


def remove(part):
  return lambda root: shutil.rmtree(root / part)


def described(part, **columns):
  return lambda root: pq.write_table(pa.table(columns), root / part / "metadata/metadata_0000.parquet")


def emptied(root):
  described("val/gallery", id=pa.array([], pa.string()), instance=pa.array([], pa.string()))(root)
  np.save(root / "val/gallery/img_emb/img_emb_0000.npy", np.empty((0, 4), np.float16))


def of_two_encoders(root):
  put(root / "train", ["img"], list("pq"), ["A", "A"], meta={"encoder": "clip", "revision": "1"})
  put(root / "val/gallery", ["img"], ["g"], ["x"], meta={"encoder": "clip", "revision": "2"})


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (remove("."), "no folder"),
    (remove("train"), r"has no train/, only \['test', 'val'\]"),
    (remove("test/gallery"), "has no test/gallery/"),
    (remove("test/text_queries"), "different types of queries"),
    (lambda r: [shutil.rmtree(r / "val" / f"{t}_queries") for t in ("text", "image")], "neither text_queries/ nor"),
    (
      lambda r: put(r / "val/text_queries", ["img"], ["t0"], ["x"]),
      r"no text_emb/text_emb_\*\.npy in .*val/text_queries",
    ),
    (
      lambda r: put(r / "train", ["img"], ["p"], None),
      r"train \(img\) has no metadata column `instance`, only \['id'\]",
    ),
    (lambda r: put(r / "train", ["img"], ["p", "q"], ["A", None]), r"1 items have no instance, the first is 'q'"),
    (lambda r: put(r / "test/gallery", ["img"], ["p", "q"], [None, None]), r"2 items have no instance"),
    (lambda r: put(r / "val/gallery", ["img"], ["g"], ["x"], 3), r"val/gallery \(img\) is 3 wide, .*train \(img\) 4"),
    (
      lambda r: put(r / "test/gallery", ["img"], ["g"], ["x"], meta={"space": "mapped-1"}),
      "was prepared by an adapter",
    ),
    (lambda r: spoil(r / "train", 2, np.nan), r"1 items have NaN or infinite features: 'r'"),
    (lambda r: spoil(r / "train", 1, np.inf, "text"), r"train \(text\): 1 items have NaN or infinite features: 'q'"),
    (lambda r: spoil(r / "test/gallery", 3, 0), r"test/gallery \(img\): 1 items have zero features: 'g3'"),
    (
      lambda r: put(r / "test/text_queries", ["text"], ["a", "b"], ["z", "q"]),
      "no query in .*test/text_queries has any",
    ),
    (
      lambda r: put_lists(r / "val/image_queries", ["a", "b"], [["g1", "g9"], ["h", "g9"]]),
      r"`relevant` lists 2 ids that .*val/gallery does not have: 'g9', 'h'; list",
    ),
    (lambda r: put_lists(r / "val/image_queries", ["a"], pa.array(["g1"])), "`relevant` holds string; give each query"),
    (lambda r: put_lists(r / "val/image_queries", ["a"], [[]]), "its `relevant` lists them by id"),
    (lambda r: put_lists(r / "train/image_queries", ["a"], [["p", "g1"]]), r"lists 1 ids that .*train does not have"),
    (
      lambda r: put(r / "train/image_queries", ["img"], ["a"], ["A"]),
      r"train/image_queries \(img\) has no metadata column `relevant`",
    ),
    (described("test/gallery", id=list("abacd"), instance=["x"] * 5), r"gallery: 1 ids occur more than once: 'a'"),
    (described("test/gallery", instance=["x"] * 5), r"has no metadata column `id`, only \['instance'\]"),
    (emptied, r"val/gallery \(img\) is empty"),
    (of_two_encoders, "of the encoder clip@2, .*of clip@1; use one"),
  ],
)
def test_bad_sets_are_refused_with_what_is_wrong(root, damage, words):
  damage(root)
  with pytest.raises((ValueError, FileNotFoundError), match=words):
    RetrievalSet.open(root)


def test_integer_and_text_instances_match(tmp_path):
  gallery = write_features(tmp_path / "g", {"img": features(3, 4)}, {"id": [1, 2, 3], "instance": [10, 20, 10]})
  queries = write_features(tmp_path / "q", {"img": features(2, 4)}, {"id": ["3", "x"], "instance": ["10", "20"]})
  found = relevance(queries, gallery)
  assert [x.tolist() for x in found.positives] == [[0], [1]]
  assert [x.tolist() for x in found.ignored] == [[2], []]


def test_all_items_of_an_instance_are_relevant_wherever_they_lie(tmp_path):
  size, number = 200_000, 1000
  columns = {"id": [f"g{i}" for i in range(size)], "instance": [f"x{i % 50_000}" for i in range(size)]}
  gallery = write_features(tmp_path / "g", {"img": np.ones((size, 1), np.float16)}, columns)
  columns = {"id": [f"q{i}" for i in range(number)], "instance": [f"x{i}" for i in range(number)]}
  queries = write_features(tmp_path / "q", {"img": np.ones((number, 1), np.float16)}, columns)
  found = relevance(queries, FeatureStore.open(gallery.folder))
  assert found.positives[7].tolist() == [7, 50_007, 100_007, 150_007]

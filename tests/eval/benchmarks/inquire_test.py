"""INQUIRE from CSV files in its official form."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.benchmarks.inquire import Inquire
from eval.benchmarks.task import with_features
from qat_jax.features.store import FeatureStore
from qat_jax.types import Ranking

PHOTOS = [f"train/0000{i % 3}_Animalia/{i:02x}" for i in range(12)]  # as in the embeddings' metadata: no ending


@pytest.fixture
def root(tmp_path):
  (tmp_path / "inquire_queries_test.csv").write_text(
    ",query_id,query_text,supercategory,category,iconic_group\n"
    '3,8,leopard on a road,Context,Human Impact,Mammals\n7,15,"wolf, howling",Behavior,Social,Mammals\n'
  )
  lines = [f"{query},{PHOTOS[i]}.jpg" for query, items in ((8, (1, 4)), (15, (2, 3, 5)), (99, (0,))) for i in items]
  (tmp_path / "inquire_annotations.csv").write_text("\n".join(["query_id,image_path", *lines]) + "\n")
  lines = [f"{query},{PHOTOS[i]}.jpg" for query, items in ((8, (0, 1, 2, 3)), (15, (2, 6, 7, 3))) for i in items]
  (tmp_path / "inquire_rerank.csv").write_text("\n".join(["query_id,image_path", *lines]) + "\n")
  return tmp_path


def ranking(*rows):
  ids_QK = np.array(rows)
  return Ranking(ids_QK, np.broadcast_to(-np.arange(ids_QK.shape[1], dtype=float), ids_QK.shape))


def test_full_rank_figures_are_those_worked_by_hand(root):
  benchmark = Inquire.open(root)
  assert benchmark.texts == ["leopard on a road", "wolf, howling"]
  task = benchmark.full_rank(PHOTOS, k=4)
  figures = task.score(ranking([1, 0, 4, 2, 3], [0, 2, 1, 4, 5]))
  # query 8: hits at 1 and 3 of two; query 15: a hit at 2 of three; the fifth place is beyond k
  assert figures["map"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + (1 / 2) / 3) / 2)
  assert figures["mrr"] == pytest.approx((1 + 1 / 2) / 2)
  assert figures["precision"] == pytest.approx(100 * (2 / 4 + 1 / 4) / 2)
  assert figures["recall"] == pytest.approx(100 * (1 + 1 / 3) / 2)
  two, three = 1 + 1 / np.log2(3), 1 + 1 / np.log2(3) + 1 / 2
  assert figures["ndcg"] == pytest.approx(100 * ((1 + 1 / 2) / two + (1 / np.log2(3)) / three) / 2)
  assert figures["queries"] == 2


def test_the_rerank_set_counts_only_its_own_photos(root):
  task, candidates_QK = Inquire.open(root).rerank_set(PHOTOS)
  np.testing.assert_array_equal(candidates_QK, [[0, 1, 2, 3], [2, 6, 7, 3]])
  assert [p.tolist() for p in task.relevance.positives] == [[1], [2, 3]]
  assert task.score(ranking([1, 0, 2, 3], [2, 3, 6, 7]))["map"] == pytest.approx(100)


@pytest.mark.parametrize("image", ["file_name", "inat24_file_name"])
def test_the_rerank_set_is_read_by_query_text_and_its_own_labels_too(root, image):
  rows = [(text, i) for text, items in (("leopard on a road", (0, 1)), ("wolf, howling", (2, 6))) for i in items]
  lines = [f'{n},"{text}",{PHOTOS[i]}.jpg,{int(i in (0, 6))}' for n, (text, i) in enumerate([*rows, ("other", 3)])]
  (root / "inquire_rerank.csv").write_text("\n".join([f",query,{image},relevant", *lines]) + "\n")
  task, candidates_QK = Inquire.open(root).rerank_set(PHOTOS)
  np.testing.assert_array_equal(candidates_QK, [[0, 1], [2, 6]])
  assert [p.tolist() for p in task.relevance.positives] == [[0], [6]]


def test_a_task_gives_the_precision_of_each_query(root):
  task = Inquire.open(root).full_rank(PHOTOS, k=4)
  np.testing.assert_allclose(task.precision(ranking([1, 0, 4, 2], [0, 2, 1, 4])), [(1 + 2 / 3) / 2, (1 / 2) / 3])


def test_an_embedding_folder_of_clip_retrieval_is_a_gallery(root):
  rows = np.random.default_rng(0).normal(size=(len(PHOTOS), 4)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  for folder in ("img_emb", "metadata"):
    (root / "embs" / folder).mkdir(parents=True)
  np.save(root / "embs" / "img_emb" / "img_emb_0.npy", rows)
  pq.write_table(pa.table({"image_path": PHOTOS}), root / "embs" / "metadata" / "metadata_0.parquet")
  gallery = FeatureStore.open(root / "embs")
  task = with_features(Inquire.open(root).full_rank(gallery.ids), rows[[1, 2]], gallery)
  scores_QN = np.asarray(task.queries) @ np.asarray(task.gallery[:]).T
  ids_QK = np.argsort(-scores_QN, axis=1)
  figures = task.score(Ranking(ids_QK, np.take_along_axis(scores_QN, ids_QK, 1)))
  assert figures["mrr"] == 1.0  # each query is the feature of a photo that is relevant to it


def written(name, text, mode="w"):
  def write(root):
    with open(root / name, mode) as file:
      file.write(text)

  return write


@pytest.mark.parametrize(
  ("damage", "gallery", "message"),
  [
    (lambda root: None, [p for p in PHOTOS if p != PHOTOS[5]], f"1 photos .*{PHOTOS[5]}"),
    (lambda root: None, [*PHOTOS, PHOTOS[0] + ".jpg"], "comes twice"),
    (written("inquire_annotations.csv", f"query_id,image_path\n8,{PHOTOS[0]}.jpg\n"), PHOTOS, "query 15 has no relev"),
    (written("inquire_annotations.csv", "query,image\n8,x\n"), PHOTOS, "no query_id, image_path"),
    (written("inquire_rerank.csv", f"8,{PHOTOS[9]}.jpg\n", "a"), PHOTOS, r"\[4, 5\] photos"),
    (
      written("inquire_rerank.csv", "question,picture\n8,x\n"),
      PHOTOS,
      r"has the columns \['question', 'picture'\]; want",
    ),
  ],
)
def test_files_that_do_not_fit_each_other_are_named(root, damage, gallery, message):
  damage(root)
  tasks = lambda benchmark: (benchmark.full_rank(gallery), benchmark.rerank_set(gallery))
  with pytest.raises(ValueError, match=message):
    tasks(Inquire.open(root))


@pytest.mark.parametrize("row", [[-1, -1], []])
def test_an_empty_result_counts_zero(root, row):
  figures = Inquire.open(root).full_rank(PHOTOS).score(ranking(row, row))
  assert [figures[name] for name in ("map", "ndcg", "mrr", "precision", "recall")] == [0] * 5

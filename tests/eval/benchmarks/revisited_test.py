"""Oxford, Paris and INSTRE from files in the official formats, against the vectors and by hand."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from eval.benchmarks import revisited
from eval.benchmarks.joined import Joined
from eval.benchmarks.task import with_features
from qat_jax.types import Ranking

VECTORS = json.loads(
  (Path(__file__).parents[2] / "data" / "metric_vectors" / "revisited_oxford_paris.json").read_text()
)
RANKS = np.array(VECTORS["ranks_db_by_query"])


class Stored:
  """Features with ids, in memory."""

  def __init__(self, ids, rows):
    self.ids, self.rows, self.width, self.dtype = ids, rows, rows.shape[1], rows.dtype

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, rows):
    return self.rows[rows]


def as_pickle(folder):
  path = folder / "gnd_roxford5k.pkl"
  content = {
    "imlist": [f"image_{i}" for i in range(len(RANKS))],
    "qimlist": [f"query_{i}" for i in range(RANKS.shape[1])],
    "gnd": [{**query, "bbx": [1.0, 2.0, 3.0, 4.0]} for query in VECTORS["gnd"]],
  }
  path.write_bytes(pickle.dumps(content))
  return path


def as_json(folder):
  path = folder / "gnd.json"
  path.write_text(json.dumps(VECTORS["gnd"]))
  return path


def as_mat(folder):
  path = folder / "gnd_roxford5k.mat"
  types = [(field, object) for field in ("bbx", "easy", "hard", "junk")]
  gnd = np.zeros((1, len(VECTORS["gnd"])), dtype=types)
  for place, query in enumerate(VECTORS["gnd"]):
    for field in ("easy", "hard", "junk"):
      gnd[0, place][field] = np.array(query[field], float).reshape(1, -1) + 1
    gnd[0, place]["bbx"] = np.ones((1, 4))
  names = np.array([f"image_{i}" for i in range(len(RANKS))], object)
  scipy.io.savemat(
    path, {"gnd": gnd, "imlist": names, "qimlist": np.array([f"q{i}" for i in range(len(gnd[0]))], object)}
  )
  return path


@pytest.mark.parametrize("write", [as_pickle, as_json, as_mat])
def test_the_vectors_are_reproduced_from_every_form_of_the_ground_truth(tmp_path, write):
  figures = revisited.score_ranks(write(tmp_path), RANKS)
  for protocol, expected in VECTORS["expected"].items():
    got = figures[protocol]
    assert got["map"] == pytest.approx(expected["map"], abs=1e-9)
    assert [got["mp@1"], got["mp@5"], got["mp@10"]] == pytest.approx(expected["mp_at_1_5_10"], abs=1e-9)
    assert got["interval"][0] <= got["map"] <= got["interval"][1]
    assert got["queries"] == sum(ap is not None for ap in expected["ap"])


def test_distractors_follow_the_images_of_the_set(tmp_path):
  task = revisited.open_task(as_pickle(tmp_path), distractor_ids=["far_0", "far_1"])[1]
  assert len(task.gallery_ids) == len(RANKS) + 2
  ids_QK = RANKS.T
  distractors_QK = np.broadcast_to([len(RANKS), len(RANKS) + 1], (len(ids_QK), 2))
  behind = task.score(Ranking(np.concatenate([ids_QK, distractors_QK], 1), None))["map"]
  ahead = task.score(Ranking(np.concatenate([distractors_QK, ids_QK], 1), None))["map"]
  assert behind == pytest.approx(VECTORS["expected"]["medium"]["map"], abs=1e-9)
  assert ahead < behind


def test_original_oxford_counts_good_and_ok_as_positive(tmp_path):
  path = tmp_path / "gnd_oxford5k.pkl"
  path.write_bytes(pickle.dumps({"gnd": [{"ok": [1, 3], "junk": [0], "bbx": [0, 0, 1, 1]}], "imlist": list("abcd")}))
  figures = revisited.score_ranks(path, np.array([[0], [1], [2], [3]]), "oxford5k")
  # without junk 0 the positives stand at ranks 1 and 3
  assert figures["map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
  assert figures["mp@5"] == pytest.approx(2 / 3)


def test_instre_counts_from_one_in_the_file_and_from_zero_here(tmp_path):
  path = tmp_path / "gnd_instre.mat"
  gnd = np.zeros((1, 2), dtype=[("ok", object), ("bbx", object)])
  gnd[0, 0]["ok"], gnd[0, 0]["bbx"] = np.array([[1, 3]]), np.array([[10, 20, 30, 40]])
  gnd[0, 1]["ok"], gnd[0, 1]["bbx"] = np.array([[2]]), np.array([[1, 2, 3, 4]])
  names = {"imlist": np.array(["a.jpg", "b.jpg", "c.jpg"], object), "qimlist": np.array(["q0.jpg", "q1.jpg"], object)}
  scipy.io.savemat(path, {"gnd": gnd, **names})
  (task,) = revisited.open_task(path, "instre")
  del names["qimlist"]
  scipy.io.savemat(tmp_path / "gnd.mat", {"gnd": gnd, **names})
  with pytest.raises(ValueError, match="has no qimlist; give the gnd_instre.mat"):
    revisited.open_task(tmp_path / "gnd.mat", "instre")
  assert task.gallery_ids == ["a.jpg", "b.jpg", "c.jpg"]
  assert [p.tolist() for p in task.relevance.positives] == [[0, 2], [1]]
  assert task.score(Ranking(np.array([[0, 2, 1], [1, 0, 2]]), None))["map"] == pytest.approx(1.0)
  np.testing.assert_array_equal(revisited.query_boxes(path), [[10, 20, 30, 40], [1, 2, 3, 4]])


def test_published_features_rank_as_their_dot_product(tmp_path):
  rng = np.random.default_rng(0)
  rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(9, 4)), rng.normal(size=(400, 4)))]
  scipy.io.savemat(tmp_path / "features.mat", {"Q": rows[0].T, "X": rows[1].T})
  queries_QD, gallery_ND = revisited.read_features(tmp_path / "features.mat")
  np.testing.assert_array_equal(queries_QD, rows[0])
  task = with_features(revisited.open_task(as_pickle(tmp_path))[1], queries_QD, gallery_ND)
  ids_QK = np.argsort(-task.queries @ task.gallery.T, axis=1)
  assert 0 < task.score(Ranking(ids_QK, None))["map"] < 1
  with pytest.raises(ValueError, match="399 features for 400 ids"):
    with_features(task, queries_QD, gallery_ND[:-1])
  with pytest.raises(ValueError, match=r"feature of 'query_2' has length nan"):
    with_features(task, np.where(np.arange(9)[:, None] == 2, np.nan, queries_QD), gallery_ND)
  with pytest.raises(ValueError, match="queries are 3 wide, the gallery 4"):
    with_features(task, np.eye(9, 3) + np.eye(9, 3, -3) + np.eye(9, 3, -6), gallery_ND)


def test_features_in_another_order_than_the_list_are_refused(tmp_path):
  task = revisited.open_task(as_pickle(tmp_path), distractor_ids=["far"])[1]
  own, far = np.eye(400, 5) + np.eye(400, 5, -5), np.eye(1, 5)
  own[:, 0] = np.where(own.any(1), own[:, 0], 1)
  queries = Stored(task.query_ids, np.eye(9, 5) + np.eye(9, 5, -5))
  gallery = Joined([Stored(task.gallery_ids[:-1], own), Stored(["far"], far)])
  assert len(with_features(task, queries, gallery).gallery) == 401
  np.testing.assert_array_equal(gallery[[400, 0, 400]], [far[0], own[0], far[0]])
  np.testing.assert_array_equal(gallery[398:401], np.concatenate([own[398:], far]))
  np.testing.assert_array_equal(np.concatenate([rows for _, rows in gallery.chunks(150)]), gallery[:])
  swapped = Joined([Stored(["far"], far), Stored(task.gallery_ids[:-1], own)])
  with pytest.raises(ValueError, match="the order differs, row 0 is 'far', the benchmark's list has 'image_0'"):
    with_features(task, queries, swapped)
  with pytest.raises(ValueError, match=r"1 ids are missing \(first \['far'\]\) and 1 are unknown \(first \['near'\]\)"):
    with_features(task, queries, Joined([Stored(task.gallery_ids[:-1], own), Stored(["near"], far)]))


@pytest.mark.parametrize(
  ("ranks", "name", "message"),
  [
    (RANKS.T, "roxford5k", "looks transposed"),
    (RANKS.astype(float), "roxford5k", "integers"),
    (RANKS, "oxford5k", "not that of oxford5k"),
    (np.concatenate([RANKS[:1], RANKS[:-1]]), "roxford5k", "query 0 hold an image twice"),
  ],
)
def test_ranks_that_do_not_fit_the_ground_truth_are_named(tmp_path, ranks, name, message):
  with pytest.raises(ValueError, match=message):
    revisited.score_ranks(as_json(tmp_path), ranks, name)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"gnd": [', r"gnd\.json is no whole JSON"),
    (b'{"gnd":\n"caf\xe9"}', r"gnd\.json, line 2, is not UTF-8"),
    ({"gnd": []}, "no list `gnd`"),
    ([{"easy": [1], "hard": []}], "no junk"),
    ([{"easy": [1], "hard": [1], "junk": []}], "both as easy and as hard"),
    ([{"easy": [-1], "hard": [], "junk": []}], "positions count from 0"),
    (
      [{"easy": [True, False], "hard": [], "junk": []}],
      r"easy holds no numbers .*\[True, False\] …, wanted whole numbers",
    ),
    ([{"easy": [0.7, 1.2], "hard": [], "junk": []}], r"\[0.7, 1.2\] …, wanted whole numbers"),
    ({"gnd": [{"easy": [7], "hard": [], "junk": []}], "imlist": ["a"]}, "easy image 7, the list has 1 images"),
    ({"gnd": [{"easy": [0], "hard": [], "junk": []}], "qimlist": ["a", "b"]}, "names 2 queries"),
  ],
)
def test_a_broken_ground_truth_is_explained(tmp_path, content, message):
  path = tmp_path / "gnd.json"
  path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
  with pytest.raises(ValueError, match=message):
    revisited.read_gnd(path)
  with pytest.raises(FileNotFoundError, match="download"):
    revisited.read_gnd(tmp_path / "gnd.pkl")


@pytest.mark.parametrize("write", [as_pickle, as_json])
@pytest.mark.parametrize("rows", [len(RANKS), 8])
def test_ranks_that_the_gallery_does_not_have_are_refused(tmp_path, write, rows):
  from_1_KQ = np.sort(RANKS + 1, axis=0)[::-1][:rows]  # the greatest positions first
  if write is as_pickle or rows == len(RANKS):  # else nothing shows it: the list of images is missing
    with pytest.raises(ValueError, match=rf"position {len(RANKS)}, .*count from 0.*--distractors"):
      revisited.score_ranks(write(tmp_path), from_1_KQ)
  with pytest.raises(ValueError, match="position -2"):
    revisited.score_ranks(write(tmp_path), np.sort(RANKS - 2, axis=0)[:rows])


def test_ranks_of_distractors_are_taken_where_they_are_named(tmp_path):
  truth = as_pickle(tmp_path)
  beyond = np.concatenate([RANKS[:5], RANKS[:5] * 0 + len(RANKS) + 7 - np.arange(5)[:, None]])
  with pytest.raises(ValueError, match=rf"position {len(RANKS) + 7}, and the gallery has {len(RANKS)} images"):
    revisited.score_ranks(truth, beyond)
  assert revisited.score_ranks(truth, beyond, distractors=8) == revisited.score_ranks(truth, RANKS[:5])


@pytest.mark.parametrize("ranks", [RANKS[:0], np.full_like(RANKS, -1)])
def test_empty_results_count_zero(tmp_path, ranks):
  figures = revisited.score_ranks(as_pickle(tmp_path), ranks)
  assert [figures[protocol]["map"] for protocol in ("easy", "medium", "hard")] == [0, 0, 0]
  assert figures["easy"]["mp@1"] == 0

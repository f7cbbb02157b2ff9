"""Marks in a search: this one, not that one, seen already."""

import errno
import json

import numpy as np
import pytest

import qat_jax
from qat_jax.keeping import KeptMarks, read_marks
from tests.qat_jax.serve.web.clients import client_of, code, ids


def image_scores(served, positions):
  rows_QD = np.asarray(served.frozen[np.array(positions)], np.float32)
  return rows_QD, np.asarray(qat_jax.score(served.adapter(rows_QD, "image"), served.prepared["image"]))


def as_plain(served, row_QD, score_QN):
  """Scales scores to spread as those of the plain rows do."""
  plain_QN = np.asarray(qat_jax.score(qat_jax.plain(row_QD), served.frozen), np.float64)
  return score_QN * plain_QN.std(axis=1, keepdims=True) / score_QN.std(axis=1, keepdims=True)


@pytest.mark.parametrize("query", [{"text": "a red box"}, {"item": "shop/3"}])
def test_right_marks_add_the_mean_of_their_image_scores_twice(client, served, query):
  right, wrong, seen = ["shop/4", "shop/8"], ["shop/0"], ["shop/1", "shop/2"]
  answer = client.post("/v1/search", json={"query": query, "right": right, "wrong": wrong, "seen": seen, "k": 36})
  if "text" in query:
    feature_D = served.encoding.texts(["a red box"])["a red box"]
    text_QN = np.asarray(qat_jax.score(served.adapter(feature_D[None], "text"), served.prepared["text"]))
    query_N = as_plain(served, feature_D[None].astype(np.float32), text_QN)[0]
    mark_QN = as_plain(served, *image_scores(served, [4, 8]))  # beside another head
  else:
    (query_N,), mark_QN = image_scores(served, [3])[1], image_scores(served, [4, 8])[1]
  score_N = query_N + 2 * mark_QN.mean(axis=0)
  gone = [0, 1, 2, 4, 8, *([3] if "item" in query else [])]
  order = [i for i in np.argsort(-score_N, kind="stable").tolist() if i not in gone]
  assert ids(answer) == [f"shop/{i}" for i in order] and answer.json()["notes"] == []
  query_type = "text" if "text" in query else "image"  # of the query: marks stay pictures
  marks = {"right": right, "wrong": wrong, "seen": seen}
  named = client.post("/v1/search", json={"query": query, "query_type": query_type, "k": 36, **marks})
  assert ids(named) == ids(answer)


def test_without_a_right_mark_scores_are_the_same_bit_for_bit(client):
  scores = lambda **marks: {
    entry["id"]: entry["score"]
    for entry in client.post("/v1/search", json={"query": "a red box", "k": 36, **marks}).json()["results"]["adapted"]
  }
  before = scores()
  after = scores(wrong=["shop/3"], seen=["shop/4"], right=[])
  assert after == {name: score for name, score in before.items() if name not in ("shop/3", "shop/4")}


def test_why_says_which_mark_lifted_an_item_and_parts_add_up_to_its_score(client):
  asked = {"query": "a red box", "right": ["shop/4", "shop/8"], "items": ["shop/7", "shop/11"]}
  for item in client.post("/v1/why", json=asked).json()["items"]:
    assert [part["of"] for part in item["parts"]] == ["text", "mark", "mark"]
    assert [part.get("item") for part in item["parts"]] == [None, "shop/4", "shop/8"]
    assert sum(part["score"] for part in item["parts"]) == pytest.approx(item["adapted"]["score"], abs=1e-5)


@pytest.mark.parametrize(
  ("marks", "words"),
  [
    ({"right": ["shop/1"], "wrong": ["shop/2", "shop/1"]}, "'shop/1' is marked as right and as wrong"),
    ({"right": [f"shop/{i}" for i in range(101)]}, "right: List should have at most 100"),
    ({"seen": ["shop/1"] * 10_001}, "seen: List should have at most 10000"),
    ({"right": [3]}, "right.0: Input should be a valid string"),
    ({"right": "shop/1"}, "right: Input should be a valid array"),
  ],
)
def test_marks_that_contradict_or_are_too_many_are_refused_in_one_line(client, marks, words):
  answer = client.post("/v1/search", json={"query": "a red box", **marks})
  assert code(answer) == (422, "invalid") and words in answer.json()["error"]["message"]


def test_marks_of_items_that_are_gone_are_named_and_the_rest_counts(client):
  answer = client.post("/v1/search", json={"query": "a red box", "right": ["gone", "shop/4"], "k": 36})
  assert answer.json()["notes"] == ["1 ids of right are not in the gallery: 'gone'"]
  assert ids(answer) == ids(client.post("/v1/search", json={"query": "a red box", "right": ["shop/4"], "k": 36}))


def test_marks_are_kept_where_that_is_allowed_and_a_full_disk_is_said_once(served, tmp_path, monkeypatch):
  monkeypatch.setattr(served, "kept", KeptMarks(tmp_path / "marks"))
  client = client_of(served)
  asked = {"query": "a private box", "right": ["shop/4", "gone"], "wrong": ["shop/5"], "mode": "both"}
  for _ in range(2):
    answer = client.post("/v1/search", json=asked, headers={"User-Agent": "somebody"})
    assert answer.json()["notes"] == ["1 ids of right are not in the gallery: 'gone'"]
  records = list(read_marks(tmp_path / "marks"))
  assert [(one["item"], one["right"], one["query"]["text"]) for one in records] == [
    ("shop/4", True, "a private box"),
    ("shop/5", False, "a private box"),
  ]
  assert set(records[0]) == {"format", "query", "item", "right", "adapter", "encoder"}
  assert "somebody" not in json.dumps(records) and records[0]["query"]["type"] == "text"

  two = [{"text": "a private box"}, {"item": "shop/1"}]  # the feature is not all of such a query: nothing is learned
  client.post("/v1/search", json={"query": two, "right": ["shop/9"], "wrong": [f"shop/{i}" for i in range(10, 30)] * 6})
  told = [one for one in read_marks(tmp_path / "marks") if one["item"] not in ("shop/4", "shop/5")]
  assert {one["told"] for one in told} == {True} and len(told) == 21

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(served.kept, "_write", full)
  answer = client.post("/v1/search", json={**asked, "right": ["shop/7"]})
  assert answer.json()["notes"] == ["the marks count in this search but were not kept: No space left on device"]
  assert len(ids(answer)) == 20

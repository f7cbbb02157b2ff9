"""What marks teach: the same query finds what was not marked yet, others stay, and what does not hold is not kept."""

import base64

import jax
import numpy as np
import pytest

import qat_jax
from qat_jax.adapter import Adapter
from qat_jax.cli import main
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import write_features
from qat_jax.fit import learning
from qat_jax.fit.learning import Way
from qat_jax.keeping import KeptMarks
from qat_jax.models import forms
from qat_jax.models.head import Head
from tests.qat_jax.marks_test import made
from tests.vectors import unit

WIDTH, INSTANCES, VIEWS, MARKED = 8, 40, 6, 4
PLAIN = Head("plain", {}, {})


def written(root, val_queries=None):
  """Writes a set whose queries lie nowhere near their items, so that only marks tell; or with queries for val."""
  rng = np.random.default_rng(0)
  for split in ("train", "val", "test"):
    query_ID, centre_ID = rng.standard_normal((2, INSTANCES, WIDTH))
    if split == "val" and val_queries is not None:
      query_ID = centre_ID = val_queries
    item_ND = unit(np.repeat(centre_ID, VIEWS, axis=0) + 0.3 * rng.standard_normal((INSTANCES * VIEWS, WIDTH)))
    names = [f"{split}{i}" for i in range(INSTANCES)]
    about = {"id": [f"{one}/{v}" for one in names for v in range(VIEWS)], "instance": np.repeat(names, VIEWS).tolist()}
    write_features(root / split if split == "train" else root / split / "gallery", {"img": item_ND}, about)
    for query_type, kind in (("text", "text"), ("image", "img")):
      about = {"id": [f"{query_type} {one}" for one in names], "instance": names}
      if split != "train":
        write_features(root / split / f"{query_type}_queries", {kind: unit(query_ID)}, about)
  return RetrievalSet.open(root)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return written(tmp_path_factory.mktemp("set"))


def marks_of(data, query_types=("text", "image"), item=lambda i, v: f"test{i}/{v}"):
  records = []
  for query_type in query_types:
    for i, feature_D in enumerate(data.split("test").queries[query_type][:].astype("<f2")):
      query = {"type": query_type, "feature": base64.b64encode(feature_D.tobytes()).decode()}
      records += [{"query": query, "item": item(i, v), "right": True} for v in range(MARKED)]
  return records


def learned(adapter, data, marks, val=None):
  return learning.learn(adapter, marks, data.split("test").gallery, (val or data).split("val"))


@pytest.mark.parametrize("image", ["plain", "plda", "levelled", "adaptive", "captions"])
def test_a_query_asked_again_finds_what_was_not_marked_and_others_stay(data, image):
  adapter = Adapter(WIDTH, {"text": PLAIN, "image": made(image)})
  taught, accounts = learned(adapter, data, marks_of(data))
  gallery_ND = data.split("test").gallery[:]
  for query_type in adapter.heads:
    assert "a memory of weight" in accounts[query_type], accounts
    assert taught.heads[query_type].space == adapter.heads[query_type].space  # the prepared gallery serves on
    item_NE = np.asarray(taught.prepare(gallery_ND, query_type))
    query_QD = data.split("test").queries[query_type][:]
    unmarked = [{i * VIEWS + v for v in range(MARKED, VIEWS)} for i in range(INSTANCES)]
    hits = [
      np.mean([len(own & set(ids)) / len(own) for own, ids in zip(unmarked, ranking.ids.tolist(), strict=True)])
      for ranking in (qat_jax.rank(one(query_QD, query_type), item_NE, 12) for one in (adapter, taught))
    ]
    assert hits[1] > hits[0] + 0.25
    before, after = (np.asarray(one(-query_QD, query_type).query) for one in (adapter, taught))
    assert np.median(np.abs(before - after).max(axis=1)) < 1e-3  # far from every mark, most stay as they are


def test_marks_that_say_nothing_are_not_kept(data):
  rng = np.random.default_rng(3)
  adapter = Adapter(WIDTH, {"text": PLAIN, "image": PLAIN})
  marks = marks_of(data, item=lambda i, v: f"test{rng.integers(INSTANCES)}/{v}")
  taught, accounts = learned(adapter, data, marks)
  assert taught is adapter
  assert all("nothing is kept" in account for account in accounts.values())


def test_marks_that_harm_other_queries_are_not_kept(data, tmp_path):
  adapter, marks = Adapter(WIDTH, {"text": PLAIN}), marks_of(data, ["text"])
  assert learned(adapter, data, marks)[0] is not adapter
  harmed = written(tmp_path, data.split("test").queries["text"][:])  # the same queries, for items near them
  taught, accounts = learned(adapter, data, marks, harmed)
  assert taught is adapter and "without a loss of other queries" in accounts["text"]


def test_words_of_marked_items_go_behind_the_pairs_that_a_levelled_head_remembers(data):
  inner = {"form": "plain", "settings": {}, "pairs": 20, "captions": "text"}
  settings = {"form": "remembering", "settings": inner, "queries": 4, "items": 2 * WIDTH, "nearest": 2}
  head = Head("levelled", settings, {})
  variables = jax.tree.map(lambda x: x + 0.1, forms.initialise(head.module(WIDTH), jax.random.key(0)))
  variables["constants"]["head"]["item_temperature"] = np.float32(0.02)
  head = Head("levelled", settings, variables)
  pairs = data.split("test").queries["text"][:], data.split("test").gallery[: INSTANCES * VIEWS : VIEWS]
  told = learning.taught(head, None, pairs, Way(words=True))
  constants = told.variables["constants"]["head"]
  assert told.settings["settings"]["pairs"] == 20 + INSTANCES and told.form == "levelled"
  for name, row_MD in zip(("queries", "images"), pairs, strict=True):
    np.testing.assert_allclose(constants[name][20:], row_MD, atol=1e-3)
  scores = [
    np.diag(qat_jax.score(adapter(pairs[0], "text"), adapter.prepare(pairs[1], "text")))
    for adapter in (Adapter(WIDTH, {"text": one}) for one in (head, told))
  ]
  assert (scores[1] > scores[0]).mean() > 0.9
  both = learning.taught(head, PLAIN, pairs, Way(True, 1.0, 0.01))
  assert both.settings["form"] == "marked" and both.space == told.space != head.space


@pytest.mark.parametrize("image", ["closed_form", "plda", "experts", "levelled"])
def test_texts_look_for_marked_images_as_the_image_head_does(data, image):
  gallery, through = data.split("test").gallery, made(image)
  pairs = data.split("test").queries["text"][:], gallery[: INSTANCES * VIEWS : VIEWS]
  told = learning.taught(PLAIN, through, pairs, Way(False, 1.0, 0.01), learning.pulled_back(through, gallery))
  score_MN = told.variables["constants"]["targets"].astype(float) @ gallery[:].T
  adapter = Adapter(WIDTH, {"image": through})
  expected_MN = np.asarray(qat_jax.score(adapter(pairs[1], "image"), adapter.prepare(gallery[:], "image")))
  alike = [np.corrcoef(own, other)[0, 1] for own, other in zip(score_MN, expected_MN, strict=True)]
  assert np.median(alike) > (0.999 if image == "closed_form" else 0.6)


def test_what_is_left_out_is_said(data):
  adapter = Adapter(WIDTH, {"text": PLAIN})
  marks = marks_of(data)  # those of image queries have no head
  query = marks[0]["query"]
  marks += [{"query": query, "item": "gone", "right": True}, {"query": query, "item": "test0/0", "right": False}]
  marks += [{"query": query, "item": "test0/5", "right": True, "told": True}]
  asked, out = learning.marked_queries(marks, data.split("test").gallery, adapter)
  assert len(asked["text"].right) == INSTANCES and sum(map(len, asked["text"].right)) == INSTANCES * MARKED - 1
  assert "1 of items that are gone" in out and "1 that others contradict" in out
  assert f"{INSTANCES * MARKED + 1} of searches in several parts or in words, or of other query types" in out
  many = [{"query": query, "item": f"test{i // VIEWS}/{i % VIEWS}", "right": True} for i in range(150)]
  asked, out = learning.marked_queries(many, data.split("test").gallery, adapter)
  assert len(asked["text"].right[0]) == 100 and out == "50 beyond 100 of a query"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda marks: marks[: 9 * MARKED], "text: 9 queries have two right marks, which 20 should have"),
    (lambda marks: [one | {"right": False} for one in marks], "there are none of its query types"),
    (lambda marks: [one | {"encoder": ["other", None]} for one in marks], "a mark is of the encoder other"),
    (lambda marks: [one | {"query": {"type": "text", "feature": "AAAA"}} for one in marks], "the gallery is 8 wide"),
  ],
)
def test_marks_that_teach_nothing_are_refused_in_one_line(data, change, message):
  adapter = Adapter(WIDTH, {"text": PLAIN}, {"encoder": "words", "revision": "1"})
  with pytest.raises(ValueError, match=message) as error:
    learned(adapter, data, change(marks_of(data, ["text"])))
  assert "\n" not in str(error.value)


def test_the_command_writes_an_adapter_that_loads(data, tmp_path, capsys):
  Adapter(WIDTH, {"text": PLAIN}).save(tmp_path / "a")
  KeptMarks(tmp_path / "marks").append(marks_of(data, ["text"]))
  words = ["learn", "--marks", str(tmp_path / "marks"), "--adapter", str(tmp_path / "a")]
  words += ["--gallery", str(data.root / "test" / "gallery"), str(tmp_path / "out")]
  with pytest.raises(SystemExit, match="say where the adapter's validation queries are: --data ROOT"):
    main(words)
  main([*words, "--data", str(data.root)])
  assert "40 queries with 160 right marks; a memory of weight" in capsys.readouterr().out
  taught = qat_jax.load(tmp_path / "out")
  assert taught.heads["text"].form == "marked"
  with pytest.raises(SystemExit, match="give the one that it was made from"):
    main([*words[:4], str(tmp_path / "out"), *words[5:], "--data", str(data.root)])

"""An adapter as a searcher of mteb, against scores worked out by hand; mteb's own program, where it is installed."""

import numpy as np
import pytest
from PIL import Image

from eval.benchmarks.mieb import BATCH, Searcher
from qat_jax.adapter import Adapter
from tests.heads import moved

WIDTH = 8


def unit(seed):
  x = np.random.default_rng(seed).standard_normal(WIDTH) + 0.3
  return (x / np.linalg.norm(x)).astype(np.float32)


class Encoder:
  """A picture's feature is drawn by its first pixel, a text's by its length."""

  name, revision, width, max_tokens, truncated = "shades", "1", WIDTH, 8, 0

  def images(self, images):
    assert len(images) <= BATCH
    return np.stack([unit(image.getpixel((0, 0))[0]) for image in images])

  def texts(self, texts):
    return np.stack([unit(1000 + len(text)) for text in texts])


class Rows(dict):
  """Columns, as `datasets.Dataset` gives them."""

  column_names = property(list)

  def __len__(self):
    return len(next(iter(self.values())))

  def __getitem__(self, key):
    return super().__getitem__(key) if isinstance(key, str) else {name: x[key] for name, x in self.items()}


def picture(shade):
  return Image.new("L", (4, 4), shade)


ITEMS = [10, 40, 90, 130, 200]  # shades of the corpus' pictures
CORPUS = Rows(id=[f"p{shade}" for shade in ITEMS], image=[picture(shade) for shade in ITEMS])


@pytest.fixture(scope="module")
def adapter():
  """An image head with maps of query and gallery, and no head for texts."""
  return Adapter(WIDTH, {"image": moved("static", WIDTH, {}, by=0.5)})


def found(searcher, queries, k=5, **more):
  searcher.index(CORPUS, task_metadata=None, hf_split="test", hf_subset="default", encode_kwargs={}, num_proc=None)
  return searcher.search(queries, top_k=k, task_metadata=None, encode_kwargs={}, **more)


def cosines(query_D, item_ND):
  query_D, item_ND = np.asarray(query_D, np.float64), np.asarray(item_ND, np.float64)
  return item_ND @ query_D / np.linalg.norm(item_ND, axis=1) / np.linalg.norm(query_D)


def test_pictures_go_through_their_head_and_texts_plainly_with_a_word_about_it(adapter):
  searcher, item_ND = Searcher(Encoder(), adapter), np.stack([unit(shade) for shade in ITEMS])
  answer = found(searcher, Rows(id=["a", "b"], image=[picture(7), picture(90)]))
  assert not searcher.notes
  for name, shade in (("a", 7), ("b", 90)):
    adaptation = adapter(unit(shade)[None], "image")
    expected_N = cosines(adaptation.query[0], adapter.prepare(item_ND, "image"))
    assert list(answer[name]) == [f"p{ITEMS[i]}" for i in np.argsort(-expected_N)]
    np.testing.assert_allclose([answer[name][f"p{shade}"] for shade in ITEMS], expected_N, atol=1e-5)
  plain = found(searcher, Rows(id=["t"], text=["mug"]), k=2)["t"]
  expected_N = cosines(unit(1003), item_ND)
  assert list(plain) == [f"p{ITEMS[i]}" for i in np.argsort(-expected_N)[:2]]
  assert [note for note in searcher.notes if "text" in note]


def test_scores_of_a_picture_and_a_text_add(adapter):
  answer = found(Searcher(Encoder()), Rows(id=["a"], image=[picture(7)], text=["mug"]))["a"]
  item_ND = np.stack([unit(shade) for shade in ITEMS])
  expected_N = cosines(unit(7), item_ND) + cosines(unit(1003), item_ND)
  np.testing.assert_allclose([answer[f"p{shade}"] for shade in ITEMS], expected_N, atol=1e-5)


def test_reranking_finds_what_is_listed_alone_and_more_queries_than_a_block(adapter):
  queries = Rows(id=[str(i) for i in range(70)], image=[picture(i) for i in range(70)])
  listed = {str(i): ["p90", "p10"] if i % 2 else ["p200"] for i in range(70)}
  answer = found(Searcher(Encoder(), adapter), queries, top_ranked=listed)
  assert {name: set(row) for name, row in answer.items()} == {name: set(row) for name, row in listed.items()}
  alone = found(Searcher(Encoder(), adapter), Rows(id=["67"], image=[picture(67)]))["67"]
  assert answer["67"] == pytest.approx({name: alone[name] for name in ("p90", "p10")}, abs=1e-6)


@pytest.mark.parametrize(
  ("corpus", "queries", "message"),
  [
    (Rows(id=["a"], text=["x"]), None, "wanted id and image"),
    (Rows(id=["a", "a"], image=[picture(1), picture(2)]), None, "2 rows and 1 ids"),
    (Rows(id=["a", "b"], image=[picture(1), None]), None, "row 1 has no image"),
    (CORPUS, Rows(id=["q"], audio=[0]), "wanted image, text or both"),
    (None, Rows(id=["q"], text=["x"]), "nothing is indexed"),
  ],
)
def test_what_cannot_be_searched_is_named(corpus, queries, message):
  searcher = Searcher(Encoder())
  if queries is not None and corpus is not None:
    searcher.index(corpus)
  with pytest.raises(ValueError, match=message):
    searcher.search(queries, top_k=3) if queries is not None else searcher.index(corpus)


def test_an_item_to_rerank_that_the_corpus_lacks_and_a_strange_encoder_are_named(adapter):
  with pytest.raises(ValueError, match="'p11', which the corpus lacks"):
    found(Searcher(Encoder()), Rows(id=["q"], text=["x"]), top_ranked={"q": ["p10", "p11"]})
  other = Adapter(WIDTH, adapter.heads, {"encoder": "other", "revision": "1"})
  with pytest.raises(ValueError, match="the adapter is for the encoder"):
    Searcher(Encoder(), other)


def test_mteb_counts_what_is_found(adapter):
  pytest.importorskip("mteb")
  from datasets import Dataset
  from datasets import Image as Column
  from mteb.abstasks.retrieval import AbsTaskRetrieval
  from mteb.abstasks.task_metadata import TaskMetadata

  about = {"name": "Shades", "description": "drawn", "type": "Any2AnyRetrieval", "category": "i2i"}
  about |= {"modalities": ["image"], "eval_splits": ["test"], "eval_langs": ["eng-Latn"], "main_score": "hit_rate_at_1"}
  about |= {"dataset": {"path": "drawn", "revision": "1"}}

  class Shades(AbsTaskRetrieval):
    metadata = TaskMetadata(**about)

    def load_data(self, **_):
      rows = lambda shades, names: Dataset.from_dict(
        {"id": names, "image": [picture(shade) for shade in shades]}
      ).cast_column("image", Column())
      corpus, queries = rows(ITEMS, [f"p{shade}" for shade in ITEMS]), rows([90, 7], ["a", "b"])
      right = {"a": {"p90": 1}, "b": {"p40": 1}}
      split = {"corpus": corpus, "queries": queries, "relevant_docs": right, "top_ranked": None}
      self.dataset, self.data_loaded = {"default": {"test": split}}, True

  searcher, item_ND = Searcher(Encoder()), np.stack([unit(shade) for shade in ITEMS])
  scores = Shades().evaluate(searcher, "test", encode_kwargs={})["default"]
  place = int(np.flatnonzero(np.argsort(-cosines(unit(7), item_ND)) == ITEMS.index(40))[0])
  assert scores["map_at_10"] == pytest.approx((1 + 1 / (place + 1)) / 2, abs=1e-4)  # mteb rounds

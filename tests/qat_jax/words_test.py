"""Maps made of words, against their formulas written out with matrices, and on a space whose aspects are known."""

import json

import numpy as np
import pytest

import qat_jax
from qat_jax import words
from qat_jax.adaptation import unit

WIDTH, ITEMS = 24, 200
COLOUR, SHAPE, SCENE = slice(0, 3), slice(3, 6), slice(6, 9)


class Encoder:
  """Texts as rows that differ in the dimensions of their aspect, as its first word says; 9 dimensions are aspects."""

  name, revision, width, max_tokens, truncated = "words", "1", WIDTH, 8, 0

  def texts(self, texts):
    rows = np.full((len(texts), WIDTH), 0.3)
    for row, text in zip(rows, texts, strict=True):
      self.truncated += len(text.split()) > self.max_tokens
      kind, *value = text.split()
      if kind in KINDS:
        row[KINDS[kind]] += np.random.default_rng(sum(map(ord, " ".join(value)))).standard_normal(3)
    return unit(rows).astype(np.float32)


KINDS = {"colour": COLOUR, "shape": SHAPE, "scene": SCENE}
BOOK = {name: [f"{name} {letter}" for letter in "abcdefgh"] for name in KINDS}


@pytest.fixture
def gallery_ND():
  return unit(np.random.default_rng(0).standard_normal((ITEMS, WIDTH)) + 0.3).astype(np.float32)


@pytest.fixture
def query_QD():
  return unit(np.random.default_rng(1).standard_normal((3, WIDTH)) + 0.3).astype(np.float32)


def told(query_QD, gallery_ND=None, **request):
  return qat_jax.by_words(query_QD, aspects=BOOK, encoder=Encoder(), gallery=gallery_ND, **request)


def svd(name):
  row_WD = Encoder().texts(BOOK[name]).astype(np.float64)
  _, size_R, direction_RD = np.linalg.svd(row_WD - row_WD.mean(axis=0), full_matrices=False)
  keep = size_R > 1e-6 * size_R[0]
  return row_WD.mean(axis=0), size_R[keep], direction_RD[keep].T


def strong(name):
  _, size_R, direction_DR = svd(name)
  return direction_DR[:, size_R > 0.2 * size_R[0]]


def cosines(map_ED, query_QD, gallery_ND):
  return unit(query_QD) @ unit(gallery_ND.astype(np.float64) @ map_ED.T).T


def test_ignore_takes_the_strong_directions_off_both_sides(query_QD, gallery_ND):
  strong_DR = strong("scene")
  map_DD = np.eye(WIDTH) - strong_DR @ strong_DR.T
  score_QN = qat_jax.score(told(query_QD, ignore="scene"), gallery_ND)
  np.testing.assert_allclose(score_QN, cosines(map_DD, query_QD @ map_DD.T, gallery_ND), atol=2e-6)
  both_QN = qat_jax.score(told(query_QD, ignore=["scene", "scene", "colour"]), gallery_ND)
  strong_DR = np.concatenate([strong_DR, strong("colour")], axis=1)
  out_DD = strong_DR @ np.linalg.pinv(strong_DR)
  map_DD = np.eye(WIDTH) - out_DD
  np.testing.assert_allclose(both_QN, cosines(map_DD, query_QD @ map_DD.T, gallery_ND), atol=1e-5)


def test_alike_keeps_an_aspect_alone_less_the_gallery_mean(query_QD, gallery_ND):
  _, size_R, direction_DR = svd("colour")
  middle_D = unit(gallery_ND.astype(np.float64).mean(axis=0))
  right_DR = direction_DR - np.outer(middle_D, middle_D @ direction_DR)
  map_DD = direction_DR * np.sqrt(size_R / size_R[0]) @ right_DR.T
  score_QN = qat_jax.score(told(query_QD, gallery_ND, alike="colour"), gallery_ND)
  np.testing.assert_allclose(score_QN, cosines(map_DD, query_QD @ map_DD.T, gallery_ND), atol=1e-5)


def test_several_aspects_weigh_the_same_on_the_gallery(query_QD, gallery_ND):
  middle_D, rows = unit(gallery_ND.astype(np.float64).mean(axis=0)), []
  for name in ("colour", "shape"):
    _, size_R, direction_DR = svd(name)
    row_RD = np.sqrt(size_R / size_R[0])[:, None] * direction_DR.T @ (np.eye(WIDTH) - np.outer(middle_D, middle_D))
    rows.append(row_RD / np.sqrt(np.square(gallery_ND @ row_RD.T).sum(axis=1).mean()))
  map_RD = np.concatenate(rows)
  score_QN = qat_jax.score(told(query_QD, gallery_ND, alike=["colour", "shape"]), gallery_ND)
  np.testing.assert_allclose(score_QN, cosines(map_RD, query_QD @ map_RD.T, gallery_ND), atol=1e-5)


@pytest.mark.parametrize("changed", [None, "colour", ["colour", "shape", "colour"]])
def test_change_trades_a_part_of_the_picture_for_the_text(query_QD, gallery_ND, changed):
  texts = ["colour z", "shape z", "colour y"] if isinstance(changed, list) else ["colour z"] * 3
  text_QD = Encoder().texts(texts).astype(np.float64)
  scene_DR = strong("scene")
  middle_D = unit(gallery_ND.astype(np.float64).mean(axis=0))
  map_DD = (np.eye(WIDTH) - scene_DR @ scene_DR.T) @ (np.eye(WIDTH) - np.outer(middle_D, middle_D))
  target = []
  for x_D, text_D, text in zip(query_QD, text_QD, texts, strict=True):
    mean_D, along_DD = svd(text.split()[0])[0], strong(text.split()[0]) @ strong(text.split()[0]).T
    kept_D, new_D = map_DD @ (x_D - along_DD @ x_D), map_DD @ along_DD @ (text_D - mean_D)
    target.append(unit(kept_D) + 0.75 * unit(new_D))
  change = "colour z" if len(set(texts)) == 1 else text_QD
  score_QN = qat_jax.score(told(query_QD, gallery_ND, change=change, changed=changed, ignore="scene"), gallery_ND)
  np.testing.assert_allclose(score_QN, cosines(map_DD, np.array(target), gallery_ND), atol=1e-5)


def test_the_aspect_that_a_text_names_is_told():
  encoder = Encoder()
  rows = {name: words.encode(phrases, encoder, name) for name, phrases in BOOK.items()}
  named = words.named_aspect(encoder.texts(["shape q", "scene q", "colour q"]), rows)
  assert [name for name, _ in named] == ["shape", "scene", "colour"]
  assert all(0.5 < share <= 1.0001 for _, share in named)


def test_told_queries_are_ranked_and_refined_as_others_are(query_QD, gallery_ND):
  for request in ({"alike": "colour"}, {"ignore": ["scene", "shape"]}, {"change": "colour z", "changed": "colour"}):
    adaptation = told(query_QD, gallery_ND, **request)
    assert (
      adaptation.left.shape[2] in words.RANKS or adaptation.left.shape[2] == WIDTH
    )  # few shapes, so that other aspects compile nothing anew
    score_QN = np.asarray(qat_jax.score(adaptation, gallery_ND))
    ranking = qat_jax.rank(adaptation, gallery_ND, 9)
    expected = np.argsort(-score_QN, axis=1, kind="stable")[:, :9]
    np.testing.assert_allclose(ranking.scores, np.take_along_axis(score_QN, expected, axis=1), atol=2e-6)
    refined = qat_jax.refine(adaptation, [gallery_ND[:2]] * 3)
    mark = told(gallery_ND[:2], gallery_ND, **(request if "change" not in request else {"ignore": "scene"}))
    if "change" not in request:
      sum_QN = score_QN + 2 * np.asarray(qat_jax.score(mark, gallery_ND)).mean(axis=0)
      ids_QK = qat_jax.rank(refined, gallery_ND, 9).ids
      best_QK = np.sort(sum_QN, axis=1)[:, ::-1][:, :9]
      np.testing.assert_allclose(np.take_along_axis(sum_QN, ids_QK, axis=1), best_QK, atol=1e-5)


def test_phrases_of_one_value_are_one_row():
  encoder = Encoder()
  row_WD = words.encode([["colour a", "colour b"], "colour c"], encoder)
  expected_D = unit(encoder.texts(["colour a", "colour b"]).mean(axis=0))
  np.testing.assert_allclose(row_WD[0], expected_D, atol=1e-6)
  assert row_WD.shape == (2, WIDTH)


def test_the_package_has_aspects_for_photographs():
  book = words.read_aspects()
  assert {"colour", "pattern", "material", "shape", "scene", "weather", "lighting", "style"} < set(book)
  for phrases in book.values():
    assert 12 <= len(phrases) == len(set(phrases)) <= 24


@pytest.mark.parametrize(
  ("request_", "message"),
  [
    ({}, "nothing is told"),
    ({"alike": "smell"}, "no aspect 'smell'; there are colour, shape, scene"),
    ({"alike": "scene", "ignore": ["colour", "scene"]}, "'scene' is both in alike and in ignore"),
    ({"alike": "scene", "change": "colour z"}, "alike and change contradict each other"),
    ({"change": "colour z", "changed": "colour", "ignore": "colour"}, "colour is both changed and ignored"),
    ({"ignore": np.zeros((0, WIDTH))}, "'ignore 0' is empty"),
    ({"ignore": np.ones((1, WIDTH))}, "'ignore 0' has one word"),
    ({"ignore": np.ones((5, WIDTH))}, "'ignore 0' are all alike"),
    ({"ignore": np.eye(7)}, "7 wide, the queries 24"),
    ({"ignore": Encoder().texts(BOOK["colour"]), "alike": "colour"}, "leaves little of 'colour'"),
    ({"alike": np.array([np.full(WIDTH, np.nan)] * 3)}, "wanted finite rows"),
    ({"change": "colour z", "changed": ["colour", "shape"]}, "2 changed aspects for 3 queries"),
  ],
)
def test_a_request_that_makes_no_sense_is_refused_in_one_line(query_QD, gallery_ND, request_, message):
  with pytest.raises(ValueError, match=message) as error:
    told(query_QD, gallery_ND, **request_)
  assert "\n" not in str(error.value)


def test_words_that_an_encoder_cannot_read_are_refused(query_QD, gallery_ND):
  images_alone = Encoder()
  images_alone.max_tokens = 0
  ask = lambda book, encoder: qat_jax.by_words(query_QD, ignore="x", aspects=book, encoder=encoder)
  with pytest.raises(ValueError, match="the encoder words reads no texts"):
    ask({"x": ["a", "b"]}, images_alone)
  with pytest.raises(ValueError, match="there is no encoder"):
    ask({"x": ["a", "b"]}, None)
  with pytest.raises(ValueError, match="8 tokens, and 'x' has a longer phrase: 'colour a a a a a a a a'"):
    ask({"x": ["colour b", "colour a a a a a a a a"]}, Encoder())
  with pytest.raises(ValueError, match="'x' is empty"):
    ask({"x": []}, Encoder())
  with pytest.raises(ValueError, match="has an empty phrase"):
    ask({"x": ["colour a", " "]}, Encoder())
  with pytest.raises(ValueError, match="give gallery"):
    told(query_QD, change="colour z")
  with pytest.raises(ValueError, match="has 50 items"):
    told(query_QD, gallery_ND[:50], alike="colour")
  lone = np.zeros((1, WIDTH), np.float32)
  lone[0, 20] = 1
  with pytest.raises(ValueError, match="of query 0 nothing is left"):
    qat_jax.by_words(lone, alike=np.eye(WIDTH)[:5])


@pytest.mark.parametrize("content", ["{", "[]", '{"x": "red"}', '{"x": [1]}', '{"x": ["a"], "x": ["b"]}'])
def test_a_file_that_holds_no_aspects_is_named(tmp_path, content):
  (tmp_path / "a.json").write_text(content)
  with pytest.raises(ValueError, match=r"a\.json"):
    words.read_aspects(tmp_path / "a.json")
  (tmp_path / "b.json").write_text(json.dumps(BOOK), "utf-8-sig")  # with the mark that Windows writes
  assert words.read_aspects(tmp_path / "b.json") == BOOK

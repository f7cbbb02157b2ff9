"""Aspects told in words: the maps by their definition, and searches that name them."""

import json

import numpy as np
import pytest

import qat_jax
from qat_jax.serve import aspects
from qat_jax.serve.aspects import Aspect, Maps, Words, direction
from qat_jax.serve.limits import Refused
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.service import Service

WIDTH = 24
RNG = np.random.default_rng(0)
ITEMS = RNG.standard_normal((500, WIDTH)) + 0.5
ITEMS /= np.linalg.norm(ITEMS, axis=1, keepdims=True)
ROWS = {name: RNG.standard_normal((count, WIDTH)) for name, count in (("colour", 6), ("shape", 5))}
MEAN = ITEMS.mean(axis=0) / np.linalg.norm(ITEMS.mean(axis=0))
CENTRE = np.eye(WIDTH) - np.outer(MEAN, MEAN)


def by_hand(name):
  """Returns V and c = S / S₁ of an aspect's rows."""
  row_WD = ROWS[name] / np.linalg.norm(ROWS[name], axis=1, keepdims=True)
  _, strength_R, along_RD = np.linalg.svd(row_WD - row_WD.mean(axis=0), full_matrices=False)
  return along_RD[:-1].T, strength_R[:-1] / strength_R[0]


def directions(*names):
  return [direction(Aspect(name, ()), ROWS[name]) for name in names]


def dense(t):
  return t["gate"][0, 0] * np.eye(WIDTH) + t["left"][0] @ t["right"][0].T


def test_ignore_takes_the_strong_directions_off_and_nothing_else():
  along_DR, strength_R = by_hand("colour")
  strong_DR = along_DR[:, strength_R > 0.2]
  t = Maps(ITEMS).of((), directions("colour"))
  np.testing.assert_allclose(dense(t), np.eye(WIDTH) - strong_DR @ strong_DR.T, atol=1e-6)
  assert t["left"].shape == (1, WIDTH, 16)


def test_alike_stacks_aspects_of_one_size_and_compares_in_their_directions():
  blocks = []
  for name in ("colour", "shape"):
    along_DR, strength_R = by_hand(name)
    row_RD = np.sqrt(strength_R)[:, None] * along_DR.T @ CENTRE
    blocks.append(row_RD / np.sqrt((np.linalg.norm(ITEMS @ row_RD.T, axis=1) ** 2).mean()))
  stack_RD = np.vstack(blocks)
  map_DD = dense(Maps(ITEMS).of(directions("colour", "shape"), ()))
  np.testing.assert_allclose(map_DD.T @ map_DD, stack_RD.T @ stack_RD, atol=1e-5)


def test_alike_without_what_is_ignored_has_nothing_of_it():
  along_DR, strength_R = by_hand("shape")
  map_DD = dense(Maps(ITEMS).of(directions("colour"), directions("shape")))
  assert np.abs(map_DD @ along_DR[:, strength_R > 0.2]).max() < 1e-5 < np.abs(map_DD).max()


def test_change_puts_the_text_s_value_where_the_picture_s_was():
  along_DR, _ = by_hand("colour")
  project = along_DR @ along_DR.T
  off_DR = by_hand("shape")[0][:, by_hand("shape")[1] > 0.2]
  map_DD = (np.eye(WIDTH) - off_DR @ off_DR.T) @ CENTRE
  t = Maps(ITEMS).of((), directions("shape"), True)
  np.testing.assert_allclose(dense(t), map_DD, atol=1e-6)
  picture_D, text_D = ITEMS[0], ITEMS[1]
  unit = lambda x: x / np.linalg.norm(x)
  mean_D = (ROWS["colour"] / np.linalg.norm(ROWS["colour"], axis=1, keepdims=True)).mean(axis=0)
  expected_D = unit(map_DD @ (picture_D - project @ picture_D)) + 0.75 * unit(map_DD @ project @ (text_D - mean_D))
  got_D = aspects.changed(t, directions("colour")[0], picture_D, text_D)
  np.testing.assert_allclose(got_D, expected_D, atol=1e-6)


def test_what_no_map_can_be_made_of_is_refused():
  with pytest.raises(Refused, match="'odd' are all alike"):
    direction(Aspect("odd", ()), np.ones((4, WIDTH)))
  two = direction(Aspect("two", ()), ROWS["colour"][:2])
  with pytest.raises(Refused, match="is all ignored"):
    Maps(ITEMS).of([two], [two])
  t = Maps(ITEMS).of((), [two])
  with pytest.raises(Refused, match="nothing of the query is left"):
    aspects.adaptation_of(t, aspects.mapped(t, two.along_DR[:, 0]))


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("{", "is no JSON"),
    ("[]", "holds a list"),
    ('{"a": ["one"]}', "'a' must be a list of 2 to 256"),
    ('{"a": ["x", 3]}', "'a'"),
  ],
)
def test_a_file_of_aspects_that_is_wrong_is_named(tmp_path, content, words):
  path = tmp_path / "aspects.json"
  path.write_text(content)
  with pytest.raises(ValueError, match=words) as error:
    aspects.read(path)
  assert str(path) in str(error.value)


COLOUR = Aspect("colour", ("a red box", "a green box", "a blue box", "a yellow box", "a white box"))
SHAPE = Aspect("shape", ("a round thing", "a square thing", "a long thing"))


def test_an_adapter_s_file_is_read_and_the_request_s_words_search_by_it(open_shop, shop, tmp_path):
  path = tmp_path / "mine.json"
  path.write_text(json.dumps({"colour": list(COLOUR.phrases)}))
  assert open_shop(aspects=str(path)).aspects == {"colour": COLOUR}


@pytest.mark.parametrize("words", [Words(alike=(COLOUR,)), Words(ignore=(COLOUR,)), Words((COLOUR,), (SHAPE,))])
def test_parts_and_marks_under_aspects_are_one_exact_search_of_the_frozen_gallery(served, words):
  job = Search((Part(position=3), Part(text="a red box", weight=0.5)), k=36, words=words).with_right([4, 7])
  (found,) = served.search([job])
  (term,) = found.terms["adapted"]
  features = [one for _, _, one in found.parts]
  t = served.planner._map(words.alike, words.ignore, False)
  map_DD = t["gate"][0, 0] * np.eye(served.adapter.width) + t["left"][0].astype(float) @ t["right"][0].T
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  item_ND = unit(np.asarray(served.frozen[:], np.float64) @ map_DD.T)
  weights = [1, 0.5, 1.5, 1.5]  # of the two marks together twice that of the parts
  score_N = sum(w * item_ND @ unit(map_DD @ x) for w, x in zip(weights, features, strict=True))
  order = np.argsort(-score_N, kind="stable")
  np.testing.assert_allclose(score_N[found.adapted.ids], score_N[order], atol=1e-4)
  assert term.gallery == "frozen"


def test_a_change_without_a_head_for_pictures_is_a_query_of_its_own(served):
  adapter = qat_jax.Adapter(served.adapter.width, {"text": served.adapter.heads["text"]})
  other = Service(adapter, served.items, served.frozen, {"text": served.prepared["text"]}, served.encoder)
  job = Search((Part(position=3), Part(text="a blue box")), k=12, words=Words(change=COLOUR))
  (found,) = other.search([job])
  (picture_D, text_D), planner = (one for _, _, one in found.parts), other.planner
  t = planner._map((), (), True)
  query_D = aspects.changed(t, planner._direction(COLOUR), picture_D, text_D)
  score_N = np.asarray(qat_jax.score(aspects.adaptation_of(t, query_D), other.frozen))[0]
  assert found.adapted.ids.tolist() == np.argsort(-score_N, kind="stable")[:12].tolist()
  guess = Search((Part(position=3), Part(text="a blue box")), k=12, words=Words(guess=(SHAPE, COLOUR)))
  (again,) = other.search([guess])
  assert again.adapted.ids.tolist() == found.adapted.ids.tolist()
  assert again.notes == ["the text was taken to change 'colour'; name another with \"change\""]


def test_a_change_with_a_head_for_pictures_adds_the_adapted_picture_and_the_plain_text(served):
  job = Search((Part(position=3), Part(text="a blue box")), k=36, words=Words(change=COLOUR))
  (found,) = served.search([job])
  (picture_D, text_D) = (one for _, _, one in found.parts)
  picture_N = np.asarray(qat_jax.score(served.adapter(picture_D[None], "image"), served.prepared["image"]))[0]
  score_N = picture_N + np.asarray(served.frozen[:], np.float64) @ text_D
  assert found.adapted.ids.tolist() == np.argsort(-score_N, kind="stable").tolist()

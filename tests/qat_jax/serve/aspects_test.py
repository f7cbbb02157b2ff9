"""Aspects told in words: the maps by their definition, and searches that name them."""

import json

import numpy as np
import pytest

import qat_jax
from qat_jax.serve import aspects
from qat_jax.serve.aspects import Aspect, Words
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.service import Service
from qat_jax.words import by_words


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("{", "is no JSON"),
    ("[]", "no file of aspects"),
    ('{"a": ["one"]}', "'a' has 1 values; give 2 to 256"),
    ('{"a": ["x", 3]}', "'a'"),
  ],
)
def test_a_file_of_aspects_that_is_wrong_is_named(tmp_path, content, words):
  path = tmp_path / "aspects.json"
  path.write_text(content)
  with pytest.raises(ValueError, match=words) as error:
    aspects.read(path)
  assert str(path) in str(error.value)


COLOUR = Aspect.of("colour", ("a red box", "a green box", "a blue box", "a yellow box", "a white box"))
SHAPE = Aspect.of("shape", ("a round thing", "a square thing", "a long thing"))


def test_an_adapter_s_file_is_read_and_the_request_s_words_search_by_it(open_shop, shop, tmp_path):
  path = tmp_path / "mine.json"
  path.write_text(json.dumps({"colour": list(COLOUR.values)}))
  assert open_shop(aspects=str(path)).aspects == {"colour": COLOUR}


@pytest.mark.parametrize("words", [Words(alike=(COLOUR,)), Words(ignore=(COLOUR,)), Words((COLOUR,), (SHAPE,))])
def test_parts_and_marks_under_aspects_are_one_exact_search_of_the_frozen_gallery(served, words):
  job = Search((Part(position=3), Part(text="a red box", weight=0.5)), k=36, words=words).with_right([4, 7])
  (found,) = served.search([job])
  (term,) = found.terms["adapted"]
  features = [one for _, _, one in found.parts]
  t, width = served.planner._by_words(features[0], words.ignore, words.alike), served.adapter.width
  map_DD = t.gate[0, 0] * np.eye(width) + t.left[0].astype(float) @ t.right[0].T
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  item_ND = unit(np.asarray(served.frozen[:], np.float64) @ map_DD.T)
  weights = [1, 0.5, 1.5, 1.5]  # of the two marks together twice that of the parts
  score_N = sum(w * item_ND @ unit(map_DD @ x) for w, x in zip(weights, features, strict=True))
  order = np.argsort(-score_N, kind="stable")
  np.testing.assert_allclose(score_N[found.adapted.ids], score_N[order], atol=1e-4)
  assert term.gallery == "frozen"


def test_a_change_in_a_gallery_that_has_a_mean_is_a_query_of_its_own(served):
  adapter = qat_jax.Adapter(served.adapter.width, {"text": served.adapter.heads["text"]})
  other = Service(adapter, served.items, served.frozen, {"text": served.prepared["text"]}, served.encoder)
  job = Search((Part(position=3), Part(text="a blue box")), k=12, words=Words(change=COLOUR))
  (refused,) = other.search([job])
  assert "100 items or more" in str(refused)  # of which the mean is taken out
  other.planner.sample = np.tile(np.asarray(served.frozen[:]), (3, 1))
  (found,) = other.search([job])
  picture_D, text_D = (one for _, _, one in found.parts)
  told = {"changed": "colour", "aspects": {"colour": other.planner._rows(COLOUR)}, "gallery": other.planner.sample}
  adaptation = by_words(picture_D[None], change=text_D, **told)
  score_N = np.asarray(qat_jax.score(adaptation, other.frozen))[0]
  assert found.adapted.ids.tolist() == np.argsort(-score_N, kind="stable")[:12].tolist()
  guess = Search((Part(position=3), Part(text="a blue box")), k=12, words=Words(guess=(SHAPE, COLOUR)))
  (again,) = other.search([guess])
  assert again.adapted.ids.tolist() == found.adapted.ids.tolist()
  assert again.notes == ["the text was taken to change 'colour'; name another with \"change\""]


def test_a_change_in_a_small_gallery_with_a_head_for_pictures_adds_the_adapted_picture_and_the_plain_text(served):
  job = Search((Part(position=3), Part(text="a blue box")), k=36, words=Words(change=COLOUR))
  (found,) = served.search([job])
  (picture_D, text_D) = (one for _, _, one in found.parts)
  picture_N = np.asarray(qat_jax.score(served.adapter(picture_D[None], "image"), served.prepared["image"]))[0]
  item_ND = np.asarray(served.frozen[:], np.float64)
  score_N = picture_N * np.std(item_ND @ picture_D) / np.std(picture_N) + item_ND @ text_D
  assert found.adapted.ids.tolist() == np.argsort(-score_N, kind="stable").tolist()

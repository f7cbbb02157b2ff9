"""Aspects in requests: by name or brought along; what is wrong is said in one line; why says an aspect's part."""

import pytest

from tests.qat_jax.serve.conftest import ASPECTS
from tests.qat_jax.serve.web.clients import client_of, code, ids

COLOURS = ASPECTS["colour"]


def test_an_aspect_by_name_and_one_that_is_brought_along_are_the_same(client):
  assert client.get("/v1/info").json()["aspects"] == ["colour", "shape"]
  asked = {"query": {"item": "shop/3"}, "k": 11}
  by_name = client.post("/v1/search", json={**asked, "alike": "colour"})
  brought = client.post("/v1/search", json={**asked, "alike": ["mine"], "aspects": {"mine": COLOURS}})
  assert ids(by_name) == ids(brought)
  assert {entry["metadata"]["colour"] for entry in by_name.json()["results"]["adapted"]} == {"red"}
  ignored = client.post("/v1/search", json={**asked, "ignore": "colour"})
  assert ids(ignored) != ids(by_name)


def test_why_says_the_aspect_s_part_and_adapt_gives_its_map(client):
  asked = {"query": {"item": "shop/3"}, "alike": "colour"}
  (item,) = client.post("/v1/why", json={**asked, "items": ["shop/4"]}).json()["items"]
  (query, aspect) = item["parts"]
  assert (query["of"], query["item"], aspect["of"], aspect["name"]) == ("item", "shop/3", "aspect", "colour")
  assert query["score"] == pytest.approx(item["adapted"]["score"], abs=1e-5)
  assert aspect["score"] == pytest.approx(item["adapted"]["score"] - item["plain"]["score"], abs=1e-5)
  assert aspect["score"] < 0  # a green box is no red one
  answer = client.post("/v1/adapt", json={**asked, "adaptation": True}).json()
  assert answer["space"] == "frozen" and answer["adaptation"]["gate"] == [0.0]


@pytest.mark.parametrize(
  ("asked", "words"),
  [
    ({"alike": "size"}, "there is no aspect 'size'; there are colour, shape"),
    ({"alike": "colour", "ignore": ["colour"]}, "'colour' is said twice"),
    ({"change": "colour"}, "change wants a picture"),
    ({"change": True, "alike": "colour"}, "change and alike cannot go together"),
    ({"change": False}, "change"),
    ({"alike": "mine", "aspects": {"mine": ["one"]}}, "at least 2"),
    ({"alike": "mine", "aspects": {"mine": ["one", "one"]}}, "all alike"),
    ({"alike": "mine", "aspects": {"mine": ["", "two"]}}, "at least 1 character"),
    ({"ignore": ["colour"] * 9}, "at most 8"),
  ],
)
def test_what_is_wrong_about_aspects_is_said(client, asked, words):
  answer = client.post("/v1/search", json={"query": {"item": "shop/3"}, **asked})
  assert code(answer) == (422, "invalid") and words in answer.json()["error"]["message"]


def test_without_an_encoder_aspects_are_refused(open_shop):
  asked = {"query": {"item": "shop/3"}, "alike": "mine", "aspects": {"mine": COLOURS}}
  answer = client_of(open_shop(encoder="none")).post("/v1/search", json=asked)
  assert code(answer) == (422, "invalid") and "encodes no text" in answer.json()["error"]["message"]

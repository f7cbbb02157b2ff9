"""Changes by the API: kept with a key alone, whole or not at all, and nothing outside is ever named by a client."""

import base64
import errno
import json
import os
import random

import pytest
from starlette.testclient import TestClient

from qat_jax.serve.limits import Limits
from qat_jax.serve.web.app import create
from qat_jax.serve.web.state import State
from tests.faults.writes import KEY, pictures, sent, served, settle, written
from tests.qat_jax.serve.web.clients import code, ids, png


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("served")
  (folder / "pictures").mkdir()
  for name, colour in (("red", "red"), ("green", "green"), ("blue", "blue")):
    (folder / f"pictures/{name}.png").write_bytes(png(colour))
  (folder / "outside.png").write_bytes(png("black"))
  return folder


@pytest.fixture(scope="module")
def client(folder):
  with served(folder / "pictures") as client:
    yield client


def test_pictures_of_the_folder_are_searched_without_an_adapter(client):
  info = client.get("/v1/info").json()
  assert info["adapter"] is None and info["gallery"]["items"] == 3 == info["collection"]["of"]
  assert "toys alone" in info["notice"]
  assert set(ids(client.post("/v1/search", json={"query": "a red box"}))) == {"red.png", "green.png", "blue.png"}
  assert client.get("/v1/items", params={"id": "red.png", "part": "picture"}).content == png("red")


def test_a_picture_is_added_described_found_and_removed(client, folder):
  answer = client.post(
    "/v1/items",
    headers=KEY,
    files={"image": png("yellow")},
    data={"request": json.dumps({"id": "y", "metadata": {"price": 3}})},
  )
  assert answer.json() == {"status": "kept", "ids": ["y"]}
  settle(client)
  assert client.get("/v1/items", params={"id": "y", "part": "picture"}).content == png("yellow")
  assert client.get("/v1/items", params={"id": "y"}).json() == {"id": "y", "metadata": {"price": 3}, "picture": True}
  assert "y" in ids(client.post("/v1/search", json={"query": {"item": "red.png"}, "filters": {"price": 3}}))
  client.put("/v1/items", params={"id": "y"}, headers=KEY, json={"metadata": {"price": 5}})
  settle(client)
  assert ids(client.post("/v1/search", json={"query": {"item": "red.png"}, "filters": {"price": 3}})) == []
  assert client.delete("/v1/items", params={"id": "y"}, headers=KEY).status_code == 200
  settle(client, 3)
  assert code(client.get("/v1/items", params={"id": "y"})) == (404, "no_item")
  assert code(client.delete("/v1/items", params={"id": "y"}, headers=KEY)) == (404, "no_item")


def test_another_process_follows_shows_what_comes_and_takes_the_place_of_the_one_that_writes(tmp_path):
  (tmp_path / "red.png").write_bytes(png("red"))
  with served(tmp_path) as writer, served(tmp_path, share=True) as follower:
    assert [one.get("/v1/info").json()["collection"]["writes"] for one in (writer, follower)] == [True, False]
    assert code(follower.delete("/v1/items?id=red.png", headers=KEY)) == (409, "follows")
    sent = {"files": {"image": png("blue")}, "data": {"request": '{"id": "b"}'}}
    assert writer.post("/v1/items", headers=KEY, **sent).is_success
    settle(follower, 2)
    assert set(ids(follower.post("/v1/search", json={"query": "a box"}))) == {"red.png", "b"}
    assert follower.get("/v1/items", params={"id": "b", "part": "picture"}).content == png("blue")
    writer.running.stop()
    (tmp_path / "green.png").write_bytes(png("green"))
    settle(follower, 3)  # which encodes what is new, now that it is the one that writes
    assert follower.delete("/v1/items?id=red.png", headers=KEY).status_code == 200
    settle(follower, 2)


def test_a_batch_is_kept_whole_or_not_at_all(client):
  picture = base64.b64encode(png("white")).decode()
  vector = [1.0] + [0.0] * (client.running.collection.width - 1)
  good = [{"id": "a", "image": picture}, {"id": "b", "vector": vector}]
  for wrong in ({"id": "a", "vector": vector}, {"id": "c"}, {"id": "c", "image": "AAAA"}, {"id": "c", "vector": [0.0]}):
    assert code(client.post("/v1/items", headers=KEY, json={"items": [*good, wrong]})) == (422, "invalid")
  assert client.running.collection.get("a") is None
  client.put("/v1/items?id=red.png", headers=KEY, json={"metadata": {"size": 3}})
  before, said = written(client), json.dumps({"metadata": {"size": "three"}})
  answer = client.post("/v1/items", headers=KEY, files={"image": png("purple")}, data={"request": said})
  assert code(answer) == (422, "invalid") and written(client) == before  # its picture neither
  assert client.post("/v1/items", headers=KEY, json={"items": good}).json()["ids"] == ["a", "b"]
  settle(client, 5)
  for name in ("a", "b"):
    client.delete("/v1/items", params={"id": name}, headers=KEY)
  settle(client, 3)


def test_changes_want_the_key_and_a_collection(client, open_shop):
  changes = client.running.collection.changes
  for call in (
    lambda headers: client.post("/v1/items", headers=headers, files={"image": png("red")}),
    lambda headers: client.put("/v1/items?id=red.png", headers=headers, json={"metadata": {}}),
    lambda headers: client.delete("/v1/items?id=red.png", headers=headers),
  ):
    assert code(call({})) == (401, "no_key") == code(call({"X-API-Key": "other"}))
  assert client.running.collection.changes == changes
  for write_key, answer in ((None, (403, "no_key_set")), ("secret", (409, "frozen"))):
    state = State(Limits())
    state.service = open_shop()
    frozen = TestClient(create(state, None, None, (), write_key), "http://localhost")
    assert code(frozen.delete("/v1/items?id=a", headers=KEY)) == answer


def test_no_path_is_taken_from_a_client(client, folder):
  vector = [1.0] + [0.0] * (client.running.collection.width - 1)
  for name in ("file", "image_path", "path", ".content", ".stamp", "id", ""):
    metadata = {name: "../outside.png"}
    answer = client.post(
      "/v1/items", headers=KEY, json={"items": [{"id": "p", "vector": vector, "metadata": metadata}]}
    )
    assert code(answer) == (422, "invalid")
    answer = client.put("/v1/items", params={"id": "red.png"}, headers=KEY, json={"metadata": metadata})
    assert code(answer) == (422, "invalid")
  names = ["../outside.png", str(folder / "outside.png"), "green.png/../red.png", ".qat-jax/toy_clip/log-0"]
  new = [{"id": name, "vector": vector} for name in names]
  assert client.post("/v1/items", headers=KEY, json={"items": new}).status_code == 200
  settle(client, 3 + len(names))
  for name in names:
    assert code(client.get("/v1/items", params={"id": name, "part": "picture"})) == (404, "no_picture")
    client.delete("/v1/items", params={"id": name}, headers=KEY)
  settle(client, 3)


@pytest.mark.parametrize(
  ("number", "why"), [(errno.ENOSPC, "no_room"), (errno.EROFS, "no_room"), (errno.EIO, "not_kept")]
)
def test_a_disk_that_takes_nothing_is_told_and_nothing_changes(client, monkeypatch, number, why):
  calls = (
    lambda: client.post("/v1/items", headers=KEY, files={"image": png("white")}),
    lambda: client.put("/v1/items?id=red.png", headers=KEY, json={"metadata": {"price": 1}}),
    lambda: client.delete("/v1/items?id=red.png", headers=KEY),
  )

  def refuse(*_):
    raise OSError(number, "refused")

  before, item = client.running.collection.changes, client.running.collection.get("red.png")
  with monkeypatch.context() as patch:
    patch.setattr(os, "pwrite", refuse)
    assert [code(call()) for call in calls] == [(507, why)] * 3
  assert client.running.collection.changes == before and client.running.collection.get("red.png") == item
  assert calls[1]().status_code == 200  # with room again it goes on
  client.put("/v1/items?id=red.png", headers=KEY, json={"metadata": {}})


def test_malformed_changes_are_refused_and_nothing_is_written(client):
  images = pictures(random.Random(0))
  ends = [sent(client, images, random.Random(number)) for number in range(300)]
  assert [wrong for _, wrong in ends if wrong] == []
  assert {"422", "404"} < {happened for happened, _ in ends}

"""Items by ids that look like paths, addresses or numbers: by a path that writes them, and by ?id= in any case."""

import urllib.parse

import pytest

import qat_jax
from tests.qat_jax.serve.web.clients import client_of, code, ids, png

IDS = ["a", "a/picture", "a/picture/picture", "a/thumbnail", "/picture", "picture", "thumbnail", "..", ".", "../a"]
IDS += ["a?b=c", "a#b", "a%2Fpicture", "100%", "a b", "a+b", "a//b", "/a", "a/", "é", "e\u0301", "\\", "7", "07", "7.0"]
IDS += ["x" * 4000, "x" * 4000 + "/picture", "null", "constructor", "a&id=b", "\u202e", "🙂", "\ufffd"]


@pytest.fixture(scope="module")
def client(shop, open_shop, tmp_path_factory):
  folder = tmp_path_factory.mktemp("awkward")
  (folder / "pictures").mkdir()
  for i in range(len(IDS)):
    (folder / f"pictures/{i}.png").write_bytes(png((i, 0, 0)))
  rows_ND = qat_jax.FeatureStore.open(shop / "gallery")[: len(IDS)]
  columns = {"id": IDS, "file": [f"{i}.png" for i in range(len(IDS))]}
  about = {"encoder": "toy_clip", "revision": qat_jax.FeatureStore.open(shop / "gallery").encoder[1], "space": "frozen"}
  qat_jax.write_features(folder / "gallery", {"img": rows_ND}, columns, about)
  places = {"gallery": str(folder / "gallery"), "images": str(folder / "pictures"), "prepared": str(folder / "served")}
  return client_of(open_shop(encoder="none", **places))


def test_any_item_is_had_by_its_id_and_no_other(client):
  for i, name in enumerate(IDS):
    where = "/v1/items?id=" + urllib.parse.quote(name, safe="")
    assert client.get(where).json() == {"id": name, "metadata": {"file": f"{i}.png"}, "picture": True}
    assert client.get(where + "&part=picture").content == png((i, 0, 0))
    assert client.get(where + "&part=thumbnail").headers["content-type"] == "image/jpeg"
    found = client.post("/v1/search", json={"query": {"item": name}, "k": len(IDS), "mode": "plain"})
    assert sorted(ids(found, "plain")) == sorted(set(IDS) - {name})


def test_a_path_that_writes_a_slash_as_percent_2f_is_of_that_id_alone(client):
  for i, name in enumerate(IDS):
    if name in (".", ".."):  # which clients take for steps of the path
      continue
    where = "/v1/items/" + urllib.parse.quote(name, safe="")
    assert client.get(where).json()["id"] == name
    assert client.get(where + "/picture").content == png((i, 0, 0))
    assert client.get(where + "/thumbnail").headers["content-type"] == "image/jpeg"


def test_a_path_with_bare_slashes_ends_in_what_is_asked_for(client):
  picture_of = lambda name: png((IDS.index(name), 0, 0))
  assert client.get("/v1/items/a/picture").content == picture_of("a")
  assert client.get("/v1/items/a/picture/picture").content == picture_of("a/picture")
  assert client.get("/v1/items/picture").json()["id"] == "picture"
  assert client.get("/v1/items/a//b").json()["id"] == "a//b"
  for path in ("/v1/items/", "/v1/items//picture"):  # no item has the id "", which is that of none
    assert code(client.get(path)) == (404, "no_item")
  for path in ("/v1/items/b", "/v1/items/b/picture", "/v1/items/%ff", "/v1/items/a%2Fthumb", "/v1/items/a%252Fpictur"):
    assert code(client.get(path)) == (404, "no_item")


def test_what_is_no_question_for_one_item_is_refused(client):
  for path in ("/v1/items", "/v1/items?part=picture", "/v1/items?id=a&part=video", "/v1/items?id=a&id=a%2Fpicture"):
    answer = client.get(path)
    assert code(answer) == (422, "invalid") and len(answer.json()["error"]["message"]) > 10
  for missing in ("/v1/items?id=b", "/v1/items?id=A", "/v1/items?id=%FF", f"/v1/items?id={'x' * 9000}"):
    assert code(client.get(missing)) == (404, "no_item")


def test_head_says_what_get_would_without_its_body(client):
  for path in ("/v1/items?id=a&part=picture", "/v1/items/a", "/health", "/"):
    answer, whole = client.head(path), client.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(whole.content))
    assert answer.headers["content-type"] == whole.headers["content-type"]
  assert client.head("/v1/items?id=b").status_code == 404


def test_a_part_of_a_picture_is_given_to_who_asks_for_it(client):
  whole = png((0, 0, 0))
  for asked, wanted in (("bytes=0-9", whole[:10]), ("bytes=-5", whole[-5:])):
    answer = client.get("/v1/items/a/picture", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, wanted)
  for asked in ("bytes=99999-", "bytes=x", "bytes=5-1", "bytes=" + "0-1," * 3000):
    answer = client.get("/v1/items/a/picture", headers={"Range": asked})
    assert answer.status_code in (200, 206, 400, 416) and "default-src" in answer.headers["content-security-policy"]
    assert len(answer.content) <= 4 * len(whole)

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

import qat_jax
from tests.qat_jax.serve.web.clients import client_of, code, ids, png


def test_a_search_says_rank_score_metadata_and_how_far_items_moved(client, served):
  answer = client.post("/v1/search", json={"query": "a red box", "k": 4, "mode": "both"}).json()
  assert answer["query_type"] == "text" and answer["notes"] == [] and "adapted" in answer["milliseconds"]
  plain, adapted = answer["results"]["plain"], answer["results"]["adapted"]
  assert [entry["rank"] for entry in adapted] == [1, 2, 3, 4]
  whole = ids(client.post("/v1/search", json={"query": "a red box", "k": 36, "mode": "plain"}), "plain")
  assert [entry["plain_rank"] for entry in adapted] == [whole.index(entry["id"]) + 1 for entry in adapted]
  assert [entry["id"] for entry in plain] == whole[:4]
  assert plain[0]["metadata"]["caption"].endswith("box") and isinstance(plain[0]["metadata"]["number"], str)


def test_a_picture_is_found_by_upload_and_by_base64_and_with_words(client):
  data = png((205, 35, 30))
  asked = {"k": 6, "mode": "plain"}
  said = {"request": json.dumps(asked)}
  uploaded = ids(client.post("/v1/search", files={"image": ("x.png", data)}, data=said), "plain")
  text = base64.b64encode(data).decode()
  assert uploaded == ids(client.post("/v1/search", json={**asked, "query": {"image": text}}), "plain")
  with_words = {"request": json.dumps({**asked, "query": [{"text": "a blue box", "weight": 3}]})}
  assert ids(client.post("/v1/search", files={"image": ("x.png", data)}, data=with_words), "plain") != uploaded
  colours = client.post("/v1/search", json={**asked, "query": {"image": text}}).json()["results"]["plain"]
  assert {entry["metadata"]["colour"] for entry in colours} == {"red"}


def test_duplicates_are_one_result_and_diversity_reorders_them(client, served):
  ask = lambda **more: client.post("/v1/search", json={"query": {"item": "shop/0"}, "k": 36, "mode": "both", **more})
  plain = ids(ask(), "plain")
  answer = ask(group="duplicates")
  entries = answer.json()["results"]["plain"]
  assert [plain[0], len(plain)] == [entries[0]["id"], sum(entry["alike"] for entry in entries)]
  assert 1 < len(entries) < len(plain) and answer.json()["notes"] == []
  assert [entry["rank"] for entry in entries] == list(range(1, len(entries) + 1))
  unlike = ids(ask(diversity=0.9, k=5), "plain")
  assert unlike[0] == plain[0] and unlike != plain[:5] and set(unlike) < set(plain)
  for wrong in ({"diversity": 1.5}, {"diversity": "0.5"}, {"diversity": -1}):
    assert code(ask(**wrong)) == (422, "invalid")


def test_a_column_makes_groups_each_by_its_best_item(client):
  for query in ("a red box", {"item": "shop/3"}, [{"text": "a red box"}, {"item": "shop/3"}]):
    asked = {"query": query, "mode": "both", "exclude": ["shop/6"]}
    whole = client.post("/v1/search", json={**asked, "k": 36}).json()["results"]
    found = client.post("/v1/search", json={**asked, "group": "colour", "k": 5}).json()["results"]
    for side in ("plain", "adapted"):
      first = {entry["metadata"]["colour"]: entry["id"] for entry in reversed(whole[side])}
      assert {entry["metadata"]["colour"]: entry["id"] for entry in found[side]} == first and len(found[side]) == 3
      assert [entry["score"] for entry in found[side]] == sorted((e["score"] for e in found[side]), reverse=True)
  assert code(client.post("/v1/search", json={"query": "a", "group": "size"})) == (422, "invalid")


def test_evidence_is_said_of_what_one_head_found(served, client):
  rng = np.random.default_rng(0)
  absent, own = rng.normal(0, 0.1, 200), rng.normal(2, 0.1, 200)
  for status, present in (("calibrated", own), ("not known", absent)):
    known = qat_jax.Evidence(served.adapter.heads["text"], absent, present, np.ones(200, bool))
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(served.evidence, "text", known)
      answer = client.post("/v1/search", json={"query": "a red box", "k": 4, "mode": "both"}).json()
      heavy = client.post("/v1/search", json={"query": [{"text": "a red box", "weight": 3}], "k": 4}).json()
      sums = [{"query": [{"text": "a red box"}, {"item": "shop/3"}]}, {"query": "a red box", "right": ["shop/3"]}]
      others = [client.post("/v1/search", json=asked).json() for asked in sums]
    assert answer["evidence"]["status"] == status
    score_K = np.array([entry["score"] for entry in answer["results"]["adapted"]])
    got = [entry["evidence"] for entry in answer["results"]["adapted"]]
    if status == "not known":
      assert got == [None] * 4 and answer["evidence"]["least"]["0.1"] is None
    else:
      np.testing.assert_allclose(got, known.probability(score_K), rtol=1e-5)
      assert answer["evidence"]["least"]["0.1"] == known.least(alarms=0.1)
    assert [entry["evidence"] for entry in heavy["results"]["adapted"]] == got
    assert "evidence" not in answer["results"]["plain"][0]
    others.append(client.post("/v1/search", json={"query": "a red box"}).json())  # the adapter keeps no queries
    for other in others:
      assert "evidence" not in other["results"]["adapted"][0]
      assert other["evidence"] == {"status": "not calibrated", "least": {"0.01": None, "0.1": None, "0.3": None}}
  assert "evidence" not in client.post("/v1/search", json={"query": "a red box", "mode": "plain"}).json()


def test_items_filters_and_lists_narrow_a_search(client):
  asked = {"query": {"item": "shop/3"}, "k": 50, "filters": {"colour": "green", "price": {"most": 6}}}
  found = ids(client.post("/v1/search", json=asked))
  assert sorted(found) == sorted(f"shop/{i}" for i in (1, 4, 7, 10))
  found = ids(client.post("/v1/search", json={**asked, "allowed": ["shop/1", "shop/2", "shop/4", "gone"]}))
  assert sorted(found) == ["shop/1", "shop/4"]
  answer = client.post("/v1/search", json={"query": {"item": "shop/3"}, "k": 50, "exclude": ["shop/0", "gone"]})
  assert set(ids(answer)) == {f"shop/{i}" for i in range(36)} - {"shop/0", "shop/3"}
  assert answer.json()["notes"] == ["1 ids of exclude are not in the gallery: 'gone'"]
  empty = client.post("/v1/search", json={"query": "red", "filters": {"colour": "pink"}})
  assert ids(empty) == [] and empty.json()["notes"] == ["no item passes the filters"]


def test_a_tiny_vector_counts_as_much_as_any_other(client, served):
  row = np.asarray(served.frozen[np.array([3])], np.float64)[0]
  asked = {"k": 5, "mode": "plain", "query_type": "image"}
  found = [
    ids(client.post("/v1/search", json={**asked, "query": [{"vector": list(size * row)}, {"item": "shop/4"}]}), "plain")
    for size in (1, 1e-15, 1e15)
  ]
  assert found[0] == found[1] == found[2]
  rows = {"query": "red", "vectors": [list(1e-15 * row), list(row)]}
  first, second = client.post("/v1/rerank", json=rows).json()["results"]
  assert first["relevance_score"] == pytest.approx(second["relevance_score"], abs=1e-6)


def test_an_empty_answer_says_why(client):
  asked = {"query": "red", "allowed": ["shop/0"], "filters": {"colour": "green"}}
  answer = client.post("/v1/search", json=asked).json()
  assert answer["results"]["adapted"] == [] and answer["notes"] == ["no allowed item passes the filters"]
  answer = client.post("/v1/search", json={"query": "red", "allowed": ["shop/0"], "exclude": ["shop/0"]}).json()
  assert answer["results"]["adapted"] == [] and "no item is left to find" in answer["notes"][0]


def test_reranking_takes_ids_and_vectors_in_the_shape_of_cohere(client, served):
  names = [f"shop/{i}" for i in (5, 9, 9, 2, 30)]
  asked = {"model": "any", "query": "a red box", "documents": names, "top_n": 3, "return_documents": True}
  first = client.post("/v1/rerank", json=asked).json()["results"]
  order = [name for name in ids(client.post("/v1/search", json={"query": "a red box", "k": 36})) if name in names]
  twice = [name for name in order for _ in range(names.count(name))]
  assert [entry["id"] for entry in first] == [names[entry["index"]] for entry in first] == twice[:3]
  everything = client.post("/v1/rerank", json={**asked, "top_n": None}).json()["results"]
  assert sorted(entry["index"] for entry in everything) == [0, 1, 2, 3, 4]
  assert first[0]["document"]["metadata"]["colour"] in ("red", "green", "blue")
  vectors = np.asarray(served.frozen[np.array([5, 9, 2, 30])], np.float32).tolist()
  by_vector = client.post("/v1/rerank", json={"query": "a red box", "vectors": vectors}).json()["results"]
  assert [(5, 9, 2, 30)[entry["index"]] for entry in by_vector] == [int(name.split("/")[1]) for name in order]
  assert client.post("/v1/rerank", json={"query": "x", "documents": []}).json()["results"] == []
  assert code(client.post("/v1/rerank", json={"query": "x", "documents": ["gone"]})) == (404, "no_item")
  assert code(client.post("/v1/rerank", json={"query": "x"})) == (422, "invalid")


def test_the_folded_query_ranks_by_its_numerator_in_any_index(client, served):
  answer = client.post("/v1/adapt", json={"query": {"item": "shop/3"}, "adaptation": True}).json()
  assert answer["query_type"] == "image" and answer["space"].startswith("mapped-")
  arrays = {name: np.array([array], np.float32) for name, array in answer["adaptation"].items()}
  width = served.adapter.width
  for name in ("left", "right"):
    arrays[name] = arrays[name].reshape(1, width, -1)
  adaptation = qat_jax.Adaptation(**arrays, space=answer["space"])
  np.testing.assert_allclose(np.asarray(qat_jax.fold(adaptation))[0], answer["folded"], atol=1e-6)
  assert answer["width"] == len(answer["folded"]) == width


def test_items_have_metadata_picture_and_thumbnail(client, shop):
  item = client.get("/v1/items/shop/7").json()
  assert item["id"] == "shop/7" and item["picture"] and item["metadata"]["file"] == "more/7.png"
  picture = client.get("/v1/items/shop/7/picture")
  assert picture.content == (shop / "pictures/more/7.png").read_bytes()
  assert picture.headers["content-type"] == "image/png" and picture.headers["x-content-type-options"] == "nosniff"
  small = client.get("/v1/items/shop%2F7/thumbnail")
  assert Image.open(io.BytesIO(small.content)).format == "JPEG"
  for path in ("/v1/items/nobody", "/v1/items/nobody/picture", "/v1/items/..%2F..%2Fetc%2Fpasswd/picture"):
    assert code(client.get(path)) == (404, "no_item")


@pytest.mark.parametrize(
  ("asked", "word"),
  [
    ({}, "query"),
    ({"query": ""}, "query"),
    ({"query": "  "}, "empty"),
    ({"query": []}, "query"),
    ({"query": "x" * 2001}, "query"),
    ({"query": {"text": "a", "item": "b"}}, "exactly one"),
    ({"query": {}}, "exactly one"),
    ({"query": {"vector": [1.0, 2.0]}, "query_type": "text"}, "wanted floats of shape"),
    ({"query": {"vector": [0.0] * 128}, "query_type": "text"}, "zero"),
    ({"query": {"vector": [1e300] * 128}, "query_type": "text"}, "infinite"),
    ({"query": {"vector": [1.0] * 128}}, "query_type"),
    ({"query": {"image": "?"}}, "base64"),
    ({"query": "a", "k": 0}, "k"),
    ({"query": "a", "k": 1001}, "at most 1000"),
    ({"query": "a", "k": 10**30}, "k"),
    ({"query": "a", "mode": "best"}, "mode"),
    ({"query": "a", "kk": 3}, "'kk' is not known here; known are alike,"),
    ({"query": "a", "filters": {"size": 3}}, "size"),
    ({"query": "a", "filters": {"colour": {"near": 3}}}, "filters"),
    ({"query": [{"text": "a"}] * 9}, "query"),
  ],
)
def test_what_is_wrong_is_said(client, asked, word):
  answer = client.post("/v1/search", json=asked)
  assert code(answer) == (422, "invalid") and word in answer.json()["error"]["message"]


def test_no_body_breaks_it(client):
  bodies = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"query": "\\ud800"}',
    b'{"query": {"vector": [NaN]}}',
    b"[" * 100_000,
  ]
  bodies += [b'{"query": ' + b"9" * 5000 + b"}", b'{"query":"a","k":1e3}', '{"query":"\u202e\u0000é"}'.encode()]
  for path in ("/v1/search", "/v1/rerank", "/v1/adapt", "/v1/why", "/knn-service", "/metadata"):
    for body in bodies:
      for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", "multipart/form-data"):
        answer = client.post(path, content=body, headers={"Content-Type": kind})
        assert answer.status_code in (200, 404, 422), (path, body[:40], answer.text)
        assert "Traceback" not in answer.text


def test_clip_retrieval_s_calls_are_answered_whatever_their_content_type(client):
  assert client.get("/indices-list").json() == ["adapted", "plain"]
  asked = {"text": "a red box", "image": None, "image_url": None, "embedding_input": None, "modality": "image"}
  asked |= {"num_images": 2, "num_result_ids": 3000, "indice_name": "plain", "deduplicate": True, "aesthetic_score": ""}
  found = client.post("/knn-service", content=json.dumps(asked)).json()
  whole = ids(client.post("/v1/search", json={"query": "a red box", "k": 36, "mode": "plain"}), "plain")
  assert [entry["id"] for entry in found] == [int(name.split("/")[1]) for name in whole]
  assert (
    "caption" in found[1] and Image.open(io.BytesIO(base64.b64decode(found[1]["image"]))) and "caption" not in found[2]
  )
  body = json.dumps({"ids": [7, "3"], "indice_name": "adapted"})
  rows = client.post("/metadata", content=body, headers={"Content-Type": "text/plain;charset=UTF-8"}).json()
  assert [(row["id"], row["metadata"]["item"]) for row in rows] == [(7, "shop/7"), (3, "shop/3")]
  vector = np.ones(128).tolist()
  assert len(client.post("/knn-service", content=json.dumps({"embedding_input": vector, "num_images": 5})).json()) == 5
  for wrong in (
    {"image_url": "http://localhost/x.png"},
    {"text": "a", "modality": "text"},
    {"text": "a", "indice_name": "x"},
  ):
    assert code(client.post("/knn-service", json={"num_images": 1, **wrong})) == (422, "invalid")
  assert code(client.post("/metadata", json={"ids": [1 << 60]})) == (404, "no_item")
  assert code(client.post("/metadata", json={"ids": [1.5]})) == (422, "invalid")


def test_the_bodies_of_clip_retrieval_s_page_are_answered_as_it_reads_them(client):
  said = {"text": "a red box", "image": None, "image_url": None, "embedding_input": None, "modality": "image"}
  said |= {"num_images": 40, "indice_name": "", "num_result_ids": 3000, "use_mclip": False, "deduplicate": True}
  said |= {"use_safety_model": True, "use_violence_detector": True, "aesthetic_score": "", "aesthetic_weight": "0.5"}
  plain_text = {"Content-Type": "text/plain;charset=UTF-8"}
  ask = lambda path, body: client.post(path, content=json.dumps(body), headers=plain_text).json()
  found = ask("/knn-service", said)
  assert len(found) == 36 and all(isinstance(row["similarity"], float) for row in found)
  image = found[0]["image"]  # what a click on the picture sends, with an empty text
  again = ask("/knn-service", {**said, "text": "", "image": image, "indice_name": "plain"})
  # a thumbnail is near its picture, and as near to the other boxes of its colour, which differ in noise alone
  assert found[0]["id"] in [row["id"] for row in again[:12]] and again[0]["caption"] == found[0]["caption"]
  more = ask("/metadata", {"ids": [row["id"] for row in found[3:5]], "indice_name": "plain"})
  assert [one["id"] for one in more] == [row["id"] for row in found[3:5]] and "caption" in more[0]["metadata"]
  assert ask("/metadata", {"ids": [], "indice_name": "plain"}) == []


def test_the_description_has_every_route_and_its_examples_are_answered(client):
  about = client.get("/openapi.json").json()
  assert {"/v1/search", "/v1/rerank", "/v1/adapt", "/v1/why", "/v1/items/{id}", "/v1/info", "/knn-service"} <= set(
    about["paths"]
  )
  components = about["components"]["schemas"]
  names = {part["$ref"].split("/")[-1] for part in find(about, "$ref")}
  assert names <= set(components)
  for example in components["Search"]["examples"]:
    answer = client.post("/v1/search", json=example)
    assert answer.status_code in (200, 404, 422) and answer.json()


def find(tree, key):
  if isinstance(tree, dict):
    yield from ([tree] if key in tree else [])
    for value in tree.values():
      yield from find(value, key)
  elif isinstance(tree, list):
    for value in tree:
      yield from find(value, key)


def test_metrics_count_requests_stages_and_refusals_and_nothing_that_was_asked(served):
  client = client_of(served)
  client.post("/v1/search", json={"query": "a very private question"})
  client.get("/v1/items/very-private")
  text = client.get("/metrics").text
  for line in (
    'qat_jax_requests_total{route="/v1/search",status="200"} 1.0',
    'qat_jax_refused_total{code="no_item"} 1.0',
    'qat_jax_stage_seconds_count{stage="adapted"} 1.0',
    "qat_jax_batch_size_count 1.0",
    "qat_jax_items 36.0",
  ):
    assert line in text
  assert "private" not in text


def test_a_reload_wants_a_key_and_replaces_only_what_is_whole(served, open_shop):
  assert code(client_of(served).post("/v1/admin/reload")) == (403, "no_key_set")
  begun, go_on, answers = (
    threading.Event(),
    threading.Event(),
    [open_shop(encoder="none"), ValueError("shard\n3 is damaged")],
  )

  def reopen():
    begun.set()
    go_on.wait(10)
    if isinstance(answers[0], Exception):
      raise answers.pop(0)
    return answers.pop(0)

  with client_of(served, key="secret", reopen=reopen) as client:
    client.headers["X-API-Key"] = "secret"
    done = []
    thread = threading.Thread(target=lambda: done.append(client.post("/v1/admin/reload")))
    thread.start()
    assert begun.wait(10)
    assert client.post("/v1/search", json={"query": "a red box"}).status_code == 200  # the old one answers meanwhile
    assert code(client.post("/v1/admin/reload")) == (409, "reloading")
    go_on.set()
    thread.join(20)
    assert done[0].json()["status"] == "reloaded"
    assert code(client.post("/v1/search", json={"query": "a red box"})) == (
      422,
      "invalid",
    )  # the new one has no encoder
    failed = client.post("/v1/admin/reload")
    assert code(failed) == (409, "not_reloaded") and "shard 3 is damaged" in failed.text
    assert client.post("/v1/search", json={"query": {"item": "shop/1"}}).status_code == 200


def test_many_at_once_get_what_each_would_get_alone(client):
  texts = [f"a {colour} box {i}" for i in range(8) for colour in ("red", "green", "blue")]
  alone = [ids(client.post("/v1/search", json={"query": text, "k": 5})) for text in texts]
  together = [None] * len(texts)

  def ask(i):
    together[i] = ids(client.post("/v1/search", json={"query": texts[i], "k": 5}))

  threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert together == alone

"""Requests that might be answered wrongly without a word: compared with NumPy by hand, or refused in words."""

import http.client
import json
import time

import numpy as np
import pydantic
import pytest

import qat_jax
from qat_jax.serve.limits import Limits
from qat_jax.serve.web import schemas
from qat_jax.serve.web.app import create
from qat_jax.serve.web.server import in_thread
from qat_jax.serve.web.state import State
from tests.heads import moved
from tests.processes import free_port
from tests.qat_jax.serve.web.clients import client_of, code
from tests.vectors import features

ITEMS, WIDTH = 6000, 16
IDS = [f"{i}.0" if i % 3 == 0 else str(i) for i in range(ITEMS)]  # some name the same number as others would
EVERY = np.ones(ITEMS, bool)
PLACE = np.arange(ITEMS)


def rows(seed, number):
  return features(number, WIDTH, seed)


FEATURES = rows(0, ITEMS)
FEATURES[17] = FEATURES[16]
VECTOR = rows(1, 1)[0]
MISSING = (PLACE % 13 == 0) | (PLACE % 17 == 0)  # of the prices: none, or NaN


@pytest.fixture(scope="module")
def served(tmp_path_factory, open_shop):
  folder = tmp_path_factory.mktemp("attacked")
  columns = {
    "id": IDS,
    "colour": [("red", "green", "blue")[i % 3] if i % 11 else None for i in range(ITEMS)],
    "price": [None if i % 13 == 0 else float("nan") if i % 17 == 0 else i / 4 for i in range(ITEMS)],
    "sold": [i % 2 == 0 for i in range(ITEMS)],
    "number": list(range(ITEMS)),
  }
  qat_jax.write_features(folder / "gallery", {"img": FEATURES}, columns, {"space": "frozen"})
  text, image = moved("adaptive", WIDTH, {"hidden": 16, "rank": 4}), moved("static", WIDTH, {"maps_gallery": True})
  qat_jax.Adapter(WIDTH, {"text": text, "image": image}).save(folder / "adapter")
  return open_shop(adapter=str(folder / "adapter"), gallery=str(folder / "gallery"), images=None, encoder="none")


@pytest.fixture(scope="module")
def client(served):
  return client_of(served, Limits(seconds=300))


def by_hand(served, parts, side):
  """Returns the score of every item (N): each part by itself, its score times its weight over all weights.

  A part's score is the cosine of query and item, or of q' and T z, beside another head scaled to spread over 2048 items
  as the plain score does. On the plain side it is the cosine of the summed query.
  """
  total = sum(abs(weight) for weight, _, _ in parts)
  unit = lambda x: x / np.linalg.norm(x)
  if side == "plain":
    return FEATURES.astype(np.float64) @ unit(sum(weight / total * unit(row_D) for weight, row_D, _ in parts))
  scores, weights, sample = [], [], np.linspace(0, ITEMS - 1, 2048).astype(int)
  for weight, row_D, query_type in parts:
    adaptation = served.adapter(row_D[None], query_type)
    query_D, gate, left_DR, right_DR = (
      np.asarray(getattr(adaptation, name), np.float64)[0] for name in ("query", "gate", "left", "right")
    )
    item_ND = np.asarray(served.prepared[query_type][:], np.float64)
    mapped_ND = item_ND * gate + (item_ND @ right_DR) @ left_DR.T
    scores.append(mapped_ND @ query_D / np.linalg.norm(mapped_ND, axis=1))
    even = np.std(FEATURES[sample].astype(np.float64) @ unit(row_D)) / np.std(scores[-1][sample])
    weights.append(weight * (even if len({name for _, _, name in parts}) > 1 else 1))
  return np.array(weights) / np.abs(weights).sum() @ np.stack(scores)


def v(weight=1.0):
  return {"vector": VECTOR.tolist(), "weight": weight, "query_type": "text"}


but = lambda *places: ~np.isin(PLACE, places)
item = lambda place, weight=1.0: {"item": IDS[place], "weight": weight}
only = lambda **filters: {"query": v(), "filters": filters}
X = FEATURES
TEXT, FIFTH = (VECTOR, "text"), (X[5], "image")
CASES = {  # what is asked, its parts by hand, and which items may be found
  "less of it": ({"query": v(-2)}, [(-2, *TEXT)], EVERY),
  "tiny weights": ({"query": [v(1e-30), item(5, 1e-30)]}, [(1, *TEXT), (1, *FIFTH)], but(5)),
  "the least weight there is": ({"query": [v(5e-324)]}, [(1, *TEXT)], EVERY),
  "a weight of zero": ({"query": [v(), item(5, 0)]}, [(1, *TEXT)], but(5)),
  "the heaviest is negative": ({"query": [item(5), v(-1.5)]}, [(1, *FIFTH), (-1.5, *TEXT)], but(5)),
  "of equal weights the first": ({"query": [item(5), v()]}, [(1, *FIFTH), (1, *TEXT)], but(5)),
  "an item with a twin": ({"query": item(16)}, [(1, X[16], "image")], but(16)),
  "an item that alone is allowed": ({"query": item(5), "allowed": [IDS[5]]}, [(1, *FIFTH)], ~EVERY),
  "allowed twice": ({"query": v(), "allowed": [IDS[3]] * 2 + ["gone", IDS[9]]}, [(1, *TEXT)], ~but(3, 9)),
  "nothing allowed": ({"query": v(), "allowed": []}, [(1, *TEXT)], ~EVERY),
  "allowed and excluded": ({"query": v(), "allowed": IDS[3:5], "exclude": IDS[3:4] * 2}, [(1, *TEXT)], ~but(4)),
  "nearly all excluded": ({"query": v(), "exclude": IDS[1:]}, [(1, *TEXT)], ~but(0)),
  "many allowed": (
    {"query": v(), "allowed": IDS[:5000], "exclude": IDS[:4990]},
    [(1, *TEXT)],
    ~but(*range(4990, 5000)),
  ),
  "many allowed, filtered": (
    {"query": v(), "allowed": IDS[:5000], "filters": {"sold": True}, "k": 900},
    [(1, *TEXT)],
    (PLACE < 5000) & (PLACE % 2 == 0),
  ),
  "more than there are": ({**only(number={"least": 5990.5}), "k": 1000}, [(1, *TEXT)], PLACE > 5990),
  "any price": ({**only(price={}), "k": 1000}, [(1, *TEXT)], ~MISSING),
  "no ends": ({**only(price={"least": None, "most": None}), "k": 1000}, [(1, *TEXT)], ~MISSING),
  "ends the wrong way round": (only(price={"least": 3, "most": 2}), [(1, *TEXT)], ~EVERY),
  "between": (only(price={"least": 3, "most": 9.9}), [(1, *TEXT)], ~MISSING & (PLACE >= 12) & (PLACE < 40)),
  "values that no item has": (only(number=[7, 7, -1, 10**6]), [(1, *TEXT)], ~but(7)),
  "an id that is a number": (only(id=["4", "3", "3.0"]), [(1, *TEXT)], ~but(3, 4)),
  "several at once": (
    only(colour=["red", "blue"], sold=False, number={"most": 300}),
    [(1, *TEXT)],
    (PLACE % 11 > 0) & (PLACE % 3 != 1) & (PLACE % 2 == 1) & (PLACE <= 300),
  ),
}


@pytest.mark.parametrize("side", ["plain", "adapted"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_found_is_what_one_finds_by_hand(client, served, case, side):
  asked, parts, may_N = CASES[case]
  k, score_N = asked.get("k", 20), by_hand(served, parts, side)
  answer = client.post("/v1/search", json={**asked, "mode": side})
  assert answer.status_code == 200, answer.text
  entries, places = answer.json()["results"][side], np.flatnonzero(may_N)
  best = places[np.argsort(-score_N[places], kind="stable")][:k]
  found = [IDS.index(entry["id"]) for entry in entries]
  assert len(set(found)) == len(found) == len(best) and may_N[found].all()
  np.testing.assert_allclose([entry["score"] for entry in entries], score_N[best], atol=3e-6)
  np.testing.assert_allclose(score_N[found], score_N[best], atol=3e-6)
  assert bool(answer.json()["notes"]) == (not len(best) or "gone" in asked.get("allowed", []))


@pytest.mark.parametrize(
  ("body", "words"),
  [
    ('{"query": {"item": "1"}, "k": 5, "k": 7}', "'k' is said twice"),
    ("{" + ", ".join(f'"n{i}": 0' for i in range(2000)) + "}", "an object of 2000 names; give at most 1000"),
    ('{"query": [' + "{}, " * 100_000 + "{}]}", "'query' is a list of 100001; give at most 100000"),
    ('{"query": {"item": "1"}, "filters": {"number": {"least": 1}, "number": {"most": 3}}}', "'number' is said twice"),
    ('{"query": {"item": "1", "weight": 0}}', "weight 0"),
    ('{"query": [{"item": "1"}, {"item": "1", "weight": -1}]}', "cancel each other"),
    ('{"query": [{"item": "1", "weight": 1e-9}, {"item": "1", "weight": -1e-9}]}', "cancel each other"),
    ('{"query": {"item": "1", "weight": "2"}}', "weight: Input should be a valid number"),
    ('{"query": {"item": "1", "weight": true}}', "weight: Input should be a valid number"),
    ('{"query": {"item": "1", "weight": 101}}', "weight: Input should be less than or equal to 100"),
    ('{"query": {"item": "1", "weight": NaN}}', "weight: Input should be a finite number"),
    ('{"query": {"item": 1}}', "item: Input should be a valid string"),
    ('{"query": {"vector": [], "query_type": "text"}}', "at least 1 item"),
    (
      json.dumps({"query": {"vector": ["1"] * WIDTH, "query_type": "text"}}),
      "vector.0: Input should be a valid number",
    ),
    (
      json.dumps({"query": {"vector": [True] * WIDTH, "query_type": "text"}}),
      "vector.0: Input should be a valid number",
    ),
    (json.dumps({"query": {"vector": [1] * (WIDTH + 1), "query_type": "text"}}), "(Q, 16)"),
    ('{"query": {"item": "1"}, "filters": {"number": null}}', "boolean; or: Input should be a valid integer"),
    ('{"query": {"item": "1"}, "filters": {"number": true}}', "true is no value"),
    ('{"query": {"item": "1"}, "filters": {"number": [1, "a"]}}', "is no value"),
    ('{"query": {"item": "1"}, "filters": {"price": "5"}}', "is no value"),
    ('{"query": {"item": "1"}, "filters": {"sold": 1}}', "is no value"),
    ('{"query": {"item": "1"}, "exclude": "1"}', "exclude: Input should be a valid array"),
    ('{"query": {"item": "1"}, "exclude": [1]}', "exclude.0: Input should be a valid string"),
    ('{"query": {"item": "1"}, "k": 5.0}', "k: Input should be a valid integer"),
  ],
)
def test_what_could_be_misread_is_refused_in_words(client, body, words):
  answer = client.post("/v1/search", content=body)
  assert code(answer) == (422, "invalid") and words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
  ("model", "name", "wrong"),
  [
    (schemas.Search, "exclude", [1] * 999),
    (schemas.Search, "allowed", [1] * 999),
    (schemas.Rerank, "documents", [1] * 999),
    (schemas.Rerank, "vectors", [["a"] * 999] * 999),
    (schemas.Part, "vector", ["a"] * 999),
  ],
)
def test_of_a_long_list_that_is_wrong_little_is_looked_at(model, name, wrong):
  with pytest.raises(pydantic.ValidationError) as caught:
    model.model_validate_json(json.dumps({"query": "a", name: wrong} if name != "vector" else {name: wrong}))
  assert caught.value.error_count() <= 2  # of a union, one for each kind


@pytest.mark.parametrize("mode", ["plain", "adapted"])
def test_candidates_are_ordered_as_by_hand_whatever_their_lengths(client, served, mode):
  places = np.random.default_rng(3).choice(ITEMS, 40, replace=False)
  score_N = by_hand(served, [(1, *TEXT)], mode)
  order = sorted(range(40), key=lambda i: -score_N[places[i]])
  by_id = client.post("/v1/rerank", json={"query": v(), "documents": [IDS[i] for i in places], "mode": mode}).json()
  assert [entry["index"] for entry in by_id["results"]] == order
  vectors = [(FEATURES[place] * 10.0 ** (i % 9 - 4)).tolist() for i, place in enumerate(places)]
  by_vector = client.post("/v1/rerank", json={"query": v(), "vectors": vectors, "mode": mode}).json()
  assert [entry["index"] for entry in by_vector["results"]] == order
  expected = [score_N[places[i]] for i in order]
  for answer in (by_id, by_vector):
    np.testing.assert_allclose([entry["relevance_score"] for entry in answer["results"]], expected, atol=3e-6)


def test_a_body_in_pieces_without_its_length_is_read_whole(served):
  state, port = State(Limits(seconds=300)), free_port()
  state.service = served

  def pieces():
    for piece in (b'{"query": {"it', b'em": "1"}, ', b'"k": 2}'):
      yield piece
      time.sleep(0.1)  # so that each arrives by itself

  with in_thread(create(state, None, frozenset({"127.0.0.1"})), port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/search", pieces(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    answer = connection.getresponse()
    found = json.load(answer)
    assert answer.status == 200 and len(found["results"]["adapted"]) == 2
    connection.request("HEAD", "/v1/items?id=1")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"") and int(answer.headers["content-length"]) > 10
    connection.request("GET", "/v1/items/" + "x" * 60_000)
    answer = connection.getresponse()
    assert answer.status in (400, 404, 414)  # and not a connection that is dropped
    connection.close()
  state.queue.close(10)

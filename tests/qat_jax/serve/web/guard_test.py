import base64
import gzip
import hmac
import logging
import threading

from qat_jax.serve import limits
from qat_jax.serve.limits import Limits, Refused
from qat_jax.serve.web.guard import FILES
from tests.qat_jax.serve.web.clients import client_of, code


def test_a_key_is_asked_of_everything_but_the_page_and_health(served):
  client = client_of(served, key="secret", hosts=None)
  for path in (*FILES, "/health", "/ready"):
    assert client.get(path).status_code == 200
  for path in (
    "/v1/info",
    "/v1/items/shop/1",
    "/v1/items/shop/1/picture",
    "/metrics",
    "/indices-list",
    "/openapi.json",
  ):
    assert code(client.get(path)) == (401, "no_key")
    assert client.get(path, headers={"X-API-Key": "secret"}).status_code == 200
  assert code(client.post("/v1/search", json={"query": "a"}, headers={"Authorization": "Bearer x"})) == (401, "no_key")
  assert client.post("/v1/search", json={"query": "a"}, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_without_a_key_it_answers_to_its_own_names_alone(client):
  assert code(client.get("/v1/info", headers={"Host": "evil.example"})) == (421, "wrong_host")


def test_limits_of_size_rate_and_readiness(served):
  client = client_of(served, Limits(body_bytes=1000, rate=0.001, burst=2))
  assert code(client.post("/v1/search", content=b"x" * 1001)) == (413, "too_large")
  assert code(client.post("/v1/search", content=iter([b"x" * 600] * 2))) == (413, "too_large")
  slow = client.get("/v1/info")
  assert code(slow) == (429, "too_many") and int(slow.headers["retry-after"]) > 1
  starting = client_of(None)
  assert code(starting.get("/ready")) == (503, "starting") and starting.get("/health").status_code == 200
  assert code(starting.post("/v1/search", json={"query": "a"})) == (503, "starting")


def test_every_answer_has_the_headers_of_security(client):
  for answer in (
    client.get("/"),
    client.get("/nowhere"),
    client.post("/v1/search", content=b"{"),
    client.put("/v1/info"),
  ):
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "'unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
  assert client.get("/").headers["content-type"].startswith("text/html")
  assert client.get("/page.js").headers["content-type"].startswith("text/javascript")


def test_pages_of_a_named_origin_alone_may_read_answers(served):
  client = client_of(served, origins=("https://named.example",))
  for origin, wanted in (("https://named.example", "https://named.example"), ("https://other.example", None)):
    answer = client.get("/v1/info", headers={"Origin": origin})
    assert answer.headers.get("access-control-allow-origin") == wanted


def test_a_page_of_a_named_origin_may_read_why_it_is_refused(served):
  client = client_of(served, Limits(body_bytes=100), key="secret", hosts=None, origins=("https://named.example",))
  client.headers["Origin"] = "https://named.example"
  for answer, status in (
    (client.get("/v1/info"), 401),
    (client.post("/v1/search", content=b"x" * 101, headers={"X-API-Key": "secret"}), 413),
  ):
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert answer.headers["access-control-allow-origin"] == "https://named.example"
  asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
  assert client.options("/v1/search", headers=asked).status_code == 200  # which a browser asks without the key
  assert client.options("/v1/search", headers={**asked, "Origin": "https://other.example"}).status_code == 400


def test_a_full_queue_says_when_to_ask_again(served):
  client = client_of(served, Limits(waiting=1, seconds=120))
  begun, go_on = threading.Event(), threading.Event()
  blocked = [client.state.queue.put((served, lambda: (begun.set(), go_on.wait(30))))]
  assert begun.wait(30)
  blocked.append(client.state.queue.put((served, lambda: None)))
  answer = client.post("/v1/search", json={"query": "a red box"})
  assert code(answer) == (503, "busy") and int(answer.headers["retry-after"]) >= 1
  go_on.set()
  [one.result(30) for one in blocked]
  assert client.post("/v1/search", json={"query": "a red box"}).status_code == 200


def test_keys_are_compared_in_constant_time_whatever_their_length(served, monkeypatch):
  compared, real = [], hmac.compare_digest
  monkeypatch.setattr(limits.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
  client = client_of(served, key="secret", hosts=None)
  for given in ("", "s", "secret", "secret" * 1000):
    assert client.get("/v1/info", headers={"X-API-Key": given}).status_code == (200 if given == "secret" else 401)
  assert len(compared) == 4 and {len(one) for pair in compared for one in pair} == {64}


def test_the_log_has_nothing_that_was_asked(served, caplog, monkeypatch):
  client, picture = client_of(served), base64.b64encode(b"private picture").decode()
  with caplog.at_level(logging.DEBUG):
    for body in ({"query": "private"}, {"query": {"image": picture}}, {"query": "a", "filters": {"private": 1}}):
      client.post("/v1/search?private=1", json=body)
    client.post("/knn-service", json={"text": "private"})
    client.post("/v1/search", content=b"private", headers={"Content-Type": "multipart/form-data; boundary=x"})
    for path in ("/private", "/v1/items/private", "/v1/items?id=private", "/v1/items/private/picture"):
      client.get(path, headers={"User-Agent": "private", "X-API-Key": "private"})
    monkeypatch.setattr(served.items, "positions", lambda names: {}[next(iter(names))])  # whose error has the id
    assert code(client.get("/v1/items/private")) == (500, "broken")
  own = [line for line in caplog.records if not line.name.startswith("http")]  # the test's client logs what it asks
  said = "\n".join(filter(None, (line.getMessage() + (line.exc_text or "") for line in own)))
  assert "private" not in said and picture not in said
  assert "boundary" not in said  # with which a library tells the letter that it found instead
  assert "POST /v1/search 200" in said and "KeyError" in said and "app.py" in said


def test_a_compressed_body_is_refused_in_words(client):
  body = gzip.compress(b'{"query": {"item": "shop/1"}}')
  for coding, wanted in (("gzip", (415, "compressed")), ("br", (415, "compressed")), ("identity", (422, "invalid"))):
    assert code(client.post("/v1/search", content=body, headers={"Content-Encoding": coding})) == wanted


def test_an_address_says_which_methods_it_takes(client):
  for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"):
    answer = client.request(method, "/v1/search")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
  assert answer.json()["error"] == {"code": "method", "message": "this address takes POST"}


def test_an_error_of_ours_is_no_traceback(served, monkeypatch):
  client = client_of(served)
  monkeypatch.setattr(client.state.service.items, "records", lambda positions: 1 / 0, raising=True)
  answer = client.get("/v1/items/shop/1")
  assert code(answer) == (500, "broken") and "division" not in answer.text


def test_a_refusal_is_json_with_what_to_do():
  error = Refused(503, "busy", "try again", 1.2)
  assert error.as_json() == {"error": {"code": "busy", "message": "try again"}} and error.headers() == {
    "Retry-After": "2"
  }

import pytest

from qat_jax.serve.limits import Limits, Refused
from tests.qat_jax.serve.web.clients import client_of, code


@pytest.fixture(scope="module")
def client(served):
  return client_of(served)


def test_a_key_is_asked_of_everything_but_the_page_and_health(served):
  client = client_of(served, key="secret", hosts=None)
  for path in ("/", "/page.js", "/results.js", "/page.css", "/health", "/ready"):
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

"""What every request passes before the application sees it: host, key, rate, size, time; and the headers of answers.

A middleware of plain ASGI: nothing that goes wrong behind it reaches a client as a traceback.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

from qat_jax.serve.limits import Limits, Rates, Refused, check_host, check_key

FILES = ("/", "/page.js", "/results.js", "/refine.js", "/collection.js", "/server.js", "/page.css")  # of the page
OPEN = (*FILES, "/health", "/ready")  # without a key
BODY_SECONDS = 30.0  # to send a body in
UNKNOWN = "unknown"
ITEMS = "/v1/items/"
BROKEN = Refused(500, "broken", "something went wrong here; the server's log has it")
POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
  (b"content-security-policy", POLICY.encode()),
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
  (b"cross-origin-resource-policy", b"same-origin"),
)
log = logging.getLogger("qat_jax.serve")


class Guard:
  """Wraps an ASGI application. `count(route, status, seconds, code)` is told of every answer."""

  def __init__(
    self,
    app: Any,
    limits: Limits,
    keys: tuple[str, ...],
    hosts: frozenset[str] | None,
    count: Callable[[str, int, float, str | None], None],
    cross_origin: bool = False,
  ) -> None:
    """Takes what is asked of requests.

    `keys`: one of them, if there are any. `hosts`: the names that the server goes by; None: any. `cross_origin`: pages
    of named origins may read answers.
    """
    self.app, self.limits, self.keys, self.hosts, self.count = app, limits, keys, hosts, count
    self.rates, self.active = Rates(limits.rate, limits.burst), 0
    self.headers = [pair for pair in HEADERS if not (cross_origin and pair[0] == b"cross-origin-resource-policy")]

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Answers one request."""
    if scope["type"] != "http":
      await self.app(scope, receive, send)
      return
    method, scope = scope["method"], _routed(scope)
    began, status, started = time.perf_counter(), 500, False
    code: str | None = None

    async def sending(message: Any) -> None:
      nonlocal status, started
      if message["type"] == "http.response.start":
        status, started = message["status"], True
        there = {name.lower() for name, _ in message.get("headers", [])}
        message["headers"] = [*message.get("headers", []), *(pair for pair in self.headers if pair[0] not in there)]
      await send(message)

    self.active += 1
    try:
      self._check(scope)
      body = await self._body(scope, receive)
      await self.app(scope, _replay(body, receive), sending)
    except Refused as error:
      code = error.code
      if not started:
        await JSONResponse(error.as_json(), error.status, error.headers())(scope, receive, sending)
    except Exception as error:  # whose message may have what was asked: where it was raised is all that is logged
      code, where = "broken", "".join(traceback.format_tb(error.__traceback__))
      log.error("a request to %s failed: %s\n%s", route_of(scope), type(error).__name__, where)
      if not started:
        await JSONResponse(BROKEN.as_json(), BROKEN.status)(scope, receive, sending)
    finally:
      self.active -= 1
      seconds = time.perf_counter() - began
      self.count(route_of(scope), status, seconds, code)
      level = logging.DEBUG if scope["path"] in OPEN else logging.INFO
      log.log(level, "%s %s %d %.1f ms", method, route_of(scope), status, 1000 * seconds)

  def _check(self, scope: Any) -> None:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if self.hosts is not None:
      check_host(headers.get(b"host"), self.hosts)
    if self.active > 2 * self.limits.waiting + 64:
      raise Refused(503, "busy", "too many requests at once; try again later", 1)
    if scope["path"] in OPEN or scope["method"] == "OPTIONS":
      return
    self.rates.take((scope.get("client") or (UNKNOWN,))[0])
    check_key(self.keys, headers.get(b"authorization"), headers.get(b"x-api-key"))
    if headers.get(b"content-encoding", "identity").strip().lower() not in ("", "identity"):
      raise Refused(415, "compressed", "bodies are taken as they are: send it without Content-Encoding")
    length = headers.get(b"content-length", "")
    if length.isdigit() and int(length) > self.limits.body_bytes:
      raise self._too_large()

  async def _body(self, scope: Any, receive: Any) -> bytes:
    """Returns the whole body; raises Refused where it is too large (413) or too slow (408)."""
    if scope["method"] in ("GET", "OPTIONS"):
      return b""
    pieces, size = [], 0
    try:
      async with asyncio.timeout(BODY_SECONDS):
        while True:
          message = await receive()
          if message["type"] == "http.disconnect":
            raise Refused(400, "gone", "the client went away")
          pieces.append(message.get("body", b""))
          size += len(pieces[-1])
          if size > self.limits.body_bytes:
            raise self._too_large()
          if not message.get("more_body"):
            return b"".join(pieces)
    except TimeoutError:
      raise Refused(408, "slow", f"the body did not arrive within {BODY_SECONDS:g} s") from None

  def _too_large(self) -> Refused:
    return Refused(413, "too_large", f"the body is larger than {self.limits.body_bytes >> 20} MiB; send less")


def route_of(scope: Any) -> str:
  """Returns the pattern of a request's path, without what it asks for."""
  return scope.get("pattern") or (scope["path"] if scope["path"] in OPEN else UNKNOWN)


def _routed(scope: Any) -> Any:
  """Returns a request as routes see it: HEAD as a GET, whose body the server keeps, and items' ids as they are written.

  So `a%2Fpicture` is an id, and `a/picture` the picture of `a`.
  """
  routed = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
  if (written := scope.get("raw_path", b"").decode("latin-1")).startswith(ITEMS):
    routed["path"] = written
  return routed


def _replay(body: bytes, receive: Any) -> Any:
  first = [{"type": "http.request", "body": body, "more_body": False}]

  async def replayed() -> Any:
    return first.pop() if first else await receive()

  return replayed

"""The web application: routes, and the description of them. The one file that knows FastAPI."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from qat_jax.serve.limits import Limits, Refused, invalid
from qat_jax.serve.pictures import media_type, read
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.service import Service
from qat_jax.serve.web import clip_retrieval, schemas, views
from qat_jax.serve.web.description import body, described
from qat_jax.serve.web.guard import BROKEN, Guard
from qat_jax.serve.web.state import State

PAGE = {
  "/": ("index.html", "text/html"),
  "/page.js": ("page.js", "text/javascript"),
  "/results.js": ("results.js", "text/javascript"),
  "/page.css": ("page.css", "text/css"),
}
TITLE = "qat-jax: query-adaptive search"


def create(
  state: State, key: str | None = None, hosts: frozenset[str] | None = None, origins: tuple[str, ...] = ()
) -> Any:
  """Returns the ASGI application.

  `key`: what requests have to give, None: nothing. `hosts`: the names that the server goes by, None: any. `origins`:
  whose pages may read answers.
  """
  logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings have letters of a form
  app = FastAPI(title=TITLE, version="1", docs_url=None, redoc_url=None, openapi_url=None)

  @app.exception_handler(Refused)
  async def refused(request: Request, error: Refused) -> Response:
    request.scope.setdefault("state", {})["code"] = error.code
    return _json(error.as_json(), error.status, error.headers())

  @app.exception_handler(RequestValidationError)  # of what an address says; bodies are parsed by handlers
  async def not_valid(request: Request, error: RequestValidationError) -> Response:
    return await refused(request, views.first_wrong(error.errors()))

  @app.exception_handler(HTTPException)
  async def not_found(request: Request, error: HTTPException) -> Response:
    code, said = "not_found", "there is nothing at this address; /openapi.json has what there is"
    if error.status_code == 405:
      code, said = "method", f"this address takes {(error.headers or {}).get('Allow', 'other methods')}"
    return _json({"error": {"code": code, "message": said}}, error.status_code, dict(error.headers or {}))

  @app.exception_handler(Exception)  # logged by the guard, to which it goes on
  async def broken(request: Request, error: Exception) -> Response:
    return _json(BROKEN.as_json(), BROKEN.status)

  for route in (_searches, _items, _clip_retrieval, _about):
    route(app, state, key)
  description = described(app.openapi())

  @app.get("/openapi.json", include_in_schema=False)
  async def openapi() -> Response:
    return Response(description, media_type="application/json")

  def count(route: str, status: int, seconds: float, code: str | None) -> None:
    state.metrics.requests.labels(route, str(status)).inc()
    state.metrics.latency.labels(route).observe(seconds)
    if code:
      state.metrics.refused.labels(code).inc()

  guard = Guard(app, state.limits, key, hosts, count, bool(origins))
  if not origins:
    return guard
  allowed: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["*"],
    "expose_headers": ["Retry-After"],
  }
  return CORSMiddleware(guard, allow_origins=list(origins), **allowed)  # outside, so that refusals can be read too


def _searches(app: FastAPI, state: State, key: str | None) -> None:
  @app.post("/v1/search", openapi_extra=body("Search", upload=True), summary="Search the gallery")
  async def search(request: Request) -> Response:
    """By text, a picture, an item, a vector, or several with weights: plain, adapted or both."""
    service = state.ready()
    asked, picture = await _asked(request, schemas.Search)
    job, notes = await asyncio.to_thread(_prepared, service, asked, picture, state.limits)
    began = time.perf_counter()
    found = await state.do(service, job)
    waited = max(0.0, time.perf_counter() - began - sum(found.seconds.values()))
    return _json(await asyncio.to_thread(views.found_json, service, found, asked.k, notes, waited))

  def alone(model: Any, answer: Callable) -> Callable:
    """Returns a handler of a request that the queue's thread answers by itself."""

    async def handler(request: Request) -> Response:
      service = state.ready()
      asked = await asyncio.to_thread(views.parse, model, await request.body())
      parts = await asyncio.to_thread(views.parts_of, service, asked.query, state.limits)
      return _json(await state.do(service, lambda: answer(service, asked, parts)))

    handler.__name__ = model.__name__.lower()
    return handler

  for path, model, answer, summary in (
    ("/v1/rerank", schemas.Rerank, views.reranked, "Candidates in the order of their exact scores"),
    ("/v1/adapt", schemas.Adapt, views.adapted_json, "The folded query, for an inner-product index of yours"),
    ("/v1/why", schemas.Why, views.why_json, "Why items are where they are"),
  ):
    app.post(path, openapi_extra=body(model.__name__), summary=summary)(alone(model, answer))


def _items(app: FastAPI, state: State, key: str | None) -> None:
  async def of_picture(id: str, read: Callable[[Any, dict], Any]) -> Any:
    service = state.ready()
    found = lambda: read(service.pictures, service.items.records(service.items.positions([id]))[0])
    return await asyncio.to_thread(found)

  async def metadata(id: str) -> Response:
    return _json(await asyncio.to_thread(views.record_json, state.ready(), id))

  async def picture(id: str) -> Response:
    path = await of_picture(id, lambda pictures, record: pictures.path(record))
    return FileResponse(path, media_type=media_type(path), headers={"Cache-Control": "private, max-age=300"})

  async def thumbnail(id: str) -> Response:
    data = await of_picture(id, lambda pictures, record: pictures.thumbnail(record))
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

  parts = {"picture": picture, "thumbnail": thumbnail, "metadata": metadata}

  @app.get("/v1/items", summary="An item by any id: its metadata, its picture, or that one small")
  async def item(request: Request, id: str, part: Literal["metadata", "picture", "thumbnail"] = "metadata") -> Response:
    if len(request.query_params.getlist("id")) > 1:
      raise invalid("id is given more than once; ask for one item at a time")
    views.unquoted(request.scope["query_string"].decode("latin-1"))
    return await parts[part](id)

  def at(part: str) -> Callable:
    async def handler(id: str) -> Response:
      return await parts[part](views.unquoted(id))

    handler.__name__ = part
    return handler

  for path, part, summary in (  # of ids as they were written: the guard sees to it that a %2F ends no id
    ("/v1/items/{id:path}/picture", "picture", "An item's picture"),
    ("/v1/items/{id:path}/thumbnail", "thumbnail", "An item's picture, small"),
    ("/v1/items/{id:path}", "metadata", "An item's metadata; slashes in its id are written %2F"),
  ):
    app.get(path, summary=summary)(at(part))


def _clip_retrieval(app: FastAPI, state: State, key: str | None) -> None:
  @app.get("/indices-list", summary="clip-retrieval: the names to search by")
  async def indices() -> list[str]:
    return list(clip_retrieval.INDICES)

  @app.post("/knn-service", summary="clip-retrieval: search", openapi_extra=body(None))
  async def knn(request: Request) -> Response:
    service, said = state.ready(), clip_retrieval.parse(await request.body())
    job, images = await asyncio.to_thread(clip_retrieval.search_of, service, said, state.limits)
    found = await state.do(service, job)
    return _json(await asyncio.to_thread(clip_retrieval.results, service, found, images))

  @app.post("/metadata", summary="clip-retrieval: metadata", openapi_extra=body(None))
  async def metadata(request: Request) -> Response:
    service, said = state.ready(), clip_retrieval.parse(await request.body())
    return _json(await asyncio.to_thread(clip_retrieval.metadata, service, said))


def _about(app: FastAPI, state: State, key: str | None) -> None:
  pages = {
    path: (resources.files("qat_jax.serve.web") / "page" / name).read_bytes() for path, (name, _) in PAGE.items()
  }

  def page(path: str) -> Callable:
    async def handler() -> Response:
      return Response(pages[path], media_type=PAGE[path][1], headers={"Cache-Control": "no-cache"})

    return handler

  for path in PAGE:
    app.get(path, include_in_schema=False)(page(path))

  @app.get("/health", summary="Whether the process answers")
  async def health() -> dict[str, str]:
    return {"status": "ok"}

  @app.get("/ready", summary="Whether searches are answered")
  async def ready() -> dict[str, str]:
    state.ready()
    return {"status": "ready"}

  @app.get("/v1/info", summary="Adapter, encoder, gallery, what can be filtered by")
  async def info() -> Response:
    service = state.ready()
    encoder = service.encoder
    searches = {"text": encoder is not None and encoder.max_tokens > 0, "image": encoder is not None}
    limits = {"k": state.limits.k, "body_bytes": state.limits.body_bytes, "image_pixels": state.limits.image_pixels}
    pictures = service.pictures.folder is not None
    about = {**service.about, "searches": searches, "pictures": pictures, "limits": limits}
    return _json({**about, "examples": service.items.examples, "columns": service.items.facets})

  @app.get("/metrics", summary="For Prometheus")
  async def metrics() -> Response:
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

  @app.post("/v1/admin/reload", summary="Read gallery and adapter anew, and serve them when they are whole")
  async def reload() -> Response:
    """Wants a key to be set. The old ones serve until the new ones are loaded, checked and compiled."""
    if key is None or state.reopen is None:
      raise Refused(403, "no_key_set", "reloading wants a key: start the server with QAT_JAX_API_KEY")
    if state.reloading.locked():
      raise Refused(409, "reloading", "a reload is under way already", 5)
    async with state.reloading:
      try:
        state.service = await asyncio.to_thread(state.reopen)
      except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        state.metrics.reloads.labels("failed").inc()
        said = " ".join(str(error).split())
        raise Refused(409, "not_reloaded", f"what is served has not changed: {said}") from error
    state.metrics.reloads.labels("done").inc()
    return _json({"status": "reloaded", **state.service.about})


def _prepared(
  service: Service, asked: schemas.Search, picture: bytes | None, limits: Limits
) -> tuple[Search, list[str]]:
  """Returns the search of a request, and of the picture that was uploaded with it; in a thread of its own."""
  return views.search_of(service, asked, limits, () if picture is None else (_uploaded(service, picture, limits),))


def _uploaded(service: Service, picture: bytes, limits: Limits) -> Part:
  return Part(pixels=service.pixels(read(picture, limits.image_pixels)))


async def _asked(request: Request, model: Any) -> tuple[Any, bytes | None]:
  """Returns a request and the picture beside it: JSON whatever its content type says, or a form with both."""
  if not request.headers.get("content-type", "").startswith("multipart/form-data"):
    return await asyncio.to_thread(views.parse, model, await request.body()), None
  try:
    form = await MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=1).parse()
  except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
    raise invalid("the form cannot be read; send a file `image`, and the rest as JSON in a field `request`") from error
  image = form.get("image")
  if image is None or isinstance(image, str):
    raise invalid("the form has no file `image`")
  said = form.get("request") or "{}"
  data = await image.read()
  await form.close()
  return views.parse(model, str(said).encode("utf-8", "surrogatepass")), data


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
  return Response(views.json_bytes(content), status, headers, media_type="application/json")

"""The web application: one table of routes, and who answers them."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette import routing
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from qat_jax.serve.limits import Refused, invalid
from qat_jax.serve.pictures import media_type, read
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.service import Service
from qat_jax.serve.web import asking, clip_retrieval, schemas, views
from qat_jax.serve.web.changing import Writing, id_in
from qat_jax.serve.web.description import JSON, Route, described
from qat_jax.serve.web.guard import FILES, Guard
from qat_jax.serve.web.state import State

PAGE = {path: {"js": "text/javascript", "css": "text/css"}.get(path.partition(".")[2], "text/html") for path in FILES}
TITLE = "qat-jax: query-adaptive search"
KEPT = {"Cache-Control": "private, max-age=300"}  # of pictures, in a browser
PARTS = ("metadata", "picture", "thumbnail")  # of an item


def create(
  state: State,
  key: str | None = None,
  hosts: frozenset[str] | None = None,
  origins: tuple[str, ...] = (),
  write_key: str | None = None,
) -> Any:
  """Returns the ASGI application.

  Args:
    state: what the server holds.
    key: what requests have to give; None: nothing.
    hosts: the names that the server goes by; None: any.
    origins: whose pages may read answers.
    write_key: what changes have to give; None: the same as all requests, and without that there are no changes.
  """
  logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings show letters of a form
  answers = Answers(state, key, bool(write_key or key))
  writing = Writing(state, write_key or key, said_and_picture)
  routes = [*writing.routes(), *answers.routes()]
  description = described(routes, TITLE)

  async def openapi(request: Request) -> Response:
    return Response(description, media_type=JSON)

  async def nothing(scope: Any, receive: Any, send: Any) -> None:
    raise Refused(404, "not_found", "there is nothing at this address; /openapi.json has what there is")

  of_path: dict[str, list[Route]] = {}
  for one in (*routes, Route("GET", "/openapi.json", openapi)):
    of_path.setdefault(one.path, []).append(one)
  table = [routing.Route(path, _endpoint(some)) for path, some in of_path.items()]
  # HEAD arrives as GET, and `_endpoint` refuses other methods, so that every refusal looks alike.
  for entry in table:
    entry.methods = None
  router = routing.Router(table, redirect_slashes=False, default=nothing)
  keys = () if key is None else (key, *filter(None, [write_key]))
  guard = Guard(router, state.limits, keys, hosts, state.metrics.count, bool(origins))
  if not origins:
    return guard
  methods, exposed = ["GET", "POST", "PUT", "DELETE"], ["Retry-After"]
  return CORSMiddleware(  # outside, so that pages can read refusals too
    guard, allow_origins=list(origins), allow_methods=methods, allow_headers=["*"], expose_headers=exposed
  )


class Answers:
  """Who answers each route of a running server."""

  def __init__(self, state: State, key: str | None, writes: bool) -> None:
    """`writes` says whether there is a key that changes want."""
    self.state, self.key, self.writes = state, key, writes

  def routes(self) -> list[Route]:
    """Returns the table of routes; of two that fit an address the first answers.

    Ids are matched as the address writes them, so a %2F ends no id.
    """
    text, part = {"type": "string"}, {"type": "string", "enum": list(PARTS), "default": "metadata"}
    item = lambda part: functools.partial(self.item_at, part)
    candidates, folded, reasons = (
      self.alone(model, answer)
      for model, answer in (
        (schemas.Rerank, views.reranked),
        (schemas.Adapt, views.adapted_json),
        (schemas.Why, views.why_json),
      )
    )
    picture = ("image/*", "application/octet-stream")
    return [
      Route("POST", "/v1/search", self.search, "Search the gallery", schemas.Search, upload=True),
      Route("POST", "/v1/rerank", candidates, "Candidates in the order of their exact scores", schemas.Rerank),
      Route("POST", "/v1/adapt", folded, "The folded query, for an inner-product index of yours", schemas.Adapt),
      Route("POST", "/v1/why", reasons, "Why items are where they are", schemas.Why),
      Route(
        "GET",
        "/v1/items",
        self.item,
        "An item by any id: its metadata, its picture, or a small picture",
        query=(("id", True, text), ("part", False, part)),
        kinds=(JSON, *picture),
      ),
      Route("GET", "/v1/items/{id:path}/picture", item("picture"), "An item's picture", kinds=picture),
      Route("GET", "/v1/items/{id:path}/thumbnail", item("thumbnail"), "A small picture", kinds=("image/jpeg",)),
      Route("GET", "/v1/items/{id:path}", item("metadata"), "An item's metadata; write slashes of its id as %2F"),
      Route("GET", "/indices-list", self.indices, "clip-retrieval: the names to search by"),
      Route("POST", "/knn-service", self.knn, "clip-retrieval: search", schemas.Knn),
      Route("POST", "/metadata", self.knn_metadata, "clip-retrieval: metadata", schemas.KnnMetadata),
      Route("GET", "/v1/info", self.info, "Adapter, encoder, gallery, what can be filtered by"),
      Route("GET", "/health", self.health, "Whether the process answers"),
      Route("GET", "/ready", self.ready, "Whether searches are answered"),
      Route("GET", "/metrics", self.metrics, "For Prometheus", kinds=("text/plain",)),
      Route("POST", "/v1/admin/reload", self.reload, "Read gallery and adapter anew; serve them when they are whole"),
      *(Route("GET", path, _page(path, kind)) for path, kind in PAGE.items()),
    ]

  async def search(self, request: Request) -> Any:
    """Searches by text, a picture, an item, a vector, or several with weights: plain, adapted or both."""
    service = self.state.ready()
    asked, picture = await said_and_picture(request, schemas.Search, schemas.Search)
    job, notes = await asyncio.to_thread(self._job, service, asked, picture)
    began = time.perf_counter()
    found = await self.state.do(service, job)
    waited = max(0.0, time.perf_counter() - began - sum(found.seconds.values()))
    if service.kept is not None:
      notes += await asyncio.to_thread(service.keep, job, found, asked.right, asked.wrong)
    if self.state.running is not None:
      notes += self.state.running.notes(service, found)
    return await asyncio.to_thread(views.found_json, service, found, asked.k, notes, waited)

  def _job(self, service: Service, asked: schemas.Search, picture: bytes | None) -> tuple[Search, list[str]]:
    """Returns the search of a request and of the picture beside it, and notes; runs in a thread of its own."""
    limits = self.state.limits
    uploaded = () if picture is None else (Part(pixels=service.encoding.pixels(read(picture, limits.image_pixels))),)
    return asking.search_of(service, asked, limits, uploaded)

  def alone(self, model: Any, answer: Callable) -> Callable:
    """Returns who answers a request that the queue's thread computes by itself."""

    async def computed(request: Request) -> Any:
      service = self.state.ready()
      asked = await asyncio.to_thread(asking.parse, model, await request.body())
      job, notes = await asyncio.to_thread(asking.job_of, service, asked, self.state.limits)
      return await self.state.do(service, lambda: answer(service, asked, job, notes))

    computed.__name__ = model.__name__.lower()
    return computed

  async def item(self, request: Request) -> Any:
    """Answers for the item that the address names in ?id=."""
    parts = request.query_params.getlist("part")
    if len(parts) > 1:
      raise invalid(f"got {len(parts)} parts; ask for one: ?id=ID&part=picture")
    name = id_in(request)
    if parts and parts[0] not in PARTS:
      raise invalid(f"part: {parts[0][:60]!r} is none of {', '.join(PARTS)}")
    return await self._item(name, parts[0] if parts else "metadata")

  async def item_at(self, part: str, request: Request) -> Any:
    """Answers for the item that the path names."""
    return await self._item(asking.unquoted(request.path_params["id"]), part)

  async def _item(self, name: str, part: str) -> Any:
    service = self.state.ready()
    if part == "metadata":
      return await asyncio.to_thread(views.record_json, service, name)

    def read_picture(answer: Callable) -> Any:
      return answer(service.items.records(service.items.positions([name]))[0])

    if part == "thumbnail":
      data = await asyncio.to_thread(read_picture, service.pictures.thumbnail)
      return Response(data, media_type="image/jpeg", headers=KEPT)
    found = await asyncio.to_thread(read_picture, service.pictures.found)
    if isinstance(found, bytes):
      return Response(found, media_type=media_type(found), headers=KEPT)
    return FileResponse(found, media_type=media_type(found), headers=KEPT)

  async def indices(self, request: Request) -> Any:
    """Names the two sides, as clip-retrieval's clients ask."""
    return list(clip_retrieval.INDICES)

  async def knn(self, request: Request) -> Any:
    """Searches as clip-retrieval does."""
    service, asked = self.state.ready(), asking.parse(schemas.Knn, await request.body())
    job = await asyncio.to_thread(clip_retrieval.search_of, service, asked, self.state.limits)
    found = await self.state.do(service, job)
    return await asyncio.to_thread(clip_retrieval.results, service, found, asked.num_images)

  async def knn_metadata(self, request: Request) -> Any:
    """Gives metadata by position, as clip-retrieval does."""
    service, asked = self.state.ready(), asking.parse(schemas.KnnMetadata, await request.body())
    return await asyncio.to_thread(clip_retrieval.metadata, service, asked)

  async def health(self, request: Request) -> Any:
    """Says that the process runs."""
    return {"status": "ok"}

  async def ready(self, request: Request) -> Any:
    """Says that searches are answered."""
    self.state.ready()
    return {"status": "ready"}

  async def info(self, request: Request) -> Any:
    """Says what is served."""
    answer, running = views.info_json(self.state.ready(), self.state.limits), self.state.running
    return answer if running is None else {**answer, "collection": {**running.about(), "changes": self.writes}}

  async def metrics(self, request: Request) -> Any:
    """Gives the counters."""
    return Response(self.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

  async def reload(self, request: Request) -> Any:
    """Reads gallery and adapter anew. The old ones serve until the new ones are loaded, checked and compiled."""
    state = self.state
    if self.key is None or state.reopen is None:
      raise Refused(403, "no_key_set", "reloading wants a key: start the server with QAT_JAX_API_KEY")
    if state.reloading.locked():
      raise Refused(409, "reloading", "a reload is under way already", 5)
    async with state.reloading:
      try:
        state.replace(await asyncio.to_thread(state.reopen))
      except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        state.metrics.reloads.labels("failed").inc()
        reason = " ".join(str(error).split())
        raise Refused(409, "not_reloaded", f"what is served has not changed: {reason}") from error
    state.metrics.reloads.labels("done").inc()
    return {"status": "reloaded", **state.ready().about}


def _endpoint(routes: list[Route]) -> Callable:
  """Returns the answers of one address as Starlette calls them: by method, and JSON where it is no response yet."""
  of_method = {route.method: route for route in routes}

  async def endpoint(request: Request) -> Response:
    request.scope["pattern"] = routes[0].path
    if request.method not in of_method:
      allowed = ", ".join(of_method)
      refusal = Refused(405, "method", f"this address takes {allowed}")
      return Response(views.json_bytes(refusal.as_json()), 405, {"Allow": allowed}, media_type=JSON)
    content = await of_method[request.method].answer(request)
    return content if isinstance(content, Response) else Response(views.json_bytes(content), media_type=JSON)

  return endpoint


def _page(path: str, kind: str) -> Callable:
  """Returns who answers with a file of the page."""
  data = (resources.files("qat_jax.serve.web") / "page" / (path.strip("/") or "index.html")).read_bytes()

  async def page(request: Request) -> Response:
    return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

  return page


async def said_and_picture(request: Request, model: Any, alone: Any) -> tuple[Any, bytes | None]:
  """Returns what a request says, and the picture beside it: JSON (`alone`) whatever its type, or a form (`model`)."""
  if not request.headers.get("content-type", "").startswith("multipart/form-data"):
    return await asyncio.to_thread(asking.parse, alone, await request.body()), None
  try:
    form = await MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=1).parse()
  except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
    raise invalid("the form cannot be read; send a file `image`, and the rest as JSON in a field `request`") from error
  image = form.get("image")
  if image is None or isinstance(image, str):
    raise invalid("the form has no file `image`")
  text = form.get("request") or "{}"
  data = await image.read()
  await form.close()
  return asking.parse(model, str(text).encode("utf-8", "surrogatepass")), data

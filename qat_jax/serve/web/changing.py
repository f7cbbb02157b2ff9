"""The routes that change what is served. They want a key, and answer when the change is on the disk."""

import asyncio
from collections.abc import Callable
from typing import Any

from qat_jax.serve import writing
from qat_jax.serve.limits import Refused, check_key, invalid
from qat_jax.serve.starting import Running
from qat_jax.serve.web import asking, schemas
from qat_jax.serve.web.description import Route
from qat_jax.serve.web.state import State


class Writing:
  """Who answers each route that changes what is served; all of them want a key."""

  def __init__(self, state: State, key: str | None, said_and_picture: Callable) -> None:
    """`said_and_picture` reads a body: JSON, or a form with a picture."""
    self.state, self.key, self.said_and_picture = state, key, said_and_picture

  def routes(self) -> list[Route]:
    """Returns the table of these routes."""
    query = (("id", True, {"type": "string"}),)
    return [
      Route("POST", "/v1/items", self.add, "Add items, or replace them", schemas.Add, upload=True),
      Route("PUT", "/v1/items", self.describe, "Give an item other metadata", schemas.Described, query=query),
      Route("DELETE", "/v1/items", self.remove, "Remove an item", query=query),
    ]

  def _running(self, request: Any) -> Running:
    """Returns what is changed; raises Refused without the key, and where nothing that is served can change."""
    if self.key is None:
      raise Refused(403, "no_key_set", "changes want a key: start the server with QAT_JAX_WRITE_KEY or QAT_JAX_API_KEY")
    check_key((self.key,), request.headers.get("authorization"), request.headers.get("x-api-key"))
    self.state.ready()
    if self.state.running is None:
      raise Refused(409, "frozen", "this gallery does not change; serve a collection: qat-jax serve PICTURES")
    if not self.state.running.collection.writes:
      raise Refused(409, "follows", "another process writes this collection; send changes to that one")
    return self.state.running

  async def add(self, request: Any) -> Any:
    """Adds items; answers when they are on the disk, and the next searches but a second later find them."""
    running = self._running(request)
    service = self.state.ready()
    asked, picture = await self.said_and_picture(request, schemas.NewItem, schemas.Add)
    new = await asyncio.to_thread(asking.new_items, service, asked, picture, self.state.limits)
    pixels = [item.pixels for item in new if item.vector is None]
    encoded = await self.state.do(service, lambda: service.encoding.images(pixels)) if pixels else []
    names = await asyncio.to_thread(writing.add, service, running.collection, new, encoded)
    return {"status": "kept", "ids": names}

  async def describe(self, request: Any) -> Any:
    """Replaces the metadata of an item."""
    running, name = self._running(request), id_in(request)
    asked = await asyncio.to_thread(asking.parse, schemas.Described, await request.body())
    await asyncio.to_thread(writing.describe, running.collection, name, asked.metadata)
    return {"status": "kept", "ids": [name]}

  async def remove(self, request: Any) -> Any:
    """Removes an item."""
    running, name = self._running(request), id_in(request)
    await asyncio.to_thread(writing.remove, running.collection, name)
    return {"status": "removed", "ids": [name]}


def id_in(request: Any) -> str:
  """Returns the one id that an address names; raises Refused for none, for several, and for what is no UTF-8."""
  names = request.query_params.getlist("id")
  if len(names) != 1:
    raise invalid(f"got {len(names)} ids; name one item: ?id=ID")
  asking.unquoted(request.scope["query_string"].decode("latin-1"))
  return names[0]

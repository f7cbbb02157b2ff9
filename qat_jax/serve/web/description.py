"""The routes' own words → the OpenAPI description. One table of routes makes both the application and this."""

import dataclasses
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import BaseModel

from qat_jax.serve.web import schemas, views

JSON = "application/json"
ERROR = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
REFUSALS = {
  "404": "No such item",
  "413": "Too large",
  "422": "Something wrong in it",
  "429": "Too many",
  "503": "Busy, or not ready",
}


@dataclasses.dataclass(frozen=True)
class Route:
  """One address: who answers it, and what the description says about it."""

  method: str
  path: str  # as Starlette writes patterns
  answer: Callable[[Any], Awaitable[Any]]  # a request → a response, or what a response says in JSON
  summary: str | None = None  # None: the description leaves the route out
  model: type[BaseModel] | None = None  # of the body, where there is one
  upload: bool = False  # whether a form with a picture will do as the body
  query: tuple[tuple[str, bool, dict[str, Any]], ...] = ()  # parameters of the address: name, required, schema
  kinds: tuple[str, ...] = (JSON,)  # of answers


def described(routes: Sequence[Route], title: str) -> bytes:
  """Returns the OpenAPI description of routes as JSON."""
  paths: dict[str, Any] = {}
  for route in routes:
    if route.summary is not None:
      paths.setdefault(route.path.replace(":path}", "}"), {})[route.method.lower()] = _operation(route)
  components: dict[str, Any] = {}
  for model in schemas.MODELS:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    components |= schema.pop("$defs", {})
    components[model.__name__] = schema
  text = {"type": "string"}
  about = {"type": "object", "properties": {"code": text, "message": text}, "required": ["code", "message"]}
  components["Error"] = {"type": "object", "properties": {"error": about}, "required": ["error"]}
  security = {"key": {"type": "http", "scheme": "bearer"}}
  return views.json_bytes(
    {
      "openapi": "3.1.0",
      "info": {"title": title, "version": "1"},
      "paths": paths,
      "components": {"schemas": components, "securitySchemes": security},
    }
  )


def _operation(route: Route) -> dict[str, Any]:
  """Returns the description of one route. Every route may answer with an error, and all errors look alike."""
  content = {kind: {"schema": {} if kind == JSON else {"type": "string"}} for kind in route.kinds}
  responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
  responses["default"] = {"description": "An error, which says what to do", "content": ERROR}
  name = "_".join([route.method.lower(), *re.findall(r"\w+", route.path.replace(":path", ""))])
  operation: dict[str, Any] = {"summary": route.summary, "operationId": name, "responses": responses}
  parameters = [
    {"name": name, "in": "query", "required": required, "schema": schema} for name, required, schema in route.query
  ]
  if "{id" in route.path:
    parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
  if parameters:
    operation["parameters"] = parameters
  if route.model is not None:
    body: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{route.model.__name__}"}}}
    if route.upload:
      fields = {"image": {"type": "string", "format": "binary"}, "request": {"type": "string", "description": "JSON"}}
      body["multipart/form-data"] = {"schema": {"type": "object", "properties": fields, "required": ["image"]}}
    operation["requestBody"] = {"required": True, "content": body}
    responses |= {status: {"description": words, "content": ERROR} for status, words in REFUSALS.items()}
  return operation

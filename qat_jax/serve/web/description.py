"""The OpenAPI description: what the models of requests say, and what answers look like."""

from __future__ import annotations

from typing import Any

from qat_jax.serve.web import schemas, views

ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
OTHER = {  # routes that answer with something else than JSON
  "/metrics": ("text/plain",),
  "/v1/items": ("application/json", "image/*", "application/octet-stream"),
  "/v1/items/{id}/picture": ("image/*", "application/octet-stream"),
  "/v1/items/{id}/thumbnail": ("image/jpeg",),
}


def body(name: str | None, upload: bool = False) -> dict[str, Any]:
  """Returns the description of a request's body."""
  schema: dict[str, Any] = {"type": "object"} if name is None else {"$ref": f"#/components/schemas/{name}"}
  content: dict[str, Any] = {"application/json": {"schema": schema}}
  if upload:
    fields = {"image": {"type": "string", "format": "binary"}, "request": {"type": "string", "description": "JSON"}}
    form = {"type": "object", "properties": fields, "required": ["image"]}
    content["multipart/form-data"] = {"schema": form}
  said = {"404": "No such item", "413": "Too large", "422": "Something wrong in it", "429": "Too many"}
  said["503"] = "Busy, or not ready"
  responses = {status: {"description": text, "content": ERROR} for status, text in said.items()}
  return {"requestBody": {"required": True, "content": content}, "responses": responses}


def described(plain: dict[str, Any]) -> bytes:
  """Returns an application's own description with the models of its bodies, which handlers parse, as JSON.

  Every route may answer with an error, which looks alike everywhere; some answer with no JSON.
  """
  components = plain.setdefault("components", {}).setdefault("schemas", {})
  for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, of which there are none
    components.pop(name, None)
  for path, methods in plain["paths"].items():
    for about in methods.values():
      responses = about["responses"]
      if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
      responses["default"] = {"description": "An error, which says what to do", "content": ERROR}
      if path in OTHER:
        responses["200"]["content"] = {
          kind: {"schema": {} if kind == "application/json" else {"type": "string"}} for kind in OTHER[path]
        }
  for model in schemas.MODELS:
    own = model.model_json_schema(ref_template="#/components/schemas/{model}")
    components |= own.pop("$defs", {})
    components[model.__name__] = own
  text = {"type": "string"}
  about = {"type": "object", "properties": {"code": text, "message": text}, "required": ["code", "message"]}
  components["Error"] = {"type": "object", "properties": {"error": about}, "required": ["error"]}
  plain["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
  return views.json_bytes(plain)

"""The OpenAPI description: what the models of requests say, and what answers look like."""

from __future__ import annotations

from typing import Any

from qat_jax.serve.web import schemas, views


def body(name: str | None, upload: bool = False) -> dict[str, Any]:
  """Returns the description of a request's body."""
  schema: dict[str, Any] = {"type": "object"} if name is None else {"$ref": f"#/components/schemas/{name}"}
  content: dict[str, Any] = {"application/json": {"schema": schema}}
  if upload:
    fields = {"image": {"type": "string", "format": "binary"}, "request": {"type": "string", "description": "JSON"}}
    form = {"type": "object", "properties": fields, "required": ["image"]}
    content["multipart/form-data"] = {"schema": form}
  error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
  said = {"413": "Too large", "422": "Something wrong in it", "429": "Too many", "503": "Busy, or not ready"}
  responses = {status: {"description": text, "content": error} for status, text in said.items()}
  return {"requestBody": {"required": True, "content": content}, "responses": responses}


def described(plain: dict[str, Any]) -> bytes:
  """Returns an application's own description with the models of its bodies, which handlers parse, as JSON."""
  components = plain.setdefault("components", {}).setdefault("schemas", {})
  for model in schemas.MODELS:
    own = model.model_json_schema(ref_template="#/components/schemas/{model}")
    components |= own.pop("$defs", {})
    components[model.__name__] = own
  text = {"type": "string"}
  about = {"type": "object", "properties": {"code": text, "message": text}, "required": ["code", "message"]}
  components["Error"] = {"type": "object", "properties": {"error": about}, "required": ["error"]}
  plain["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
  return views.json_bytes(plain)

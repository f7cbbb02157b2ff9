"""The protocol of clip-retrieval's servers, so that its Python client and its web page work against ours.

Its ids are positions in the gallery; its indices are our two sides, `adapted` and `plain`. Bodies are JSON whatever
their content type says. Fields that mean nothing here are accepted: deduplicate, the safety and aesthetic settings.
"""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import numpy as np

from qat_jax.serve.limits import IDS, TEXT_LETTERS, Limits, Refused, invalid
from qat_jax.serve.pictures import from_base64, read
from qat_jax.serve.searches import Found, Part, Search
from qat_jax.serve.service import Service
from qat_jax.serve.web.views import vector_of

INDICES = ("adapted", "plain")
PICTURES = 100  # results whose pictures come along


def parse(body: bytes) -> dict[str, Any]:
  """Returns the body as an object; raises Refused (422) for anything else."""
  try:
    said = json.loads(body)
  except (ValueError, RecursionError):
    raise invalid("the body is no JSON") from None
  if not isinstance(said, dict):
    raise invalid("the body is no JSON object")
  return said


def search_of(service: Service, said: dict[str, Any], limits: Limits) -> tuple[Search, int]:
  """Returns the search that a /knn-service request asks for, and of how many results metadata is wanted."""
  side = _index(said)
  if said.get("modality", "image") != "image":
    raise invalid(f"modality is {_short(said['modality'])}; the items of this gallery are images")
  images = _whole(said, "num_images", 20)
  k = max(1, min(max(images, _whole(said, "num_result_ids", images)), limits.k))
  given = [name for name in ("text", "image", "image_url", "embedding_input") if said.get(name)]
  if "image_url" in given:
    raise invalid("image_url is not fetched by this server; send the picture itself as image (base64)")
  if len(given) != 1:
    raise invalid(f"got {given or 'nothing'} to search with; send one of text, image and embedding_input")
  value = said[given[0]]
  if given[0] == "embedding_input":
    part = Part(vector=_vector(value, service.adapter.width), query_type=_vector_type(service))
  elif not isinstance(value, str):
    raise invalid(f"{given[0]} is {_short(value)}; it must be text")
  elif given[0] == "text":
    if len(value) > TEXT_LETTERS or not value.strip():
      raise invalid(f"the text has {len(value)} letters; send 1 to {TEXT_LETTERS}")
    part = Part(text=value.encode("utf-8", "replace").decode())
  else:
    part = Part(pixels=service.pixels(read(from_base64(value), limits.image_pixels)))
  return Search((part,), k, mode="plain" if side == "plain" else "adapted"), images


def results(service: Service, found: Found, images: int) -> list[dict[str, Any]]:
  """Returns the answer of /knn-service: id and similarity of each item, metadata and picture of the first."""
  ranking = found.adapted if found.adapted is not None else found.plain
  assert ranking is not None
  rows: list[dict[str, Any]] = []
  records = service.items.records(ranking.ids[:images])
  for i, (position, score) in enumerate(zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True)):
    row = _metadata(service, records[i], i < PICTURES) if i < len(records) else {}
    rows.append({**row, "id": position, "similarity": score})
  return rows


def metadata(service: Service, said: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the answer of /metadata; raises Refused (404) for ids that are no items."""
  _index(said)
  ids = said.get("ids")
  if not isinstance(ids, list) or len(ids) > IDS:
    raise invalid(f"ids must be a list of at most {IDS:,} whole numbers")
  positions = []
  for name in ids:
    if isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 20:
      name = int(name)
    if not isinstance(name, int) or isinstance(name, bool):
      raise invalid(f"an id is {_short(name)}; wanted whole numbers")
    if not 0 <= name < len(service.items):
      raise Refused(404, "no_item", f"the gallery has no item {str(name)[:40]}; there are {len(service.items)}")
    positions.append(name)
  records = service.items.records(np.array(positions, np.int64))
  return [
    {"id": position, "metadata": _metadata(service, record, i < PICTURES)}
    for i, (position, record) in enumerate(zip(positions, records, strict=True))
  ]


def _metadata(service: Service, record: dict[str, Any], picture: bool) -> dict[str, Any]:
  own: dict[str, Any] = {**record["metadata"], "item": record["id"]}
  own.pop("image", None)  # a column of that name is no picture in base64
  if picture:
    with contextlib.suppress(Refused):
      own["image"] = base64.b64encode(service.pictures.thumbnail(record)).decode()
  return own


def _index(said: dict[str, Any]) -> str:
  name = said.get("indice_name") or INDICES[0]
  if name not in INDICES:
    raise invalid(f"indice_name is {_short(name)}; there are {', '.join(INDICES)}")
  return name


def _whole(said: dict[str, Any], name: str, default: int) -> int:
  value = said.get(name, default)
  if not isinstance(value, int) or isinstance(value, bool) or value < 0:
    raise invalid(f"{name} is {_short(value)}; it must be a whole number")
  return value


def _vector(value: Any, width: int) -> np.ndarray:
  numbers = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
  if not numbers or len(value) != width:
    raise invalid(f"embedding_input must be a list of {width} numbers")
  try:
    return vector_of(value, width)
  except OverflowError:
    raise invalid("embedding_input has numbers that are too large") from None


def _vector_type(service: Service) -> str:
  """Returns what a vector that does not say it is taken for: an image's, the gallery being of images."""
  return "image" if "image" in service.adapter.heads else next(iter(service.adapter.heads))


def _short(value: Any) -> str:
  return json.dumps(value)[:60]

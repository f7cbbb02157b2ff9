"""The protocol of clip-retrieval's servers, so that its Python client and its web page work against ours.

Its ids are positions in the gallery. Its indices are our two sides, `adapted` and `plain`. Bodies are JSON whatever
their content type says. Fields that mean nothing here are accepted: deduplicate, the safety and aesthetic settings.
"""

import base64
import contextlib
from typing import Any

import numpy as np

from qat_jax.serve.limits import Limits, Refused, invalid
from qat_jax.serve.searches import Found, Mode, Search
from qat_jax.serve.service import Service
from qat_jax.serve.web import schemas
from qat_jax.serve.web.asking import parts_of
from qat_jax.serve.web.schemas import Knn, KnnMetadata

INDICES = ("adapted", "plain")
PICTURES = 100  # results whose pictures come along


def search_of(service: Service, asked: Knn, limits: Limits) -> Search:
  """Returns the search that a /knn-service request asks for."""
  given = [name for name in ("text", "image", "image_url", "embedding_input") if getattr(asked, name)]
  if "image_url" in given:
    raise invalid("image_url is not fetched by this server; send the picture itself as image (base64)")
  if len(given) != 1:
    raise invalid(f"got {given or 'nothing'} to search with; send one of text, image and embedding_input")
  said: dict[str, Any] = {"text": asked.text or None, "image": asked.image or None}
  if asked.embedding_input:
    # The gallery holds images, so a vector that does not say what it is counts as an image's.
    heads = service.adapter.heads
    said = {"vector": asked.embedding_input, "query_type": "image" if "image" in heads else next(iter(heads))}
  most = asked.num_images if asked.num_result_ids is None else max(asked.num_images, asked.num_result_ids)
  mode: Mode = "plain" if asked.indice_name == "plain" else "adapted"
  return Search(parts_of(service, schemas.Part.model_construct(**said), limits), max(1, min(most, limits.k)), mode)


def results(service: Service, found: Found, images: int) -> list[dict[str, Any]]:
  """Returns the answer of /knn-service: id and similarity of each item, metadata and picture of the first `images`."""
  ranking = found.adapted if found.adapted is not None else found.plain
  assert ranking is not None
  rows: list[dict[str, Any]] = []
  records = service.items.records(ranking.ids[:images])
  for i, (position, score) in enumerate(zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True)):
    row = _metadata(service, records[i], i < PICTURES) if i < len(records) else {}
    rows.append({**row, "id": position, "similarity": score})
  return rows


def metadata(service: Service, asked: KnnMetadata) -> list[dict[str, Any]]:
  """Returns the answer of /metadata; raises Refused (404) for ids that are no items."""
  positions = [int(name) for name in asked.ids]
  for position in positions:
    if not 0 <= position < len(service.items):
      raise Refused(404, "no_item", f"the gallery has no item {str(position)[:40]}; there are {len(service.items)}")
  records = service.items.records(np.array(positions, np.int64))
  return [
    {"id": position, "metadata": _metadata(service, record, i < PICTURES)}
    for i, (position, record) in enumerate(zip(positions, records, strict=True))
  ]


def _metadata(service: Service, record: dict[str, Any], picture: bool) -> dict[str, Any]:
  row: dict[str, Any] = {**record["metadata"], "item": record["id"]}
  row.pop("image", None)  # a column of that name is no picture in base64
  if picture:
    with contextlib.suppress(Refused):
      row["image"] = base64.b64encode(service.pictures.thumbnail(record)).decode()
  return row

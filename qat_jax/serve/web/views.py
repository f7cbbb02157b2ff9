"""Requests → searches, and what was found → JSON; without the web framework."""

from __future__ import annotations

import collections
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from qat_jax.adaptation import fold, unit
from qat_jax.adapter import check_queries
from qat_jax.search.rank import score
from qat_jax.serve.limits import IDS, NAMES, Limits, Refused, invalid
from qat_jax.serve.pictures import from_base64, read
from qat_jax.serve.ranking import FEW
from qat_jax.serve.searches import Found, Part, Search
from qat_jax.serve.service import Service
from qat_jax.serve.terms import Term, added
from qat_jax.serve.web import schemas
from qat_jax.types import Ranking

BEFORE = 100  # of the plain ranking are looked at to say where adapted items were
Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], body: bytes) -> Model:
  """Returns a request; raises Refused (422) that names the first thing wrong with it."""
  readable = True
  try:
    json.loads(body, object_pairs_hook=_check_names)
  except (ValueError, RecursionError):
    readable = False
  try:
    asked = model.model_validate_json(body)
  except ValidationError as error:
    raise first_wrong(error.errors(include_url=False, include_input=False, include_context=False)) from None
  if not readable:
    raise invalid("the body has a number of too many digits, or is nested too deeply")
  return asked


def _check_names(pairs: list[tuple[str, Any]]) -> None:
  """Raises Refused for an object with a name twice, of which pydantic takes the last, or far more than any needs.

  pydantic takes many seconds to refuse millions of names or values.
  """
  if len(pairs) > NAMES:
    raise invalid(f"an object of {len(pairs)} names; give at most {NAMES}")
  for name, value in pairs:
    if isinstance(value, list) and len(value) > IDS:
      raise invalid(f"{name[:200]!r} is a list of {len(value)}; give at most {IDS}")
  if len(dict(pairs)) < len(pairs):
    twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
    raise invalid(f"{twice[:200]!r} is said twice in one object; say it once")


def first_wrong(errors: Sequence[Any]) -> Refused:
  """Returns the refusal that says the most of pydantic's errors: of a union it names each choice that was not taken.

  That is one about a value, not a type, and the deepest.
  """
  best = max(errors, key=lambda error: (not error["type"].endswith("_type"), len(error["loc"])))
  where, alike = best["loc"], [error for error in errors if error["loc"][:-1] == best["loc"][:-1]]
  said = [best["msg"]]
  if len(alike) > 1 and all(error["type"].endswith("_type") for error in alike):
    where, said = where[:-1], list(dict.fromkeys(error["msg"] for error in alike))
  named = ".".join(str(part) for part in where)
  return invalid(f"{named[:200] or 'the body'}: {'; or: '.join(said)[:300]}")


def unquoted(written: str) -> str:
  """Returns what an address writes with percent signs; raises Refused (404) for bytes that are no UTF-8: no id is."""
  try:
    return urllib.parse.unquote(written, errors="strict")
  except UnicodeDecodeError:
    raise Refused(404, "no_item", "the id is no UTF-8; no item has such an id") from None


def search_of(
  service: Service, asked: schemas.Search, limits: Limits, more: tuple[Part, ...] = ()
) -> tuple[Search, list[str]]:
  """Returns the search that a request asks for, `more` parts added, and notes of ids that the gallery does not have.

  Decodes pictures. Raises Refused (404, 422).
  """
  if asked.k > limits.k:
    raise invalid(f"k is {asked.k}; at most {limits.k} items are found: ask for fewer")
  parts = (*more, *parts_of(service, asked.query, limits))
  if not parts:
    raise invalid("query is missing; say what to search for")
  notes = []
  own = [part.position for part in parts if part.position is not None]
  exclude, unknown = service.items.known(asked.exclude)
  if unknown:
    notes.append(f"{len(unknown)} ids of exclude are not in the gallery")
  exclude = np.unique(np.concatenate([exclude, np.array(own, np.int64)]))
  allowed: np.ndarray | None = service.items.mask(asked.model_dump()["filters"])
  if asked.allowed is not None:
    wanted, unknown = service.items.known(asked.allowed)
    if unknown:
      notes.append(f"{len(unknown)} ids of allowed are not in the gallery")
    allowed = wanted if allowed is None else wanted[allowed[wanted]]
    if len(wanted) and not len(allowed):
      notes.append("no allowed item passes the filters")
  elif allowed is not None and (count := int(allowed.sum())) <= FEW:
    allowed = np.flatnonzero(allowed)
    if not count:
      notes.append("no item passes the filters")
  k = max(asked.k, min(BEFORE, limits.k)) if asked.mode == "both" else asked.k
  return Search(parts, k, asked.mode, asked.query_type, exclude, allowed), notes


def parts_of(service: Service, query: Any, limits: Limits) -> tuple[Part, ...]:
  """Returns the parts of a query; raises Refused for one that says nothing, or several things at once."""
  if query is None:
    return ()
  given = [schemas.Part(text=query)] if isinstance(query, str) else query if isinstance(query, list) else [query]
  return tuple(_part(service, part, limits) for part in given)


def _part(service: Service, part: schemas.Part, limits: Limits) -> Part:
  said = [name for name in ("text", "image", "item", "vector") if getattr(part, name) is not None]
  if len(said) != 1:
    raise invalid(f"a part of a query has {said or 'nothing'}; give exactly one of text, image, item and vector")
  if part.query_type and part.vector is None:
    raise invalid("query_type of a part is for a vector alone; set it for the whole query instead")
  if part.text is not None:
    if not part.text.strip():
      raise invalid("the text is empty; write something to search for")
    return Part(text=part.text, weight=part.weight)
  if part.image is not None:
    return Part(pixels=service.encoding.pixels(read(from_base64(part.image), limits.image_pixels)), weight=part.weight)
  if part.item is not None:
    return Part(position=int(service.items.positions([part.item])[0]), weight=part.weight)
  return Part(vector=vector_of(part.vector, service.adapter.width), weight=part.weight, query_type=part.query_type)


def vector_of(numbers: Any, width: int) -> np.ndarray:
  """Returns a vector of a request (D, float32), its greatest number ±1; Refused for what is no vector of that width."""
  with np.errstate(over="ignore"):
    vector_D = np.asarray(numbers, np.float32)
  try:
    check_queries(vector_D[None], width)
  except ValueError as error:
    raise invalid(f"the vector: {error}") from None
  return vector_D / np.abs(vector_D).max()  # a tiny one counts as much as any other


def found_json(service: Service, found: Found, k: int, notes: list[str], waited: float) -> dict[str, Any]:
  """Returns the answer of a search."""
  before = {} if found.plain is None else {p: i + 1 for i, p in enumerate(found.plain.ids.tolist())}
  results: dict[str, Any] = {}
  for side, ranking in (("plain", found.plain), ("adapted", found.adapted)):
    if ranking is not None:
      results[side] = _entries(service, ranking, k)
  if found.plain is not None and found.adapted is not None:
    for entry, position in zip(results["adapted"], found.adapted.ids.tolist(), strict=False):
      entry["plain_rank"] = before.get(position)
  if not notes and not all(results.values()):
    notes = ["no item is left to find: all are excluded, or not allowed"]
  milliseconds = {name: round(1000 * value, 2) for name, value in {"wait": waited, **found.seconds}.items()}
  return {
    "query_type": found.query_type,
    "results": results,
    "notes": [*found.notes, *notes],
    "milliseconds": milliseconds,
  }


def _entries(service: Service, ranking: Ranking, k: int) -> list[dict[str, Any]]:
  records = service.items.records(ranking.ids[:k])
  scores = ranking.scores[:k].tolist()
  return [
    {"id": record["id"], "rank": i, "score": score, "metadata": record["metadata"]}
    for i, (record, score) in enumerate(zip(records, scores, strict=True), start=1)
  ]


def reranked(service: Service, asked: schemas.Rerank, parts: tuple[Part, ...]) -> dict[str, Any]:
  """Returns candidates in the order of their scores; runs in the queue's thread."""
  if (asked.documents is None) == (asked.vectors is None):
    raise invalid("give documents (ids) or vectors to rerank, one of them")
  found = service.planned(Search(parts, mode=asked.mode, query_type=asked.query_type))
  about = {"query_type": found.query_type, "mode": asked.mode, "notes": found.notes}
  terms = found.terms[asked.mode]
  if asked.documents is not None:
    names = [_id_of(document) for document in asked.documents]
    if not names:
      return {"results": [], **about}
    row_of = {name: row for row, name in enumerate(dict.fromkeys(names))}
    positions = service.items.positions(row_of)
    score_U = added(terms, service.ranker.scores([(term, positions) for term in terms]))
    scores = [float(score_U[row_of[name]]) for name in names]
  else:
    names, rows_ND = [], np.stack([vector_of(row, service.adapter.width) for row in asked.vectors or ()])
    rows_ND = unit(rows_ND, np.float32)
    score_TN = [np.asarray(score(term.adaptation, service.planner.prepared(term, rows_ND)))[0] for term in terms]
    scores = added(terms, score_TN).tolist()
  results = []
  for index in sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]:
    entry: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
    if names:
      entry["id"] = names[index]
      if asked.return_documents:
        entry["document"] = service.items.records(service.items.positions([names[index]]))[0]
    results.append(entry)
  return {"results": results, **about}


def _id_of(document: Any) -> str:
  name = document.get("id") if isinstance(document, Mapping) else document
  if not isinstance(name, str):
    raise invalid('a document is an id of the gallery, or {"id": …}')
  return name


def adapted_json(service: Service, asked: schemas.Adapt, parts: tuple[Part, ...]) -> dict[str, Any]:
  """Returns the folded query, and the adaptation where it is asked for; runs in the queue's thread."""
  found = service.planned(Search(parts, query_type=asked.query_type))
  terms = [_term_json(term, asked.adaptation) for term in found.terms["adapted"]]
  answer = {"query_type": found.query_type, "notes": found.notes}
  if len(terms) > 1:
    return {**answer, "terms": terms}
  terms[0].pop("weight")
  return {**answer, **terms[0]}


def _term_json(term: Term, whole: bool) -> dict[str, Any]:
  """Returns a folded query, its space and weight, and the adaptation if `whole`."""
  folded_D = np.asarray(fold(term.adaptation))[0].tolist()
  answer: dict[str, Any] = {
    "space": term.adaptation.space,
    "width": len(folded_D),
    "folded": folded_D,
    "weight": term.weight,
  }
  if whole:
    arrays = {name: getattr(term.adaptation, name)[0] for name in ("query", "gate", "left", "right")}
    answer["adaptation"] = {name: array.tolist() for name, array in arrays.items()}
  return answer


def why_json(service: Service, asked: schemas.Why, parts: tuple[Part, ...]) -> dict[str, Any]:
  """Returns why items are where they are; runs in the queue's thread."""
  positions = service.items.positions(asked.items)
  job = Search(parts, mode="plain", query_type=asked.query_type)
  found, how, scores = service.why(job, positions)
  for entry in how["remembered"]:
    entry.pop("query")
    entry["like"] = service.items.id(entry.pop("position"))
  items = [{"id": service.items.id(p), **both} for p, both in zip(positions.tolist(), scores, strict=True)]
  return {"query_type": found.query_type, "moved": how, "items": items, "notes": found.notes}


def record_json(service: Service, name: str) -> dict[str, Any]:
  """Returns an item; raises Refused (404) where there is none."""
  record = service.items.records(service.items.positions([name]))[0]
  try:
    service.pictures.path(record)
    return {**record, "picture": True}
  except Refused:
    return {**record, "picture": False}


def info_json(service: Service, limits: Limits) -> dict[str, Any]:
  """Returns what is served and what can be asked."""
  encoder = service.encoder
  return {
    **service.about,
    "searches": {"text": encoder is not None and encoder.max_tokens > 0, "image": encoder is not None},
    "pictures": service.pictures.folder is not None,
    "limits": {name: getattr(limits, name) for name in ("k", "body_bytes", "image_pixels")},
    "examples": service.items.examples,
    "columns": service.items.facets,
  }


def json_bytes(content: object) -> bytes:
  """Returns JSON; what is no number in it would be an error of ours."""
  return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")

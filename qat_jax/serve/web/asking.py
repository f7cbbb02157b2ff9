"""Requests → searches, without the web framework."""

import collections
import dataclasses
import json
import urllib.parse
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from qat_jax.adapter import check_queries
from qat_jax.serve.aspects import Aspect, Words
from qat_jax.serve.limits import IDS, NAMES, Limits, Refused, invalid
from qat_jax.serve.pictures import from_base64, read
from qat_jax.serve.ranking import FEW
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.service import Service
from qat_jax.serve.variety import Variety
from qat_jax.serve.web import schemas
from qat_jax.serve.writing import New

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
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    unknown = [str(one["loc"][0])[:200] for one in errors if one["type"] == "extra_forbidden" and len(one["loc"]) == 1]
    if unknown:
      raise invalid(f"{unknown[0]!r} is not known here; known are {', '.join(sorted(model.model_fields))}") from None
    raise first_wrong(errors) from None
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


def new_items(
  service: Service, asked: schemas.Add | schemas.NewItem, picture: bytes | None, limits: Limits
) -> list[New]:
  """Returns the items that a request adds, their pictures read; `picture` came beside. Raises Refused (422)."""
  new = []
  for item in asked.items if isinstance(asked, schemas.Add) else [asked]:
    if sum(one is not None for one in (item.image, item.vector, picture)) != 1:
      raise invalid("an item is a picture or a vector; give exactly one of image and vector")
    given: dict[str, Any]
    if item.vector is not None:
      given = {"vector": vector_of(item.vector, service.adapter.width)}
    else:
      data = picture if picture is not None else from_base64(item.image or "")
      given = {"data": data, "pixels": service.encoding.pixels(read(data, limits.image_pixels))}
    new.append(New.of(service, item.id, item.metadata, **given))
  return new


def search_of(
  service: Service, asked: schemas.Search, limits: Limits, more: tuple[Part, ...] = ()
) -> tuple[Search, list[str]]:
  """Returns the search that a request asks for, `more` parts added, and notes about ids that the gallery lacks.

  Decodes pictures. Raises Refused (404, 422).
  """
  if asked.k > limits.k:
    raise invalid(f"k is {asked.k}; at most {limits.k} items are found: ask for fewer")
  if both := set(asked.right) & set(asked.wrong):
    raise invalid(f"{min(both)[:200]!r} is marked as right and as wrong; take one mark back")
  job, notes = job_of(service, asked, limits, more)
  without = [np.array([part.position for part in job.parts if part.position is not None], np.int64)]
  for name in ("exclude", "wrong", "seen"):
    without.append(_known(service, name, getattr(asked, name), notes))
  allowed: np.ndarray | None = service.items.mask(asked.model_dump()["filters"])
  if asked.allowed is not None:
    listed = _known(service, "allowed", asked.allowed, notes)
    allowed = listed if allowed is None else listed[allowed[listed]]
    if len(listed) and not len(allowed):
      notes.append("no allowed item passes the filters")
  elif allowed is not None and (count := int(allowed.sum())) <= FEW:
    allowed = np.flatnonzero(allowed)
    if not count:
      notes.append("no item passes the filters")
  k = max(asked.k, min(BEFORE, limits.k)) if asked.mode == "both" else asked.k
  exclude = np.unique(np.concatenate(without))
  column, variety = Variety.asked(asked.group, service.items.columns.column_names, asked.diversity)
  group = None if column is None else service.items.groups(column)
  job = dataclasses.replace(job, k=k, mode=asked.mode, exclude=exclude, allowed=allowed, group=group, variety=variety)
  return job, notes


def job_of(
  service: Service, asked: schemas.Asked, limits: Limits, more: tuple[Part, ...] = ()
) -> tuple[Search, list[str]]:
  """Returns what is searched for: parts, marks and aspects; and notes. Raises Refused (404, 422)."""
  notes: list[str] = []
  parts = (*more, *parts_of(service, asked.query, limits))
  if not parts:
    raise invalid("query is missing; say what to search for")
  right = _known(service, "right", asked.right, notes)
  return Search(parts, query_type=asked.query_type, words=_words(service, asked)).with_right(right), notes


def _words(service: Service, asked: schemas.Asked) -> Words:
  """Returns the aspects that a request names; raises Refused for unknown ones, and for those that contradict."""
  there = service.aspects | {name: Aspect.of(name, phrases) for name, phrases in asked.aspects.items()}
  said = {"alike": asked.alike, "ignore": asked.ignore, "change": asked.change if isinstance(asked.change, str) else []}
  listed = {name: [some] if isinstance(some, str) else some for name, some in said.items()}
  names = [name for some in listed.values() for name in some]
  for name in names:
    if name not in there:
      known = ", ".join(there) or "none: start the server with --aspects FILE, or send aspects"
      raise invalid(f"there is no aspect {name[:100]!r}; there are {known}")
    if names.count(name) > 1:
      raise invalid(f"the aspect {name[:100]!r} is said twice in alike, ignore and change; say it once")
  if asked.change is not None and listed["alike"]:
    raise invalid("change and alike cannot go together; leave one of them out")
  if names or asked.change:
    service.encoding.texts([]) if service.encoding.reads_text else service.encoding.texts(["aspects"])  # or refuses
  alike, ignore, change = ([there[name] for name in some] for some in listed.values())
  guess = [one for name, one in there.items() if name not in listed["ignore"]] if asked.change is True else []
  if asked.change is True and not guess:
    raise invalid("there are no aspects to guess from: start the server with --aspects FILE, or send aspects")
  return Words(tuple(alike), tuple(ignore), change[0] if change else None, tuple(guess))


def _known(service: Service, name: str, ids: Sequence[str], notes: list[str]) -> np.ndarray:
  """Returns the positions of a list of ids; notes those that the gallery does not have."""
  positions, unknown = service.items.known(ids)
  if unknown:
    notes.append(
      f"{len(unknown)} ids of {name} are not in the gallery: {', '.join(repr(one[:60]) for one in unknown[:3])}"
    )
  return positions


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

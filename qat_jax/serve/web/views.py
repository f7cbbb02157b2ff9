"""What was found → JSON, without the web framework."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from qat_jax.adaptation import fold, unit
from qat_jax.search.rank import score
from qat_jax.serve.items import as_json
from qat_jax.serve.limits import Limits, Refused, invalid
from qat_jax.serve.searches import Found, Search
from qat_jax.serve.service import Service
from qat_jax.serve.summands import Summand, mean_of
from qat_jax.serve.variety import LOOKED
from qat_jax.serve.web import schemas
from qat_jax.serve.web.asking import vector_of
from qat_jax.types import Ranking, as_gallery

ALARMS = (0.01, 0.1, 0.3)  # shares of false alarms, for which an answer says what evidence to ask for


def found_json(service: Service, found: Found, k: int, notes: list[str], waited: float) -> dict[str, Any]:
  """Returns the answer of a search."""
  before = {} if found.plain is None else {p: i + 1 for i, p in enumerate(found.plain.ids.tolist())}
  results: dict[str, Any] = {}
  for side, ranking in (("plain", found.plain), ("adapted", found.adapted)):
    if ranking is not None:
      results[side] = _entries(service, ranking, k)
      alike = found.alike.get(side, np.zeros(0, int))
      for entry, count in zip(results[side], alike.tolist(), strict=False):
        entry["alike"] = count
      if len(alike) < k and alike.sum() >= LOOKED:
        notes = [*notes, f"only the best {alike.sum():,} items were looked at; others may be unlike these"]
  if found.plain is not None and found.adapted is not None:
    for entry, position in zip(results["adapted"], found.adapted.ids.tolist(), strict=False):
      entry["plain_rank"] = before.get(position)
  if not notes and not all(results.values()):
    why = "all are excluded, or not allowed" if service.items.count else "none is there yet"
    notes = [f"no item is left to find: {why}"]
  milliseconds = {name: round(1000 * value, 2) for name, value in {"wait": waited, **found.seconds}.items()}
  return {
    "query_type": found.query_type,
    "results": results,
    **_evidence(service, found),
    "notes": [*found.notes, *notes],
    "milliseconds": milliseconds,
  }


def _entries(service: Service, ranking: Ranking, k: int) -> list[dict[str, Any]]:
  records = service.items.records(ranking.ids[:k])
  scores = ranking.scores[:k].tolist()
  entries = [
    {"id": record["id"], "rank": i, "score": score, "metadata": record["metadata"]}
    for i, (record, score) in enumerate(zip(records, scores, strict=True), start=1)
  ]
  if ranking.evidence is not None:
    for entry, chance in zip(entries, ranking.evidence.tolist(), strict=False):
      entry["evidence"] = as_json(chance)
  return entries


def _evidence(service: Service, found: Found) -> dict[str, Any]:
  """Returns what the evidence of adapted results is worth: its status, and what to ask for a share of false alarms."""
  if found.adapted is None:
    return {}
  evidence = None if found.adapted.evidence is None else service.evidence[found.query_type]
  least = {f"{alarms:g}": evidence and as_json(evidence.least(alarms=alarms)) for alarms in ALARMS}
  return {"evidence": {"status": evidence.status if evidence else "not calibrated", "least": least}}


def reranked(service: Service, asked: schemas.Rerank, job: Search, notes: list[str]) -> dict[str, Any]:
  """Returns candidates in the order of their scores; runs in the queue's thread."""
  if (asked.documents is None) == (asked.vectors is None):
    raise invalid("give documents (ids) or vectors to rerank, one of them")
  found = service.planned(dataclasses.replace(job, mode=asked.mode))
  about = {"query_type": found.query_type, "mode": asked.mode, "notes": [*found.notes, *notes]}
  terms = found.terms[asked.mode]
  if asked.documents is not None:
    names: list[Any] = [one.get("id") if isinstance(one, Mapping) else one for one in asked.documents]
    if not all(isinstance(name, str) for name in names):
      raise invalid('a document is an id of the gallery, or {"id": …}')
    if not names:
      return {"results": [], **about}
    row_of = {name: row for row, name in enumerate(dict.fromkeys(names))}
    positions = service.items.positions(row_of)
    score_U = mean_of(terms, service.ranker.scores([(term, positions) for term in terms]))
    scores = [float(score_U[row_of[name]]) for name in names]
  else:
    names, rows_ND = [], np.stack([vector_of(row, service.adapter.width) for row in asked.vectors or ()])
    rows = as_gallery(unit(rows_ND, np.float32))
    prepared = [rows if term.gallery == "frozen" else service.adapter.prepare(rows, term.gallery) for term in terms]
    pairs = zip(terms, prepared, strict=True)
    scores = mean_of(terms, [np.asarray(score(term.adaptation, of_term))[0] for term, of_term in pairs]).tolist()
  results = []
  for index in sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]:
    entry: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
    if names:
      entry["id"] = names[index]
      if asked.return_documents:
        entry["document"] = service.items.records(service.items.positions([names[index]]))[0]
    results.append(entry)
  return {"results": results, **about}


def adapted_json(service: Service, asked: schemas.Adapt, job: Search, notes: list[str]) -> dict[str, Any]:
  """Returns the folded query, and the adaptation where it is asked for; runs in the queue's thread."""
  found = service.planned(job)
  terms = [_summand_json(term, asked.adaptation) for term in found.terms["adapted"]]
  answer = {"query_type": found.query_type, "notes": [*found.notes, *notes]}
  if len(terms) > 1:
    return {**answer, "terms": terms}
  terms[0].pop("weight")
  return {**answer, **terms[0]}


def _summand_json(term: Summand, whole: bool) -> dict[str, Any]:
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


def why_json(service: Service, asked: schemas.Why, job: Search, notes: list[str]) -> dict[str, Any]:
  """Returns why items are where they are; runs in the queue's thread."""
  positions = service.items.positions(asked.items)
  found, how, scores = service.why(job, positions)
  for entry in [*how["remembered"], *filter(None, [how["expert"]])]:
    entry.pop("query", None)
    entry["like"] = None if (position := entry.pop("position")) is None else service.items.id(position)
  items = [{"id": service.items.id(p), **both} for p, both in zip(positions.tolist(), scores, strict=True)]
  for item in items:
    for part in item["parts"]:
      if "item" in part:
        part["item"] = service.items.id(part["item"])
  return {"query_type": found.query_type, "moved": how, "items": items, "notes": [*found.notes, *notes]}


def record_json(service: Service, name: str) -> dict[str, Any]:
  """Returns an item; raises Refused (404) where there is none."""
  record = service.items.records(service.items.positions([name]))[0]
  try:
    service.pictures.found(record)
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
    "aspects": list(service.aspects) if service.encoding.reads_text else [],
    "keeps_marks": service.kept is not None,
    "gallery": {"where": "in memory", **service.about.get("gallery", {}), "items": service.items.count},
  }


def json_bytes(content: object) -> bytes:
  """Returns JSON; what is no number in it would be an error of ours."""
  return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")

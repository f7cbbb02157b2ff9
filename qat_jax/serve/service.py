"""What the server does, without the web: queries in batches → rankings, plain and adapted, of one gallery.

A `Service` does not change. Its jitted calls run in one thread, the queue's, in batches of few sizes, which `warm`
compiles.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from qat_jax.adaptation import fold, plain, unit
from qat_jax.adapter import Adapter, check_queries
from qat_jax.encoders import Encoder
from qat_jax.search.index import Index
from qat_jax.search.rank import rank, rerank
from qat_jax.search.warming import warm
from qat_jax.serve.items import Items
from qat_jax.serve.limits import Refused, invalid
from qat_jax.serve.pictures import Pictures
from qat_jax.serve.searches import Found, Part, Search, ragged
from qat_jax.serve.why import moved, scores_of
from qat_jax.types import Adaptation, Gallery, Ranking

SIZES = (1, 8, 16, 32)  # of batches, of queries and of what is encoded: clients that wait come by halves
SHORTLIST = 1000  # items at least that an index gives to be ranked exactly
FEW = 4096  # allowed items up to which each query has a list of its own, so that queries with any filters go together


class Service:
  """An adapter, a gallery as it is and as prepared for each query type, and what encodes queries."""

  def __init__(
    self,
    adapter: Adapter,
    items: Items,
    frozen: Gallery,
    prepared: Mapping[str, Gallery],
    encoder: Encoder | None = None,
    pictures: Pictures | None = None,
    indexes: Mapping[str, Index] | None = None,
    about: Mapping[str, Any] | None = None,
  ) -> None:
    """`frozen` has unit rows; `prepared` and `indexes` are by query type. Raises ValueError for what does not fit."""
    for name, gallery in {"frozen": frozen, **prepared}.items():
      if len(gallery) != len(items):
        raise ValueError(f"the gallery for {name} queries has {len(gallery)} rows, there are {len(items)} items")
    if encoder is not None and encoder.width != adapter.width:
      raise ValueError(f"the encoder {encoder.name} is {encoder.width} wide; the adapter wants {adapter.width}")
    self.adapter, self.items, self.frozen, self.prepared = adapter, items, frozen, dict(prepared)
    self.pictures, self.indexes = pictures or Pictures(None, 1), dict(indexes or {})
    self.encoder, self._encoders = encoder, {size: _of_size(encoder, size) for size in SIZES}
    self.about = dict(about or {})

  def pixels(self, image: Image.Image) -> Any:
    """Returns an RGB picture as the encoder takes it, small; in any thread. Raises Refused where pictures are not."""
    if self.encoder is None:
      raise invalid("this server has no encoder, so it takes items and vectors, no pictures: start it with --encoder")
    return self.encoder.prepare(image) if hasattr(self.encoder, "prepare") else image

  def warm(self, log: Any = lambda line: None) -> None:
    """Compiles what searches need, for each size of a batch."""
    rng = np.random.default_rng(0)
    blank = Image.new("RGB", (64, 64), "white")
    for size in SIZES:
      log(f"compiling for {size} queries at once")
      if self.encoder is not None:
        self._texts(["a picture"] * size if self.encoder.max_tokens else [])
        self._images([self.pixels(blank)] * size)
      for name in self.adapter.heads:
        vectors = rng.standard_normal((size, self.adapter.width)).astype(np.float32)
        warm(self.adapt(name, vectors), self.prepared[name])
        warm(plain(jnp.asarray(vectors)), self.frozen)
        parts = [(Part(vector=vector, query_type=name),) for vector in vectors]
        few = np.arange(min(8, len(self.items)))
        for k in _ks():
          self._checked([Search(part, mode="both", k=k) for part in parts])
        self._checked([Search(part, mode="both", allowed=few) for part in parts])

  def _checked(self, jobs: list[Search]) -> None:
    for found in self.search(jobs):
      if isinstance(found, Exception):
        raise found

  def search(self, jobs: Sequence[Search]) -> list[Found | Exception]:
    """Returns what each search found, or why it is refused; never raises for what one of them asks."""
    began = time.perf_counter()
    found = self.features(jobs)
    encoded = time.perf_counter() - began
    times: dict[str, float] = defaultdict(float, encode=encoded)
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, (job, result) in enumerate(zip(jobs, found, strict=True)):
      if isinstance(result, Found):
        few = job.allowed is not None and job.allowed.dtype != bool and len(job.allowed) <= FEW
        kind, mask = "few" if few else "all", 0 if few or job.allowed is None else id(job.allowed)
        if job.mode != "adapted":
          groups["plain", "", kind, mask].append(i)
        if job.mode != "plain" and result.query_type in self.adapter.heads:
          groups["adapted", result.query_type, kind, mask].append(i)
    for (side, name, kind, _), members in groups.items():
      for start in range(0, len(members), SIZES[-1]):
        some = members[start : start + SIZES[-1]]
        try:
          self._rank(side, name, kind, [jobs[i] for i in some], [found[i] for i in some], times)
        except ValueError as error:  # queries were checked: it is the gallery, or the adapter
          for i in some:
            found[i] = Refused(503, "broken", f"the gallery or the adapter cannot be searched: {error}")
    for result in found:
      if isinstance(result, Found):
        result.seconds = dict(times)
    return found

  def features(self, jobs: Sequence[Search]) -> list[Found | Exception]:
    """Returns the unit feature and the type of each search's query, or why there is none."""
    texts = {p.text: None for job in jobs for p in job.parts if p.text is not None}
    pixels = [p for job in jobs for p in job.parts if p.pixels is not None]
    text_of = dict(zip(texts, self._texts(list(texts)), strict=True)) if self._encodes_text() else {}
    image_of = {id(p): row for p, row in zip(pixels, self._images([p.pixels for p in pixels]), strict=True)}
    found: list[Found | Exception] = []
    for job in jobs:
      try:
        found.append(self._combined(job, text_of, image_of))
      except Refused as error:
        found.append(error)
    return found

  def adapt(self, query_type: str, feature_QD: np.ndarray) -> Adaptation:
    """Returns the adaptation of Q queries of one type, padded to one of few sizes: its first Q rows are theirs."""
    size = next((size for size in SIZES if size >= len(feature_QD)), len(feature_QD))
    rows = np.minimum(np.arange(size), len(feature_QD) - 1)
    return self.adapter(feature_QD[rows], query_type)

  def adapted(self, job: Search) -> tuple[Found, Adaptation]:
    """Returns the adaptation of one search's query; raises Refused where it cannot be adapted."""
    (found,) = self.features([job])
    if isinstance(found, Exception):
      raise found
    self._check_head(found.query_type)
    return found, self.adapt(found.query_type, found.feature[None])[:1]

  def why(self, job: Search, positions: np.ndarray) -> tuple[Found, dict[str, Any], list[dict[str, Any]]]:
    """Returns how the query moved, and for each item its plain and its adapted score, with ranks."""
    (found,) = self.features([job])
    if isinstance(found, Exception):
      raise found
    before = scores_of(plain(jnp.asarray(found.feature[None])), self.frozen, positions)
    if found.query_type not in self.adapter.heads:
      return found, {"cosine": None, "remembered": []}, [{"plain": one, "adapted": None} for one in before]
    adaptation = self.adapt(found.query_type, found.feature[None])[:1]
    after = scores_of(adaptation, self.prepared[found.query_type], positions)
    how = moved(self.adapter, found.query_type, found.feature, adaptation, self.frozen)
    return found, how, [{"plain": b, "adapted": a} for b, a in zip(before, after, strict=True)]

  def _combined(self, job: Search, text_of: Mapping, image_of: Mapping) -> Found:
    """Returns the weighted sum of a query's parts, at unit length; its type is that of the greatest weight."""
    total_D = np.zeros(self.adapter.width, np.float64)
    greatest = max(job.parts, key=lambda part: abs(part.weight))
    if not greatest.weight:
      raise invalid("every part of the query has weight 0; give one another")
    notes: list[str] = []
    for part in job.parts:
      if part.text is not None:
        if part.text not in text_of:
          raise invalid(
            "this server encodes no text: search with an item, a picture or a vector, or start it with --encoder"
          )
        feature_D = text_of[part.text]
        notes += self._cut(part.text)
      elif part.pixels is not None:
        feature_D = image_of[id(part)]
      elif part.position is not None:
        feature_D = np.asarray(self.frozen[np.array([part.position])], np.float32)[0]
      else:
        assert part.vector is not None
        feature_D = part.vector
        try:
          check_queries(feature_D[None], self.adapter.width)
        except ValueError as error:
          raise invalid(f"the vector: {error}") from error
      total_D += part.weight / abs(greatest.weight) * unit(feature_D)
    query_type = job.query_type or greatest.type
    if query_type is None:
      query_type = self._only_type()
    if not np.linalg.norm(total_D) > 1e-6:
      raise invalid("the parts of the query cancel each other; change their weights")
    if query_type not in self.adapter.heads and job.mode == "adapted":
      self._check_head(query_type)
    if query_type not in self.adapter.heads:
      notes.append(f"the adapter has no head for {query_type} queries")
    return Found(query_type, unit(total_D, np.float32), notes=tuple(notes))

  def _rank(
    self, side: str, name: str, kind: str, jobs: list[Search], found: list[Any], times: dict[str, float]
  ) -> None:
    """Ranks searches of one side, query type and mask together, and puts their rankings into `found`."""
    began = time.perf_counter()
    feature_QD = np.stack([result.feature for result in found])
    if side == "plain":
      size = next(size for size in SIZES if size >= len(jobs))
      adaptation = plain(jnp.asarray(feature_QD[np.minimum(np.arange(size), len(jobs) - 1)]))
      gallery = self.frozen
    else:
      adaptation, gallery = self.adapt(name, feature_QD), self.prepared[name]
      jax.block_until_ready(adaptation.query)
      times["adapt"] += time.perf_counter() - began
      began = time.perf_counter()
    rows, k = len(adaptation), max(job.k for job in jobs)
    k = next((size for size in _ks() if size >= k), k)
    exclude = ragged([job.exclude for job in jobs], rows)
    if kind == "few":
      ranking = rank(adaptation, gallery, k, exclude=exclude, allowed=ragged([job.allowed for job in jobs], rows))
    elif side == "adapted" and name in self.indexes and jobs[0].allowed is None:
      ranking = self._by_index(name, adaptation, gallery, k, exclude)
    else:
      ranking = rank(adaptation, gallery, k, exclude=exclude, allowed=jobs[0].allowed)
    times[side] += time.perf_counter() - began
    for row, (job, result) in enumerate(zip(jobs, found, strict=True)):
      there_K = ranking.ids[row] >= 0
      own = Ranking(ranking.ids[row][there_K][: job.k], ranking.scores[row][there_K][: job.k])
      setattr(result, side, own)

  def _by_index(self, name: str, adaptation: Adaptation, gallery: Gallery, k: int, exclude: np.ndarray) -> Ranking:
    """Returns the exact order of an index's shortlist, without what is excluded."""
    wanted = min(len(gallery), max(SHORTLIST, 2 * k) + exclude.shape[1])
    ids_QS = np.array(self.indexes[name].search(np.asarray(fold(adaptation)), wanted).ids)
    for row, without in enumerate(exclude):
      ids_QS[row][np.isin(ids_QS[row], without[without >= 0])] = -1
    return rerank(adaptation, gallery, ids_QS, k)

  def _only_type(self) -> str:
    try:
      self.adapter.head()
    except ValueError:
      raise invalid(f"a vector has to say what it is of: query_type, one of {sorted(self.adapter.heads)}") from None
    return next(iter(self.adapter.heads))

  def _check_head(self, query_type: str) -> None:
    if query_type not in self.adapter.heads:
      raise invalid(
        f"the adapter has heads for {sorted(self.adapter.heads)} queries, none for {query_type}; use mode plain"
      )

  def _encodes_text(self) -> bool:
    return self.encoder is not None and self.encoder.max_tokens > 0

  def _cut(self, text: str) -> list[str]:
    """Returns a note where the encoder leaves out the end of a text; it is asked of those long enough for it alone."""
    encoder: Any = self.encoder
    if len(text.encode("utf-8", "replace")) <= encoder.max_tokens - 3 or not encoder.is_cut(text):
      return []
    return [f"the encoder reads {encoder.max_tokens} tokens of a text; the end of this one is left out"]

  def _texts(self, texts: list[str]) -> Iterable[np.ndarray]:
    return [row for encoder, some in self._sized(texts) for row in encoder.texts(some)]

  def _images(self, images: list[Any]) -> Iterable[np.ndarray]:
    return [row for encoder, some in self._sized(images) for row in encoder.images(some)]

  def _sized(self, things: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Returns things in batches, each with an encoder of the least size that takes it."""
    batches = [things[start : start + SIZES[-1]] for start in range(0, len(things), SIZES[-1])]
    return [(self._encoders[next(s for s in SIZES if s >= len(some))], some) for some in batches]


def _of_size(encoder: Encoder | None, size: int) -> Any:
  """Returns an encoder that pads to another size; weights and compiled functions are shared."""
  other = copy.copy(encoder)
  if other is not None and hasattr(other, "batch_size"):
    other.batch_size = size
  return other


def _ks() -> tuple[int, ...]:
  """The numbers of results that are searched for: few, so that queries that want others go together."""
  return (20, 100, 1000)

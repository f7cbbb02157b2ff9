"""One search → terms: the features of its parts, each through the head of its query type."""

import copy
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import plain, unit
from qat_jax.adapter import Adapter, check_queries
from qat_jax.fit.training import evenly
from qat_jax.search.sums import FLAT, spreads
from qat_jax.serve import encoding
from qat_jax.serve.aspects import Aspect, Words
from qat_jax.serve.encoding import Encoding
from qat_jax.serve.limits import Refused, invalid
from qat_jax.serve.searches import Found, Part, Search
from qat_jax.serve.summands import Summand, fewer, rows_of
from qat_jax.types import Adaptation, Gallery, Pieces
from qat_jax.words import LEAST, NOTHING, SAMPLE, by_words, named_aspect

KEPT = 256  # aspects whose features are kept


class Planner:
  """What makes terms of searches."""

  def __init__(self, adapter: Adapter, galleries: Mapping[str, Gallery], encoding_: Encoding) -> None:
    self.adapter, self.galleries, self.encoding = adapter, galleries, encoding_
    self._rows = functools.lru_cache(KEPT)(self._rows_of)
    self._samples: dict[str, np.ndarray] = {}

  def over(self, galleries: Mapping[str, Gallery]) -> Self:
    """Returns the same planner for other galleries."""
    other = copy.copy(self)
    other.galleries = galleries
    other._samples = {}
    other.__dict__.pop("sample", None)
    return other

  @functools.cached_property
  def sample(self) -> np.ndarray | None:
    """Items all over the gallery (ND), which maps made of words are measured on; None of a very small one."""
    items_ND = self._sampled("frozen")
    return items_ND if len(items_ND) >= LEAST else None

  def _sampled(self, name: str) -> np.ndarray:
    """Returns up to SAMPLE items (ND), evenly spaced, of a gallery by its name, read once."""
    if name not in self._samples:
      gallery = self.galleries[name]
      living = gallery.living if isinstance(gallery, Pieces) else np.arange(len(gallery))
      self._samples[name] = np.asarray(gallery[living[evenly(len(living), SAMPLE)]])
    return self._samples[name]

  def features(self, jobs: Sequence[Search]) -> list[Found | Exception]:
    """Returns the features and the types of each search's parts, or why there are none."""
    parts = [part for job in jobs for part in job.parts]
    text_of = self.encoding.texts([p.text for p in parts if p.text is not None]) if self.encoding.reads_text else {}
    images = iter(self.encoding.images([part.pixels for part in parts if part.pixels is not None]))
    image_of = {i: next(images) for i, part in enumerate(parts) if part.pixels is not None}
    results: list[Found | Exception] = []
    first = 0
    for job in jobs:
      mine = range(first, first := first + len(job.parts))
      try:
        results.append(self._found(job, text_of, [image_of.get(i) for i in mine]))
      except Refused as error:
        results.append(error)
    return results

  def adapt(self, query_type: str, feature_QD: np.ndarray) -> Adaptation:
    """Returns the adaptation of Q queries of one type, padded to one of few sizes: its first Q rows are theirs."""
    size = encoding.size_of(len(feature_QD))
    return self.adapter(feature_QD[np.minimum(np.arange(size), len(feature_QD) - 1)], query_type)

  def _found(self, job: Search, text_of: Mapping[str, np.ndarray], image_of: Sequence[np.ndarray | None]) -> Found:
    """Returns the features of a query's parts, and their weighted sum at unit length."""
    greatest = max(job.parts, key=lambda part: abs(part.weight))
    if not greatest.weight:
      raise invalid("every part of the query has weight 0; give one another")
    parts, notes, total_D = [], [], np.zeros(self.adapter.width, np.float64)
    main = max((part for part in job.parts if not part.mark), key=lambda part: abs(part.weight))
    query_type = job.query_type or main.type or self._only_type()
    for part, image_D in zip(job.parts, image_of, strict=True):
      feature_D = self._feature(part, text_of, image_D)
      if part.text is not None:
        notes += self.encoding.notes_of(part.text)
      total_D += part.weight / abs(greatest.weight) * feature_D
      own_type = "image" if part.mark else job.query_type or part.type or self._only_type()
      parts.append((part, own_type, feature_D.astype(np.float32)))
    if not np.linalg.norm(total_D) > 1e-6:
      raise invalid("the parts of the query cancel each other; change their weights")
    heads = sorted(self.adapter.heads)
    if job.mode == "adapted" and not job.words and not any(name in heads for _, name, _ in parts):
      raise invalid(f"the adapter has heads for {heads} queries, none for {query_type}; use mode plain")
    for name in dict.fromkeys(name for _, name, _ in parts if name not in heads and not job.words):
      notes.append(f"the adapter has no head for {name} queries")
    return Found(query_type, unit(total_D, np.float32), parts, list(dict.fromkeys(notes)))

  def _feature(self, part: Part, text_of: Mapping[str, np.ndarray], image_D: np.ndarray | None) -> np.ndarray:
    """Returns the unit feature (D) of a part."""
    if part.text is not None:
      if part.text not in text_of:
        self.encoding.texts([part.text])  # which refuses
      return unit(text_of[part.text])
    if part.pixels is not None:
      return unit(np.asarray(image_D))
    if part.position is not None:
      return unit(np.asarray(self.galleries["frozen"][np.array([part.position])], np.float32)[0])
    assert part.vector is not None
    try:
      check_queries(part.vector[None], self.adapter.width)
    except ValueError as error:
      raise invalid(f"the vector: {error}") from error
    return unit(part.vector)

  def plan(self, jobs: Sequence[Search], results: list[Found | Exception]) -> None:
    """Gives each search its terms: the plain side's, and the adapted side's, each part through its own head."""
    members: dict[str, list[tuple[Found, Part, np.ndarray]]] = defaultdict(list)
    for i, (job, found) in enumerate(zip(jobs, results, strict=True)):
      if isinstance(found, Exception):
        continue
      if job.mode != "adapted":
        found.terms["plain"] = [plain_summand(found.feature)]
      if job.mode == "plain":
        continue
      through_heads = [(part, name, row_D) for part, name, row_D in found.parts if part.weight]
      if job.words:
        try:
          found.terms["adapted"], through_heads = self._in_words(job.words, found)
        except Refused as error:
          results[i] = error
          continue
      if job.words or any(name in self.adapter.heads for _, name, _ in found.parts):
        found.terms.setdefault("adapted", [])
        found.mixed = bool(found.terms["adapted"] and through_heads) or len({name for _, name, _ in through_heads}) > 1
        for part, name, feature_D in through_heads:
          members[name].append((found, part, feature_D))
    for name, all_ in members.items():
      for start in range(0, len(all_), encoding.SIZES[-1]):
        some = all_[start : start + encoding.SIZES[-1]]
        terms = self.terms(name, [feature_D for _, _, feature_D in some])
        for (found, part, feature_D), term in zip(some, terms, strict=True):
          even = self.as_plain(term, feature_D) if found.mixed else term
          found.terms["adapted"].append(_weighted(even, part.weight))
    for i, found in enumerate(results):
      if isinstance(found, Found) and "adapted" in found.terms:
        found.terms["adapted"] = fewer(found.terms["adapted"])
        if not found.terms["adapted"]:
          results[i] = invalid("the parts of the query cancel each other once they are adapted; change their weights")

  def terms(self, query_type: str, feature_QD: Sequence[np.ndarray]) -> list[Summand]:
    """Returns the term of each query of one type: through its head, or plain where the adapter has none."""
    if query_type not in self.adapter.heads:
      return [plain_summand(feature_D) for feature_D in feature_QD]
    gallery = self.galleries[query_type]
    name = next(name for name, one in self.galleries.items() if one is gallery)  # heads may share one
    weight = self.adapter.heads[query_type].scale
    rows = rows_of(self.adapt(query_type, np.stack(feature_QD)), len(feature_QD))
    return [Summand(adaptation, name, weight, query_type) for adaptation in rows]

  def as_plain(self, term: Summand, feature_D: np.ndarray) -> Summand:
    """Returns a term whose score spreads over the gallery's sample as the plain score of its feature does."""
    (spread,) = spreads(term.adaptation, self._sampled(term.gallery))
    (plain_spread,) = spreads(plain_summand(feature_D).adaptation, self._sampled("frozen"))
    return dataclasses.replace(term, weight=float(plain_spread / spread)) if min(spread, plain_spread) > FLAT else term

  def _in_words(self, words: Words, found: Found) -> tuple[list[Summand], list[tuple[Part, str, np.ndarray]]]:
    """Returns the terms of a search that names aspects, and the parts that go through their heads all the same.

    The frozen gallery is searched, its items and the query mapped by T. In a gallery too small to have a mean, a change
    is the adapted picture plus the plain text, which it may outweigh.
    """
    marks = [one for one in found.parts if one[0].mark]
    parts = [one for one in found.parts if not one[0].mark]
    change = words.change
    if not change and not words.guess:
      some = [one for one in (*parts, *marks) if one[0].weight]
      return self._mapped(some, self._by_words(some[0][2], words.ignore, words.alike)), []
    told = [one for one in parts if one[0].text is not None]
    shown = [one for one in parts if one[0].text is None]
    if not told or not shown:
      raise invalid("change wants a picture, an item or a vector, and a text that says what is other about it")
    text_D, shown_D = (np.sum([p.weight * row_D for p, _, row_D in some], axis=0) for some in (told, shown))
    if change is None:
      row_WDs = {one.name: self._rows(one) for one in words.guess}
      ((name, _),) = named_aspect(text_D[None], row_WDs)
      change = next(one for one in words.guess if one.name == name)
      found.notes.append(f'the text was taken to change {name!r}; name another with "change"')
    if "image" in self.adapter.heads and not words.ignore and self.sample is None:
      return [_weighted(plain_summand(row_D), part.weight) for part, _, row_D in told], [*shown, *marks]
    changed = self._by_words(shown_D, words.ignore, change=text_D, changed=change)
    weight = sum(abs(part.weight) for part, _, _ in parts)
    return [Summand(changed, "frozen", weight), *self._mapped(marks, changed)], []

  def _mapped(self, parts: list[tuple[Part, str, np.ndarray]], told: Adaptation) -> list[Summand]:
    """Returns the summand of each part under the map of an adaptation; raises Refused where nothing is left."""
    summands = []
    for part, _, row_D in parts:
      query_D = np.asarray(told.gate[0] * row_D + told.left[0] @ (told.right[0].T @ row_D))
      if not np.linalg.norm(query_D) > NOTHING:
        raise invalid("of a part of the query nothing is left by these words; ask with others")
      summands.append(Summand(told.replace(query=unit(query_D, np.float32)[None]), "frozen", part.weight))
    return summands

  def _by_words(
    self,
    query_D: np.ndarray,
    ignore: tuple[Aspect, ...],
    alike: tuple[Aspect, ...] = (),
    change: np.ndarray | None = None,
    changed: Aspect | None = None,
  ) -> Adaptation:
    """Returns what `by_words` makes of one query and aspects, in NumPy arrays; raises Refused where it refuses.

    `change` is the feature (D) of the text that says what is other, `changed` the aspect that it is about. One query at
    a time: eager JAX compiles for each number of queries.
    """
    rows = {one.name: self._rows(one) for one in (*alike, *ignore, *filter(None, [changed]))}
    try:
      adaptation = by_words(
        query_D[None].astype(np.float32),
        [one.name for one in alike],
        [one.name for one in ignore],
        change,
        changed=None if changed is None else changed.name,
        aspects=rows,
        gallery=self.sample,
      )
    except ValueError as error:
      raise invalid(str(error)) from error
    return jax.tree.map(np.asarray, adaptation)

  def _rows_of(self, aspect: Aspect) -> np.ndarray:
    """Returns the features of an aspect's values (WD): each the unit mean of its phrases."""
    feature_of = self.encoding.texts([phrase for value in aspect.values for phrase in value])
    mean = lambda value: unit(np.mean([unit(feature_of[phrase]) for phrase in value], axis=0))
    return np.stack([mean(value) for value in aspect.values]).astype(np.float32)

  def _only_type(self) -> str:
    try:
      self.adapter.head()
    except ValueError:
      raise invalid(f"a vector has to say what it is of: query_type, one of {sorted(self.adapter.heads)}") from None
    return next(iter(self.adapter.heads))


def _weighted(term: Summand, weight: float) -> Summand:
  return dataclasses.replace(term, weight=term.weight * weight)


def plain_summand(feature_D: np.ndarray) -> Summand:
  """Returns the term of a frozen feature, which nothing adapts."""
  return Summand(rows_of(plain(jnp.asarray(feature_D[None])), 1)[0], "frozen")

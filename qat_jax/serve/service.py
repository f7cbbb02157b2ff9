"""What the server does, without the web: queries in batches → rankings, plain and adapted, of one gallery.

A `Service` does not change. Its jitted calls run in one thread, the queue's, in batches of few sizes, which `warm`
compiles. A search becomes features and then terms whose scores add up (`Planner`), then rankings (`Ranker`).
"""

import base64
import contextlib
import copy
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import plain, unit
from qat_jax.adapter import Adapter
from qat_jax.distributed import Gallery as Sharded
from qat_jax.encoders import Encoder
from qat_jax.evidence import Evidence
from qat_jax.keeping import KeptMarks
from qat_jax.search.index import Index
from qat_jax.search.warming import warm
from qat_jax.serve import encoding, why
from qat_jax.serve.aspects import Aspect
from qat_jax.serve.encoding import Encoding
from qat_jax.serve.items import Items
from qat_jax.serve.limits import RIGHT
from qat_jax.serve.pictures import Pictures
from qat_jax.serve.planning import Planner
from qat_jax.serve.ranking import DEPTH, KS, Ranker
from qat_jax.serve.searches import Found, Part, Search
from qat_jax.serve.summands import Summand, rows_of
from qat_jax.serve.variety import Variety
from qat_jax.types import Gallery, Ranking
from qat_jax.words import RANKS, by_words


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
    aspects_: Mapping[str, Aspect] | None = None,
    kept: KeptMarks | None = None,
    about: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Evidence] | None = None,
  ) -> None:
    """Raises ValueError for what does not fit together.

    Args:
      adapter: adapts queries.
      items: ids and metadata.
      frozen: the gallery, unit rows.
      prepared: the gallery for each query type that the adapter has.
      encoder: encodes queries; None: items and vectors alone can be searched with.
      pictures: those of items.
      indexes: by query type; a type without one is searched exactly.
      aspects_: what a search may be alike in, or ignore, by name.
      kept: where marks are kept; None: nowhere.
      about: what /v1/info says of all this.
      evidence: what scores are worth in the gallery, by query type.
    """
    for name, gallery in {"frozen": frozen, **prepared}.items():
      if len(gallery) != len(items):
        raise ValueError(f"the gallery for {name} queries has {len(gallery)} rows, there are {len(items)} items")
    if encoder is not None and encoder.width != adapter.width:
      raise ValueError(f"the encoder {encoder.name} is {encoder.width} wide; the adapter wants {adapter.width}")
    self.adapter, self.items, self.frozen, self.prepared = adapter, items, frozen, dict(prepared)
    self.pictures, self.about = pictures or Pictures(None, 1), dict(about or {})
    self.kept, self.aspects, self.evidence = kept, dict(aspects_ or {}), dict(evidence or {})
    self.encoder, self.encoding = encoder, Encoding(encoder)
    self.galleries = {"frozen": frozen, **prepared}
    self.planner = Planner(adapter, self.galleries, self.encoding)
    self.ranker = Ranker(self.galleries, dict(indexes or {}))

  def over(
    self, items: Items, galleries: Mapping[str, Gallery], indexes: Mapping[str, Mapping[int, Index]] | None = None
  ) -> Self:
    """Returns the same service of other items: their galleries by query type and `frozen`, and indexes of pieces."""
    other = copy.copy(self)
    other.items, other.galleries, other.frozen = items, dict(galleries), galleries["frozen"]
    other.prepared = {name: galleries[name] for name in self.prepared}
    other.planner, other.ranker = self.planner.over(other.galleries), Ranker(other.galleries, indexes or {})
    return other

  def close(self) -> None:
    """Ends what other machines do for this service."""
    for gallery in self.galleries.values():
      if isinstance(gallery, Sharded):
        gallery.close()

  def warm(self, log: Callable[[str], Any] = lambda line: None) -> None:
    """Compiles what searches need, for each size of a batch."""
    for size in encoding.SIZES:
      log(f"compiling for {size} queries at once")
      self.warm_plain(size)
      self.warm_words(size)

  def warm_plain(self, size: int) -> None:
    """Compiles what searches need that are not told in words, for one size of a batch."""
    rng, few = np.random.default_rng(0), np.arange(min(8, len(self.items)))
    self.planner.features([Search((Part(position=0),))])
    self.encoding.warm(size)
    for name in self.adapter.heads:
      vectors = rng.standard_normal((size, self.adapter.width)).astype(np.float32)
      warm(self.planner.adapt(name, vectors), self.prepared[name])
      warm(plain(jnp.asarray(vectors)), self.frozen)
      parts = [(Part(vector=vector, query_type=name),) for vector in vectors]
      for k in KS:
        self._checked([Search(part, k, "both") for part in parts])
      self._checked([Search(part, mode="both", allowed=few) for part in parts])
      self._checked([Search(parts[0], mode="both", variety=Variety(duplicates=True))])

  def warm_words(self, size: int) -> None:
    """Compiles what searches in words need, for one size of a batch."""
    for rank in sorted({min(rank, self.adapter.width) for rank in RANKS}) if self.encoding.reads_text else ():
      self._warm_map(size, rank)

  def _warm_map(self, size: int, rank: int) -> None:
    """Compiles for maps made of words, with one number of columns."""
    row_QD = jnp.asarray(np.random.default_rng(0).standard_normal((size, self.adapter.width)), jnp.float32)
    few = 3 * rank // 4 + 1  # words, whose map is padded to so many columns
    rows = {"any": np.random.default_rng(0).standard_normal((few, self.adapter.width)).astype(np.float32)}
    for about in ({"alike": "any"}, {"ignore": "any"}):  # what `by_words` itself compiles
      by_words(np.asarray(row_QD[:1]), aspects=rows, gallery=self.planner.sample, **about)
    map_QDR = np.full((size, self.adapter.width, rank), self.adapter.width**-1.0, np.float32)
    told = plain(row_QD).replace(gate=np.ones((size, 1), np.float32), left=map_QDR, right=map_QDR)
    warm(told, self.frozen)
    summands = [[Summand(row, "frozen")] for row in rows_of(told, size)]
    for k in KS:
      self.ranker.rank([Search((), k)] * size, summands)

  def _checked(self, jobs: list[Search]) -> None:
    for found in self.search(jobs):
      if isinstance(found, Exception):
        raise found

  def search(self, jobs: Sequence[Search]) -> list[Found | Exception]:
    """Returns what each search found, or why it is refused; never raises for what one of them asks."""
    times: dict[str, float] = defaultdict(float)
    with _timed(times, "encode"):
      results = self.planner.features(jobs)
    with _timed(times, "adapt"):
      self.planner.plan(jobs, results)
    for side in ("plain", "adapted"):
      members = [(i, one) for i, one in enumerate(results) if isinstance(one, Found) and side in one.terms]
      if not members:
        continue
      with _timed(times, side):
        rankings = self.ranker.rank([jobs[i] for i, _ in members], [one.terms[side] for _, one in members])
      for (i, one), ranking in zip(members, rankings, strict=True):
        if isinstance(ranking, Exception):
          results[i] = ranking
          continue
        ranked = self._with_evidence(one, ranking[0]) if side == "adapted" else ranking[0]
        setattr(one, side, self._varied(jobs[i], one, side, ranked))
        if not ranking[1]:
          one.notes.append(f"the {side} order is that of the best {DEPTH:,} items of each part, not proven for all")
    for result in results:
      if isinstance(result, Found):
        result.seconds = dict(times)
    return results

  def _with_evidence(self, found: Found, ranking: Ranking) -> Ranking:
    """Returns the ranking of one query with evidence, where it is one feature through a head and nothing else."""
    terms, evidence = found.terms["adapted"], self.evidence.get(found.query_type)
    if evidence is None or len(terms) != 1 or terms[0].head != found.query_type or len(found.parts) != 1:
      return ranking
    one = Ranking(ranking.ids[None], ranking.scores[None])
    chance_QK = evidence.of(one, found.parts[0][2][None]).evidence
    assert chance_QK is not None
    return ranking.replace(evidence=chance_QK[0])

  def _varied(self, job: Search, found: Found, side: str, ranking: Ranking) -> Ranking:
    """Returns the ranking of one query with the variety that its search asks for; notes how many each result is."""
    if not job.variety:
      return ranking
    varied, alike_QK = job.variety.of(jax.tree.map(lambda x: x[None], ranking), self.frozen, job.k)
    there_K = varied.ids[0] >= 0
    if alike_QK is not None:
      found.alike[side] = alike_QK[0][there_K]
    return jax.tree.map(lambda x: x[0][there_K], varied)

  def planned(self, job: Search) -> Found:
    """Returns one search with its terms, not ranked yet; raises Refused where it cannot be searched."""
    results = self.planner.features([job])
    self.planner.plan([job], results)
    if isinstance(results[0], Exception):
      raise results[0]
    return results[0]

  def keep(self, job: Search, found: Found, right: Sequence[str], wrong: Sequence[str]) -> list[str]:
    """Keeps the marks of a search on the disk, where that is allowed; returns a note where it failed.

    Of the wrong ones only the first RIGHT are kept: a request may have very many, and they teach little.
    """
    if self.kept is None or not (right or wrong):
      return []
    told = [part.text for part, _, _ in found.parts if part.text is not None]
    feature_D = unit(np.sum([p.weight * row_D for p, _, row_D in found.parts if not p.mark], axis=0))
    query = {"text": told[0]} if told else {}
    query["feature"] = base64.b64encode(feature_D.astype("<f2").tobytes()).decode()
    about: dict[str, Any] = {
      "query": {**query, "type": found.query_type},
      **({"told": True} if job.words or sum(not part.mark for part, _, _ in found.parts) > 1 else {}),
      "adapter": self.about.get("adapter", {}).get("fingerprint"),
      "encoder": self.about.get("encoder"),
    }
    try:
      gone = set(self.items.known([*right, *wrong[:RIGHT]])[1])
      marks = [*((name, True) for name in right), *((name, False) for name in wrong[:RIGHT])]
      self.kept.append([{**about, "item": name, "right": sign} for name, sign in marks if name not in gone])
    except OSError as error:
      return [f"the marks count in this search but were not kept: {error.strerror or error}"]
    return []

  def why(self, job: Search, positions: np.ndarray) -> tuple[Found, dict[str, Any], list[dict[str, Any]]]:
    """Returns how the query moved, and for each item its plain and its adapted score, with ranks."""
    found = self.planned(dataclasses.replace(job, mode="both"))
    sides = {side: why.scores_of(terms, self.ranker, positions) for side, terms in found.terms.items()}
    nothing = [None] * len(positions)
    pairs = zip(sides["plain"], sides.get("adapted", nothing), strict=True)
    items: list[dict[str, Any]] = [{"plain": before, "adapted": after, "parts": []} for before, after in pairs]
    if "adapted" in found.terms and (len(job.parts) > 1 or job.words):
      for item, parts in zip(items, why.parts_of(self.planner, self.ranker, job, found, positions), strict=True):
        item["parts"] = parts
    how: dict[str, Any] = {"cosine": None, "remembered": [], "expert": None}
    if found.query_type in self.adapter.heads:
      feature_D = max(found.parts, key=lambda one: abs(one[0].weight) * (not one[0].mark))[2]
      adaptation = self.planner.adapt(found.query_type, feature_D[None])[:1]
      how = why.moved(self.adapter, found.query_type, feature_D, adaptation, self.frozen)
    return found, how, items


@contextlib.contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
  """Adds the seconds that the block takes."""
  began = time.perf_counter()
  yield
  times[name] += time.perf_counter() - began

"""ILIAS: 1,000 objects, image queries (I2I) and text queries (T2I), and 5M (mini) or 100M distractors from YFCC100M.

Reads the official files as they are: image_ids/*.txt, taxonomy.json, and similarity files (JSON or pickle). Figures are
in percent, mAP@1000 unless told otherwise, over the queries at hand. Features: eval/benchmarks/ilias_features.py.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.benchmarks.task import Ids, Task, check_unique, need, relevance_of
from qat_jax.datasets.tables import decoded
from qat_jax.metrics import average_precision_at_k, bootstrap_interval
from qat_jax.types import Ranking, Relevance

_log = logging.getLogger(__name__)
K = 1000
INFINITY = float("inf")
# Limits of the official breakdowns: the object's share of the picture, and the number of other objects in it.
GROUPS = {
  "scale": (0, 0.06880213760855043, 0.13526567164179104, 0.2729876723163842, INFINITY),
  "clutter": (0, 18, 33, 53, INFINITY),
}
SOURCE = "it comes with the image id files of ILIAS (image_ids/ in the dataset's download)"


@dataclass(frozen=True)
class Ilias:
  """The ids of the benchmark, and what is right: a positive belongs to the object that its first folder names."""

  root: Path
  image_query_ids: list[str]
  text_query_ids: list[str]
  positive_ids: list[str]
  scale: dict[str, float]  # of each positive
  clutter: dict[str, float]
  categories: dict[str, str]  # object → "category-subcategory"; empty where there is no taxonomy.json

  @classmethod
  def open(cls, root: Path | str) -> Ilias:
    """Returns the benchmark below `root`, after checking that every query's object has a positive."""
    root = Path(root)
    queries = _lines(root / "image_ids" / "image_query_ids.txt")
    texts = _lines(root / "image_ids" / "text_query_ids.txt")
    positives = _lines(root / "image_ids" / "positive_ids.txt")
    if any(len(line) != 3 for line in positives):
      raise ValueError(f"{root}/image_ids/positive_ids.txt: every line wants id,scale,clutter; {SOURCE}")
    names = [line[0] for line in positives]
    for what, ids in (("image", [x[0] for x in queries]), ("text", [x[0] for x in texts])):
      check_unique(ids, f"{root}, {what} query ids")
      orphans = {object_of(i) for i in ids} - {object_of(i) for i in names}
      if orphans:
        raise ValueError(
          f"{root}: {len(orphans)} objects have {what} queries and no positive, the first {min(orphans)!r}"
        )
    check_unique(names, f"{root}, positive ids")
    return cls(
      root,
      sorted(line[0] for line in queries),
      sorted(line[0] for line in texts),
      sorted(names),
      {name: float(scale) for name, scale, _ in positives},
      {name: float(clutter) for name, _, clutter in positives},
      _taxonomy(root),
    )

  def positives_by_object(self) -> dict[str, list[str]]:
    """Returns the positive ids of each object."""
    by_object: dict[str, list[str]] = {}
    for name in self.positive_ids:
      by_object.setdefault(object_of(name), []).append(name)
    return by_object

  def distractor_ids(self) -> list[str]:
    """Returns the ids of image_ids/distractor_ids.txt.gz (100M lines for the whole set)."""
    path = need(self.root / "image_ids" / "distractor_ids.txt.gz", SOURCE)
    with gzip.open(path, "rt", encoding="utf-8-sig") as file:
      return [line.strip() for line in file]

  def relevance(self, query_ids: Ids, gallery_ids: Ids | pa.Array) -> Relevance:
    """Returns positions of each query's positives in the gallery; ValueError where one is missing or repeated."""
    known = set(self.image_query_ids) | set(self.text_query_ids)
    unknown = [q for q in query_ids if q not in known]
    if unknown:
      raise ValueError(f"{len(unknown)} query ids are not ILIAS's, the first {unknown[0]!r}")
    gallery = (
      gallery_ids if isinstance(gallery_ids, (pa.Array, pa.ChunkedArray)) else pa.array(gallery_ids, pa.string())
    )
    which_N = pc.index_in(gallery, value_set=pa.array(self.positive_ids)).fill_null(-1).to_numpy()
    position_P = np.flatnonzero(which_N >= 0)
    which_P = which_N[position_P]
    counts = np.bincount(which_P, minlength=len(self.positive_ids))
    if (counts != 1).any():
      name = self.positive_ids[int(np.argmax(counts != 1))]
      raise ValueError(
        f"the gallery has the positive {name!r} {counts[counts != 1][0]} times, and {np.sum(counts == 0)} of "
        f"{len(counts):,} positives not at all; give all positives, once each, and the distractors"
      )
    position_of = dict(zip((self.positive_ids[i] for i in which_P), position_P.tolist(), strict=True))
    by_object = {o: np.array([position_of[i] for i in ids]) for o, ids in self.positives_by_object().items()}
    return relevance_of([by_object[object_of(q)] for q in query_ids])

  def task(self, name: str, query_ids: Ids, gallery_ids: Ids | pa.Array) -> Task:
    """Returns the task of some queries (those of I2I or T2I) over a gallery; scores in percent at 1,000."""
    relevance = self.relevance(query_ids, gallery_ids)

    def score(ranking: Ranking) -> dict:
      return self.score(ranked_items(query_ids, gallery_ids, ranking), K)

    def precision(ranking: Ranking) -> np.ndarray:
      ap = score(ranking)["ap"]
      return np.array([ap[query] for query in query_ids]) / 100

    return Task(name, query_ids, gallery_ids, relevance, score, precision, K)

  def score(self, similarities: Iterable[tuple[str, Items]], k: int = K, where: str = "the ranking") -> dict:
    """Returns the official figures, in percent: map with its interval, that of either query type, and breakdowns.

    `ap` is by query, `oracle` the share of positives found in the first k, as the official program counts it. A query
    whose result is empty counts 0.

    Args:
      similarities: pairs (query id, (item ids, scores)).
      k: how many items of a query count.
      where: the file that the similarities come from, for errors.
    """
    known = set(self.image_query_ids) | set(self.text_query_ids)
    by_object = self.positives_by_object()
    ap: dict[str, float] = {}
    oracle: list[float] = []
    grouped: dict[str, dict[str, list[float]]] = {kind: {} for kind in GROUPS}
    for query, (ids, score_K) in similarities:
      if query not in known or query in ap:
        wrong = "comes twice" if query in ap else "is not ILIAS's; is the file of another benchmark?"
        raise ValueError(f"{where}: the query id {query!r} {wrong}")
      positives = by_object[object_of(query)]
      number = {name: i for i, name in enumerate(positives)}
      which_K = np.array([number.get(name, -1) for name in ids], int)
      all_P = np.ones(len(positives), bool)
      ap[query] = _ap_at_k(which_K, score_K, all_P, k)
      if np.isnan(score_K).any():
        raise ValueError(f"{where}: query {query!r} has a score that is NaN; a ranking by it has no meaning")
      first_K = which_K[np.argsort(-score_K)][:k]
      reached = float(np.mean(first_K >= 0)) if len(first_K) else 0.0
      oracle.append(100 * reached * k / len(positives))
      for kind, limits in GROUPS.items():
        value_P = np.array([(self.scale if kind == "scale" else self.clutter)[name] for name in positives])
        for low, high in itertools.pairwise(limits):
          inside_P = (low <= value_P) & (value_P < high)
          if inside_P.any():
            grouped[kind].setdefault(f"{low}-{high}", []).append(_ap_at_k(which_K, score_K, inside_P, k))
    if not ap:
      raise ValueError(f"{where}: there is no query to score")
    values_Q = np.array(list(ap.values()))
    if not values_Q.any():
      _log.warning("%s has no positive of any query; are its ids written as in positive_ids.txt?", where)
    ids_of = {"image": self.image_query_ids, "text": self.text_query_ids}
    by_type = {kind: [ap[query] for query in ids if query in ap] for kind, ids in ids_of.items()}
    return {
      "map": float(values_Q.mean()),
      "interval": list(bootstrap_interval(values_Q)),
      "queries": len(ap),
      **{f"{kind}_queries_map": float(np.mean(x)) for kind, x in by_type.items() if x},
      "oracle": float(np.mean(oracle)),
      **{kind: {name: float(np.mean(v)) for name, v in groups.items()} for kind, groups in grouped.items()},
      **self._by_category(ap),
      "ap": ap,
    }

  def _by_category(self, ap: Mapping[str, float]) -> dict:
    if not self.categories:
      return {}
    of_object: dict[str, list[float]] = {}
    for query, value in ap.items():
      of_object.setdefault(object_of(query), []).append(value)
    tables: dict[str, dict[str, list[float]]] = {"categories": {}, "subcategories": {}}
    for name, values in of_object.items():
      if name not in self.categories:
        raise ValueError(f"the object {name!r} is not in taxonomy.json; {SOURCE}")
      mean = float(np.mean(values))
      tables["categories"].setdefault(self.categories[name].split("-")[0], []).append(mean)
      tables["subcategories"].setdefault(self.categories[name], []).append(mean)
    return {kind: {name: float(np.mean(v)) for name, v in table.items()} for kind, table in tables.items()}


Items = tuple[np.ndarray, np.ndarray]  # ids and scores of a query's items, in any order


def object_of(name: str) -> str:
  """Returns the object that a query or positive belongs to."""
  return name.split("/")[0]


def ranked_items(query_ids: Ids, gallery_ids: Ids, ranking: Ranking) -> Iterator[tuple[str, Items]]:
  """Yields (query id, (item ids, scores)) of a ranking; places that hold nothing (−1) are left out."""
  for query, ids_K, score_K in zip(query_ids, ranking.ids, ranking.scores, strict=True):
    listed_K = ids_K >= 0
    yield query, (np.array([str(gallery_ids[int(i)]) for i in ids_K[listed_K]]), np.asarray(score_K)[listed_K])


def _ap_at_k(which_K: np.ndarray, score_K: np.ndarray, counted_P: np.ndarray, k: int) -> float:
  """Returns AP in percent; `which_K` says which positive an item is (−1: none), those not counted are left out."""
  kept_K = (which_K < 0) | counted_P[which_K]
  relevant_K, score_K = which_K[kept_K] >= 0, score_K[kept_K]
  return 100 * float(average_precision_at_k(relevant_K, score_K, int(counted_P.sum()), k)) if relevant_K.any() else 0.0


def _taxonomy(root: Path) -> dict[str, str]:
  path = next((p for p in (root / "taxonomy.json", root / "misc" / "taxonomy.json") if p.exists()), None)
  if path is None:
    return {}
  try:
    return {
      name: f"{category}-{subcategory}"
      for category, subcategories in json.loads(decoded(path.read_bytes(), path)).items()
      for subcategory, kinds in subcategories.items()
      for names in kinds.values()
      for name in names
    }
  except (ValueError, AttributeError, TypeError) as error:
    raise ValueError(f"{path} is no taxonomy of ILIAS ({error}); {SOURCE}") from error


def _lines(path: Path) -> list[list[str]]:
  text = decoded(need(path, SOURCE).read_bytes(), path)
  lines = [line.strip().split(",") for line in text.splitlines() if line.strip()]
  if not lines:
    raise ValueError(f"{path} is empty; {SOURCE}")
  return lines

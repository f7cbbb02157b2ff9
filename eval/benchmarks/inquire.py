"""INQUIRE: text queries of experts over iNaturalist 2024 (5M photos), by the official CSV files.

Full rank: the whole gallery, figures at k = 50 of all positives. Two-stage: the same figures of a re-ranked shortlist.
Re-rank set: 100 fixed photos a query, figures among those. mAP, nDCG, precision and recall in percent, MRR a fraction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from eval.benchmarks.task import Ids, Task, check_unique, read_csv, relevance_of
from qat_jax.metrics import average_precision_at_k, bootstrap_interval, ndcg_at_k, reciprocal_rank
from qat_jax.types import Ranking, Relevance

K = 50
FIGURES = {"map": 100, "ndcg": 100, "mrr": 1, "precision": 100, "recall": 100}  # and their units
# The column of photos in inquire_rerank.csv: our name, the early name, and the name on the hub.
IMAGE_COLUMNS = ("image_path", "file_name", "inat24_file_name")
SOURCE = "it is one of the CSV files of the INQUIRE download"


@dataclass(frozen=True)
class Inquire:
  """The queries of one split and the photos that are relevant to each."""

  root: Path
  query_ids: list[str]
  texts: list[str]
  relevant: dict[str, set[str]]  # by query id: photo names, as in `image_path`

  @classmethod
  def open(cls, root: Path | str, split: str = "test") -> Self:
    """Returns the split below `root`: inquire_queries_<split>.csv (or inquire_queries.csv), inquire_annotations.csv."""
    root = Path(root)
    path = root / f"inquire_queries_{split}.csv"
    path = path if path.exists() else root / "inquire_queries.csv"
    queries = _rows(path, ("query_id", "query_text"))
    relevant: dict[str, set[str]] = {row["query_id"]: set() for row in queries}
    check_unique([row["query_id"] for row in queries], str(path))
    annotations = root / "inquire_annotations.csv"
    for row in _rows(annotations, ("query_id", "image_path")):
      if row["query_id"] in relevant:
        relevant[row["query_id"]].add(photo(row["image_path"]))
    for query, photos in relevant.items():
      if not photos:
        raise ValueError(f"{annotations}: query {query} has no relevant photo; are both files of the same version?")
    return cls(root, list(relevant), [row["query_text"] for row in queries], relevant)

  def full_rank(self, gallery_ids: Ids, k: int = K) -> Task:
    """Returns the task over a whole gallery, whose ids are image paths; two-stage rankings are scored by it too."""
    relevance = self._relevance([self.relevant[q] for q in self.query_ids], gallery_ids)

    return _task("inquire full rank", self.query_ids, gallery_ids, relevance, k)

  def rerank_set(self, gallery_ids: Ids) -> tuple[Task, np.ndarray]:
    """Returns the task of inquire_rerank.csv and each query's candidates (gallery positions, Q × 100), to re-rank."""
    shown, among = self._rerank_photos()
    candidates_QK = np.array(_positions(shown, gallery_ids))
    relevance = self._relevance(among, gallery_ids)
    return _task("inquire rerank", self.query_ids, gallery_ids, relevance, candidates_QK.shape[1]), candidates_QK

  def _rerank_photos(self) -> tuple[list[list[str]], list[set[str]]]:
    """Returns the photos of inquire_rerank.csv for each query, and which of them are relevant."""
    path = self.root / "inquire_rerank.csv"
    rows = _rows(path, ())
    columns = rows[0].keys() if rows else ()
    query = next((c for c in ("query_id", "query") if c in columns), None)
    image = next((c for c in IMAGE_COLUMNS if c in columns), None)
    if query is None or image is None:
      raise ValueError(
        f"{path} has the columns {list(columns)}; wanted query_id or query (its text), and one of "
        f"{', '.join(IMAGE_COLUMNS)}; {SOURCE}"
      )
    place = {name: i for i, name in enumerate(self.query_ids if query == "query_id" else self.texts)}
    shown: list[list[str]] = [[] for _ in place]
    among: list[set[str]] = [set() for _ in place]
    for row in rows:
      if row[query] not in place:
        continue
      i, name = place[row[query]], photo(row[image])
      shown[i].append(name)
      if _is_true(row["relevant"]) if "relevant" in columns else name in self.relevant[self.query_ids[i]]:
        among[i].add(name)
    sizes = sorted({len(photos) for photos in shown})
    if len(sizes) != 1 or not sizes[0]:
      raise ValueError(f"{path}: queries have {sizes} photos, every one wants the same number (100); {SOURCE}")
    for name, photos in zip(self.query_ids, shown, strict=True):
      check_unique(photos, f"{path}, query {name}")
    return shown, among

  def _relevance(self, photos: Sequence[set[str]], gallery_ids: Ids) -> Relevance:
    positions = _positions([sorted(x) for x in photos], gallery_ids)
    return relevance_of([np.array(sorted(row), np.int64) for row in positions])


def score_ranking(ranking: Ranking, relevance: Relevance, k: int = K) -> dict:
  """Returns the official figures of a ranking's first k items; the queries without positives are left out."""
  figure_QF = figures_by_query(ranking, relevance, k)
  known_QF = figure_QF[~np.isnan(figure_QF[:, 0])]
  if not len(known_QF):
    raise ValueError("no query has a positive in the gallery; nothing to measure")
  interval = [100 * bound for bound in bootstrap_interval(figure_QF[:, 0])]
  means = {name: float(np.mean(unit * known_QF[:, i])) for i, (name, unit) in enumerate(FIGURES.items())}
  return {**means, "interval": interval, "queries": len(known_QF)}


def figures_by_query(ranking: Ranking, relevance: Relevance, k: int) -> np.ndarray:
  """Returns the FIGURES of each query's first k items, fractions (Q × figures; NaN where it has no positive)."""
  figure_QF = np.full((len(ranking.ids), len(FIGURES)), np.nan)
  for query, positives in enumerate(relevance.positives):
    kept_K, count = ranking.ids[query, :k] >= 0, len(positives)
    if count:
      relevant_K, score_K = np.isin(ranking.ids[query, :k][kept_K], positives), ranking.scores[query, :k][kept_K]
      ap, ndcg = (measure(relevant_K, score_K, count, k) for measure in (average_precision_at_k, ndcg_at_k))
      hits = relevant_K.sum()
      figure_QF[query] = ap, ndcg, reciprocal_rank(relevant_K, score_K), hits / k, hits / count
  return figure_QF


def _task(name: str, query_ids: Sequence[str], gallery_ids: Ids, relevance: Relevance, k: int) -> Task:
  score = lambda ranking: score_ranking(ranking, relevance, k)
  precision = lambda ranking: figures_by_query(ranking, relevance, k)[:, 0]
  return Task(name, query_ids, gallery_ids, relevance, score, precision, k)


def _is_true(text: str) -> bool:
  if text.lower() not in ("0", "1", "0.0", "1.0", "false", "true"):
    raise ValueError(f"inquire_rerank.csv: relevant is {text!r}; wanted 0 or 1; {SOURCE}")
  return text.lower() in ("1", "1.0", "true")


def photo(path: str) -> str:
  """Returns a photo's name without .jpg: annotations have the ending, the metadata of the embeddings do not."""
  return path.removesuffix(".jpg")


def _positions(names: Sequence[Sequence[str]], gallery_ids: Ids) -> list[list[int]]:
  place = {photo(str(name)): i for i, name in enumerate(gallery_ids)}
  if len(place) < len(gallery_ids):
    check_unique((photo(str(name)) for name in gallery_ids), "the gallery")
  missing = {name for row in names for name in row if name not in place}
  if missing:
    raise ValueError(
      f"{len(missing)} photos that INQUIRE needs are not in the gallery, the first {min(missing)!r}; give the "
      "embeddings of all of iNaturalist 2024's training photos (or of the re-rank set), image_path as their id"
    )
  return [[place[name] for name in row] for row in names]


def _rows(path: Path, fields: Sequence[str]) -> list[dict[str, str]]:
  return read_csv(path, fields, SOURCE)

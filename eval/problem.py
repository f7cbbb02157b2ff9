"""What is to be ranked: queries of one type, a gallery, and the tasks that one ranking of it answers.

Easy, medium and hard of revisited Oxford are three tasks of one problem; a benchmark's image and text queries are two
problems. A retrieval set's test split has a problem for each type of query.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from eval.benchmarks.task import Task
from qat_jax.features.retrieval_set import Split
from qat_jax.features.store import FeatureStore
from qat_jax.metrics import average_precision
from qat_jax.types import Ranking, Relevance

PLACES = 1 << 28  # queries × depth of a ranking: 2 GB of ids and scores


class Problem(NamedTuple):
  """One ranking to make, and all that is measured of it."""

  name: str  # a file name: what its results are kept under
  benchmark: str  # "" for a retrieval set
  query_type: str
  query_QD: np.ndarray  # float32
  gallery: Any  # FeatureStore, Joined or array
  depth: int
  tasks: dict[str, Task]  # by what distinguishes them; "" where there is one
  made_from: dict[str, Any]  # the fingerprint of what was read for it
  queries: FeatureStore | None = None  # where the queries of a retrieval set lie, and their rows in it
  rows: np.ndarray | None = None
  candidates: np.ndarray | None = None  # QC positions: all that may be found; None: everything

  def answered(self, ranking: Ranking) -> Ranking:
    """Returns what counts of a ranking: all of it, or the query's candidates in its order."""
    if self.candidates is None:
      return ranking
    keep_QK = [np.isin(ids_K, items_C) for ids_K, items_C in zip(ranking.ids, self.candidates, strict=True)]
    width = max(int(keep_K.sum()) for keep_K in keep_QK)
    ids_QK = np.full((len(keep_QK), width), -1, np.int32)
    score_QK = np.full((len(keep_QK), width), -np.inf, np.float32)
    for query, keep_K in enumerate(keep_QK):
      count = int(keep_K.sum())
      ids_QK[query, :count], score_QK[query, :count] = ranking.ids[query][keep_K], ranking.scores[query][keep_K]
    return Ranking(ids_QK, score_QK)


def of_split(split: Split, limit: int, seed: int) -> list[Problem]:
  """Returns the problems of a split: all queries that have something relevant, or `limit` of them."""
  made_from = split.fingerprint
  problems = []
  for query_type, queries in split.queries.items():
    relevance = split.relevance(query_type)
    rows = np.flatnonzero([len(p) > 0 for p in relevance.positives])
    if 0 < limit < len(rows):
      rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    relevance = relevance.take(rows)

    def precision(ranking: Ranking, relevance: Relevance = relevance) -> np.ndarray:
      return average_precision(ranking.ids, relevance)

    task = Task(query_type, queries.ids[rows], split.gallery.ids, relevance, lambda ranking: {}, precision)
    query_QD = np.asarray(queries[rows], np.float32)
    depth = min(len(split.gallery), max(1000, PLACES // len(rows)))
    problems.append(
      Problem(query_type, "", query_type, query_QD, split.gallery, depth, {"": task}, made_from, queries, rows)
    )
  return problems


def files_of(store: FeatureStore) -> tuple[pathlib.Path, ...]:
  """Returns the files that make up a folder of features."""
  shards = [
    *store.folder.glob("*_emb/*.npy"),
    *store.folder.glob("metadata/*.parquet"),
    *store.folder.glob("meta.json"),
  ]
  return tuple(sorted(shards))

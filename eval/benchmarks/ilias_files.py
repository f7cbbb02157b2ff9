"""ILIAS's files of results: similarities as JSON or pickle, as the official search writes them. No pickle is run."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eval.benchmarks import safe_pickle
from eval.benchmarks.ilias import Items
from eval.benchmarks.task import need
from qat_jax.datasets.tables import once

FORMAT = "give {query: {item: score}} as .json, or query_ids, db_ids, similarities, ranks as .pkl"


def read_similarities(path: Path | str) -> Iterator[tuple[str, Items]]:
  """Yields (query id, (item ids, scores)) of an official similarity file."""
  path = need(Path(path), "it is what a search wrote: " + FORMAT)
  if path.suffix == ".json":
    yield from _from_json(path)
  elif path.suffix in (".pkl", ".pickle"):
    yield from _from_pickle(path)
  else:
    raise ValueError(f"{path} is neither .json nor .pkl; {FORMAT}")


def _from_json(path: Path) -> Iterator[tuple[str, Items]]:
  try:
    content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: once(pairs, path))
  except ValueError as error:
    raise ValueError(f"{path} is not whole JSON ({error}); {FORMAT}") from error
  if not isinstance(content, dict) or not all(isinstance(scores, dict) for scores in content.values()):
    raise ValueError(f"{path} holds no {{query: {{item: score}}}}; {FORMAT}")
  for query, scores in content.items():
    try:
      score_K = np.array(list(scores.values()), np.float64)
      if score_K.ndim > 1:
        raise TypeError("a list")
    except (ValueError, TypeError, OverflowError) as error:
      raise ValueError(f"{path}: query {query!r} has a score that is no number ({error}); {FORMAT}") from error
    yield query, (np.array(list(scores), str), score_K)


def _from_pickle(path: Path) -> Iterator[tuple[str, Items]]:
  content = safe_pickle.read_pickle(path)
  scores = content.get("similarities", content.get("sims")) if isinstance(content, dict) else None
  if scores is None or not {"query_ids", "db_ids", "ranks"} <= set(content):
    raise ValueError(f"{path} holds no query_ids, db_ids, similarities (or sims) and ranks; {FORMAT}")
  query_ids, gallery_ids = list(content["query_ids"]), np.asarray(content["db_ids"]).astype(str)
  if not len(query_ids) == len(scores) == len(content["ranks"]):
    raise ValueError(
      f"{path}: {len(query_ids)} queries, {len(scores)} rows of scores, {len(content['ranks'])} of ranks"
    )
  for query, score_K, rank_K in zip(query_ids, scores, content["ranks"], strict=True):
    score_K, rank_K = np.asarray(score_K), np.asarray(rank_K)
    if not len(rank_K):
      yield str(query), (gallery_ids[:0], score_K)
      continue
    whole = np.issubdtype(rank_K.dtype, np.integer) and rank_K.shape == score_K.shape
    if not whole or rank_K.min() < 0 or rank_K.max() >= len(gallery_ids):
      raise ValueError(
        f"{path}: the ranks of {query!r} do not fit its {len(score_K)} scores and {len(gallery_ids)} ids"
      )
    if len(np.unique(rank_K)) < len(rank_K):
      raise ValueError(f"{path}: query {query!r} has an item twice; {FORMAT}")
    yield str(query), (gallery_ids[rank_K], score_K)

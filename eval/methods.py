"""The rows of the table: each method answers the same queries on the same gallery, and is timed the same way."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import qat_jax
from eval import baselines
from eval.benchmarks.relevance import Relevance
from eval.benchmarks.retrieval_set import RetrievalSet, Split
from eval.validate import Validator
from qat_jax.adaptation import normalise
from qat_jax.checkpoint import Adapter, load
from qat_jax.features import FeatureStore
from qat_jax.types import Adaptation, Ranking

TIMED_QUERIES, TIMED_K = 64, 100


class Task(NamedTuple):
  """One query type of a test split, and what was trained for it."""

  query_type: str
  queries: FeatureStore
  rows: np.ndarray  # the queries that count
  relevance: Relevance
  gallery: FeatureStore
  adapter: Adapter
  candidates: pathlib.Path

  @classmethod
  def of(cls, split: Split, query_type: str, adapter: Adapter, workdir: pathlib.Path, limit: int, seed: int) -> Task:
    """Returns the task of one query type: all queries that have something relevant, or `limit` of them."""
    queries, relevance = split.queries[query_type], split.relevance(query_type)
    rows = np.flatnonzero([len(p) > 0 for p in relevance.positives])
    if 0 < limit < len(rows):
      rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    candidates = workdir / "candidates" / query_type
    return cls(query_type, queries, rows, relevance.take(rows), split.gallery, adapter, candidates)


class Answer(NamedTuple):
  """A method's ranking of the gallery, and its costs."""

  ranking: Ranking
  ms_per_query: float
  offline_seconds: float | None = None
  parameters: int | None = None
  note: str = ""


def plain(task: Task, data: RetrievalSet, validator: Validator) -> Answer:
  """The frozen features: cosine."""
  return _whole_gallery(task, load(task.candidates / "plain"))


def static(task: Task, data: RetrievalSet, validator: Validator) -> Answer | None:
  """A linear map for all queries, with or without one for the gallery: the best on validation."""
  return _best_candidate(task, ("static", "static_mapped", "closed_form_both"))


def query_only(task: Task, data: RetrievalSet, validator: Validator) -> Answer | None:
  """A better query vector on an untouched gallery, T = I, of the adapter's size: the best on validation."""
  return _best_candidate(task, ("query_only", "closed_form"))


def neighbours(task: Task, data: RetrievalSet, validator: Validator) -> Answer | None:
  """The training-free neighbour residual, tuned on validation."""
  began = time.perf_counter()
  if task.query_type == "text":
    bank = baselines.text_bank(data.train_texts, data.train_images) if data.train_texts is not None else None
  else:
    bank = baselines.image_bank(data.train_images, data.train_images.column("instance"))
  if bank is None:
    return None
  temperature, scale = baselines.tune_neighbours(bank, validator)
  offline = time.perf_counter() - began
  gallery_ND = normalise(jnp.asarray(task.gallery[:]))

  def answer(query_QD: np.ndarray, k: int) -> Ranking:
    moved_QD = baselines.neighbour_residual(bank, query_QD, temperature, scale)
    return qat_jax.rank(qat_jax.plain(jnp.asarray(moved_QD)), gallery_ND, k)

  note = f"temperature {temperature}, scale {scale}; keeps {len(bank.query_ND):,} training pairs"
  return _timed(task, answer, offline, 0, note)


def adapted(task: Task, data: RetrievalSet, validator: Validator) -> Answer:
  """What the adapter serves, over the whole gallery."""
  chosen = task.adapter.info.get("chosen", {}).get(task.query_type, {}).get("name", "")
  return _whole_gallery(task, task.adapter)._replace(note=f"serves {chosen}" if chosen else "")


def adapted_shortlist(task: Task, data: RetrievalSet, validator: Validator, length: int) -> Answer:
  """What the adapter serves, on a shortlist: ScaNN on the folded query, then the exact adapted score."""
  began = time.perf_counter()
  gallery_ND = task.adapter.prepare(jnp.asarray(task.gallery[:]), task.query_type)
  index = qat_jax.ScannIndex.build(gallery_ND)
  offline = time.perf_counter() - began

  def answer(query_QD: np.ndarray, k: int) -> Ranking:
    adaptation = task.adapter(query_QD, task.query_type)
    shortlist = index.search(np.asarray(qat_jax.fold(adaptation)), min(length, len(gallery_ND)))
    return qat_jax.rerank(adaptation, gallery_ND, shortlist, k=min(k, shortlist.ids.shape[1]))

  return _timed(task, answer, offline, None, f"ScaNN's {min(length, len(gallery_ND)):,} on the folded query")


def _best_candidate(task: Task, names: tuple[str, ...]) -> Answer | None:
  found = [load(task.candidates / name) for name in names if (task.candidates / name / "adapter.json").exists()]
  if not found:
    return None
  best = max(found, key=lambda adapter: adapter.info["val_map"])
  return _whole_gallery(task, best)._replace(note=best.info["name"])


def _whole_gallery(task: Task, adapter: Adapter) -> Answer:
  gallery_ND = adapter.prepare(jnp.asarray(task.gallery[:]), task.query_type)

  def answer(query_QD: np.ndarray, k: int) -> Ranking:
    adaptation: Adaptation = adapter(query_QD, task.query_type)
    return qat_jax.rank(adaptation, gallery_ND, k)

  info = adapter.info
  return _timed(task, answer, info.get("offline_seconds"), info.get("parameters"), "")


def _timed(
  task: Task, answer: Callable[[np.ndarray, int], Ranking], offline: float | None, parameters: int | None, note: str
) -> Answer:
  query_QD = np.asarray(task.queries[task.rows], np.float32)
  ranking = answer(query_QD, len(task.gallery))
  few_QD, k = query_QD[:TIMED_QUERIES], min(TIMED_K, len(task.gallery))
  jax.block_until_ready(answer(few_QD, k))  # compiles
  times = []
  for _ in range(3):
    began = time.perf_counter()
    jax.block_until_ready(answer(few_QD, k))
    times.append(time.perf_counter() - began)
  return Answer(ranking, 1e3 * sorted(times)[1] / len(few_QD), offline, parameters, note)

"""The rows of the table: each method answers the same queries on the same gallery, and is timed the same way.

The rows made of adapters are here; the baselines are in eval/baselines, fitted on the run's training features.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

import qat_jax
from eval import galleries
from eval.baselines import FITS
from eval.baselines.types import Baseline, Gallery, Search, Train
from eval.problem import Problem
from eval.ranking import ranked
from eval.report.results import METHOD_NAMES
from qat_jax.adapter import Adapter, Head, load
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.models import forms as hypernetwork
from qat_jax.search.index import SMALL
from qat_jax.types import Ranking
from qat_jax.validation import Validator

TIMED_QUERIES, TIMED_K = 64, 100
LONG = 60.0  # seconds: a ranking that took longer is its own timing
GIB = 1 << 30
SCANN = 8 * GIB  # bytes of float32: a larger gallery is searched exactly, streamed
GRAPHS = ("diffusion", "diffusion_shortlist")
GRAPH_ITEMS = 200_000  # a graph of more takes hours: every pair of items is compared
STATIC = ("static", "static_mapped", "closed_form_both")
QUERY_ONLY = ("query_only", "closed_form")


class Bench(NamedTuple):
  """What the methods of one problem are made from."""

  problem: Problem
  adapter: Adapter
  candidates: pathlib.Path
  data: RetrievalSet | None  # None where the adapter came without its training features
  validation: Callable[[], Validator]
  shortlist: int
  scratch: pathlib.Path  # for galleries that are mapped into a file
  decided_by: dict  # of the config: what decides the results


class Method(NamedTuple):
  """A method that is fitted; `seconds` is how long training it took, None where that happened just now."""

  baseline: Baseline
  seconds: float | None


class Answer(NamedTuple):
  """A method's ranking of the gallery, and its costs."""

  ranking: Ranking
  ms_per_query: float
  offline_seconds: float
  parameters: int | None
  extra_bytes_per_item: float | None
  note: str


def chosen(names: Iterable[str]) -> tuple[str, ...]:
  """Returns the methods asked for, `all` in full; raises ValueError that lists the known ones."""
  names = tuple(METHODS) if tuple(names) == ("all",) else tuple(names)
  unknown = [name for name in names if name not in METHODS]
  if unknown or not names:
    raise ValueError(
      f"config.eval.methods has {', '.join(map(repr, unknown)) or 'nothing'}; use some of {', '.join(METHODS)}, "
      "or ('all',)"
    )
  if len(set(names)) < len(names):
    raise ValueError(f"config.eval.methods names a method twice: {', '.join(names)}")
  return names


def answer(name: str, bench: Bench) -> Answer | str:
  """Returns what a method does with the problem, or in words why it cannot be run."""
  items, size = len(bench.problem.gallery), galleries.size_of(bench.problem.gallery)
  if name in GRAPHS and items > GRAPH_ITEMS:
    return (
      f"its graph compares every pair of items, and the gallery has {items:,}; it is run on {GRAPH_ITEMS:,} at most"
    )
  if name in FITS and size > galleries.held_limit():
    return (
      f"it holds the gallery, {size / GIB:.1f} GiB as float32, and may hold {galleries.held_limit() / GIB:.1f} here"
    )
  began = time.perf_counter()
  method = METHODS[name](bench)
  if isinstance(method, str):
    return method
  seconds = time.perf_counter() - began if method.seconds is None else method.seconds
  began = time.perf_counter()
  search = method.baseline.index(bench.problem.gallery)
  return _answered(bench.problem, method.baseline, search, seconds + time.perf_counter() - began)


def _answered(problem: Problem, baseline: Baseline, search: Search, offline: float) -> Answer:
  query_QD = problem.query_QD
  began = time.perf_counter()
  ranking = search(query_QD, problem.depth)
  taken = time.perf_counter() - began
  milliseconds = 1e3 * taken / len(query_QD)
  if taken < LONG:
    few_QD, k = query_QD[:TIMED_QUERIES], min(TIMED_K, len(problem.gallery))
    search(few_QD, k)  # compiles
    times = []
    for _ in range(3):
      began = time.perf_counter()
      jax.block_until_ready(search(few_QD, k))
      times.append(time.perf_counter() - began)
    milliseconds = 1e3 * sorted(times)[1] / len(few_QD)
  ids_QK, score_QK = np.asarray(ranking.ids), np.asarray(ranking.scores)
  return Answer(
    problem.answered(Ranking(ids_QK, score_QK)),
    milliseconds,
    offline,
    baseline.parameters,
    baseline.extra_bytes_per_item,
    baseline.note,
  )


def plain(bench: Bench) -> Method:
  """The frozen features: cosine."""
  head = Head("plain", {}, {"params": {}, "constants": {}})
  return _whole_gallery(bench, Adapter(bench.adapter.width, {bench.problem.query_type: head}), "")


def static(bench: Bench) -> Method | str:
  """A linear map for all queries, with or without one for the gallery: the best on validation."""
  return _best_candidate(bench, STATIC)


def query_only(bench: Bench) -> Method | str:
  """A better query vector on an untouched gallery, T = I, of the adapter's size: the best on validation."""
  return _best_candidate(bench, QUERY_ONLY)


def adapted(bench: Bench) -> Method:
  """What the adapter serves, over the whole gallery."""
  name = bench.adapter.info.get("chosen", {}).get(bench.problem.query_type, {}).get("name", "")
  return _whole_gallery(bench, bench.adapter, f"serves {name}" if name else "", name)


def adapted_shortlist(bench: Bench) -> Method:
  """What the adapter serves, on a shortlist: the folded query's items, then the exact adapted score."""
  return _shortlisted(bench, rerank=True)


def fold_only(bench: Bench) -> Method:
  """The same shortlist in its own order: inner products with the folded query, without the length of T z."""
  return _shortlisted(bench, rerank=False)


def baseline(name: str, bench: Bench) -> Method | str:
  """A baseline of eval/baselines, fitted on the training features and tuned on validation."""
  data, query_type = bench.data, bench.problem.query_type
  if data is None:
    return "there are no training features to fit it on; give --config.data.root=FOLDER"
  texts = None if data.train_texts is None else data.train_texts[:]
  train = Train(query_type, texts, data.train_images[:], data.train_images.column("instance"))
  fitted = FITS[name](train, bench.validation())
  return "it cannot be fitted on this training set" if fitted is None else Method(fitted, None)


def _best_candidate(bench: Bench, names: tuple[str, ...]) -> Method | str:
  found = [load(bench.candidates / name) for name in names if (bench.candidates / name / "adapter.json").exists()]
  if not found:
    return f"none of {', '.join(names)} was trained in this run"
  best = max(found, key=lambda adapter: adapter.info["val_map"])
  return _whole_gallery(bench, best, best.info["name"], best.info["name"])


def _whole_gallery(bench: Bench, adapter: Adapter, note: str, candidate: str = "") -> Method:
  query_type = bench.problem.query_type

  def index(gallery: Gallery) -> Search:
    prepared = galleries.prepared(adapter, query_type, gallery, bench.scratch)

    def search(query_QD: np.ndarray, k: int) -> Ranking:
      return ranked(adapter(query_QD, query_type), prepared, k)

    return search

  return Method(Baseline(index, _parameters(bench, adapter), 0.0, note), _training_seconds(bench, candidate))


def _shortlisted(bench: Bench, rerank: bool) -> Method:
  adapter, query_type, gallery = bench.adapter, bench.problem.query_type, bench.problem.gallery
  length = min(bench.shortlist, len(gallery))
  exact = galleries.size_of(gallery) > SCANN or importlib.util.find_spec("scann") is None

  def index(gallery: Gallery) -> Search:
    prepared = galleries.prepared(adapter, query_type, gallery, bench.scratch)
    shortlister: Any = (qat_jax.ExactIndex if exact else qat_jax.ScannIndex).build(prepared)

    def search(query_QD: np.ndarray, k: int) -> Ranking:
      adaptation = adapter(query_QD, query_type)
      if not rerank:
        return shortlister.search(np.asarray(qat_jax.fold(adaptation)), min(k, length))
      shortlist = shortlister.search(np.asarray(qat_jax.fold(adaptation)), length)
      return qat_jax.rerank(adaptation, prepared, shortlist, k=min(k, length))

    return search

  note = f"{'exact inner product' if exact else 'ScaNN'}'s {length:,} on the folded query"
  extra = 0.0 if exact else scann_bytes(len(gallery), adapter.width)
  name = adapter.info.get("chosen", {}).get(query_type, {}).get("name", "")
  return Method(Baseline(index, _parameters(bench, adapter), extra, note), _training_seconds(bench, name))


def scann_bytes(items: int, width: int) -> float:
  """Returns what ScaNN keeps of an item beside the gallery: its own float32 copy, and from 20,000 items on the codes.

  Reckoned, not measured: four bits for two dimensions.
  """
  return 4.0 * width + (0 if items < SMALL else width / 4)


def _parameters(bench: Bench, adapter: Adapter) -> int:
  return hypernetwork.parameters(adapter.head(bench.problem.query_type).variables)


def _training_seconds(bench: Bench, candidate: str) -> float:
  """Returns how long the candidate was trained; 0 where that is not known."""
  folder = bench.candidates / candidate
  return load(folder).info["offline_seconds"] if candidate and (folder / "adapter.json").exists() else 0.0


_OURS: dict[str, Callable[[Bench], Method | str]] = {
  f.__name__: f for f in (plain, static, query_only, adapted, adapted_shortlist, fold_only)
}
METHODS: dict[str, Callable[[Bench], Method | str]] = {
  name: _OURS[name] if name in _OURS else functools.partial(baseline, name)
  for name in METHOD_NAMES
  if name in itertools.chain(_OURS, FITS)
}

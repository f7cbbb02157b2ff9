"""The rows of the table: a head and a gallery, or another way to search; every method answers the same queries.

Heads come from the run's adapter and candidates, or are fitted on its training features (qat_jax/fit); ways to search
lie in eval/baselines.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

import qat_jax
from eval import galleries
from eval.baselines import diffusion, expansion
from eval.problem import Problem
from eval.ranking import Method, Search
from eval.report.results import METHOD_NAMES
from qat_jax.adapter import Adapter, load
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit import discriminant, experts, levels, linear, memory, whitening
from qat_jax.fit.training import PLAIN, Training
from qat_jax.models import forms
from qat_jax.models.head import Head
from qat_jax.search.index import SMALL
from qat_jax.types import Ranking
from qat_jax.validation import Validator

GIB = 1 << 30
SCANN = 8 * GIB  # bytes of float32: a larger gallery is searched exactly, streamed
HELD = 0.25  # of the device's memory: what a method that cannot stream may hold as its gallery
GRAPH_ITEMS = 200_000  # a graph of more takes hours: every pair of items is compared
NO_FEATURES = "there are no training features to fit it on; give --config.data.root=FOLDER"
CANNOT = "it cannot be fitted on this training set"
STATIC = ("static", "static_mapped", "closed_form_both", "plda", "off_words")
QUERY_ONLY = ("query_only", "closed_form")
FORMS = tuple(name + end for name in ("adaptive", "gated", "paper") for end in ("", "_mapped"))
HEADS: dict[str, Callable[[Training, Validator], Head | None]] = {
  "neighbours": memory.neighbours,
  "csls": levels.csls,
  "inverted_softmax": levels.inverted_softmax,
  "nearest_neighbour_normalisation": levels.nearest_neighbour_normalisation,
  "whitening": whitening.fit,
  "lda": discriminant.both_sides,
  "lda_query": discriminant.query_alone,
  "plda": discriminant.probabilistic,
  "experts": experts.experts,
  "ilias_linear": linear.fit,
}
SEARCHES: dict[str, Callable[[Validator], Method | None]] = {
  "query_expansion": expansion.fit,
  "diffusion": diffusion.fit,
  "diffusion_shortlist": diffusion.fit_shortlist,
}


class Run(NamedTuple):
  """A trained run, which methods are made from."""

  adapter: Adapter
  candidates: pathlib.Path
  data: RetrievalSet | None  # None where the adapter came without its training features
  shortlist: int
  validation: int  # queries that baselines are tuned on: those that training validated on
  seed: int
  scratch: pathlib.Path  # for galleries that are mapped into a file
  made_from: dict[str, Any]  # the fingerprint of what methods are fitted and tuned on
  linear_layer: Head | None = None  # a published one

  def candidate(self, query_type: str, name: str) -> Adapter | None:
    """Returns a candidate of training; None where there is none of that name."""
    folder = self.candidates / query_type / name
    return load(folder) if name and (folder / "adapter.json").exists() else None

  def served(self, query_type: str) -> str:
    """Returns the name of the candidate that the adapter serves; "" where it does not say."""
    return self.adapter.info.get("chosen", {}).get(query_type, {}).get("name", "")

  def seconds(self, query_type: str) -> float:
    """Returns how long what the adapter serves was trained; 0 where that is not known."""
    candidate = self.candidate(query_type, self.served(query_type))
    return candidate.info["offline_seconds"] if candidate else 0.0


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


def method(name: str, run: Run, problem: Problem) -> Method | str:
  """Returns a method, fitted, with how long that took; or in words why it cannot be run on the problem."""
  items, size = len(problem.gallery), galleries.size_of(problem.gallery)
  if name.startswith("diffusion") and items > GRAPH_ITEMS:
    return (
      f"its graph compares every pair of items, and the gallery has {items:,}; it is run on {GRAPH_ITEMS:,} at most"
    )
  if name in SEARCHES and size > held_limit():
    return f"it holds the gallery, {size / GIB:.1f} GiB as float32, and may hold {held_limit() / GIB:.1f} here"
  began = time.perf_counter()
  made = METHODS[name](run, problem)
  if isinstance(made, str) or made.seconds is not None:
    return made
  return made._replace(seconds=time.perf_counter() - began)


def held_limit() -> float:
  """Returns the bytes of float32 that a method which cannot stream may hold: HELD of the device's memory."""
  device = jax.local_devices()[0].memory_stats() or {}
  return HELD * device.get("bytes_limit", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def plain(run: Run, problem: Problem) -> Method:
  """The frozen features: cosine."""
  return of_head(PLAIN, run, problem)._replace(seconds=0.0)


def static(run: Run, problem: Problem) -> Method | str:
  """A linear map for all queries, with or without one for the gallery: the best on validation."""
  return _best_candidate(run, problem, STATIC)


def query_only(run: Run, problem: Problem) -> Method | str:
  """A better query vector on an untouched gallery, T = I, of the adapter's size: the best on validation."""
  return _best_candidate(run, problem, QUERY_ONLY)


def trained_form(run: Run, problem: Problem) -> Method | str:
  """The hypernetwork that the run trained, without parts, whether it serves or not: the best on validation."""
  return _best_candidate(run, problem, FORMS)


def published_linear(run: Run, problem: Problem) -> Method | str:
  """The static layer of a file, on queries and items."""
  if run.linear_layer is None:
    return "no layer is given; name one with --config.benchmark.linear_layer=FILE.pth"
  return of_head(run.linear_layer, run, problem)._replace(seconds=0.0)


def adapted(run: Run, problem: Problem) -> Method:
  """What the adapter serves, over the whole gallery."""
  name = run.served(problem.query_type)
  made = of_head(run.adapter.head(problem.query_type), run, problem)
  return made._replace(note=f"serves {name}" if name else "", seconds=run.seconds(problem.query_type))


def adapted_shortlist(run: Run, problem: Problem) -> Method:
  """What the adapter serves, on a shortlist: the folded query's items, then the exact adapted score."""
  return _shortlisted(run, problem, rerank=True)


def fold_only(run: Run, problem: Problem) -> Method:
  """The same shortlist in its own order: inner products with the folded query, without the length of T z."""
  return _shortlisted(run, problem, rerank=False)


def head_alone(run: Run, problem: Problem) -> Method | str:
  """The head of what the adapter serves, without the parts beside it."""
  return _without_parts(run, problem, 0)


def head_with_memory(run: Run, problem: Problem) -> Method | str:
  """That head with the memory of the query."""
  return _without_parts(run, problem, "_remembering")


def head_with_captions(run: Run, problem: Problem) -> Method | str:
  """That head with the captions of the items, and the memory of the query where that is served."""
  return _without_parts(run, problem, "_captioned")


def of_head(head: Head, run: Run, problem: Problem) -> Method:
  """Returns the method that ranks the whole gallery, prepared as the head wants it."""
  query_type = problem.query_type
  adapter = Adapter(run.adapter.width, {query_type: head})

  def prepare(gallery: Any) -> Search:
    prepared = galleries.prepared(adapter, query_type, gallery, run.scratch)
    return lambda query_QD, k: qat_jax.rank(adapter(query_QD, query_type), prepared, k)

  wider = head.items_wide(run.adapter.width) - run.adapter.width
  return Method(prepare, head.note, forms.parameters(head.variables), 4.0 * max(wider, 0))


def fitted(fit: Callable[[Training, Validator], Head | None], run: Run, problem: Problem) -> Method | str:
  """Returns the method of a head of qat_jax/fit, fitted on the training features and tuned on validation."""
  if run.data is None:
    return NO_FEATURES
  head = fit(Training.of(run.data, problem.query_type), _validator(run, run.data, problem))
  return CANNOT if head is None else of_head(head, run, problem)


def tuned(fit: Callable[[Validator], Method | None], run: Run, problem: Problem) -> Method | str:
  """Returns a way to search of eval/baselines, tuned on validation."""
  return NO_FEATURES if run.data is None else fit(_validator(run, run.data, problem)) or CANNOT


def _validator(run: Run, data: RetrievalSet, problem: Problem) -> Validator:
  return Validator.of(data.split("val"), problem.query_type, run.validation, run.seed)


def _best_candidate(run: Run, problem: Problem, names: tuple[str, ...]) -> Method | str:
  there = [one for name in names if (one := run.candidate(problem.query_type, name)) is not None]
  if not there:
    return f"none of {', '.join(names)} was trained in this run"
  best = max(there, key=lambda adapter: adapter.info["val_map"])
  made = of_head(best.head(problem.query_type), run, problem)
  note = ", ".join(filter(None, (best.info["name"], best.info.get("note"))))
  return made._replace(note=note, seconds=best.info["offline_seconds"])


def _without_parts(run: Run, problem: Problem, step: int | str) -> Method | str:
  """Returns a step of the gate's ladder to what is served: by its place, or by how its name ends."""
  served, query_type = run.served(problem.query_type), problem.query_type
  names = [s["name"] for s in run.adapter.info.get("chosen", {}).get(query_type, {}).get("steps", [])]
  wanted = names[step : step + 1] if isinstance(step, int) else [name for name in names if name.endswith(step)]
  if not wanted or wanted[0] == served:
    return f"{served or 'what serves'} has no such step before it"
  candidate = run.candidate(query_type, wanted[0])
  if candidate is None:
    return f"the run has no candidate {wanted[0]}"
  made, info = of_head(candidate.head(query_type), run, problem), candidate.info
  return made._replace(note=info["note"] or info["name"], seconds=info["offline_seconds"])


def _shortlisted(run: Run, problem: Problem, rerank: bool) -> Method:
  adapter, query_type, gallery = run.adapter, problem.query_type, problem.gallery
  length = min(run.shortlist, len(gallery))
  exact = galleries.size_of(gallery) > SCANN or importlib.util.find_spec("scann") is None

  def prepare(gallery: Any) -> Search:
    prepared = galleries.prepared(adapter, query_type, gallery, run.scratch)
    shortlister: Any = (qat_jax.ExactIndex if exact else qat_jax.ScannIndex).build(prepared)

    def search(query_QD: np.ndarray, k: int) -> Ranking:
      adaptation = adapter(query_QD, query_type)
      if not rerank:
        return shortlister.search(np.asarray(qat_jax.fold(adaptation)), min(k, length))
      shortlist = shortlister.search(np.asarray(qat_jax.fold(adaptation)), length)
      return qat_jax.rerank(adaptation, prepared, shortlist, k=min(k, length))

    return search

  note = f"{'exact inner product' if exact else 'ScaNN'}'s {length:,} on the folded query"
  head = adapter.head(query_type)
  wide, parameters = head.items_wide(adapter.width), forms.parameters(head.variables)
  extra = 4.0 * max(wide - adapter.width, 0) + (0.0 if exact else scann_bytes(len(gallery), wide))
  return Method(prepare, note, parameters, extra, run.seconds(query_type))


def scann_bytes(items: int, width: int) -> float:
  """Returns what ScaNN keeps of an item beside the gallery: its own float32 copy, and from 20,000 items on the codes.

  Reckoned, not measured: four bits for two dimensions.
  """
  return 4.0 * width + (0 if items < SMALL else width / 4)


_MADE: dict[str, Callable[[Run, Problem], Method | str]] = {
  **{f.__name__: f for f in (plain, static, query_only, adapted, adapted_shortlist, fold_only)},
  **{f.__name__: f for f in (trained_form, published_linear)},
  **{f.__name__: f for f in (head_alone, head_with_memory, head_with_captions)},
  **{name: functools.partial(fitted, fit) for name, fit in HEADS.items()},
  **{name: functools.partial(tuned, fit) for name, fit in SEARCHES.items()},
}
METHODS = {name: _MADE[name] for name in METHOD_NAMES}  # in the order of the table

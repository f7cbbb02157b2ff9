"""The rows of the table: a head and a gallery, or another way to search; every method answers the same queries.

Heads come from the run's adapter and candidates, or are fitted on its training features (qat_jax/fit); ways to search
lie in eval/baselines.
"""

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
HELD = 0.25  # share of the device's memory for the gallery of a method that cannot stream
GRAPH_ITEMS = 200_000  # every pair of items is compared: a larger graph takes hours
NO_FEATURES = "there are no training features to fit it on; give --config.data.root=FOLDER"
CANNOT = "it cannot be fitted on this training set"
STATIC = ("static", "static_mapped", "closed_form_both", "plda", "off_words")
QUERY_ONLY = ("query_only", "closed_form")
FORMS = tuple(name + end for name in ("adaptive", "gated", "paper") for end in ("", "_mapped"))
Fit = Callable[[Training, Validator], Head | None]


class TrainedRun(NamedTuple):
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


def chosen_methods(names: Iterable[str]) -> tuple[str, ...]:
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


def method(name: str, run: TrainedRun, problem: Problem) -> Method | str:
  """Returns a method, fitted, with how long that took; or in words why it cannot be run on the problem."""
  began = time.perf_counter()
  made = METHODS[name].make(run, problem)
  if isinstance(made, str) or made.seconds is not None:
    return made
  return made._replace(seconds=time.perf_counter() - began)


def held_limit() -> float:
  """Returns the bytes of float32 that a method which cannot stream may hold: HELD of the device's memory."""
  device = jax.local_devices()[0].memory_stats() or {}
  return HELD * device.get("bytes_limit", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def plain_method(run: TrainedRun, problem: Problem) -> Method:
  """Returns the frozen features, ranked by cosine."""
  return of_head(PLAIN, run, problem)._replace(seconds=0.0)


def published_linear(run: TrainedRun, problem: Problem) -> Method | str:
  """Returns the static layer of a file, on queries and items."""
  if run.linear_layer is None:
    return "no layer is given; name one with --config.benchmark.linear_layer=FILE.pth"
  return of_head(run.linear_layer, run, problem)._replace(seconds=0.0)


def adapted(run: TrainedRun, problem: Problem) -> Method:
  """Returns what the adapter serves, over the whole gallery."""
  name = run.served(problem.query_type)
  made = of_head(run.adapter.head(problem.query_type), run, problem)
  return made._replace(note=f"serves {name}" if name else "", seconds=run.seconds(problem.query_type))


def of_head(head: Head, run: TrainedRun, problem: Problem) -> Method:
  """Returns the method that ranks the whole gallery, prepared as the head wants it."""
  query_type = problem.query_type
  adapter = Adapter(run.adapter.width, {query_type: head})

  def prepare(gallery: Any) -> Search:
    prepared = galleries.prepared(adapter, query_type, gallery, run.scratch)
    return lambda query_QD, k: qat_jax.rank(adapter(query_QD, query_type), prepared, k)

  wider = head.items_wide(run.adapter.width) - run.adapter.width
  return Method(prepare, head.note, forms.parameters(head.variables), 4.0 * max(wider, 0))


def fitted(fit: Fit, run: TrainedRun, problem: Problem) -> Method | str:
  """Returns the method of a head of qat_jax/fit, fitted on the training features and tuned on validation."""
  if run.data is None:
    return NO_FEATURES
  head = fit(Training.of(run.data, problem.query_type), _validator(run, run.data, problem))
  return CANNOT if head is None else of_head(head, run, problem)


def tuned_search(fit: Callable[[Validator], Method | None], run: TrainedRun, problem: Problem) -> Method | str:
  """Returns a way to search of eval/baselines, tuned on validation; or why the gallery is too large."""
  items, size = len(problem.gallery), galleries.float32_bytes(problem.gallery)
  if fit in (diffusion.fit, diffusion.fit_shortlist) and items > GRAPH_ITEMS:
    return (
      f"its graph compares every pair of items, and the gallery has {items:,}; it is run on {GRAPH_ITEMS:,} at most"
    )
  if size > held_limit():
    return f"it holds the gallery, {size / GIB:.1f} GiB as float32, and may hold {held_limit() / GIB:.1f} here"
  return NO_FEATURES if run.data is None else fit(_validator(run, run.data, problem)) or CANNOT


def _validator(run: TrainedRun, data: RetrievalSet, problem: Problem) -> Validator:
  return Validator.of(data.split("val"), problem.query_type, run.validation, run.seed)


def best_candidate(names: tuple[str, ...], run: TrainedRun, problem: Problem) -> Method | str:
  """Returns the candidate of training, of some names, that is the best on validation."""
  candidates = [one for name in names if (one := run.candidate(problem.query_type, name)) is not None]
  if not candidates:
    return f"none of {', '.join(names)} was trained in this run"
  best = max(candidates, key=lambda adapter: adapter.info["val_map"])
  made = of_head(best.head(problem.query_type), run, problem)
  note = ", ".join(filter(None, (best.info["name"], best.info.get("note"))))
  return made._replace(note=note, seconds=best.info["offline_seconds"])


def without_parts(ending: str, run: TrainedRun, problem: Problem) -> Method | str:
  """Returns a step of the gate's ladder to what is served: the one whose name ends so, or the first for ""."""
  served, query_type = run.served(problem.query_type), problem.query_type
  names = [s["name"] for s in run.adapter.info.get("chosen", {}).get(query_type, {}).get("steps", [])]
  steps = [name for name in names if name.endswith(ending)] if ending else names[:1]
  if not steps or steps[0] == served:
    return f"{served or 'what serves'} has no such step before it"
  candidate = run.candidate(query_type, steps[0])
  if candidate is None:
    return f"the run has no candidate {steps[0]}"
  made, info = of_head(candidate.head(query_type), run, problem), candidate.info
  return made._replace(note=info["note"] or info["name"], seconds=info["offline_seconds"])


def shortlisted(rerank: bool, run: TrainedRun, problem: Problem) -> Method:
  """Returns what the adapter serves, on a shortlist: the items of the folded query.

  With `rerank` they are ordered by the exact adapted score; else by inner product with the folded query, which leaves
  out the length of T z.
  """
  adapter, query_type, gallery = run.adapter, problem.query_type, problem.gallery
  length = min(run.shortlist, len(gallery))
  exact = galleries.float32_bytes(gallery) > SCANN or importlib.util.find_spec("scann") is None

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


class Entry(NamedTuple):
  """One row of every table: its title, its colour in every plot, and what makes it."""

  title: str
  colour: str
  make: Callable[[TrainedRun, Problem], Method | str]


def _table() -> dict[str, Entry]:
  """Returns all methods by name, in the order of the tables."""
  part = functools.partial
  fit = lambda fit: part(fitted, fit)
  search = lambda fit: part(tuned_search, fit)
  normalised = levels.nearest_neighbour_normalisation
  return {
    "plain": Entry("plain score", "#8b949e", plain_method),
    "static": Entry("static map", "#c08a2d", part(best_candidate, STATIC)),
    "whitening": Entry("whitening", "#8fa33a", fit(whitening.fit_whitening)),
    "lda": Entry("LDA, both sides", "#4f7a28", fit(discriminant.both_sides)),
    "lda_query": Entry("LDA, query only", "#2f9e6e", fit(discriminant.query_alone)),
    "plda": Entry("PLDA", "#1d7a6b", fit(discriminant.probabilistic)),
    "experts": Entry("experts", "#0b8f5a", fit(experts.fit_experts)),
    "ilias_linear": Entry("linear, as ILIAS", "#7a5230", fit(linear.fit_linear)),
    "published_linear": Entry("linear, as published", "#9c6b3e", published_linear),
    "query_expansion": Entry("query expansion", "#d0785a", search(expansion.fit)),
    "diffusion": Entry("diffusion", "#b3446c", search(diffusion.fit)),
    "diffusion_shortlist": Entry("diffusion, shortlist", "#cf6f92", search(diffusion.fit_shortlist)),
    "csls": Entry("CSLS", "#6c5b9e", fit(levels.csls)),
    "inverted_softmax": Entry("inverted softmax", "#a05195", fit(levels.inverted_softmax)),
    "nearest_neighbour_normalisation": Entry("nearest-neighbour normalisation", "#b58bd0", fit(normalised)),
    "neighbours": Entry("neighbour residual", "#8e6bbf", fit(memory.neighbours)),
    "query_only": Entry("query only", "#4aa3df", part(best_candidate, QUERY_ONLY)),
    "trained_form": Entry("trained form, alone", "#2766a0", part(best_candidate, FORMS)),
    "head_alone": Entry("head alone", "#5c7fa3", part(without_parts, "")),
    "head_with_memory": Entry("head, memory of the query", "#2c7fb8", part(without_parts, "_remembering")),
    "head_with_captions": Entry("head, memory, captions of the items", "#1f6fa8", part(without_parts, "_captioned")),
    "fold_only": Entry("fold only, shortlist", "#3d4f7c", part(shortlisted, False)),
    "adapted": Entry("adapted, whole gallery", "#0f5fbf", adapted),
    "adapted_shortlist": Entry("adapted, shortlist", "#149a94", part(shortlisted, True)),
  }


METHODS = _table()

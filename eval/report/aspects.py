"""One toy, three aspects, three rankings: the demo's image queries told in words what counts. Nothing is trained."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

import qat_jax
from eval import measure
from eval.benchmarks.task import relevance_of
from eval.methods import Method, TrainedRun
from eval.problem import of_split
from eval.report.results import Result
from eval.report.sheets import Sheet
from eval.told import column, seen, toy_aspects
from qat_jax import words
from qat_jax.datasets.toybox.render import drawn
from qat_jax.encoders import load_encoder
from qat_jax.metrics import average_precision
from qat_jax.types import Adaptation

ASPECTS = {"colour": "alike in colour", "kind": "alike in shape", "tint": "alike in the ground's tint"}
TOLD = "told in words"
QUERIES, SHOWN = 200, 8  # that are asked, for a few seconds; items of a ranking


def alike(run: TrainedRun) -> tuple[list[Result], list[Sheet]]:
  """Returns the results of plain features and of queries told in words, and a sheet of one toy, for each aspect.

  What shares the query's value is right. The toy is the one in the middle by what words gain over all three.
  """
  assert run.data is not None, "the demo has a retrieval set"
  (problem,) = (one for one in of_split(run.data.split("test"), QUERIES, run.seed) if one.query_type == "image")
  assert problem.queries is not None, "a split has its queries"
  (task,) = problem.tasks.values()
  encoder, phrases = load_encoder("toy_clip"), toy_aspects()
  book = {name: words.encode(phrases[name], encoder, name) for name in ASPECTS}
  query_ids = problem.queries.ids[problem.rows]
  queries, items = seen(query_ids), seen(problem.gallery.ids)
  sample_ND = np.asarray(problem.gallery[:], np.float32) if len(items) >= words.LEAST else None
  pairs, right = [], []
  for name, title in ASPECTS.items():
    right_QN = column(queries, name)[:, None] == column(items, name)[None]
    relevance = relevance_of([np.flatnonzero(row_N) for row_N in right_QN])
    precision = lambda ranking, relevance=relevance: average_precision(ranking.ids, relevance)
    asked = problem._replace(tasks={title: dataclasses.replace(task, relevance=relevance, precision=precision)})
    by_words = functools.partial(qat_jax.by_words, alike=name, aspects=book, gallery=sample_ND)
    ways = (("plain", _method(qat_jax.plain)), (TOLD, _method(by_words)))
    pairs.append([measure.results_of(way, method, asked)[0] for way, method in ways])
    right.append(right_QN)
  gain_Q = np.sum([told.ap_Q - before.ap_Q for before, told in pairs], axis=0)
  toy = int(np.argsort(gain_Q, kind="stable")[len(gain_Q) // 2])
  sheets = []
  for (before, told), right_QN in zip(pairs, right, strict=True):
    plain_row, told_row = (
      [(drawn(problem.gallery.ids[n]), bool(right_QN[toy, n])) for n in one.ids_QK[toy, :SHOWN].tolist()]
      for one in (before, told)
      if one.ids_QK is not None
    )
    reached = " → ".join(f"{100 * one.ap_Q[toy]:.0f}" for one in (before, told))
    title = f"{told.task}; average precision {reached}"
    sheet = Sheet(drawn(query_ids[toy]), plain_row, told_row, title, "image", after_name=TOLD, task=told.task)
    sheets.append(dataclasses.replace(sheet, typical=True))
  return [result for pair in pairs for result in pair], sheets


def _method(adapt: Callable[..., Adaptation]) -> Method:
  return Method(lambda gallery: lambda query_QD, k: qat_jax.rank(adapt(query_QD), gallery, k))

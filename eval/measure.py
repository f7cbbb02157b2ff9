"""One method on one problem: what is kept of it, or else its ranking made and measured, and kept."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np

from eval import cache as kept
from eval import methods
from eval.problem import Problem, files_below
from eval.report.results import MethodResult, method_name, own_figures
from qat_jax.metrics import recall_at


def kept_or_measured(name: str, bench: methods.Bench, folder: pathlib.Path) -> kept.Found | str:
  """Returns what the method found, from `folder` if it is there; or in words why it cannot be run."""
  path, key = folder / f"{name}.npz", key_of(name, bench)
  found = kept.read(path, key)
  if found is not None:
    return found
  try:
    answer = methods.answer(name, bench)
  finally:
    shutil.rmtree(bench.scratch, ignore_errors=True)
  if isinstance(answer, str):
    return answer
  found = measured(name, bench.problem, answer)
  kept.write(path, key, found)
  return found


def key_of(name: str, bench: methods.Bench) -> str:
  """Returns a digest of all that decides what the method finds: code, config, adapter, candidates, and data."""
  candidates = {p.parent.name: p.read_text() for p in sorted(bench.candidates.glob("*/adapter.json"))}
  trained_on = files_below(bench.data.root) if bench.data is not None else ()
  files = kept.of_files((*bench.problem.files, *trained_on))
  return kept.key_of(name, kept.of_code(), bench.decided_by, kept.of_adapter(bench.adapter), candidates, files)


def measured(name: str, problem: Problem, answer: methods.Answer) -> kept.Found:
  """Returns what the metrics make of a ranking, for each task of the problem."""
  ids_QK = answer.ranking.ids
  results = [
    MethodResult(
      problem.query_type,
      name,
      task.precision(answer.ranking),
      recall_at(ids_QK, task.relevance, 1),
      ms_per_query=answer.ms_per_query,
      offline_seconds=answer.offline_seconds,
      extra_bytes_per_item=answer.extra_bytes_per_item,
      parameters=answer.parameters,
      note=answer.note,
      task=label,
      figures=own_figures(problem.benchmark, task.score(answer.ranking)),
    )
    for label, task in problem.tasks.items()
  ]
  return kept.Found(results, np.asarray(ids_QK[:, : kept.SHOWN], np.int32))


def account(problem: Problem, name: str, outcome: kept.Found | str) -> str:
  """Returns a line that says what a method reached, or why it was not run."""
  start = f"{problem.name}: {method_name(name)}"
  if isinstance(outcome, str):
    return f"{start}: not run, {outcome}"
  figures = ", ".join(f"{r.task} {100 * np.nanmean(r.ap_Q):.2f}".strip() for r in outcome.results)
  return f"{start}: mAP x 100 {figures}; {outcome.results[0].ms_per_query:.3g} ms a query"

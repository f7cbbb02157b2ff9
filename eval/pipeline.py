"""The stages of an evaluation, in order: adapter and retrieval set → rankings → metrics → report."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
from ml_collections import ConfigDict

from eval import curves, methods, pictures, provenance
from eval.benchmarks.retrieval_set import RetrievalSet
from eval.metrics import average_precision, recall_at
from eval.report import write_report
from eval.results import MethodResult, Row, summarise
from eval.sheets import Sheet
from eval.validate import Validator
from qat_jax.checkpoint import load
from qat_jax.datasets.retrieval import sources


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """Measures every method of `config.eval.methods` on the test split, writes `workdir/eval`, returns the rows."""
  adapter = load(workdir)
  data = RetrievalSet.open(config.data.root or workdir / "features")
  results, sheets = [], []
  for query_type in adapter.heads:
    task = methods.Task.of(data.split("test"), query_type, adapter, workdir, config.eval.queries, config.seed)
    validation = data.split("val")
    validator = Validator(
      validation.queries[query_type][:],
      validation.gallery[:],
      validation.relevance(query_type),
      config.validation.queries,
      config.seed,
    )
    answers = {}
    for name in config.eval.methods:
      method = getattr(methods, name)
      if name == "adapted_shortlist":
        method = functools.partial(method, length=config.eval.shortlist)
      answer = method(task, data, validator)
      if answer is not None:
        answers[name] = answer
        results.append(result(task, name, answer))
    sheets += contact_sheets(config, workdir, task, answers)
  rows = summarise(results, config.seed)
  curves.gather(workdir, workdir / "eval" / "curves.jsonl")
  write_report(workdir / "eval", rows, provenance.of(config), sheets=sheets, curves=workdir / "eval" / "curves.jsonl")
  return rows


def contact_sheets(config: ConfigDict, workdir: pathlib.Path, task: methods.Task, answers: dict) -> list[Sheet]:
  """Returns sheets from the plain to the adapted ranking; none where the run has features and no images."""
  if config.data.root or not {"plain", "adapted"} <= answers.keys():
    return []
  data = config.data
  found = sources(data.source, data.name, data.folder or workdir / "data", data.limit)
  own, _ = found[f"test/{task.query_type}_queries"]
  return pictures.sheets(
    task.query_type,
    task.queries,
    task.rows,
    task.relevance,
    answers["plain"].ranking,
    answers["adapted"].ranking,
    pictures.Pictures(task.gallery, found["test/gallery"][0]),
    pictures.Pictures(task.queries, own),
  )


def result(task: methods.Task, name: str, answer: methods.Answer) -> MethodResult:
  """Returns what the metrics make of a method's ranking."""
  return MethodResult(
    task.query_type,
    name,
    average_precision(answer.ranking.ids, task.relevance),
    recall_at(np.asarray(answer.ranking.ids), task.relevance, 1),
    ms_per_query=answer.ms_per_query,
    offline_seconds=answer.offline_seconds,
    parameters=answer.parameters,
    note=answer.note,
  )

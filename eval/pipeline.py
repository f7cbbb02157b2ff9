"""The stages of an evaluation, in order: adapter and data → problems → rankings → metrics → report.

What a method found is kept in the working folder, and is not computed again while nothing that decides it has changed.
"""

from __future__ import annotations

import functools
import pathlib

from ml_collections import ConfigDict
from tqdm import tqdm

from eval import cache as kept
from eval import measure, methods, provenance
from eval.benchmarks import official
from eval.problem import Problem, of_split
from eval.report import curves, pictures
from eval.report.results import Row, Skipped, summarise
from eval.report.sheets import Sheet
from eval.report.write import write_report
from qat_jax.adapter import Adapter, load
from qat_jax.datasets.splits import sources
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.validation import Validator


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """Measures every method of `config.eval.methods` on the test split, or on the benchmark of `config.benchmark`.

  Writes `workdir/eval` and returns the rows.
  """
  names = methods.chosen(config.eval.methods)
  settings = official.Settings(**config.benchmark)
  if settings.name:
    official.check(settings)
  adapter = load(workdir)
  data = training_data(config, workdir)
  folder = workdir / "eval"
  results, skipped, sheets = [], [], []
  for problem in problems(config, settings, adapter, data):
    validation = functools.cache(functools.partial(validator, config, data, problem.query_type))
    candidates = workdir / "candidates" / problem.query_type
    bench = methods.Bench(
      problem, adapter, candidates, data, validation, config.eval.shortlist, folder / "scratch", decided_by(config)
    )
    found = {}
    for name in tqdm(names, desc=problem.name, unit="method", disable=None, leave=False):
      outcome = measure.kept_or_measured(name, bench, folder / "methods" / problem.name)
      if isinstance(outcome, str):
        skipped += [Skipped(problem.query_type, task, name, outcome) for task in problem.tasks]
      else:
        found[name] = outcome
        results += outcome.results
      tqdm.write(measure.account(problem, name, outcome))
    sheets += contact_sheets(config, workdir, problem, found)
  rows = summarise(results, config.seed)
  curves.gather(workdir, folder / "curves.jsonl")
  about = f"Benchmark: {settings.name}." if settings.name else ""
  write_report(
    folder, rows, provenance.of(config), about=about, sheets=sheets, curves=folder / "curves.jsonl", skipped=skipped
  )
  return rows


def training_data(config: ConfigDict, workdir: pathlib.Path) -> RetrievalSet | None:
  """Returns the retrieval set of the run; None where a benchmark is asked for and the adapter came without one."""
  root = pathlib.Path(config.data.root or workdir / "features")
  if config.benchmark.name and not config.data.root and not root.is_dir():
    return None
  return RetrievalSet.open(root)


def problems(
  config: ConfigDict, settings: official.Settings, adapter: Adapter, data: RetrievalSet | None
) -> list[Problem]:
  """Returns what is to be ranked, for the query types that the adapter serves."""
  if data is not None and not settings.name:
    return of_split(data, list(adapter.heads), config.eval.queries, config.seed)
  found = official.open_problems(settings)
  served = [problem for problem in found if problem.query_type in adapter.heads]
  if not served:
    raise ValueError(
      f"{settings.name} asks {', '.join(sorted({p.query_type for p in found}))} queries, the adapter serves "
      f"{', '.join(adapter.heads)} queries alone; train it on a set that has them"
    )
  for problem in served:
    if problem.query_QD.shape[1] != adapter.width:
      raise ValueError(
        f"{settings.features} is {problem.query_QD.shape[1]} wide, the adapter {adapter.width}: "
        "encode the benchmark with the adapter's encoder"
      )
  return served


def validator(config: ConfigDict, data: RetrievalSet, query_type: str) -> Validator:
  """Returns the validation split that baselines are tuned on, the queries that training validated on."""
  split = data.split("val")
  queries, gallery = split.queries[query_type][:], split.gallery[:]
  return Validator(queries, gallery, split.relevance(query_type), config.validation.queries, config.seed)


def decided_by(config: ConfigDict) -> dict:
  """Returns the part of the config that decides what a method finds, beside the adapter and the data."""
  asked = {name: config.eval[name] for name in ("queries", "shortlist")}
  return {"seed": config.seed, "validation": config.validation.queries, **asked, "benchmark": dict(config.benchmark)}


def contact_sheets(
  config: ConfigDict, workdir: pathlib.Path, problem: Problem, found: dict[str, kept.Found]
) -> list[Sheet]:
  """Returns sheets from the plain to the adapted ranking; none where the run has features and no images."""
  if problem.rows is None or config.data.root or not {"plain", "adapted"} <= found.keys():
    return []
  data = config.data
  pictured = sources(data.source, data.name, data.folder or workdir / "data", data.limit)
  own, _ = pictured[f"test/{problem.query_type}_queries"]
  return pictures.sheets(
    problem.query_type,
    problem.queries,
    problem.rows,
    problem.tasks[""].relevance,
    found["plain"],
    found["adapted"],
    pictures.Pictures(problem.gallery, pictured["test/gallery"][0]),
    pictures.Pictures(problem.queries, own),
  )

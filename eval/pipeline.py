"""The stages of an evaluation, in order: adapter and data → problems → rankings → results → report.

A method's results are cached in the working folder, and not computed again while nothing that decides them has changed.
"""

import datetime
import pathlib

from ml_collections import ConfigDict
from tqdm import tqdm

from eval import check, measure, methods
from eval.benchmarks import official
from eval.benchmarks.uned import read_linear_layer
from eval.problem import Problem, of_split
from eval.report import aspects, intents
from eval.report.page import gather_curves, write_report
from eval.report.results import Result, Row, Skipped, summarise
from eval.report.sheets import Sheet, build_sheets, draw_sheets, pictures_of
from qat_jax.adapter import load
from qat_jax.datasets.splits import sources
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import FeatureStore
from qat_jax.runs import provenance
from qat_jax.stages import differences, digest_of_files
from qat_jax.types import check_encoders

MADE_VIEWS = (
  "Trained and chosen without labels: a picture's instance are views made of it (data.views). Test queries whose id "
  "has #view are such views too, and tell how well the recipe's own pictures are found; others are real."
)


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> list[Row]:
  """Measures every method of `config.eval.methods` on the test split, or on the benchmark of `config.benchmark`.

  Writes `workdir/eval` and returns the rows. With `config.eval.intents` two intents over the demo's gallery stand
  beside them, and queries told in words; their pictures are `eval/intents.png` and `eval/aspects.png`.
  """
  check.check_config(config)
  run, folder = open_run(config, workdir), workdir / "eval"
  results, skipped, sheets = [], [], []
  for problem in problems(config, run):
    measured: dict[str, list[Result]] = {}
    for name in tqdm(
      methods.chosen_methods(config.eval.methods), desc=problem.name, unit="method", disable=None, leave=False
    ):
      outcome = measure.cached_or_measured(name, run, problem, decided_by(config), folder / "methods" / problem.name)
      if isinstance(outcome, str):
        skipped += [Skipped(problem.query_type, task, name, outcome) for task in problem.tasks]
      else:
        measured[name] = outcome
      tqdm.write(measure.outcome_text(name, problem, outcome))
    results += [result for one in measured.values() for result in one]
    sheets += contact_sheets(config, workdir, problem, measured)
  if config.eval.intents and run.data is not None and "image" in run.adapter.heads:
    asked, shown = intents.asked_twice(run, workdir / "intents", config.data.name or "default")
    results, sheets = results + asked, sheets + shown
    if shown:
      draw_sheets(shown).save(folder / "intents.png")
    asked, shown = aspects.alike(run)
    results, sheets = results + asked, sheets + shown
    draw_sheets(shown).save(folder / "aspects.png")
  rows = summarise(results, config.seed)
  curves = gather_curves(workdir / "candidates", folder / "curves.jsonl")
  about = "\n".join([*shared_with_training(run), what_was_searched(config, run), *what_serves(run)])
  record = provenance(config.to_dict(), config.seed) | {"adapter": run.adapter.fingerprint}
  write_report(folder, rows, record, about=about, sheets=sheets, curves=curves, skipped=skipped)
  return rows


def what_was_searched(config: ConfigDict, run: methods.TrainedRun) -> str:
  """Returns the sentence that heads the report: data set, gallery, encoder, date."""
  if config.benchmark.name:
    name = f"Benchmark: {config.benchmark.name}"
  else:
    assert run.data is not None, "a retrieval set was asked for"
    folder_name = pathlib.Path(config.data.root).name or config.data.name or pathlib.Path(config.data.folder).name
    name = f"Test split of {folder_name or config.data.source}, {len(run.data.split('test').gallery):,} images"
  encoder = f"features of {'@'.join(filter(None, run.adapter.encoder))}, " if run.adapter.encoder else ""
  views = f" {MADE_VIEWS}" if config.data.views and not config.benchmark.name else ""
  return f"{name}; {encoder}{datetime.date.today().isoformat()}.{views}"


def shared_with_training(run: methods.TrainedRun) -> list[str]:
  """Returns a warning where training was allowed to share images with validation or test."""
  counts = [
    f"{count:,} {what} of {split}"
    for split, own in run.adapter.info.get("shared", {}).items()
    for what, count in own.items()
  ]
  return [f"Training had seen {', '.join(counts)}: figures say nothing about images it has not seen."] if counts else []


def what_serves(run: methods.TrainedRun) -> list[str]:
  """Returns, for each query type, what the gate chose, by which rule, and what each part added on validation."""
  chosen = run.adapter.info.get("chosen", {})
  return [one["account"] for name, one in chosen.items() if name in run.adapter.heads and "account" in one]


def open_run(config: ConfigDict, workdir: pathlib.Path) -> methods.TrainedRun:
  """Returns the trained run; without its retrieval set where a benchmark is asked for and there is none."""
  adapter = load(workdir)
  root = pathlib.Path(config.data.root or workdir / "features")
  absent = config.benchmark.name and not config.data.root and not root.is_dir()
  data = None if absent else RetrievalSet.open(root)
  if data is not None and data.width != adapter.width:
    raise ValueError(
      f"{root} is {data.width} wide, the adapter {adapter.width}: give the set that it was trained on, or another of "
      "the same encoder"
    )
  if data is not None:
    check_encoders(str(root), data.encoder, f"the adapter in {workdir}", adapter.encoder)
  scratch = workdir / "eval" / "scratch"
  parts = {} if data is None else data.fingerprint
  trained_on = adapter.info.get("made_from", {}).get("train", parts.get("train", {}))
  if others := differences(trained_on, parts.get("train", trained_on)):
    print(f"{workdir} was trained on other features than those of {root}: {'; '.join(others)}")
  made_from = {name: part for name, part in parts.items() if name != "test"}
  path = config.benchmark.linear_layer
  layer = read_linear_layer(path, adapter.width) if path else None
  if path:
    made_from["linear_layer"] = digest_of_files([path])
  return methods.TrainedRun(
    adapter,
    workdir / "candidates",
    data,
    config.eval.shortlist,
    config.validation.queries,
    config.seed,
    scratch,
    made_from,
    layer,
  )


def problems(config: ConfigDict, run: methods.TrainedRun) -> list[Problem]:
  """Returns what is to be ranked, for the query types that the adapter serves."""
  heads, settings = run.adapter.heads, official.BenchmarkFiles(**config.benchmark)
  if run.data is not None and not settings.name:
    every = of_split(run.data.split("test"), config.eval.queries, config.seed)
    where = str(run.data.root)
  else:
    every, where = official.open_problems(settings), settings.name
  served = [problem for problem in every if problem.query_type in heads]
  if not served:
    types = ", ".join(sorted({problem.query_type for problem in every}))
    raise ValueError(
      f"{where} asks {types} queries, the adapter serves {', '.join(heads)} queries alone; train it on a set that has "
      "them"
    )
  for problem in served:
    if problem.query_QD.shape[1] != run.adapter.width:
      raise ValueError(
        f"{settings.features} is {problem.query_QD.shape[1]} wide, the adapter {run.adapter.width}: "
        "encode the benchmark with the adapter's encoder"
      )
    for store in (problem.queries, problem.gallery):
      if isinstance(store, FeatureStore):
        check_encoders(str(store.folder), store.encoder, "the adapter", run.adapter.encoder)
  return served


def decided_by(config: ConfigDict) -> dict:
  """Returns the part of the config that decides a method's results, beside the adapter and the data."""
  settings = {name: config.eval[name] for name in ("queries", "shortlist")}
  return {"seed": config.seed, "validation": config.validation.queries, **settings, "benchmark": dict(config.benchmark)}


def contact_sheets(
  config: ConfigDict, workdir: pathlib.Path, problem: Problem, measured: dict[str, list[Result]]
) -> list[Sheet]:
  """Returns sheets from the plain to the adapted ranking; none where the run has features and no images."""
  if problem.queries is None or problem.rows is None or config.data.root or not {"plain", "adapted"} <= measured.keys():
    return []
  data = config.data
  pictured = sources(data.source, data.name, data.folder or workdir / "data", data.limit, data.views)
  captions = problem.queries.column("caption") if problem.query_type == "text" else None
  query_picture = pictures_of(problem.queries, pictured[f"test/{problem.query_type}_queries"][0])
  item_picture = pictures_of(problem.gallery, pictured["test/gallery"][0])
  rows = problem.rows.tolist()
  query_of = lambda query: query_picture(rows[query]) if captions is None else str(captions[rows[query]])
  before, after = (measured[name][0] for name in ("plain", "adapted"))
  return build_sheets(before, after, problem.tasks[""].relevance, query_of, item_picture)

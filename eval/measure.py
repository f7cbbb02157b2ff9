"""One method on one problem: its results from the cache, or else its ranking made, timed and measured.

Results lie in a file of their own for each method, so that an evaluation that was killed goes on where it stopped. A
file counts only while everything that decides it is as it was; else a line says what differs, and it is made anew.
"""

import ast
import functools
import hashlib
import io
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np

from eval import methods
from eval.problem import Problem
from eval.ranking import Method
from eval.report.results import Result, own_figures
from eval.report.tables import method_name
from qat_jax.metrics import recall_at
from qat_jax.sealed import UNREADABLE
from qat_jax.stages import digest_of_files, fingerprint, made, write_whole
from qat_jax.types import Ranking

FORMAT = 3  # version of the files, and of the rule that times a method
ROOT = pathlib.Path(__file__).parents[1]
# The code that decides results: these folders, and these files of eval/.
CODE = ("eval/baselines", "eval/benchmarks", "qat_jax")
CODE_FILES = ("galleries", "measure", "methods", "problem", "ranking")
BY_QUERY = ("ap", "recall1", "hit10")  # fields of a Result with one number a query
SHOWN = 100  # items of each ranking that are kept: enough for a contact sheet
TIMED_QUERIES, TIMED_K = 64, 100
LONG = 60.0  # seconds: a longer ranking is not timed again


def cached_or_measured(
  name: str, run: methods.TrainedRun, problem: Problem, settings: dict, folder: pathlib.Path
) -> list[Result] | str:
  """Returns a method's results, one for each task, from `folder` if they are there; or in words why it cannot be run.

  `settings` are those of the config that decide the results.
  """
  path, inputs = folder / f"{name}.npz", made_from(run, problem, settings)
  results, inputs_then = read_results(path)
  if made(f"{problem.name}: {method_name(name)}", inputs_then, inputs):
    return results
  try:
    method = methods.method(name, run, problem)
    outcome = method if isinstance(method, str) else results_of(name, method, problem)
  finally:
    shutil.rmtree(run.scratch, ignore_errors=True)
  if not isinstance(outcome, str):
    write_results(path, inputs, outcome)
  return outcome


def results_of(name: str, method: Method, problem: Problem) -> list[Result]:
  """Returns what the metrics make of a method's ranking, for each task of the problem, and what it cost."""
  began = time.perf_counter()
  search = method.prepare(problem.gallery)
  offline = (method.seconds or 0.0) + time.perf_counter() - began
  began = time.perf_counter()
  whole = search(problem.query_QD, problem.depth)
  seconds = time.perf_counter() - began
  milliseconds = 1e3 * seconds / len(problem.query_QD)
  if seconds < LONG:
    few_QD, k = problem.query_QD[:TIMED_QUERIES], min(TIMED_K, len(problem.gallery))
    search(few_QD, k)  # compiles
    times = []
    for _ in range(3):
      began = time.perf_counter()
      jax.block_until_ready(search(few_QD, k))
      times.append(time.perf_counter() - began)
    milliseconds = 1e3 * sorted(times)[1] / len(few_QD)
  ranking = problem.answered(Ranking(np.asarray(whole.ids), np.asarray(whole.scores)))
  return [
    Result(
      problem.query_type,
      name,
      task.precision(ranking),
      recall_at(ranking.ids, task.relevance, 1),
      ms_per_query=milliseconds,
      offline_seconds=offline,
      extra_bytes_per_item=method.bytes_per_item,
      parameters=method.parameters,
      note=method.note,
      task=label,
      figures=own_figures(problem.benchmark, task.score(ranking)),
      ids_QK=np.asarray(ranking.ids[:, :SHOWN], np.int32),
      hit10_Q=recall_at(ranking.ids, task.relevance, 10),
    )
    for label, task in problem.tasks.items()
  ]


def outcome_text(name: str, problem: Problem, outcome: list[Result] | str) -> str:
  """Returns a line that says what a method reached, or why it was not run."""
  start = f"{problem.name}: {method_name(name)}"
  if isinstance(outcome, str):
    return f"{start}: not run, {outcome}"
  figures = ", ".join(f"{r.task} {100 * np.nanmean(r.ap_Q):.2f}".strip() for r in outcome)
  return f"{start}: mAP x 100 {figures}; {outcome[0].ms_per_query:.3g} ms a query"


def made_from(run: methods.TrainedRun, problem: Problem, settings: dict[str, Any]) -> dict[str, Any]:
  """Returns the fingerprint of all that decides a method's results: code, config, adapter, candidates, and data."""
  folder = run.candidates / problem.query_type
  return fingerprint(
    format=FORMAT,
    code=of_code(),
    config=settings,
    adapter=run.adapter.fingerprint,
    candidates={path.parent.name: digest_of_files([path]) for path in sorted(folder.glob("*/adapter.json"))},
    tuned_on=run.made_from,
    problem=problem.made_from,
  )


@functools.cache
def of_code() -> str:
  """Returns a digest of the code that decides results; that of tables and plots is not in it.

  It is taken of the syntax trees, without docstrings: comments and layout do not count, and every other edit does.
  """
  paths = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
  paths += [ROOT / "eval" / f"{name}.py" for name in CODE_FILES]
  digest = hashlib.sha256()
  for path in paths:
    digest.update(f"{path.relative_to(ROOT)}\n{computed_by(path.read_text())}\n".encode())
  return digest.hexdigest()


def computed_by(source: str) -> str:
  """Returns the syntax tree of a module as text, without docstrings and places in the file."""
  tree = ast.parse(source)
  for node in ast.walk(tree):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
      del node.body[0]
  return ast.dump(tree)


def read_results(path: pathlib.Path) -> tuple[list[Result], dict[str, Any] | None]:
  """Returns the results in a file, and what they were made from; None where there are none, or the file is damaged."""
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      about = json.loads(str(file["about"]))
      results = [
        Result(ids_QK=file["ids"], **{f"{name}_Q": file[f"{name}_{i}"] for name in BY_QUERY}, **scalars)
        for i, scalars in enumerate(about["results"])
      ]
      return results, about["made_from"]
  except (FileNotFoundError, *UNREADABLE):
    return [], None


def write_results(path: pathlib.Path, made_from: dict[str, Any], results: list[Result]) -> None:
  """Writes results and what they were made from, whole or not at all."""
  arrays: dict[str, Any] = {"ids": results[0].ids_QK}
  for i, result in enumerate(results):
    arrays |= {f"{name}_{i}": getattr(result, f"{name}_Q") for name in BY_QUERY}
  kept = {"ids_QK", *(f"{name}_Q" for name in BY_QUERY)}
  scalars = [{name: value for name, value in vars(r).items() if name not in kept} for r in results]
  buffer = io.BytesIO()
  np.savez(buffer, about=np.array(json.dumps({"made_from": made_from, "results": scalars})), **arrays)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, buffer.getvalue())

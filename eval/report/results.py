"""What an evaluation found: per-query results of methods, their summary rows, and the tables and JSON made of them.

A method's result is one number a query. Everything else (means, intervals, differences) is worked out once, by
`summarise`, and every table and plot reads its rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qat_jax.metrics import bootstrap_interval, paired_interval

METHOD_NAMES = {
  "plain": "plain score",
  "static": "static map",
  "whitening": "whitening",
  "lda": "LDA, both sides",
  "lda_query": "LDA, query only",
  "ilias_linear": "linear, as ILIAS",
  "query_expansion": "query expansion",
  "diffusion": "diffusion",
  "diffusion_shortlist": "diffusion, shortlist",
  "neighbours": "neighbour residual",
  "query_only": "query only",
  "fold_only": "fold only, shortlist",
  "adapted": "adapted, whole gallery",
  "adapted_shortlist": "adapted, shortlist",
}
REFERENCES = ("plain", "static")  # what every method is compared with in the tables, query by query
COMPARED = (*REFERENCES, "query_only", "adapted")  # and in metrics.json
COSTS = {  # fields of MethodResult, and their headings
  "ms_per_query": "ms a query",
  "offline_seconds": "offline s",
  "extra_bytes_per_item": "bytes an item",
  "parameters": "parameters",
}


@dataclass(frozen=True)
class MethodResult:
  """What one method did for all queries of one type. Costs that were not measured are None."""

  query_type: str  # "text" or "image"
  method: str  # a key of METHOD_NAMES, or any other name
  ap_Q: np.ndarray  # average precision of each query, fraction; NaN where a query has no positives
  recall1_Q: np.ndarray  # 1.0 where the first item is a positive
  ms_per_query: float | None = None
  offline_seconds: float | None = None  # spent once: training, preparing the gallery
  extra_bytes_per_item: float | None = None  # beyond the plain index
  parameters: int | None = None
  note: str = ""  # e.g. what the validation gate chose
  task: str = ""  # of a benchmark with several, e.g. "easy"
  figures: Mapping[str, Any] = field(default_factory=dict)  # the benchmark's own, in its own unit

  @property
  def group(self) -> tuple[str, str]:
    """What results have in common that can be compared: the type of the queries, and the task."""
    return self.query_type, self.task

  def __post_init__(self):
    if np.shape(self.ap_Q) != np.shape(self.recall1_Q) or np.ndim(self.ap_Q) != 1:
      raise ValueError(
        f"{self.query_type}/{self.method}: ap_Q of shape {np.shape(self.ap_Q)} and recall1_Q of "
        f"{np.shape(self.recall1_Q)}; give one number a query in both"
      )


@dataclass(frozen=True)
class Skipped:
  """A method that was not run for one group of queries, and why."""

  query_type: str
  task: str
  method: str
  reason: str


@dataclass(frozen=True)
class Estimate:
  """A mean over queries with its 95% bootstrap interval, fractions."""

  value: float
  low: float
  high: float


@dataclass(frozen=True)
class Row:
  """One line of the table: a result, its means, and its paired mAP difference to each of COMPARED that there is."""

  result: MethodResult
  queries: int
  map: Estimate
  recall1: Estimate
  differences: dict[str, Estimate]

  @property
  def to_plain(self) -> Estimate | None:
    """The paired difference to the plain score."""
    return self.differences.get("plain")

  @property
  def to_static(self) -> Estimate | None:
    """The paired difference to the static map."""
    return self.differences.get("static")


def summarise(results: Iterable[MethodResult], seed: int = 0) -> list[Row]:
  """Returns a row for each result, in the order given. The same seed draws the same queries for every method."""
  results = list(results)
  known = {(r.group, r.method): r for r in results}
  if len(known) < len(results):
    raise ValueError("two results of one method for one query type; give each method a name of its own")
  rows = []
  for result in results:
    queries = int(np.sum(~np.isnan(result.ap_Q)))
    if not queries:
      raise ValueError(
        f"{result.query_type}/{result.method}: no query has a positive in the gallery; nothing to measure"
      )
    others = {name: known.get((result.group, name)) for name in COMPARED}
    differences = {
      name: Estimate(*paired_interval(result.ap_Q, other.ap_Q, seed))
      for name, other in others.items()
      if other is not None and other is not result
    }
    ap, recall1 = _estimate(result.ap_Q, seed), _estimate(result.recall1_Q, seed)
    rows.append(Row(result, queries, ap, recall1, differences))
  return rows


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
  """Returns the rows of each query type and task together, in the order in which they first came."""
  groups = dict.fromkeys(r.result.group for r in rows)
  return [[r for r in rows if r.result.group == group] for group in groups]


def group_name(group: Sequence[Row]) -> str:
  """Returns what a group's queries are called, e.g. `image queries, easy`."""
  query_type, task = group[0].result.group
  return f"{query_type} queries" + (f", {task}" if task else "")


def metrics_json(rows: Sequence[Row], provenance: dict, skipped: Sequence[Skipped] = ()) -> dict:
  """Returns what metrics.json holds: `results`, `differences` (paired, mAP), `costs`, `skipped`, `provenance`.

  Metrics `map` and `recall@1` are fractions; those with a benchmark's name before them are in its own unit.
  """
  results, differences, costs = [], [], []
  for row in rows:
    task = {"task": row.result.task} if row.result.task else {}
    name = {"query": row.result.query_type, **task, "method": row.result.method}
    for metric, estimate in (("map", row.map), ("recall@1", row.recall1)):
      results.append({**name, "metric": metric, **_as_json(estimate), "queries": row.queries})
    for metric, figure in row.result.figures.items():
      results.append({**name, "metric": metric, **figure, "queries": row.queries})
    for reference, difference in row.differences.items():
      differences.append({**name, "against": reference, "metric": "map", **_as_json(difference)})
    costs.append({**name, **{cost: getattr(row.result, cost) for cost in COSTS}, "note": row.result.note})
  left_out = [{"query": s.query_type, "task": s.task, "method": s.method, "reason": s.reason} for s in skipped]
  return {
    "results": results,
    "differences": differences,
    "costs": costs,
    "skipped": left_out,
    "provenance": provenance,
  }


def own_figures(benchmark: str, figures: Mapping[str, Any]) -> dict[str, dict]:
  """Returns a benchmark's figures by metric, e.g. `roxford5k/mp@10`: {value, interval}, None for an interval not given.

  What is given by query is left out.
  """
  found: dict[str, dict] = {}
  for name, value in figures.items():
    if name in ("ap", "queries", "interval"):
      continue
    if isinstance(value, Mapping):
      found |= own_figures(f"{benchmark}/{name}", value)
    elif isinstance(value, (int, float)):
      interval = figures.get("interval") if name == "map" else None
      found[f"{benchmark}/{name}"] = {"value": float(value), "interval": interval}
  return found


def table(rows: Sequence[Row], costs: Iterable[str] = COSTS) -> tuple[list[str], list[list[str]]]:
  """Returns header and cells of the table of one group, as text; of `costs` those that some row has."""
  header = ["method", "mAP", "recall@1", "vs plain", "vs static"]
  cells = [
    [
      method_name(row.result.method),
      percent(row.map),
      percent(row.recall1),
      percent(row.to_plain, sign=True),
      percent(row.to_static, sign=True),
    ]
    for row in rows
  ]
  for name, texts in cost_columns(rows, costs):
    header.append(name)
    for line, text in zip(cells, texts, strict=True):
      line.append(text)
  return header, cells


def cost_columns(rows: Sequence[Row], costs: Iterable[str] = COSTS) -> list[tuple[str, list[str]]]:
  """Returns heading and texts of each cost that some row has."""
  columns = [(COSTS[cost], [getattr(r.result, cost) for r in rows]) for cost in costs]
  return [(name, [amount(v) for v in values]) for name, values in columns if any(v is not None for v in values)]


def table_text(rows: Sequence[Row]) -> str:
  """Returns the tables of all groups for a terminal: figures × 100, [95% interval], of the costs only the time."""
  parts = []
  for group in grouped(rows):
    header, cells = table(group, ["ms_per_query"])
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = [
      "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
      for line in [header, *cells]
    ]
    rule = "-" * len(lines[0])
    notes = [
      textwrap.fill(f"  {method_name(r.result.method)}: {r.result.note}", 118, subsequent_indent="    ")
      for r in group
      if r.result.note
    ]
    title = f"{group_name(group)} ({group[0].queries:,}), figures x 100, [95% interval over queries]"
    parts.append("\n".join([title, rule, lines[0], rule, *lines[1:], rule, *notes]))
  return "\n\n".join(parts)


def table_markdown(rows: Sequence[Row]) -> str:
  """Returns the same tables in Markdown."""
  parts = []
  for group in grouped(rows):
    header, cells = table(group)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    title = f"**{group_name(group)}** ({group[0].queries:,}), figures × 100, [95% interval over queries]"
    parts.append("\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)]))
  return "\n\n".join(parts) + "\n"


def method_name(method: str) -> str:
  """Returns the words for a method."""
  return METHOD_NAMES.get(method, method.replace("_", " "))


def percent(estimate: Estimate | None, sign: bool = False) -> str:
  """Returns an estimate × 100 with its interval, e.g. `19.71 [18.6, 20.8]`; a difference with its sign."""
  if estimate is None:
    return "–"
  plus = "+" if sign else ""
  low, high = (f"{100 * x:{plus}.1f}" for x in (estimate.low, estimate.high))
  return f"{100 * estimate.value:{plus}.2f} [{low}, {high}]"


def amount(value: float | None) -> str:
  """Returns a cost with three digits, thousands grouped, empty where it was not measured."""
  if value is None:
    return ""
  if value >= 1e6:
    return f"{value / 1e6:.3g}M"
  if value >= 100 or value == int(value):
    return f"{value:,.0f}"
  return f"{value:.3g}"


def _estimate(values_Q: np.ndarray, seed: int) -> Estimate:
  return Estimate(float(np.nanmean(values_Q)), *bootstrap_interval(values_Q, seed))


def _as_json(estimate: Estimate) -> dict:
  return {"value": estimate.value, "interval": [estimate.low, estimate.high]}

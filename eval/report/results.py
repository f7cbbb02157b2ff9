"""From a method's result, one number a query, to a row of the table: means, intervals, differences.

They are worked out once, by `summarise`; every table and plot reads its rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qat_jax.metrics import bootstrap_interval, paired_interval

WAYS = ("adapted", "adapted_shortlist", "fold_only")  # three ways to search with the head that serves
REFERENCES = ("plain", "static")  # the tables compare every method with these, query by query
COMPARED = (*REFERENCES, "query_only", "adapted")  # metrics.json compares with these


@dataclass(frozen=True)
class Result:
  """What one method did for all queries of one type. Costs that were not measured are None."""

  query_type: str  # "text" or "image"
  method: str  # a key of eval.methods.METHODS, or any other name
  ap_Q: np.ndarray  # average precision of each query, fraction; NaN where a query has no positives
  recall1_Q: np.ndarray  # 1.0 where the first item is a positive
  ms_per_query: float | None = None
  offline_seconds: float | None = None  # spent once: training, preparing the gallery
  extra_bytes_per_item: float | None = None  # beyond the plain index
  parameters: int | None = None
  note: str = ""  # e.g. what the validation gate chose
  task: str = ""  # of a benchmark with several, e.g. "easy"
  figures: Mapping[str, Any] = field(default_factory=dict)  # the benchmark's own, in its own unit
  hit10_Q: np.ndarray | None = None  # 1.0 where one of the first ten items is a positive
  ids_QK: np.ndarray | None = None  # the first items of each ranking, positions in the gallery

  @property
  def group(self) -> tuple[str, str]:
    """What results have in common that can be compared: the type of the queries, and the task."""
    return self.query_type, self.task

  def __post_init__(self) -> None:
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

  result: Result
  queries: int
  map: Estimate
  recall1: Estimate
  differences: dict[str, Estimate]
  hit10: Estimate | None = None

  @property
  def to_plain(self) -> Estimate | None:
    """The paired difference to the plain score."""
    return self.differences.get("plain")

  @property
  def to_static(self) -> Estimate | None:
    """The paired difference to the static map."""
    return self.differences.get("static")


def summarise(results: Iterable[Result], seed: int = 0) -> list[Row]:
  """Returns a row for each result, in the order given. The same seed draws the same queries for every method."""
  results = list(results)
  by_method = {(r.group, r.method): r for r in results}
  if len(by_method) < len(results):
    raise ValueError("two results of one method for one query type; give each method a name of its own")
  rows = []
  for result in results:
    queries = int(np.sum(~np.isnan(result.ap_Q)))
    if not queries:
      raise ValueError(
        f"{result.query_type}/{result.method}: no query has a positive in the gallery; nothing to measure"
      )
    others = {name: by_method.get((result.group, name)) for name in COMPARED}
    differences = {
      name: Estimate(*paired_interval(result.ap_Q, other.ap_Q, seed))
      for name, other in others.items()
      if other is not None and other is not result
    }
    ap, recall1 = _estimate(result.ap_Q, seed), _estimate(result.recall1_Q, seed)
    hit10 = None if result.hit10_Q is None else _estimate(result.hit10_Q, seed)
    rows.append(Row(result, queries, ap, recall1, differences, hit10))
  return rows


def best_other(group: Sequence[Row], main: Row) -> tuple[Row, Estimate] | None:
  """Returns the best row that is no other way to search with the same head, and the paired mAP difference to it.

  A row that ranks every query alike is the same head under another name. None where no row is left.
  """
  same = {main.result.method, *(WAYS if main.result.method in WAYS else ())}
  others = [row for row in group if row.result.method not in same]
  others = [row for row in others if not np.array_equal(row.result.ap_Q, main.result.ap_Q, equal_nan=True)]
  if not others:
    return None
  best = max(others, key=lambda row: row.map.value)
  return best, Estimate(*paired_interval(main.result.ap_Q, best.result.ap_Q))


def by_group(rows: Sequence[Row]) -> list[list[Row]]:
  """Returns the rows of each query type and task together, in the order in which they first came."""
  groups = dict.fromkeys(r.result.group for r in rows)
  return [[r for r in rows if r.result.group == group] for group in groups]


def own_figures(benchmark: str, figures: Mapping[str, Any]) -> dict[str, dict]:
  """Returns a benchmark's figures by metric, e.g. `roxford5k/mp@10`: {value, interval}, None for an interval not given.

  What is given by query is left out.
  """
  by_metric: dict[str, dict] = {}
  for name, value in figures.items():
    if name in ("ap", "queries", "interval"):
      continue
    if isinstance(value, Mapping):
      by_metric |= own_figures(f"{benchmark}/{name}", value)
    elif isinstance(value, (int, float)):
      interval = figures.get("interval") if name == "map" else None
      by_metric[f"{benchmark}/{name}"] = {"value": float(value), "interval": interval}
  return by_metric


def _estimate(values_Q: np.ndarray, seed: int) -> Estimate:
  return Estimate(float(np.nanmean(values_Q)), *bootstrap_interval(values_Q, seed))

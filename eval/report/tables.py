"""The rows of an evaluation as text, Markdown, and the content of metrics.json."""

import textwrap
from collections.abc import Iterable, Sequence

from eval.markdown import markdown
from eval.methods import METHODS
from eval.report.results import Estimate, Row, Skipped, by_group

FORMAT = 1  # of metrics.json
COSTS = {  # fields of Result, and their headings
  "ms_per_query": "ms a query",
  "offline_seconds": "offline s",
  "extra_bytes_per_item": "bytes an item",
  "parameters": "parameters",
}


def group_name(group: Sequence[Row]) -> str:
  """Returns what a group's queries are called, e.g. `image queries, easy`."""
  query_type, task = group[0].result.group
  return f"{query_type} queries" + (f", {task}" if task else "")


def metrics_json(rows: Sequence[Row], provenance: dict, skipped: Sequence[Skipped] = ()) -> dict:
  """Returns metrics.json: `format`, `results`, `differences` (paired, mAP), `costs`, `skipped`, `provenance`.

  Metrics `map`, `recall@1` and `recall@10` are fractions; with a benchmark's name before them they are in its own unit.
  """
  results, differences, costs = [], [], []
  for row in rows:
    task = {"task": row.result.task} if row.result.task else {}
    name = {"query": row.result.query_type, **task, "method": row.result.method}
    for metric, estimate in (("map", row.map), ("recall@1", row.recall1), ("recall@10", row.hit10)):
      if estimate is None:
        continue
      results.append({**name, "metric": metric, **_as_json(estimate), "queries": row.queries})
    for metric, figure in row.result.figures.items():
      results.append({**name, "metric": metric, **figure, "queries": row.queries})
    for reference, difference in row.differences.items():
      differences.append({**name, "against": reference, "metric": "map", **_as_json(difference)})
    costs.append({**name, **{cost: getattr(row.result, cost) for cost in COSTS}, "note": row.result.note})
  left_out = [{"query": s.query_type, "task": s.task, "method": s.method, "reason": s.reason} for s in skipped]
  return {
    "format": FORMAT,
    "results": results,
    "differences": differences,
    "costs": costs,
    "skipped": left_out,
    "provenance": provenance,
  }


def table_cells(rows: Sequence[Row], costs: Iterable[str] = COSTS) -> tuple[list[str], list[list[str]]]:
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
  for group in by_group(rows):
    header, cells = table_cells(group, ["ms_per_query"])
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
  for group in by_group(rows):
    title = f"**{group_name(group)}** ({group[0].queries:,}), figures × 100, [95% interval over queries]"
    parts.append(f"{title}\n\n{markdown(*table_cells(group), numbers=True)}")
  return "\n\n".join(parts) + "\n"


def method_name(method: str) -> str:
  """Returns the words for a method."""
  return METHODS[method].title if method in METHODS else method.replace("_", " ")


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


def _as_json(estimate: Estimate) -> dict:
  return {"value": estimate.value, "interval": [estimate.low, estimate.high]}

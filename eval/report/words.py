"""What each plot of the report shows, in words: for those who do not see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.report.results import Row
from eval.report.tables import amount, method_name


def latency(group: Sequence[Row]) -> str:
  """Returns the points of the plot of accuracy against latency."""
  timed = [row for row in group if row.result.ms_per_query]
  points = [
    f"{method_name(r.result.method)} {100 * r.map.value:.1f} at {amount(r.result.ms_per_query)} ms" for r in timed
  ]
  return f"mAP × 100 over milliseconds a query: {'; '.join(points)}"


def wins(differences: Sequence[tuple[str, np.ndarray]]) -> str:
  """Returns how many queries are better and worse, against each of (name, per-query differences)."""
  words = [
    f"against {name} {np.sum(difference_Q > 0):,} queries are better and {np.sum(difference_Q < 0):,} worse"
    for name, difference_Q in differences
  ]
  return f"Gain in average precision, query by query: {'; '.join(words)}"


def curves(lines: Sequence[dict], field: str, scale: float) -> str:
  """Returns where the curve of each candidate begins and ends; `lines` are those of a metrics.jsonl."""
  ends: dict[str, list[float]] = {}
  for line in lines:
    if line.get(field) is not None:
      ends.setdefault(str(line.get("name", "")), []).append(scale * line[field])
  words = [f"{name.replace('_', ' ')} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in ends.items()]
  return f"{field.replace('val_map', 'mAP × 100 on validation')} by step: {'; '.join(words)}"

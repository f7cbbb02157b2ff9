"""The runs of a trial on disk, a line each, and the table that they make."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qat_jax.metrics import paired_interval
from qat_jax.sealed import read_record, write_record
from qat_jax.stages import check_same, fingerprint


def claim(out: pathlib.Path, made_from: dict[str, Any]) -> None:
  """Writes what the runs in a folder are made from; raises ValueError where there are some, made from other things."""
  out.mkdir(parents=True, exist_ok=True)
  path, made_from = out / "made_from.json", fingerprint(**made_from)
  if path.exists():
    check_same(out, read_record(path), made_from, "Give another folder, or what it was made with")
  elif (out / "runs.jsonl").exists():
    raise ValueError(f"{out} has runs.jsonl and does not say what it was made from; give another folder")
  write_record(path, made_from)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the runs so far, but for one that was being written when the program was killed: it is taken out."""
  if not path.exists():
    return []
  whole, newline, rest = path.read_text().rpartition("\n")
  if rest:
    path.write_text(whole + newline)
  return [json.loads(line) for line in whole.splitlines()]


def chosen(runs: list[dict[str, Any]], name: str) -> float | None:
  """Returns the learning rate that is best on validation with seed 0; None where nothing was run."""
  own = [run for run in runs if run["name"] == name and run["seed"] == 0]
  return max(own, key=lambda run: run["val"])["rate"] if own else None


def table(runs: list[dict[str, Any]], sizes: Mapping[str, int]) -> str:
  """Returns the Markdown table: each form at its chosen learning rate, the mean over its seeds, × 100.

  `sizes` is how many parameters each form has, by name.
  """
  lines = [
    "| form | parameters | rates tried, val | val | test | − static | − query only | seconds |",
    "|---" * 8 + "|",
  ]
  mean: dict[str, np.ndarray] = {}
  for name in sizes:
    rate = chosen(runs, name)
    best = [run["test"] for run in runs if (run["name"], run["rate"]) == (name, rate) and run["test"]]
    if best:
      mean[name] = np.mean(best, axis=0)
  for name in mean:
    rate = chosen(runs, name)
    own = [run for run in runs if (run["name"], run["rate"]) == (name, rate)]
    scores = [100 * np.mean(run["test"]) for run in own]
    spread = f" ± {np.std(scores, ddof=1):.1f} ({len(scores)})" if len(scores) > 1 else " (1)"
    first = sorted((run["rate"], run["val"]) for run in runs if run["name"] == name and run["seed"] == 0)
    rates = ", ".join(f"{one:.0e}: {100 * value:.1f}" for one, value in first)
    cells = [name, f"{sizes[name] / 1e6:.2f}M", rates, f"{100 * np.mean([run['val'] for run in own]):.1f}"]
    cells += [f"{np.mean(scores):.1f}{spread}"]
    for other in ("static", "query_only"):
      if other in mean and other != name:
        gain, low, high = (100 * x for x in paired_interval(mean[name], mean[other]))
        cells.append(f"{gain:+.1f} [{low:.1f}, {high:.1f}]")
      else:
        cells.append("–")
    lines.append("| " + " | ".join([*cells, f"{np.mean([run['seconds'] for run in own]):.1f}"]) + " |")
  return "\n".join(lines)

"""Every form of several runs side by side:  python -m eval.forms --root FOLDER runs/seed0 runs/seed1 …

Runs differ in their seed. A form's value is its test mAP, mean ± standard deviation over runs; differences are paired
by query, each query's average precision being the mean over runs.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from eval.methods import STATIC
from qat_jax.adapter import load
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.metrics import paired_interval
from qat_jax.runs import end_on_signals, explained
from qat_jax.sealed import read_record
from qat_jax.validation import Validator

HEADER = "| form | parameters | trained, s | val | test | − static | − query only |\n|---|---|---|---|---|---|---|"


def precisions(runs: list[pathlib.Path], query_type: str, validator: Validator) -> dict[str, list[np.ndarray]]:
  """Returns form → the average precision of each test query (Q) in each run that has the form."""
  by_form: dict[str, list[np.ndarray]] = {}
  for run in runs:
    for path in sorted((run / "candidates" / query_type).glob("*/adapter.json")):
      adapter = load(path.parent)
      head = adapter.head(query_type)
      by_form.setdefault(path.parent.name, []).append(validator.precisions(head))
  return by_form


def about(runs: list[pathlib.Path], query_type: str, form: str) -> dict[str, float]:
  """Returns the mean over runs of what a form's folders say of it: parameters, seconds, validation mAP."""
  folders = [run / "candidates" / query_type / form / "adapter.json" for run in runs]
  infos = [read_record(path)["info"] for path in folders if path.exists()]
  return {name: float(np.mean([i[name] for i in infos])) for name in ("parameters", "offline_seconds", "val_map")}


def table(runs: list[pathlib.Path], query_type: str, validator: Validator) -> str:
  """Returns the Markdown table of one query type, mAP × 100."""
  by_form = precisions(runs, query_type, validator)
  if not by_form:
    raise ValueError(
      f"no candidates for {query_type} queries in {', '.join(map(str, runs))}; give folders of train.main"
    )
  mean = {form: np.mean(values, axis=0) for form, values in by_form.items()}
  static = max((form for form in STATIC if form in mean), key=lambda form: mean[form].mean())
  lines = [HEADER]
  for form, values in sorted(by_form.items(), key=lambda item: mean[item[0]].mean()):
    what = about(runs, query_type, form)
    each = [100 * v.mean() for v in values]
    spread = f" ± {np.std(each, ddof=1):.1f} ({len(each)})" if len(each) > 1 else ""
    cells = [
      form,
      f"{what['parameters'] / 1e6:.2f}M",
      f"{what['offline_seconds']:.0f}",
      f"{100 * what['val_map']:.1f}",
      f"{np.mean(each):.1f}{spread}",
      *(difference(mean[form], mean.get(other)) for other in (static, "query_only")),
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def difference(value_Q: np.ndarray, other_Q: np.ndarray | None) -> str:
  """Returns a paired difference with its 95% interval, × 100, as text."""
  if other_Q is None or other_Q is value_Q:
    return "–"
  mean, low, high = (100 * x for x in paired_interval(value_Q, other_Q))
  return f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
  """Prints the tables of both query types."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--root", required=True, help="the retrieval set of the runs")
  parser.add_argument("runs", nargs="+", type=pathlib.Path)
  options = parser.parse_args()
  with explained():
    split = RetrievalSet.open(options.root).split("test")
    for query_type in split.queries:
      validator = Validator.of(split, query_type, limit=0, seed=0)
      print(f"{query_type} queries, {len(validator.query_QD):,}\n\n{table(options.runs, query_type, validator)}\n")


if __name__ == "__main__":
  end_on_signals()
  main()

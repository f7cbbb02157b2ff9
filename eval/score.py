"""Scores a result file that any program wrote, by the benchmark's own rule:

python -m eval.score --benchmark ilias --root DIR --similarities FILE [--k 1000] [--json OUT]
python -m eval.score --benchmark gldv2 --solution CSV --predictions CSV
python -m eval.score --benchmark roxford5k --gnd FILE --ranks FILE      (rparis6k, oxford5k, paris6k and instre alike)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.benchmarks import gldv2, ilias, ilias_files, revisited
from eval.benchmarks.task import need
from qat_jax.runs import end_on_signals, explained
from qat_jax.sealed import UNREADABLE
from qat_jax.stages import write_whole

NEEDS = {
  "ilias": ("root", "similarities"),
  "gldv2": ("solution", "predictions"),
  **dict.fromkeys((*revisited.REVISITED, *revisited.ORIGINAL, "instre"), ("gnd", "ranks")),
}


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints the figures, and writes them where --json says."""
  parser = argparse.ArgumentParser(
    prog="eval.score", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--benchmark", required=True, choices=list(NEEDS))
  parser.add_argument("--root", help="ilias: the folder that holds image_ids/")
  parser.add_argument("--similarities", help="ilias: .json or .pkl, as the official search writes them")
  parser.add_argument("--k", type=int, default=ilias.K, help="ilias: how many items of a query count")
  parser.add_argument("--solution", help="gldv2: CSV of id, images, Usage")
  parser.add_argument("--predictions", help="gldv2: CSV of id, images")
  parser.add_argument("--gnd", help="Oxford, Paris, instre: ground truth as .pkl, .mat, or JSON of easy, hard, junk")
  parser.add_argument("--ranks", help="Oxford, Paris, instre: .npy of database positions, database x query")
  parser.add_argument(
    "--distractors", type=int, default=0, help="Oxford, Paris: how many images follow the set's own (+1M, 100k)"
  )
  parser.add_argument("--json", help="where to write the figures")
  flags = parser.parse_args(arguments)
  missing = [f"--{name}" for name in NEEDS[flags.benchmark] if getattr(flags, name) is None]
  if missing:
    parser.error(f"--benchmark {flags.benchmark} needs {' and '.join(missing)}")
  with explained():
    figures = score(flags)
    print("\n".join(lines(figures)))
    if flags.json:
      write_whole(Path(flags.json), (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())


def score(flags: argparse.Namespace) -> dict:
  """Returns the figures of the files that the flags name, in the benchmark's own unit."""
  if flags.benchmark == "ilias":
    if flags.k < 1:
      raise ValueError(f"--k is {flags.k}; give 1 or more")
    benchmark = ilias.Ilias.open(flags.root)
    return benchmark.score(ilias_files.read_similarities(flags.similarities), flags.k, flags.similarities)
  if flags.benchmark == "gldv2":
    return gldv2.score_predictions(flags.solution, flags.predictions)
  return revisited.score_ranks(flags.gnd, read_ranks(flags.ranks), flags.benchmark, flags.distractors)


def read_ranks(path: Path | str) -> np.ndarray:
  """Returns the array of a .npy file; one that holds Python objects is refused."""
  path = need(Path(path), "save the database positions with numpy.save, database × query")
  try:
    return np.load(path, allow_pickle=False)
  except UNREADABLE as error:
    raise ValueError(f"{path} is not a whole .npy of numbers ({error}); write it with numpy.save") from error


def lines(figures: dict, indent: str = "") -> list[str]:
  """Returns the figures as text, a line each; what is given by query stays in the JSON."""
  printed = []
  for name, value in figures.items():
    if name == "ap":
      continue
    if isinstance(value, dict):
      printed += [f"{indent}{name}", *lines(value, indent + "  ")]
    elif isinstance(value, list):
      printed.append(f"{indent}{name:<24} [{', '.join(f'{x:.4f}' for x in value)}]")
    else:
      printed.append(f"{indent}{name:<24} {value:.4f}" if isinstance(value, float) else f"{indent}{name:<24} {value}")
  return printed


if __name__ == "__main__":
  end_on_signals()
  main()

"""Scores a result file that any program wrote, by the benchmark's own rule:

python -m eval.score --benchmark ilias --root DIR --similarities FILE [--k 1000] [--json OUT]
python -m eval.score --benchmark gldv2 --solution CSV --predictions CSV
python -m eval.score --benchmark roxford5k --gnd FILE --ranks FILE      (rparis6k, oxford5k, paris6k and instre alike)
"""

from collections.abc import Sequence

from eval import commands
from eval.benchmarks.ilias import K
from eval.benchmarks.official import BENCHMARKS

SCORED = {name: benchmark for name, benchmark in BENCHMARKS.items() if benchmark.needs}


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints the figures, and writes them where --json says."""
  parser = commands.parser("eval.score", __doc__, "--json")
  parser.add_argument("--benchmark", required=True, choices=list(SCORED))
  parser.add_argument("--root", help="ilias: the folder that holds image_ids/")
  parser.add_argument("--similarities", help="ilias: .json or .pkl, as the official search writes them")
  parser.add_argument("--k", type=int, default=K, help="ilias: how many items of a query count")
  parser.add_argument("--solution", help="gldv2: CSV of id, images, Usage")
  parser.add_argument("--predictions", help="gldv2: CSV of id, images")
  parser.add_argument("--gnd", help="Oxford, Paris, instre: ground truth as .pkl, .mat, or JSON of easy, hard, junk")
  parser.add_argument("--ranks", help="Oxford, Paris, instre: .npy of database positions, database x query")
  parser.add_argument(
    "--distractors", type=int, default=0, help="Oxford, Paris: how many images follow the set's own (+1M, 100k)"
  )
  with commands.started(parser, arguments) as flags:
    missing = [f"--{name}" for name in SCORED[flags.benchmark].needs if getattr(flags, name) is None]
    if missing:
      parser.error(f"--benchmark {flags.benchmark} needs {' and '.join(missing)}")
    figures = BENCHMARKS[flags.benchmark].score(flags)
    print("\n".join(lines(figures)))
    commands.write_figures(flags.json, figures)


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
  main()

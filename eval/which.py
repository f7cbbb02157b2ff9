"""Which part pays with how much training data: one retrieval set cut to shares of its instances, and what they gave.

    python -m eval.which cut ROOT OUT --share 0.1                 a retrieval set with a tenth of the training instances
    python -m eval.which table OUT/which.md RUN RUN …             a table, and a plot beside it, of runs on such sets

`make which ROOT=… OUT=…` does it all. Each part is added to the one before it, served or not: on validation, and on the
test split, paired by query, with the standard error over instances.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from eval.report import plots
from qat_jax.adapter import load
from qat_jax.datasets.splits import drawn
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.fit.candidates import read_candidate
from qat_jax.fit.parts import head_of, ladder, part_of, with_part
from qat_jax.runs import end_on_signals, explained
from qat_jax.stages import write_whole
from qat_jax.validation import Validator


class Step(NamedTuple):
  """What one part added, in a run whose training set has so many rows: mean and standard error, fractions."""

  pairs: int
  query_type: str
  part: str
  val: tuple[float, float]
  test: tuple[float, float]
  reached: float  # mAP on test, with this part
  served: bool  # by the gate's choice


def cut(root: pathlib.Path, out: pathlib.Path, share: float, seed: int = 0) -> RetrievalSet:
  """Writes a retrieval set whose training rows are those of a share of the instances; val and test are links.

  The same seed draws the same instances, and a smaller share some of a larger one's.
  """
  if not 0 < share <= 1:
    raise ValueError(f"share is {share}; give a number above 0, 1 at most")
  images = FeatureStore.open(root / "train", "img")
  instance_N = images.column("instance")
  part_of = drawn({str(name) for name in instance_N}, val=share, test=0, seed=seed) if share < 1 else {}
  rows = np.flatnonzero([part_of.get(str(name), "val") == "val" for name in instance_N])
  features = {"img": images[rows]}
  if (root / "train" / "text_emb").is_dir():
    features["text"] = FeatureStore.open(root / "train", "text")[rows]
  write_features(out / "train", features, images.metadata().take(rows), images.meta.get("encoder") and images.meta)
  for split in ("val", "test"):
    (out / split).symlink_to((root / split).resolve(), target_is_directory=True)
  return RetrievalSet.open(out)


def steps_of(run: pathlib.Path) -> list[Step]:
  """Returns what each part adds in a run, served or not: from the plain score to its best head, then part by part."""
  info = load(run).info
  config = info["config"]
  data = RetrievalSet.open(config["data"]["root"])
  found = []
  for query_type, chosen in info["chosen"].items():
    split = functools.partial(Validator.of, query_type=query_type, seed=config["seed"])
    gate = split(data.split("val"), limit=config["validation"]["gate_queries"])
    test = split(data.split("test"), limit=0)
    folder, before = run / "candidates" / query_type, None
    for name in dict.fromkeys(["plain", *chain(chosen["val_map"])]):
      adapter, precision_Q = read_candidate(folder / name)
      now = precision_Q, test.precisions(adapter.head(query_type))
      if before is not None:
        val, new = gate.gain(now[0], before[0]), test.gain(now[1], before[1])
        reached, rows = float(now[1].mean()), len(data.train_images)
        found.append(Step(rows, query_type, part_of(name), val, new, reached, serves(chosen["name"], name)))
      before = now
  return found


def serves(chosen: str, name: str) -> bool:
  """Says whether what serves has the last part of a candidate (the head, where that is all) beside the same head.

  >>> serves("gated_levelled", "gated_captioned_levelled"), serves("gated_levelled", "gated_captioned")
  (True, False)
  """
  head = head_of(name)
  return head_of(chosen) == head and (name == head or name.rpartition("_")[2] in chosen.removeprefix(head).split("_"))


def chain(val_map: dict[str, float]) -> list[str]:
  """Returns the best head that parts were tried beside, then the same with one part more each time."""
  heads = [name for name in val_map if with_part(name, "levelled") in val_map and head_of(name) == name]
  if not heads:  # nothing was tried, since there was nothing to gain
    return []
  best = max(heads, key=lambda name: val_map[name])
  return ladder(max((name for name in val_map if head_of(name) == best), key=len), val_map)


def table(steps: list[Step]) -> str:
  """Returns the steps as a Markdown table, by query type and number of training pairs."""
  lines = [
    "| queries | training rows | part | val | test | mAP with it, test | served |",
    "|---|---:|---|---:|---:|---:|---|",
  ]
  for step in sorted(steps, key=lambda one: (one.query_type != "text", one.pairs)):
    val, test = (f"{100 * gain:+.1f} ± {100 * error:.1f}" for gain, error in (step.val, step.test))
    cells = [step.query_type, f"{step.pairs:,}", step.part, val, test, f"{100 * step.reached:.1f}"]
    lines.append("| " + " | ".join([*cells, "yes" if step.served else ""]) + " |")
  return "\n".join(lines) + "\n"


def plot(steps: list[Step], query_type: str) -> str:
  """Returns what each part adds on the test split, by the number of training rows (SVG)."""
  own = [step for step in steps if step.query_type == query_type]
  name = lambda step: "head" if step.part.startswith("the head") else step.part
  groups = [
    (f"{rows:,} rows", [(name(step), 100 * step.test[0], 100 * step.test[1]) for step in own if step.pairs == rows])
    for rows in sorted({step.pairs for step in own})
  ]
  return plots.bars_by_group(groups, f"{query_type} queries: mAP × 100 added, test")


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  cutting = commands.add_parser("cut")
  cutting.add_argument("root", type=pathlib.Path)
  cutting.add_argument("out", type=pathlib.Path)
  cutting.add_argument("--share", type=float, required=True)
  cutting.add_argument("--seed", type=int, default=0)
  telling = commands.add_parser("table")
  telling.add_argument("out", type=pathlib.Path)
  telling.add_argument("runs", type=pathlib.Path, nargs="+")
  options: Any = parser.parse_args()
  if options.command == "cut":
    data = cut(options.root, options.out, options.share, options.seed)
    print(f"{options.out}: {len(data.train_images):,} training images")
    return
  options.out.parent.mkdir(parents=True, exist_ok=True)  # before the long work
  steps = [step for run in options.runs for step in steps_of(run)]
  write_whole(options.out, table(steps).encode())
  for query_type in dict.fromkeys(step.query_type for step in steps):
    write_whole(options.out.with_name(f"{options.out.stem}_{query_type}.svg"), plot(steps, query_type).encode())
  print(table(steps))


if __name__ == "__main__":
  end_on_signals()
  with explained():
    main()

"""Runs side by side: which part pays with how much training data, and every form over several seeds.

    python -m eval.compare cut ROOT OUT --share 0.1     a retrieval set with a tenth of the training instances
    python -m eval.compare parts OUT.md RUN RUN …       what each part added in runs on such sets: a table, and plots
    python -m eval.compare forms ROOT RUN RUN …         a table of every form of runs that differ in their seed

`make which ROOT=… OUT=…` cuts, trains and tells the parts. Each part is added to the one before it, served or not: on
validation, and on the test split, paired by query, with the standard error over instances. The value of a form is its
test mAP, mean ± standard deviation over runs. Its differences are paired by query, each query's average precision
being the mean over runs.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.markdown import markdown
from eval.methods import STATIC
from eval.report import plots
from qat_jax.adapter import load
from qat_jax.datasets.splits import drawn_parts
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.fit.candidates import read_candidate
from qat_jax.fit.parts import head_of, ladder, part_of, with_part
from qat_jax.metrics import paired_interval
from qat_jax.runs import end_on_signals, explained
from qat_jax.stages import write_whole
from qat_jax.validation import Validator


class Step(NamedTuple):
  """What one part added in a run: mean and standard error, fractions."""

  pairs: int  # rows of the run's training set
  query_type: str
  part: str
  val: tuple[float, float]
  test: tuple[float, float]
  reached: float  # mAP on test, with this part
  served: bool  # by the gate's choice


def cut_set(root: Path, out: Path, share: float, seed: int = 0) -> RetrievalSet:
  """Writes a retrieval set whose training rows are those of a share of the instances; val and test are links.

  The same seed draws the same instances, and a smaller share some of a larger one's.
  """
  if not 0 < share <= 1:
    raise ValueError(f"share is {share}; give a number above 0, 1 at most")
  images = FeatureStore.open(root / "train", "img")
  instance_N = images.column("instance")
  part_of_name = drawn_parts({str(name) for name in instance_N}, val=share, test=0, seed=seed) if share < 1 else {}
  rows = np.flatnonzero([part_of_name.get(str(name), "val") == "val" for name in instance_N])
  features = {"img": images[rows]}
  if (root / "train" / "text_emb").is_dir():
    features["text"] = FeatureStore.open(root / "train", "text")[rows]
  write_features(out / "train", features, images.metadata().take(rows), images.meta.get("encoder") and images.meta)
  for split in ("val", "test"):
    (out / split).symlink_to((root / split).resolve(), target_is_directory=True)
  return RetrievalSet.open(out)


def steps_of(run: Path) -> list[Step]:
  """Returns what each part adds in a run, served or not: from the plain score to its best head, then part by part."""
  info = load(run).info
  config = info["config"]
  data = RetrievalSet.open(config["data"]["root"])
  steps = []
  for query_type, chosen in info["chosen"].items():
    split = functools.partial(Validator.of, query_type=query_type, seed=config["seed"])
    gate = split(data.split("val"), limit=config["validation"]["gate_queries"])
    test = split(data.split("test"), limit=0)
    before = None
    for name in dict.fromkeys(["plain", *chain(chosen["val_map"])]):
      adapter, precision_Q = read_candidate(run / "candidates" / query_type / name)
      now = precision_Q, test.precisions(adapter.head(query_type))
      if before is not None:
        val, new = gate.gain(now[0], before[0]), test.gain(now[1], before[1])
        reached, rows = float(now[1].mean()), len(data.train_images)
        steps.append(Step(rows, query_type, part_of(name), val, new, reached, serves(chosen["name"], name)))
      before = now
  return steps


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


def table_of_parts(steps: list[Step]) -> str:
  """Returns the steps as a Markdown table, by query type and number of training pairs."""
  lines = []
  for step in sorted(steps, key=lambda one: (one.query_type != "text", one.pairs)):
    val, test = (f"{100 * gain:+.1f} ± {100 * error:.1f}" for gain, error in (step.val, step.test))
    reached, served = f"{100 * step.reached:.1f}", "yes" if step.served else ""
    lines.append([step.query_type, f"{step.pairs:,}", step.part, val, test, reached, served])
  return markdown(["queries", "training rows", "part", "val", "test", "mAP with it, test", "served"], lines)


def plot(steps: list[Step], query_type: str) -> str:
  """Returns what each part adds on the test split, by the number of training rows (SVG)."""
  same = [step for step in steps if step.query_type == query_type]
  name = lambda step: "head" if step.part.startswith("the head") else step.part
  groups = [
    (f"{rows:,} rows", [(name(step), 100 * step.test[0], 100 * step.test[1]) for step in same if step.pairs == rows])
    for rows in sorted({step.pairs for step in same})
  ]
  return plots.bars_by_group(groups, f"{query_type} queries: mAP × 100 added, test")


def table_of_forms(runs: Sequence[Path], query_type: str, validator: Validator) -> str:
  """Returns the Markdown table of every form of one query type, mAP × 100, the best last."""
  precisions: dict[str, list[np.ndarray]] = {}  # by form: the average precision of each test query (Q), by run
  infos: dict[str, list[dict]] = {}  # by form: what its folders say of it
  for run in runs:
    for path in sorted((run / "candidates" / query_type).glob("*/adapter.json")):
      adapter = load(path.parent)
      precisions.setdefault(path.parent.name, []).append(validator.precisions(adapter.head(query_type)))
      infos.setdefault(path.parent.name, []).append(adapter.info)
  if not precisions:
    folders = ", ".join(map(str, runs))
    raise ValueError(f"no candidates for {query_type} queries in {folders}; give folders of train.main")
  mean_Q = {form: np.mean(values, axis=0) for form, values in precisions.items()}
  static = max((form for form in STATIC if form in mean_Q), key=lambda form: mean_Q[form].mean())
  lines = []
  for form in sorted(precisions, key=lambda form: mean_Q[form].mean()):
    parameters, seconds, val = (
      np.mean([info[key] for info in infos[form]]) for key in ("parameters", "offline_seconds", "val_map")
    )
    each = [100 * value_Q.mean() for value_Q in precisions[form]]
    spread = f" ± {np.std(each, ddof=1):.1f} ({len(each)})" if len(each) > 1 else ""
    costs = [f"{parameters / 1e6:.2f}M", f"{seconds:.0f}", f"{100 * val:.1f}"]
    differences = [difference(mean_Q[form], mean_Q.get(other)) for other in (static, "query_only")]
    lines.append([form, *costs, f"{np.mean(each):.1f}{spread}", *differences])
  return markdown(["form", "parameters", "trained, s", "val", "test", "− static", "− query only"], lines)


def difference(value_Q: np.ndarray, other_Q: np.ndarray | None) -> str:
  """Returns a paired difference with its 95% interval, × 100, as text."""
  if other_Q is None or other_Q is value_Q:
    return "–"
  mean, low, high = (100 * x for x in paired_interval(value_Q, other_Q))
  return f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


def tell_parts(out: Path, runs: Sequence[Path]) -> None:
  """Writes and prints the table of parts, and draws a plot beside it for each query type."""
  out.parent.mkdir(parents=True, exist_ok=True)  # before the long work
  steps = [step for run in runs for step in steps_of(run)]
  write_whole(out, (table_of_parts(steps) + "\n").encode())
  for query_type in dict.fromkeys(step.query_type for step in steps):
    write_whole(out.with_name(f"{out.stem}_{query_type}.svg"), plot(steps, query_type).encode())
  print(table_of_parts(steps))


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  cutting, parts, forms = (commands.add_parser(name) for name in ("cut", "parts", "forms"))
  cutting.add_argument("root", type=Path)
  cutting.add_argument("out", type=Path)
  cutting.add_argument("--share", type=float, required=True)
  cutting.add_argument("--seed", type=int, default=0)
  parts.add_argument("out", type=Path)
  forms.add_argument("root", type=Path, help="the retrieval set of the runs")
  for command in (parts, forms):
    command.add_argument("runs", type=Path, nargs="+")
  flags = parser.parse_args(arguments)
  with explained():
    if flags.command == "cut":
      data = cut_set(flags.root, flags.out, flags.share, flags.seed)
      print(f"{flags.out}: {len(data.train_images):,} training images")
    elif flags.command == "parts":
      tell_parts(flags.out, flags.runs)
    else:
      split = RetrievalSet.open(flags.root).split("test")
      for query_type in split.queries:
        validator = Validator.of(split, query_type, limit=0, seed=0)
        table = table_of_forms(flags.runs, query_type, validator)
        print(f"{query_type} queries, {len(validator.query_QD):,}\n\n{table}\n")


if __name__ == "__main__":
  end_on_signals()
  main()

"""Does evidence tell when what a query looks for is not there? Measured on a run's test split, at three gallery sizes.

    python -m eval.nothing --workdir runs/demo [--adapter FOLDER] [--split test] [--drawn 6] [--json OUT]

Each test query is asked twice: with its thing in the gallery, and without. *Alike*: only the thing's own images are
taken out. *Family*: all with its value in the column `--family` are taken out, so that no look-alike stays.
Thresholds come from planted validation queries alone. *Kept* is the share of queries with their thing there that is
answered, of 90 asked for; *alarms* are the share without, of 10 asked for. The calibration error is that of the best
item's probability, in ten bins. Errors are standard errors over families. Figures of part of the gallery are means over
ten drawings of its families. With --drawn the figures are means over N other sets of the toybox, each with its own
validation queries planted and its own test queries: what is chance in one set is less in their mean.
"""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qat_jax
from eval import commands
from qat_jax.datasets.toybox import source as toybox
from qat_jax.encoders import load_encoder
from qat_jax.features.extraction import extract
from qat_jax.features.retrieval_set import RetrievalSet, Split
from qat_jax.metrics import clustered_error
from qat_jax.planted import Planted

SHARES = (0.25, 0.5, 1.0)  # of the families in the gallery
DRAWINGS = 10  # of the families of a part of the gallery: one is off by three false alarms in a hundred
BINS = 10


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints a line for each query type and gallery, and writes them where --json says."""
  parser = commands.parser("eval.nothing", __doc__, "--workdir", "--split", "--json")
  parser.add_argument("--adapter", type=Path, help="another adapter than the run's")
  parser.add_argument("--family", default="family", help="the metadata column of look-alikes")
  parser.add_argument(
    "--drawn", metavar="N", type=int, choices=range(7), default=0, help="sets of families anew, up to 6"
  )
  with commands.started(parser, arguments) as flags:
    data = RetrievalSet.open(flags.workdir / "features")
    adapter = qat_jax.load(flags.adapter or flags.workdir)
    if not adapter.planted:  # trained before adapters kept them
      adapter.planted = {name: Planted.of(data.split("val"), name) for name in adapter.heads}
    asked = [(adapter, data.split(flags.split))]
    if flags.drawn:
      asked = [_drawn(adapter, number, flags.workdir / "drawn") for number in range(flags.drawn)]
    lines = []
    for query_type, share in itertools.product(asked[0][0].heads, SHARES):
      figures = functools.partial(evidence_figures, query_type=query_type, column=flags.family, share=share)
      seeds = range(DRAWINGS if share < 1 else 1)
      lines.append(_averaged([figures(one, split, seed=seed) for one, split in asked for seed in seeds]))
    print("\n".join(map(text_of, lines)))
    commands.write_figures(flags.json, lines)


def evidence_figures(
  adapter: qat_jax.Adapter, split: Split, query_type: str, column: str, share: float, seed: int
) -> dict[str, Any]:
  """Returns the figures of one query type in a share of the gallery's families, drawn with a seed."""
  queries, gallery = split.queries[query_type], split.gallery
  family_N, family_Q = gallery.column(column), queries.column(column)
  names = np.unique(family_N)
  chosen = np.random.default_rng(seed).permutation(names)[: round(share * len(names))]
  item_N, query_Q = np.flatnonzero(np.isin(family_N, chosen)), np.flatnonzero(np.isin(family_Q, chosen))
  rows_ND, query_QD = (np.asarray(one[rows], np.float32) for one, rows in ((gallery, item_N), (queries, query_Q)))
  items = adapter.prepare(rows_ND, query_type)
  evidence = qat_jax.calibrate(adapter, items, query_type)
  figures: dict[str, Any] = {"queries": query_type, "items": len(item_N), "status": evidence.status}
  relevance = split.relevance(query_type)
  own_QN = np.stack([np.isin(item_N, relevance.positives[query]) for query in query_Q])
  family_QN = family_Q[query_Q][:, None] == family_N[item_N][None]
  score_QN = evidence.comparable(qat_jax.score(adapter(query_QD, query_type), items), query_QD)
  present_Q, right_Q = score_QN.max(axis=1), own_QN[np.arange(len(query_Q)), score_QN.argmax(axis=1)]
  kept, alarms = (evidence.least(kept=0.9), evidence.least(alarms=0.1))
  top_Q = evidence.probability(present_Q)
  figures |= {"kept": percentage(top_Q >= kept), "answered at 10 % alarms": percentage(top_Q >= alarms)}
  for name, mask_QN in (("alike", own_QN), ("family", family_QN)):
    absent_Q = np.where(mask_QN, -np.inf, score_QN).max(axis=1)
    chance_Q = evidence.probability(absent_Q)
    both, wrong_Q = np.concatenate([top_Q, chance_Q]), np.concatenate([right_Q, np.zeros(len(query_Q), bool)])
    figures[name] = {
      "auroc": round(100 * area(present_Q, absent_Q), 1),
      "alarms": percentage(chance_Q >= alarms),
      "error of alarms": round(100 * clustered_error(chance_Q >= alarms, family_Q[query_Q]), 1),
      "calibration error": round(100 * calibration_error(both, wrong_Q), 1),
    }
  return figures


def _drawn(adapter: qat_jax.Adapter, number: int, folder: Path) -> tuple[qat_jax.Adapter, Split]:
  """Returns an adapter with the validation queries of a set of the toybox planted, and the set's test split."""
  encoder, splits = load_encoder("toy_clip"), {}
  if encoder.width != adapter.width or "image" not in adapter.heads:
    raise ValueError(
      f"--drawn is for the demo's adapter, {encoder.width} wide; this one has {adapter.width}: leave it out"
    )
  for part in ("val", "test"):
    sources = {place: toybox.source(f"{part}_{place}", f"drawn{number}") for place in ("gallery", "image_queries")}
    stores = {
      place: extract(source, encoder, folder / f"{number}/{part}/{place}", ("img",))["img"]
      for place, source in sources.items()
    }
    splits[part] = Split(folder, stores["gallery"], {"image": stores["image_queries"]})
  planted = {"image": Planted.of(splits["val"], "image")}
  return qat_jax.Adapter(adapter.width, {"image": adapter.head("image")}, adapter.info, planted), splits["test"]


def _averaged(lines: list[Any]) -> Any:
  """Returns figures that are the mean of several drawings': of those with the most frequent status."""
  if isinstance(lines[0], dict):
    statuses = [line.get("status") for line in lines]
    lines = [line for line in lines if line.get("status") == max(statuses, key=statuses.count)]
    return {key: _averaged([line[key] for line in lines]) for key in lines[0]}
  if isinstance(lines[0], str):
    return lines[0]
  return round(float(np.mean(lines)), 1) if isinstance(lines[0], float) else round(np.mean(lines))


def area(present_Q: np.ndarray, absent_Q: np.ndarray) -> float:
  """Returns the area under the ROC curve."""
  order = np.sort(absent_Q)
  below, equal = np.searchsorted(order, present_Q), np.searchsorted(order, present_Q, "right")
  return float((below + equal).mean() / 2 / len(order))


def calibration_error(probability_N: np.ndarray, right_N: np.ndarray) -> float:
  """Returns the expected calibration error: mean distance of probability and share of right ones, in bins."""
  if np.isnan(probability_N).any():
    return float("nan")
  bin_N = np.minimum((probability_N * BINS).astype(int), BINS - 1)
  gaps = [abs(probability_N[bin_N == b].mean() - right_N[bin_N == b].mean()) * (bin_N == b).mean() for b in set(bin_N)]
  return float(sum(gaps))


def percentage(flags_Q: np.ndarray) -> float:
  """Returns a share as a percentage."""
  return round(100 * float(np.mean(flags_Q)), 1)


def text_of(line: dict[str, Any]) -> str:
  """Returns the figures of one gallery as a line of text."""
  head = f"{line['queries']} queries, {line['items']:,} items, {line['status']}: "
  parts = [f"kept {line['kept']}, answered at 10 % alarms {line['answered at 10 % alarms']}"]
  for name in ("alike", "family"):
    about = ", ".join(f"{key} {value}" for key, value in line[name].items())
    parts.append(f"{name} out: {about}")
  return head + "; ".join(parts)


if __name__ == "__main__":
  main()

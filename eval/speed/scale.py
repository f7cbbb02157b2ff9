"""What the benchmarks' bookkeeping costs at full size: python -m eval.speed.scale [--items 5000000].

Two measurements on made-up data: metrics with intervals of 1,000 queries × their first 1,000, and the relevance of an
ILIAS of 1,232 image queries (its 1,000 objects, 4,715 positives) in a gallery of so many ids.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from eval.benchmarks.ilias import Ilias
from qat_jax.metrics import average_precision, bootstrap_interval, paired_interval, recall_at
from qat_jax.runs import ANEW, end_on_signals
from qat_jax.types import Relevance

OBJECTS, IMAGE_QUERIES, POSITIVES = 1000, 1232, 4715


def metrics_seconds(queries: int = 1000, k: int = 1000) -> float:
  """Returns the seconds that mAP and recall@1 of two methods, their intervals and the paired difference take."""
  rng = np.random.default_rng(0)
  rankings = [np.argsort(rng.random((queries, 10 * k)), axis=1)[:, :k] for _ in range(2)]
  relevance = Relevance([rng.choice(10 * k, 20, replace=False) for _ in range(queries)], [np.empty(0, int)] * queries)
  began = time.perf_counter()
  precisions = [average_precision(ids_QK, relevance) for ids_QK in rankings]
  for ids_QK, precision_Q in zip(rankings, precisions, strict=True):
    bootstrap_interval(precision_Q)
    bootstrap_interval(recall_at(ids_QK, relevance, 1))
  paired_interval(precisions[0], precisions[1])
  return time.perf_counter() - began


def write_ilias(root: Path, rng: np.random.Generator) -> list[str]:
  """Writes image_ids/ of a look-alike and returns its positive ids."""
  folder = root / "image_ids"
  folder.mkdir(parents=True)
  queries = [f"object_{i % OBJECTS:04d}/query/{i:05d}.jpg" for i in range(IMAGE_QUERIES)]
  texts = [f"object_{i:04d}/text/0" for i in range(OBJECTS)]
  positives = [f"object_{i % OBJECTS:04d}/pos/{i:05d}.jpg" for i in range(POSITIVES)]
  (folder / "image_query_ids.txt").write_text("\n".join(queries))
  (folder / "text_query_ids.txt").write_text("\n".join(texts))
  lines = [f"{name},{rng.random():.4f},{rng.integers(80)}" for name in positives]
  (folder / "positive_ids.txt").write_text("\n".join(lines))
  return positives


def main() -> None:
  """Prints both measurements."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--items", type=int, default=5_000_000, help="gallery ids of the ILIAS look-alike")
  items = parser.parse_args().items
  print(f"metrics and intervals, 1,000 queries x 1,000: {metrics_seconds():.2f} s")
  with tempfile.TemporaryDirectory() as root:
    positives = write_ilias(Path(root), np.random.default_rng(0))
    gallery_ids = positives + [f"distractors/{i:09d}.jpg" for i in range(items - len(positives))]
    began = time.perf_counter()
    benchmark = Ilias.open(root)
    relevance = benchmark.relevance(benchmark.image_query_ids, gallery_ids)
    seconds = time.perf_counter() - began
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(f"ILIAS of {items:,} ids, {len(relevance):,} queries: {seconds:.1f} s; the process took {most:.1f} GB at most")


if __name__ == "__main__":
  end_on_signals(ANEW)
  main()

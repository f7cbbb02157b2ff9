"""How much memory fitting, validating and mining take: python -m eval.speed.memory --rows 1000000 --width 256.

Writes a training set and a gallery of random features (half precision, two images an instance) to a temporary folder,
and runs each stage in a process of its own. Prints the most memory that each held, that of a process which has only
opened the features, and the seconds; a stage is stopped after --seconds, mining surely so: its memory does not grow.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.features.mining import mine
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.fit import discriminant, levels, linear, memory, whitening
from qat_jax.fit.training import PLAIN, Training
from qat_jax.runs import ANEW, end_on_signals
from qat_jax.types import Relevance
from qat_jax.validation import Validator

PIECE = 65536
QUERIES = 200
PAIRS = 32768


def write(folder: Path, rows: int, width: int) -> None:
  """Writes the features, `PIECE` rows at a time."""

  def pieces() -> Iterator[np.ndarray]:
    for start in range(0, rows, PIECE):
      rng = np.random.default_rng(start)
      centre_ND = np.repeat(rng.normal(size=(PIECE // 2, width)), 2, axis=0)
      yield unit(centre_ND + 0.5 * rng.normal(size=(PIECE, width)))[: rows - start].astype(np.float16)

  instances = np.arange(rows) // 2
  write_features(folder, {"img": pieces()}, {"id": np.arange(rows).astype(str), "instance": instances.astype(str)})


def opened(folder: Path) -> tuple[FeatureStore, Training]:
  """Returns the features, as a gallery and as training of image queries."""
  store = FeatureStore.open(folder)
  return store, Training("image", store, store, np.arange(len(store)) // 2)


def validator(store: FeatureStore, rows: int) -> Validator:
  """Returns a validation on the first rows of the features."""
  few = np.linspace(0, rows - 2, QUERIES).astype(int) // 2 * 2
  relevance = Relevance([np.array([row + 1]) for row in few], [np.array([row]) for row in few])
  return Validator(store[few], store if rows == len(store) else store[:rows], relevance, 0, 0)


STAGES: dict[str, Callable[[FeatureStore, Training, Validator], object]] = {
  "opened": lambda store, training, few: None,
  "LDA, both sides": lambda store, training, few: discriminant.both_sides(training, few),
  "LDA, query alone": lambda store, training, few: discriminant.query_alone(training, few, (0.1,), (0.75,)),
  "PLDA": lambda store, training, few: discriminant.probabilistic(training, few),
  "whitening": lambda store, training, few: whitening.fit(training, few),
  "neighbour residual": lambda store, training, few: memory.neighbours(training, few),
  "memory": lambda store, training, few: memory.remembering(training, few, PLAIN, PAIRS),
  "captions": lambda store, training, few: memory.captioned(training, few, PLAIN, store, PAIRS),
  "levels": lambda store, training, few: levels.levelled(training, few, PLAIN),
  "linear layer": lambda store, training, few: linear.fit(training, few),
  "validation": lambda store, training, few: validator(store, len(store)).precisions(PLAIN),
  "mining": lambda store, training, few: mine(store, training.instance),
}


def run(name: str, folder: Path) -> None:
  """Runs a stage, in a process of its own."""
  store, training = opened(folder)
  STAGES[name](store, training, validator(store, min(len(store), 10_000)))


def measure(name: str, folder: Path, seconds: float, send: Callable[[tuple[float, float, bool]], None]) -> None:
  """Sends the gigabytes that a stage held at most, the seconds, and whether it came to its end."""
  context, began = multiprocessing.get_context("spawn"), time.perf_counter()
  process = context.Process(target=run, args=(name, folder))
  process.start()
  process.join(seconds)
  whole = process.exitcode == 0
  process.kill()
  process.join()
  most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
  send((most, time.perf_counter() - began, whole))


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rows", type=int, default=100_000)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--seconds", type=float, default=600)
  parser.add_argument(
    "--stages", nargs="+", choices=STAGES, default=[name for name in STAGES if name != "linear layer"]
  )
  options = parser.parse_args()
  context = multiprocessing.get_context("spawn")
  print("| stage | GiB at most | seconds |\n|---|---|---|")
  with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "features"
    write(folder, options.rows, options.width)
    for name in options.stages:
      receiving, sending = context.Pipe(duplex=False)
      arguments = (name, folder, options.seconds, functools.partial(sending.send))
      child = context.Process(target=measure, args=arguments)
      child.start()
      most, seconds, whole = receiving.recv()
      child.join()
      print(f"| {name} | {most:.2f} | {seconds:.0f}{'' if whole else ', cut off'} |", flush=True)


if __name__ == "__main__":
  end_on_signals(ANEW)
  main()

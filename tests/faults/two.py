"""The campaign of two at once: two runs in one working folder, two writers of one adapter, a reader during a write.

One wins and the other says who has it, or both are right; what stays is what one alone would have made.
"""

import random
import shutil
import time
from collections.abc import Callable

from qat_jax.adapter import Adapter, load
from qat_jax.features.store import FeatureStore
from qat_jax.runs import explained
from tests.faults.bench import Bench, Outcome, compared
from tests.faults.jobs import STAGES, WIDTH, made
from tests.faults.victims import Child

READS = 40


def case(bench: Bench, number: int, rng: random.Random) -> Outcome:
  """Runs a stage twice at once, or reads while somebody writes."""
  which = number % (len(STAGES) + 2)
  if which < len(STAGES):
    return twice(bench, list(STAGES)[which], rng)
  return adapter_read(bench, rng) if which == len(STAGES) else gallery_read(bench, rng)


def twice(bench: Bench, name: str, rng: random.Random) -> Outcome:
  """Starts a stage, and again after a moment, in the same folder."""
  stage, reference = STAGES[name], bench.reference(name)
  folder = bench.folder(stage)
  first = Child(stage.job, folder)
  time.sleep(rng.uniform(0, 0.7) * reference.seconds)
  ends = [Child(stage.job, folder).end(), first.end()]
  wrong = next((end.unexplained for end in ends if end.unexplained), "")
  refused = [end for end in ends if end.status]
  if not wrong and (len(refused) > 1 or any("is in use by process" not in end.error for end in refused)):
    wrong = f"refused: {[end.said[-300:] for end in refused]}"
  wrong = wrong or compared(made(folder, stage), reference.made)
  shutil.rmtree(folder)
  happened = "wrong" if wrong else "one was told of the other" if refused else "both were right"
  return Outcome(f"{name}, twice", happened, wrong and f"{name} twice: {wrong}")


def adapter_read(bench: Bench, rng: random.Random) -> Outcome:
  """Loads an adapter again and again while another one is written in its place."""
  folder = bench.folder(STAGES["preparation"])

  def write() -> None:
    one = load("adapter")
    other = Adapter(WIDTH, dict(list(one.heads.items())[:1]), {"encoder": "toy", "revision": "2"})
    for number in range(READS):
      (one, other)[number % 2].save("adapter")
      time.sleep(rng.uniform(0, 0.01))

  def read() -> None:
    with explained():
      for _ in range(READS):
        adapter = load("adapter")
        known = (2, None) if adapter.info["revision"] is None else (1, "2")
        assert (len(adapter.heads), adapter.info["revision"]) == known

  return _beside("an adapter read while it is replaced", folder, write, read)


def gallery_read(bench: Bench, rng: random.Random) -> Outcome:
  """Opens a prepared gallery again and again while it is written."""
  reference, folder = bench.reference("preparation"), bench.folder(STAGES["preparation"])

  def read() -> None:
    for _ in range(READS):
      try:
        store = FeatureStore.open("prepared")
        store.verify()
      except (FileNotFoundError, ValueError) as error:
        if not any(sign in str(error) for sign in ("no folder", "is not finished", "no img_emb")):
          raise
      time.sleep(rng.uniform(0, 0.02))

  outcome = _beside("a gallery read while it is written", folder, STAGES["preparation"].job, read, keep=True)
  wrong = outcome.wrong or compared(made(folder, STAGES["preparation"]), reference.made)
  shutil.rmtree(folder)
  return outcome._replace(happened="wrong" if wrong else outcome.happened, wrong=wrong)


def _beside(
  row: str, folder: object, write: Callable[[], object], read: Callable[[], object], keep: bool = False
) -> Outcome:
  children = [Child(job, folder) for job in (write, read)]  # type: ignore[arg-type]
  ends = [child.end() for child in children]
  wrong = next((end.unexplained or end.said[-500:] for end in ends if end.status), "")
  if not keep:
    shutil.rmtree(folder)  # type: ignore[arg-type]
  return Outcome(row, "wrong" if wrong else "whole at every time", wrong and f"{row}: {wrong}")

"""The campaign of inputs: thousands of malformed ones, each read as documented or refused in one line.

A child reads a hundred of them. No traceback, no more than 10 s and 2 GB, and nothing is executed or written.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from eval import score
from eval.benchmarks import hdf5, safe_pickle
from qat_jax import cli, datasets
from qat_jax.adapter import load
from qat_jax.datasets.folder import FolderSource
from qat_jax.features import records
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import FeatureStore
from qat_jax.runs import explained
from tests.faults import corpus
from tests.faults.bench import Bench, Outcome
from tests.faults.victims import Child, outcome

BATCH, SLOW, LARGE = 100, 10, 2048.0  # cases a child; seconds and megabytes of one
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def cases(bench: Bench, numbers: list[int], seed: int) -> list[Outcome]:
  """Reads the inputs of some cases; what ends the child is the fault of the case it was at."""
  ends: list[Outcome] = []
  while len(ends) < len(numbers):
    folder = bench.scratch / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    child = Child(functools.partial(_read_all, bench, numbers[len(ends) :], seed, folder), folder)
    ended = child.end(patience=SLOW * BATCH)
    lines = folder.joinpath("ends.jsonl").read_text().splitlines() if folder.joinpath("ends.jsonl").exists() else []
    ends += [Outcome(*json.loads(line)) for line in lines]
    if len(ends) < len(numbers):
      row = list(KINDS)[numbers[len(ends)] % len(KINDS)]
      ends.append(Outcome(row, "wrong", f"case {numbers[len(ends)]}, status {ended.status}: {ended.said[-1500:]}"))
  return ends


def _read_all(bench: Bench, numbers: list[int], seed: int, folder: pathlib.Path) -> None:
  watched: dict[str, Any] = {"allowed": "", "seen": []}
  sys.addaudithook(lambda event, about: _watch(watched, event, about))
  with open(folder / "ends.jsonl", "a", buffering=1) as ends:
    for number in numbers:
      ends.write(json.dumps(_read_one(bench, number, random.Random(f"{seed}/input/{number}"), folder, watched)) + "\n")


def _watch(watched: dict[str, Any], event: str, about: tuple) -> None:
  if not watched["allowed"]:
    return
  written = event == "open" and isinstance(about[2], int) and about[2] & WRITES
  if event in FORBIDDEN:
    watched["seen"].append(f"{event} {about[:2]}")
  elif written and not os.path.abspath(os.fsdecode(about[0])).startswith((watched["allowed"], "/dev/")):
    watched["seen"].append(f"wrote {about[0]}")


def _read_one(
  bench: Bench, number: int, rng: random.Random, folder: pathlib.Path, watched: dict[str, Any]
) -> tuple[str, str, str]:
  name = list(KINDS)[number % len(KINDS)]
  here = folder / "here"
  shutil.rmtree(here, ignore_errors=True)
  here.mkdir()
  os.chdir(here)
  job = KINDS[name](bench, here, rng)
  before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
  said, began = io.StringIO(), time.monotonic()
  watched.update(allowed=str(here / "out"), seen=[])
  signal.signal(signal.SIGALRM, _too_long)
  signal.alarm(SLOW)
  signal.setitimer(signal.ITIMER_PROF, 2 * SLOW)  # ends the child where a library hears nothing
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    status = outcome(job)
  signal.alarm(0)
  signal.setitimer(signal.ITIMER_PROF, 0)
  watched["allowed"] = ""
  text, seconds = said.getvalue(), time.monotonic() - began
  errors = [line for line in text.splitlines() if line.startswith("error: ")]
  wrong = ""
  if "Traceback" in text or status not in (0, 1, 2):
    wrong = f"status {status}: {text[-900:]}"
  elif status == 1 and (len(errors) != 1 or len(text.strip().splitlines()) > 2):
    wrong = f"not one line: {text[-900:]}"
  elif watched["seen"] or (here / corpus.CANARY).exists():
    wrong = f"executed or written: {watched['seen']}"
  elif {p: p.stat().st_mtime_ns for p in here.rglob("*") if here / "out" not in (p, *p.parents)} != before:
    wrong = "the input was changed"
  elif seconds > SLOW or (held := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024) > LARGE:
    wrong = f"{seconds:.1f} s, {held if seconds <= SLOW else 0:.0f} MB"
  happened = (
    "wrong" if wrong else {0: "read as documented", 1: "refused in a line", 2: "refused with the usage"}[status]
  )
  return name, happened, wrong and f"case {number}, {wrong}"


def _too_long(*_: object) -> None:
  raise RuntimeError("it takes too long")


def _program(function: Callable[[], object]) -> Callable[[], None]:
  def job() -> None:
    with explained():
      function()

  return job


def _features(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  corpus.features(here, rng)
  kind = rng.choice((None, "img", "text"))
  return _program(lambda: FeatureStore.open(here, kind).verify())


def _metadata(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  shutil.copytree(bench.material / "flat", here / "flat")
  corpus.parquet(rng.choice(sorted((here / "flat/metadata").iterdir())), rng, 8)
  if rng.random() < 0.7:
    (here / "flat/meta.json").unlink()
  by = rng.choice(([], ["--by", "caption"], ["--by", "instance"]))
  return lambda: cli.main(["split", "flat", "out/set", *by])


def _captions(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  corpus.captions(here, rng)
  return _program(lambda: _records(FolderSource(here, instance_by_folder=rng.random() < 0.3)))


def _pictures(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  corpus.picture(here, rng)
  return _program(lambda: _records(FolderSource(here)))


def _records(source: Any) -> None:
  for position in range(len(source)):
    record = records.record(source, position, images=True)
    if not isinstance(record, datasets.UnreadableImage):
      assert record["image"].mode == "RGB" and isinstance(record["id"], str)


def _sets(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  corpus.retrieval_set(here, rng, bench.material / "set")
  return _program(lambda: RetrievalSet.open(here / "set").fingerprint)


def _released(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  corpus.released(here, rng, bench.material / "released")
  return lambda: cli.main(["convert", "released", "out"])


def _pickles(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  (here / "a.pkl").write_bytes(corpus.anything(rng))
  if rng.random() < 0.5:
    return _program(lambda: safe_pickle.read_pickle(here / "a.pkl"))
  corpus.npy(here / "ranks.npy", rng)
  return lambda: score.main(["--benchmark", "roxford5k", "--gnd", "a.pkl", "--ranks", "ranks.npy"])


def _hdf5(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  corpus.hdf5(here / "a.h5", rng)
  return _program(lambda: hdf5.Hdf5Features(here / "a.h5")[:])


def _csv(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  corpus.csv(here / "solution.csv", rng, ("id", "images", "Usage"))
  corpus.csv(here / "predictions.csv", rng, ("id", "images"))
  return lambda: score.main(["--benchmark", "gldv2", "--solution", "solution.csv", "--predictions", "predictions.csv"])


def _adapters(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  shutil.copytree(bench.material / "adapter", here / "adapter")
  about = json.loads((here / "adapter/adapter.json").read_text())
  del about["checksum"]
  if rng.random() < 0.5:
    head = rng.choice(sorted(about["heads"]))
    about["heads"][head][rng.choice(("form", "settings", "variables"))] = rng.choice(corpus.VALUES)
  (here / "adapter/adapter.json").write_bytes(corpus.document(rng, about))
  return _program(lambda: load(here / "adapter"))


def _command_lines(bench: Bench, here: pathlib.Path, rng: random.Random) -> Callable[[], None]:
  for name in ("set", "adapter", "flat", "pictures"):
    (here / name).symlink_to(bench.material / name)
  places = [
    "set",
    "set/test/gallery",
    "set/test/image_queries",
    "adapter",
    "flat",
    "nowhere",
    "",
    "pictures",
    "hf://x",
    "/dev/null",
  ]
  flags = {
    "rank": ("adapter", "queries", "gallery", "shortlist", "k", "query-type", "block", "out"),
    "export": ("license", "format", "queries"),
    "convert": ("dtype", "revision"),
    "split": ("by", "val", "test", "seed"),
    "extract": ("encoder", "batch-size"),
  }
  command = rng.choice(list(flags))
  given = (
    [] if command == "rank" else [rng.choice(places), rng.choice(("out", "out/a", "", "set"))][: rng.randint(1, 2)]
  )
  for name in flags[command]:
    if rng.random() < (0.9 if command == "rank" else 0.4):
      value = rng.choice([*places, *map(str, (0, -1, 3, 10**20, 0.5, "nan", "text", "toy_clip")), *corpus.ODD[:9]])
      given += [f"--{name}", "out/r.parquet" if name == "out" and rng.random() < 0.8 else value.replace("\0", "")]
  return lambda: cli.main([command, *(word.replace("\0", "") for word in given)])


KINDS: dict[str, Callable[[Bench, pathlib.Path, random.Random], Callable[[], None]]] = {
  "features": _features,
  "metadata": _metadata,
  "captions": _captions,
  "pictures": _pictures,
  "retrieval sets": _sets,
  "released checkpoints": _released,
  "pickles": _pickles,
  "HDF5": _hdf5,
  "CSV": _csv,
  "adapters": _adapters,
  "command lines": _command_lines,
}

"""The campaign of disks: full at random moments, read-only, and files that are damaged on it.

A stage that finds no room ends in one line, and with room again it goes on to what an undisturbed run makes. A file
that is cut short or has bytes changed is found and named, or harms nothing: never another result.
"""

import contextlib
import os
import pathlib
import random
import shutil
import subprocess
from collections.abc import Iterator

from tests.faults.bench import Bench, Outcome, compared, files, half_files
from tests.faults.jobs import ASIDE, STAGES, made
from tests.faults.victims import Fault

WAYS = ("damage",) * 7 + ("full", "no room at a file", "a limit of files")
PAGE = 4096
UNSIGNED = ("pictures/", "released/config.yml")  # of others, and without a checksum


def case(bench: Bench, number: int, rng: random.Random) -> Outcome:
  """Fills a disk, makes it read-only, or damages a file of what a stage reads."""
  name, way = list(STAGES)[number % len(STAGES)], WAYS[number // len(STAGES) % len(WAYS)]
  if way == "damage":
    return damaged(bench, name, rng)
  return read_only(bench, name) if number % 37 == 36 else full(bench, name, way, rng)


def full(bench: Bench, name: str, way: str, rng: random.Random) -> Outcome:
  """Runs a stage where there is too little room, and again where there is enough."""
  stage, reference, folder = STAGES[name], bench.reference(name), bench.scratch / "disk"
  with contextlib.ExitStack() as mounted:
    fault, row = Fault(), "a full disk"
    if way == "full":
      mounted.enter_context(tmpfs(folder))
      bench.folder(stage, folder)
      room(folder, int(rng.uniform(0, 1.3) * reference.size))
    else:
      folder.mkdir()
      mounted.callback(shutil.rmtree, folder)
      bench.folder(stage, folder)
      row = "no room from a file on" if way == "no room at a file" else "a limit of a file's size"
      fault = Fault(event=rng.randint(1, max(reference.events, 1)), refused=True)
      if way == "a limit of files":
        fault = Fault(file_limit=rng.randint(1, reference.largest))
    ended = bench.run(stage.job, folder, fault)
    wrong = ended.unexplained or half_files(made(folder, stage), reference.made)
    happened = "named, then gone on with" if ended.status else "there was room enough"
    if not wrong and ended.status not in (0, 1):
      wrong = f"status {ended.status}: {ended.said[-800:]}"
    if not wrong:
      if way == "full":
        room(folder, 1 << 30)
      ended = bench.run(stage.job, folder)
      wrong = f"with room, status {ended.status}: {ended.said[-1000:]}" if ended.status else ""
      wrong = wrong or compared(made(folder, stage), reference.made)
    return Outcome(row, "wrong" if wrong else happened, wrong and f"{name}, {way}, {fault}: {wrong}")


def read_only(bench: Bench, name: str) -> Outcome:
  """Runs a stage on a disk that cannot be written."""
  stage, folder = STAGES[name], bench.scratch / "disk"
  with tmpfs(folder):
    bench.folder(stage, folder)
    remounted(folder, "ro")
    ended = bench.run(stage.job, folder)
  wrong = ended.unexplained or ("" if ended.status == 1 else f"status {ended.status}")
  return Outcome("a read-only disk", "wrong" if wrong else "named", wrong and f"{name}, read-only: {wrong}")


def damaged(bench: Bench, name: str, rng: random.Random) -> Outcome:
  """Damages one file of what a stage reads, or of what it has made or half made, and runs it."""
  stage, reference, folder = STAGES[name], bench.reference(name), bench.folder(STAGES[name])
  if rng.random() < 0.5:  # what an earlier run left, whole or not, is read too
    fault = Fault(event=rng.randint(1, max(reference.events, 1))) if rng.random() < 0.6 else Fault()
    bench.run(stage.job, folder, fault)
  paths = [path for path in files(folder) if path.stat().st_size and path.name not in (".lock", "README.md")]
  paths = [path for path in paths if "tensorboard" not in path.parts]
  path = rng.choice(paths)
  about = hurt(path, rng)
  place = path.relative_to(folder).as_posix()
  ended = bench.run(stage.job, folder)
  wrong = ended.unexplained
  kind = kind_of(pathlib.PurePosixPath(place))
  happened = "named"
  if not wrong and ended.status == 0:
    happened = "harmless"
    result = made(folder, stage)
    result.pop(place, None)  # what nobody reads again stays as it is
    wanted = {name: value for name, value in reference.made.items() if name != place}
    wrong = compared(result, wanted)
    if wrong and place.startswith(UNSIGNED):
      wrong, happened = "", "read as it is: nothing tells what it was"
  elif not wrong and "was made with other inputs" in ended.said:
    happened = "named as another input"
  elif not wrong and not any(part in ended.said for part in names_of(place)):
    wrong = f"the line does not name it: {ended.error}"
  shutil.rmtree(folder)
  return Outcome(f"damaged: {kind}", "wrong" if wrong else happened, wrong and f"{name}, {place} {about}: {wrong}")


def hurt(path: pathlib.Path, rng: random.Random) -> str:
  """Cuts a file short, changes some of its bytes, or zeroes a part; returns which, in words."""
  data, way = bytearray(path.read_bytes()), rng.choice(("cut", "flip", "flip", "flip", "bytes", "zeros"))
  if way == "cut":
    keep = rng.randrange(len(data))
    path.write_bytes(data[:keep])
    return f"cut to {keep} of {len(data)} bytes"
  places = sorted({rng.randrange(len(data)) for _ in range(1 if way == "flip" else rng.randint(1, 8))})
  before = bytes(data)
  for place in places:
    if way == "flip":
      data[place] ^= 1 << rng.randrange(8)
    elif way == "bytes":
      data[place] = rng.randrange(256)
    else:
      data[place : place + 64] = bytes(len(data[place : place + 64]))
  if data == before:
    data[places[0]] ^= 1
  path.write_bytes(data)
  return f"with {way} at {places[:8]}"


def names_of(place: str) -> list[str]:
  """Returns what an error may call a file: its name, or a folder or the set that it is in."""
  path = pathlib.PurePosixPath(place)
  return [path.name, *(str(parent) for parent in path.parents if str(parent) != ".")]


def kind_of(place: pathlib.PurePosixPath) -> str:
  """Returns what a file is to the table."""
  if place.parts[0] == "pictures":
    return "pictures and captions"
  if "checkpoints" in place.parts:
    return "checkpoints"
  if place.parts[0] == "released":
    return "released checkpoints"
  if place.parts[0] in ("prepared", "ranking.parquet.gallery"):
    return "prepared galleries"
  if any(part in ASIDE or part.endswith(".parts") for part in place.parts):
    return "work in progress"
  if place.name in ("adapter.json", "validation.npy", "made_from.json") or place.name.startswith("params-"):
    return "adapters and candidates"
  if "eval" in place.parts or place.name == "semi_positives.npz":
    return "kept results"
  ending = {".npy": "features", ".parquet": "metadata", ".json": "meta.json and other JSON"}
  return ending.get(place.suffix, "other")


@contextlib.contextmanager
def tmpfs(folder: pathlib.Path) -> Iterator[None]:
  """Mounts a small disk in memory; without the right to, a limit of a file's size has to do."""
  folder.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", folder], check=True, capture_output=True)
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


def room(folder: pathlib.Path, free: int) -> None:
  """Leaves so many bytes, in whole pages, beside what a small disk holds."""
  about = os.statvfs(folder)
  held = (about.f_blocks - about.f_bfree) * about.f_frsize
  remounted(folder, f"size={held + free // PAGE * PAGE}")


def remounted(folder: pathlib.Path, options: str) -> None:
  """Mounts a small disk with other options."""
  subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

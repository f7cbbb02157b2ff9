"""What ranking a memory-mapped gallery takes: python -m eval.speed.streaming --items 1000000 --width 512.

Writes random fp16 features to a temporary file, and ranks them once plainly and once adapted, each in a process of its
own, so that the memory seen is that way's. Several times in turn; the table gives the fastest run of each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from qat_jax.runs import ANEW, end_on_signals

WRITE_ROWS = 65536


def write_gallery(path: Path, items: int, width: int) -> None:
  """Writes random unit rows, fp16."""
  gallery_ND = np.lib.format.open_memmap(path, "w+", np.float16, (items, width))
  rng = np.random.default_rng(0)
  for start in range(0, items, WRITE_ROWS):
    part_ND = rng.standard_normal((min(WRITE_ROWS, items - start), width), np.float32)
    gallery_ND[start : start + len(part_ND)] = part_ND / np.linalg.norm(part_ND, axis=1, keepdims=True)


def run(path: str, form: str, queries: int, rank_R: int, repeats: int) -> dict:
  """Returns the seconds of each run, and by how much this process grew: by compiling, and then while it ran."""
  import psutil

  from eval.speed.ways import make_adaptation
  from qat_jax.adaptation import plain
  from qat_jax.search.rank import rank

  gallery_ND = np.load(path, mmap_mode="r")
  adaptation = make_adaptation(queries, gallery_ND.shape[1], rank_R, 0.5 * 0.7 ** np.arange(rank_R))
  if form == "plain":
    adaptation = plain(adaptation.query)
  empty = psutil.Process().memory_info().rss
  rank(adaptation, gallery_ND[: 1 << 14], 100)  # compiles all that follows
  compiled = psutil.Process().memory_info().rss
  most, seconds = compiled, []
  done = threading.Event()

  def watch() -> None:
    nonlocal most
    while not done.wait(0.002):
      most = max(most, psutil.Process().memory_info().rss)

  watcher = threading.Thread(target=watch)
  watcher.start()
  for _ in range(repeats):
    begin = time.perf_counter()
    rank(adaptation, gallery_ND, 100)
    seconds.append(time.perf_counter() - begin)
  done.set()
  watcher.join()
  return {
    "name": f"streamed_{form}",
    "seconds": seconds,
    "grown_mb": (most - compiled) / 1e6,
    "compiling_mb": (compiled - empty) / 1e6,
  }


def command_line() -> argparse.Namespace:
  """Returns what the command line asks for."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--items", type=int, default=1_000_000, help="gallery items N")
  parser.add_argument("--width", type=int, default=512, help="width D of features")
  parser.add_argument("--rank", type=int, default=64, help="rank R of the map")
  parser.add_argument("--queries", type=int, default=8, help="queries Q a batch")
  parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
  parser.add_argument("--folder", help="where to put the file, N × D × 2 bytes; the system's by default")
  parser.add_argument("--json", help="file to write the rows to")
  return parser.parse_args()


def main() -> None:
  """Measures, prints the table, writes the rows."""
  options = command_line()
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    path = str(Path(folder) / "gallery.npy")
    write_gallery(Path(path), options.items, options.width)
    found: dict[str, list[dict]] = {"plain": [], "adapted": []}
    for _ in range(options.repeats):
      for form, results in found.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
          results.append(pool.apply(run, (path, form, options.queries, options.rank, 3)))
  rows = []
  plain_seconds = min(min(result["seconds"]) for result in found["plain"])
  for results in found.values():
    best = min(min(result["seconds"]) for result in results)
    grown = max(result["grown_mb"] for result in results)
    compiling = max(result["compiling_mb"] for result in results)
    rows.append({"name": results[0]["name"], "seconds": best, "times_plain": best / plain_seconds})
    rows[-1] |= {"grown_mb": grown, "compiling_mb": compiling}
    print(
      f"{rows[-1]['name']}: {best:.2f} s, {best / plain_seconds:.2f} times plain, "
      f"{grown:.0f} MB grown (and {compiling:.0f} MB by compiling)"
    )
  if options.json:
    Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  end_on_signals(ANEW)
  main()

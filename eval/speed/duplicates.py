"""How long the search for near-duplicates takes: python -m eval.speed.duplicates --items 1000000.

Items in half precision lie in loose clusters of five within a cone, and so hardly cluster; or at random. Copies of some
are planted with a little noise. Prints seconds by the clock and of the cores, and how many copies were found.
"""

import time
from collections.abc import Sequence

import numpy as np

from eval import commands
from qat_jax.duplicates import pairs
from qat_jax.runs import ANEW

COPIES = 500
BLOCK = 50_000  # items that are drawn at once
LOOSE, NOISE = 0.7, 0.01  # beside a cluster's centre of length 1; of a copy, a dimension


def with_copies(items: int, width: int, spread: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns unit items (ND, float16), and which are copies of which (2 × COPIES)."""
  rng = np.random.default_rng(0)
  item_ND, centre_CD = np.empty((items, width), np.float16), rng.standard_normal((max(1, items // 5), width))
  cone_D, scale_D = LOOSE * rng.standard_normal(width), np.linspace(1.6, 0.5, width)
  for start in range(0, items, BLOCK):
    count = min(BLOCK, items - start)
    row_BD = rng.standard_normal((count, width))
    if not spread:
      row_BD = (centre_CD[rng.integers(0, len(centre_CD), count)] + LOOSE * row_BD) * scale_D + cone_D
    item_ND[start : start + count] = row_BD / np.linalg.norm(row_BD, axis=1, keepdims=True)
  planted = rng.choice(items, 2 * COPIES, replace=False).reshape(2, COPIES)
  item_ND[planted[1]] = item_ND[planted[0]] + NOISE * rng.standard_normal((COPIES, width))
  return item_ND, planted


def main(arguments: Sequence[str] | None = None) -> None:
  """Draws, searches, prints."""
  parser = commands.parser("eval.speed.duplicates", __doc__, "--json")
  parser.add_argument("--items", type=int, default=100_000)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--spread", action="store_true", help="at random, in no clusters")
  with commands.started(parser, arguments, ANEW) as flags:
    if flags.items < 2 * COPIES:
      raise ValueError(f"--items is {flags.items}; wanted at least {2 * COPIES}, for the copies")
    item_ND, planted = with_copies(flags.items, flags.width, flags.spread)
    start, cores = time.perf_counter(), time.process_time()
    found = pairs(item_ND)
    seconds, of_cores = time.perf_counter() - start, time.process_time() - cores
    there = {*zip(found.first.tolist(), found.second.tolist(), strict=True)}
    copies = len(there & {*map(tuple, np.sort(planted, axis=0).T.tolist())})
    print(f"{flags.items:,} x {flags.width}: {seconds:.1f} s, {of_cores:.1f} s of the cores", end="; ")
    print(f"{len(there):,} pairs, {copies} of {COPIES} planted copies")
    commands.write_figures(flags.json, {"seconds": seconds, "cores": of_cores, "pairs": len(there), "copies": copies})


if __name__ == "__main__":
  main()

"""What parts cost offline and at search, as ratios in one run:  python -m eval.speed.preparing [--items 65536]

Preparing a gallery with captions and levels, against one exact ranking of the same size: the pairs as queries, the top
16 of each. Then a ranking of the prepared items against a plain one of the same width.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.adapter import Adapter
from qat_jax.models.head import Head
from qat_jax.models.memory import NEAREST
from qat_jax.runs import ANEW, end_on_signals

QUERIES = 64
Result = TypeVar("Result")


def head_with_parts(width: int, pairs: int, queries: int) -> Head:
  """Returns a plain head with random memory, captions and levels, whose numbers are those of a trained one."""
  rng = np.random.default_rng(0)
  half = lambda rows, wide: unit(rng.standard_normal((rows, wide), np.float32), np.float32).astype(np.float16)
  numbers = {"temperature": 0.02, "scale": 1.0, "weight": 0.5, "share": 0.4, "item_temperature": 0.035}
  memory: dict[str, np.ndarray | np.float32] = {name: np.float32(number) for name, number in numbers.items()}
  memory |= {"queries": half(pairs, width), "images": half(pairs, width), "mean": np.zeros(width, np.float32)}
  inner = {"form": "plain", "settings": {}, "pairs": pairs, "captions": "text"}
  levels = {"folded": half(queries, 2 * width), "weight": np.float32(0.5), "centre": np.float32(0.3)}
  settings = {"form": "remembering", "settings": inner, "queries": queries, "items": 2 * width, "nearest": NEAREST}
  return Head("levelled", settings, {"params": {}, "constants": {"head": memory, **levels}})


def timed(work: Callable[[], Result], rounds: int) -> tuple[float, Result]:
  """Returns the least time of several calls, after one that compiles, and what they return; of that one if 0."""
  times = []
  for _ in range(1 + rounds):
    began = time.perf_counter()
    made = jax.block_until_ready(work())
    times.append(time.perf_counter() - began)
  return min(times[1:] or times), made


def main() -> None:
  """Prints the times and their ratios."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  for name, default in (("items", 65536), ("width", 512), ("pairs", 32768), ("queries", 8000), ("rounds", 2)):
    parser.add_argument(f"--{name}", type=int, default=default)
  options = parser.parse_args()
  rng = np.random.default_rng(1)
  rows = lambda count: unit(rng.standard_normal((count, options.width), np.float32), np.float32)
  gallery = jax.numpy.asarray(rows(options.items))
  adapter = Adapter(options.width, {"text": head_with_parts(options.width, options.pairs, options.queries)})
  asked = rows(options.pairs)
  prepare, prepared = timed(lambda: adapter.prepare(gallery), options.rounds)
  pairs = qat_jax.plain(jax.numpy.asarray(asked))
  ranking, _ = timed(lambda: qat_jax.rank(pairs, gallery, NEAREST).ids, min(options.rounds, 1))
  what = f"{options.items:,} × {options.width}, {options.pairs:,} pairs, {options.queries:,} queries"
  print(f"preparing {what}: {prepare:.1f} s; exact ranking: {ranking:.1f} s; ratio {prepare / ranking:.2f}")
  few = adapter(rows(QUERIES))
  wide = jax.numpy.asarray(unit(rng.standard_normal(prepared.shape, np.float32), np.float32))
  bare = qat_jax.plain(jax.numpy.asarray(unit(rng.standard_normal((QUERIES, prepared.shape[1])), np.float32)))
  each = 1e9 / QUERIES / options.items
  ours = timed(lambda: qat_jax.rank(few, prepared, 100).ids, 5)[0] * each
  plain = timed(lambda: qat_jax.rank(bare, wide, 100).ids, 5)[0] * each
  print(
    f"ranking prepared items: {ours:.1f} ns a query and item; plain ones as wide: {plain:.1f}; ratio {ours / plain:.2f}"
  )


if __name__ == "__main__":
  end_on_signals(ANEW)
  main()

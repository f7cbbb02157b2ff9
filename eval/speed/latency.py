"""How long the ways to rank a gallery take: python -m eval.latency --items 100000 --width 512 --rank 64 --queries 8.

All ways run in turn, several times over, so that a busy machine slows all of them alike; the table gives the fastest
run of each. Prints the table, writes the rows to --json; --growth measures how the time grows, and draws it.
--hypernetwork measures the networks that make the maps instead: python -m eval.latency --hypernetwork --queries 16.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from absl import app, flags

import qat_jax
from eval.speed import hypernetwork as latency_hypernetwork
from eval.speed.ways import Way, library_ways, make_adaptation, make_gallery, ways
from qat_jax.runs import ANEW, end_on_signals

ITEMS = flags.DEFINE_integer("items", 100_000, "gallery items N")
WIDTH = flags.DEFINE_integer("width", 512, "width D of features")
RANK = flags.DEFINE_integer("rank", 64, "rank R of the map")
QUERIES = flags.DEFINE_integer("queries", 8, "queries Q a batch")
K = flags.DEFINE_integer("k", 100, "items wanted")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "of the gallery")
STRENGTH = flags.DEFINE_float("strength", 0.5, "the map's largest singular value beyond I")
DECAY = flags.DEFINE_float("decay", 0.7, "each singular value over the one before; 1 is a flat spectrum")
ADAPTER = flags.DEFINE_string("adapter", None, "a trained adapter, in place of a random map")
DEVICE = flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "where to run")
REPEATS = flags.DEFINE_integer("repeats", 7, "runs of each way; a way of more than a second runs twice")
ONLY = flags.DEFINE_list("only", None, "names of ways; all by default")
JSON = flags.DEFINE_string("json", None, "file to write the rows to")
HYPERNETWORK = flags.DEFINE_bool("hypernetwork", False, "measure the networks that make the maps, and no gallery")
GROWTH = flags.DEFINE_string("growth", None, "PNG file: measure N = 10k to 10M (up to --items) and Q = 1, 8, 64")
FEWEST = flags.DEFINE_integer("fewest", 10_000, "the least N of --growth")

OLD_NAMES = {"two_pass": "rank"}  # of rows, by which scripts and earlier files of --json know them


def measure(named: dict[str, Way], repeats: int) -> dict[str, list[float]]:
  """Returns the seconds of each run, after one that is not counted; all ways in turn, `repeats` times."""
  seconds: dict[str, list[float]] = {name: [] for name in named}
  for turn in range(repeats + 1):
    for name, way in named.items():
      if turn > 2 and seconds[name][-1] > 1:
        continue
      begin = time.perf_counter()
      way.run()
      if turn:
        seconds[name].append(time.perf_counter() - begin)
  return seconds


def peak_memory(run: Callable[[], object]) -> float:
  """Returns by how many MB the process grew at most while `run` ran (looked at every millisecond)."""
  process, done = psutil.Process(), threading.Event()
  before = process.memory_info().rss
  most = [before]

  def watch() -> None:
    while not done.wait(0.001):
      most[0] = max(most[0], process.memory_info().rss)

  watcher = threading.Thread(target=watch)
  watcher.start()
  run()
  done.set()
  watcher.join()
  return (most[0] - before) / 1e6


def limits() -> dict[str, Way]:
  """Returns two ways that show what the machine can do: a copy of 0.5 GB, and a product of square matrices."""
  side = 2048 if jax.default_backend() == "cpu" else 8192
  big, square = jnp.ones(1 << 26), jnp.ones((side, side))
  copy, product = jax.jit(lambda x: x + 1), jax.jit(lambda x: x @ x)
  return {
    "copy": Way(lambda: jax.block_until_ready(copy(big)), 0, 2 * big.nbytes, 0),
    "product": Way(lambda: jax.block_until_ready(product(square)), 0, 0, 2 * side**3),
  }


def compare(queries: int, items: int, named: dict[str, Way], repeats: int) -> list[dict]:
  """Returns a row for each way: times, ratios, memory, and the fraction of what the machine could do."""
  most = limits()
  seconds = measure(named | most, repeats)
  bandwidth = most["copy"].bytes_moved / min(seconds["copy"])
  flop_rate = most["product"].flops / min(seconds["product"])
  rows = []
  for name, way in named.items():
    best = min(seconds[name])
    least = max(way.bytes_moved / bandwidth, way.flops / flop_rate)
    row = {
      "name": name,
      "ns_per_query_item": 1e9 * best / (queries * way.items),
      "ms_per_query": 1e3 * best / queries,
      "median_ms_per_query": 1e3 * float(np.median(seconds[name])) / queries,
    }
    for other in ("dense", "dense_blocks", "plain"):
      row[f"times_{other}"] = best / min(seconds[other]) if other in seconds else None
    row |= {"peak_mb": peak_memory(way.run), "roofline": least / best, "queries": queries, "items": items}
    row |= {"gflop": way.flops / 1e9, "copy_gb_s": bandwidth / 1e9, "product_gflop_s": flop_rate / 1e9}
    rows.append(row)
  return rows


def table(rows: list[dict], missing: dict[str, str]) -> str:
  """Returns the rows as a Markdown table."""
  lines = [
    "| way | N | Q | ns per query and item | ms a query | times dense | times plain | peak MB | of the roofline |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    ratios = [f"{row[name]:.3g}" if row[name] is not None else "–" for name in ("times_dense", "times_plain")]
    lines.append(
      f"| {row['name']} | {row['items']} | {row['queries']} | {row['ns_per_query_item']:.1f} | "
      f"{row['ms_per_query']:.2f} | {' | '.join(ratios)} | {row['peak_mb']:.0f} | {row['roofline']:.0%} |"
    )
  return "\n".join([*lines, *(f"| {name} | {reason} | | | | | | | |" for name, reason in missing.items())])


def growth(path: str, largest: int, width: int, adapt: Callable[[int], qat_jax.Adaptation]) -> list[dict]:
  """Measures plain and adapted search over N and Q, draws them with fitted exponents to `path`, returns the rows."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  rows = []
  for items in [n for n in (10_000, 100_000, 1_000_000, 10_000_000) if FEWEST.value <= n <= largest]:
    gallery_ND = make_gallery(items, width, DTYPE.value)
    for queries in (1, 8, 64):
      named = ways(adapt(queries), gallery_ND, K.value)
      some = {name: way for name, way in named.items() if name in ("rank", "plain") and isinstance(way, Way)}
      rows += compare(queries, items, some, 3)
  figure, axes = plt.subplots(figsize=(6, 4))
  for name, line in (("rank", "-"), ("plain", "--")):
    for queries, colour in zip((1, 8, 64), ("C0", "C1", "C2"), strict=True):
      chosen = [row for row in rows if (row["name"], row["queries"]) == (name, queries)]
      n = [row["items"] for row in chosen]
      ms = [row["ms_per_query"] * queries for row in chosen]
      exponent = np.polyfit(np.log(n), np.log(ms), 1)[0]
      axes.loglog(n, ms, line, color=colour, marker="o", label=f"{name}, Q = {queries}: N^{exponent:.2f}")
  axes.set(xlabel="gallery items", ylabel="ms a batch")
  axes.legend(fontsize="small")
  figure.savefig(path, dpi=150, bbox_inches="tight")
  return rows


def main(_: list[str]) -> None:
  """Measures what the flags ask for, prints the table, and writes the JSON."""
  if DEVICE.value:
    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(DEVICE.value, DEVICE.value))
  if HYPERNETWORK.value:
    rows = compare(QUERIES.value, 1, latency_hypernetwork.ways(QUERIES.value), REPEATS.value)
    print(f"{jax.devices()[0].device_kind} ({psutil.cpu_count()} CPU cores), jax {jax.__version__}")
    print(latency_hypernetwork.table(rows))
    if JSON.value:
      Path(JSON.value).write_text(json.dumps(rows, indent=2) + "\n")
    return
  adapter = None if ADAPTER.value is None else qat_jax.load(ADAPTER.value)
  width = WIDTH.value if adapter is None else adapter.width
  strengths_R = STRENGTH.value * DECAY.value ** np.arange(RANK.value)

  def adapt(queries: int) -> qat_jax.Adaptation:
    random = make_adaptation(queries, width, RANK.value, strengths_R)
    if adapter is None:
      return random
    return adapter(random.query, "text" if "text" in adapter.heads else "image").replace(space="frozen")

  if GROWTH.value:
    rows, missing = growth(GROWTH.value, ITEMS.value, width, adapt), {}
  else:
    gallery_ND, adaptation = make_gallery(ITEMS.value, width, DTYPE.value), adapt(QUERIES.value)
    named = ways(adaptation, gallery_ND, K.value)
    wanted = {OLD_NAMES.get(name, name) for name in ONLY.value or []}
    if not wanted or not wanted <= set(named):
      named |= library_ways(adaptation, gallery_ND, K.value)
    named = {name: way for name, way in named.items() if not wanted or name in wanted}
    missing = {name: way for name, way in named.items() if isinstance(way, str)}
    rows = compare(QUERIES.value, ITEMS.value, {n: w for n, w in named.items() if isinstance(w, Way)}, REPEATS.value)
  device = jax.devices()[0]
  about = {
    "device": f"{device.device_kind} ({psutil.cpu_count()} CPU cores)",
    "machine": platform.machine(),
    "jax": jax.__version__,
    **{"width": width, "rank": RANK.value, "k": K.value, "dtype": DTYPE.value},
    **{"strength": STRENGTH.value, "decay": DECAY.value, "adapter": ADAPTER.value},
  }
  print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
  print(f"copy {rows[0]['copy_gb_s']:.1f} GB/s, product {rows[0]['product_gflop_s']:.0f} GFLOP/s (float32)")
  print(table(rows, missing))
  if JSON.value:
    rows += [{**row, "name": old} for old, new in OLD_NAMES.items() for row in rows if row["name"] == new]
    Path(JSON.value).write_text(json.dumps([{**row, **about} for row in rows], indent=2) + "\n")


if __name__ == "__main__":
  end_on_signals(ANEW)
  app.run(main)

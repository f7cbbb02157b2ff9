"""How long search takes: python -m eval.speed.search --items 100000 --width 512 --rank 64 --queries 8.

Times exact adapted search beside JAX's plain product and top k, FAISS, and the map applied to every item, all in turn.
--growth measures plain and adapted search over sizes and numbers of queries, and draws them. --streamed measures a
gallery that lies on disk. --hypernetwork measures the networks that make the maps. --profile FOLDER records one run of
each way for TensorBoard or Perfetto.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

import qat_jax
from eval import commands
from eval.markdown import markdown
from eval.speed import ways
from eval.speed.tools import make_adaptation, make_gallery, random_chunks, seconds_in_turn, watched_memory
from eval.speed.ways import SearchWay
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.runs import ANEW
from qat_jax.search.coarse import SWITCH, Trial
from qat_jax.types import Adaptation

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
BATCHES = (1, 8, 64)


def limits() -> dict[str, SearchWay]:
  """Returns two ways that show what the machine can do: a copy of 0.5 GB, and a product of square matrices."""
  side = 2048 if jax.default_backend() == "cpu" else 8192
  big, square = jnp.ones(1 << 26), jnp.ones((side, side))
  copy, product = jax.jit(lambda x: x + 1), jax.jit(lambda x: x @ x)
  return {
    "copy": SearchWay(lambda: copy(big), 0, 2 * big.nbytes, 0),
    "product": SearchWay(lambda: product(square), 0, 0, 2 * side**3),
  }


def compare(queries: int, items: int, named: dict[str, SearchWay], repeats: int) -> list[dict[str, Any]]:
  """Returns a row for each way: times, ratios, memory, and the fraction of what the machine could do."""
  most = limits()
  seconds = seconds_in_turn({name: way.run for name, way in (named | most).items()}, repeats)
  bandwidth = most["copy"].bytes_moved / min(seconds["copy"])
  flop_rate = most["product"].flops / min(seconds["product"])
  rows = []
  for name, way in named.items():
    best = min(seconds[name])
    with watched_memory(0.001) as held:
      way.run()
    row: dict[str, Any] = {"name": name, "queries": queries, "items": items}
    row |= {"ms_per_query": 1e3 * best / queries, "ns_per_query_item": 1e9 * best / (queries * way.items)}
    row |= {"median_ms_per_query": 1e3 * float(np.median(seconds[name])) / queries}
    row |= {f"times_{other}": best / min(seconds[other]) for other in ("dense", "plain") if other in seconds}
    row |= {"peak_mb": max(held) - held[0], "gflop": way.flops / 1e9}
    row |= {"roofline": max(way.bytes_moved / bandwidth, way.flops / flop_rate) / best}
    rows.append(row | {"copy_gb_s": bandwidth / 1e9, "product_gflop_s": flop_rate / 1e9})
  return rows


def way_table(rows: list[dict[str, Any]], missing: dict[str, str]) -> str:
  """Returns the rows as a Markdown table, with the reason for each way that was not run."""
  head = ["way", "N", "Q", "ns per query and item", "ms a query", "times dense", "times plain", "peak MB"]
  head += ["GFLOP/s", "of the roofline"]
  lines = [
    [
      *(row["name"], f"{row['items']}", f"{row['queries']}"),
      *(f"{row['ns_per_query_item']:.1f}", f"{row['ms_per_query']:.2f}"),
      *(f"{row[name]:.3g}" if name in row else "–" for name in ("times_dense", "times_plain")),
      f"{row['peak_mb']:.0f}",
      f"{row['gflop'] / (row['ms_per_query'] * row['queries'] / 1e3):.1f}",
      f"{row['roofline']:.0%}",
    ]
    for row in rows
  ]
  return markdown(head, lines + [[name, reason, *[""] * (len(head) - 2)] for name, reason in missing.items()])


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
  """Measures plain and adapted search over N and Q, draws them with fitted exponents, and returns the rows."""
  from matplotlib.figure import Figure

  rows = []
  for items in [size for size in SIZES if options.fewest <= size <= options.items]:
    gallery_ND = make_gallery(items, options.width, options.dtype)
    for queries in BATCHES:
      named = ways.ways(adaptation_of(options, queries), gallery_ND, options.k)
      some = {name: way for name, way in named.items() if name in ("rank", "plain") and isinstance(way, SearchWay)}
      rows += compare(queries, items, some, 3)
  axes = (figure := Figure(figsize=(6, 4))).add_subplot()
  for name, line in (("rank", "-"), ("plain", "--")):
    for place, queries in enumerate(BATCHES):
      points = [row for row in rows if (row["name"], row["queries"]) == (name, queries)]
      items_N, ms_N = (np.array([row[key] for row in points], float) for key in ("items", "ms_per_query"))
      power = f"N^{np.polyfit(np.log(items_N), np.log(ms_N), 1)[0]:.2f}" if len(points) > 1 else "one size"
      axes.loglog(items_N, ms_N * queries, line, color=f"C{place}", marker="o", label=f"{name}, Q = {queries}: {power}")
  axes.set(xlabel="gallery items", ylabel="ms a batch")
  axes.legend(fontsize="small")
  figure.savefig(options.growth, dpi=150, bbox_inches="tight")
  return rows


def streamed(options: argparse.Namespace) -> list[dict[str, Any]]:
  """Returns a row for plain and for adapted search of float16 features on disk, each in a process of its own.

  Those in 8 bits read the copy beside the features first.
  """
  forms = [f"streamed_{form}{copy}" for form in ("plain", "adapted") for copy in ("", "_8_bits")]
  runs: dict[str, list[dict[str, Any]]] = {form: [] for form in forms}
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    path = Path(folder) / "gallery"
    halves = (part_ND.astype(np.float16) for part_ND in random_chunks(options.items, options.width))
    store = write_features(path, {"img": halves}, {"id": [str(i) for i in range(options.items)]})
    for _ in range(2):  # the first time compiles
      start = time.perf_counter()
      store.write_eight_bits()
    size = sum(file.stat().st_size for file in path.glob("*/*.int8"))
    print(f"an 8-bit copy of {size / 1e6:.0f} MB in {time.perf_counter() - start:.2f} s")
    for _ in range(options.repeats):
      for form, rows in runs.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
          rows.append(pool.apply(stream, (path, form, options)))
  best = {form: {key: min(row[key] for row in rows) for key in rows[0]} for form, rows in runs.items()}
  plain = best["streamed_plain"]["seconds"]
  return [{"name": form, **row, "times_plain": row["seconds"] / plain} for form, row in best.items()]


def stream(path: Path, form: str, options: argparse.Namespace) -> dict[str, float]:
  """Returns the seconds of the fastest of three searches, and by how much memory grew; one before compiles."""
  store, adaptation = FeatureStore.open(path), adaptation_of(options, options.queries)
  if form.startswith("streamed_plain"):
    adaptation = qat_jax.plain(adaptation.query)
  if form.endswith("_8_bits"):
    Trial.quicker = lambda _self, _kind, way: way(True)  # type: ignore[assignment, method-assign]
  else:
    os.environ[SWITCH] = "float32"
  qat_jax.rank(adaptation, store, options.k)
  with watched_memory(0.002) as held:
    seconds = seconds_in_turn({form: lambda: qat_jax.rank(adaptation, store, options.k).ids}, 3)[form]
  return {"seconds": min(seconds), "grown_mb": max(held) - held[0]}


def adaptation_of(options: argparse.Namespace, queries: int) -> Adaptation:
  """Returns random maps, or those that a trained adapter makes for random queries."""
  adapter = None if options.adapter is None else qat_jax.load(options.adapter)
  width = options.width if adapter is None else adapter.width
  strengths_R = options.strength * options.decay ** np.arange(options.rank)
  random = make_adaptation(queries, width, options.rank, strengths_R)
  if adapter is None:
    return random
  return adapter(random.query, "text" if "text" in adapter.heads else "image").replace(space="frozen")


def rows_of_ways(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """Returns the rows of the ways that --only names (all without it), and why the others could not be run."""
  adaptation = adaptation_of(options, options.queries)
  gallery_ND = make_gallery(options.items, adaptation.query.shape[1], options.dtype)
  named = ways.ways(adaptation, gallery_ND, options.k)
  only = set(options.only.split(",")) - {""}
  if not only or not only <= set(named):
    named |= ways.library_ways(adaptation, gallery_ND, options.k)
  if only - set(named):
    raise SystemExit(f"error: --only names {', '.join(sorted(only - set(named)))}; use some of {', '.join(named)}")
  named = {name: way for name, way in named.items() if not only or name in only}
  runnable = {name: way for name, way in named.items() if isinstance(way, SearchWay)}
  rows = compare(options.queries, options.items, runnable, options.repeats)
  if options.profile:
    with jax.profiler.trace(options.profile):
      for name, way in runnable.items():
        with jax.profiler.TraceAnnotation(name):
          jax.block_until_ready(way.run())
  return rows, {name: way for name, way in named.items() if isinstance(way, str)}


def options_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  parser = commands.parser("eval.speed.search", __doc__, "--json")
  for name, default, text in (
    ("items", 100_000, "gallery items N"),
    ("width", 512, "width D of features"),
    ("rank", 64, "rank R of the random maps"),
    ("queries", 8, "queries Q a batch"),
    ("k", 100, "items of a ranking"),
    ("repeats", 7, "runs of each way; a way of more than a second runs twice"),
    ("fewest", 10_000, "the smallest N of --growth"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=text)
  parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the gallery")
  parser.add_argument("--strength", type=float, default=0.5, help="the largest singular value beyond the identity")
  parser.add_argument("--decay", type=float, default=0.7, help="each singular value over the one before; 1 is flat")
  parser.add_argument("--adapter", help="a trained adapter, in place of random maps")
  parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], help="where to run")
  parser.add_argument("--only", default="", help="names of ways with commas between; all by default")
  parser.add_argument("--growth", help="PNG file: measure N = 10k to 10M, up to --items, with Q = 1, 8 and 64")
  parser.add_argument("--streamed", action="store_true", help="measure a float16 gallery on disk")
  parser.add_argument("--folder", help="where --streamed writes N × D × 2 bytes; the system's temporary folder else")
  parser.add_argument("--hypernetwork", action="store_true", help="measure the networks that make the maps")
  parser.add_argument("--profile", help="folder for a profile of one run of each way")
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures what the flags ask for, prints the table, and writes the JSON."""
  with commands.started(options_parser(), arguments, ANEW) as options:
    if options.device:
      jax.config.update("jax_platforms", {"gpu": "cuda"}.get(options.device, options.device))
    missing: dict[str, str] = {}
    if options.streamed:
      rows = streamed(options)
    elif options.hypernetwork:
      rows = compare(options.queries, 1, ways.networks(options.queries), options.repeats)
    elif options.growth:
      rows = growth(options)
    else:
      rows, missing = rows_of_ways(options)
    about = {"device": jax.devices()[0].device_kind, "cores": psutil.cpu_count(), "jax": jax.__version__}
    about |= {name: value for name, value in vars(options).items() if name != "json"}
    print(", ".join(f"{name} {value}" for name, value in about.items() if value not in (None, "", False)))
    if options.streamed:
      head = ["way", "seconds", "MB grown", "times plain"]
      keys = ("seconds", "grown_mb", "times_plain")
      print(markdown(head, [[row["name"], *(f"{row[key]:.3g}" for key in keys)] for row in rows]))
    else:
      print(f"copy {rows[0]['copy_gb_s']:.1f} GB/s, product {rows[0]['product_gflop_s']:.0f} GFLOP/s (float32)")
      print(way_table(rows, missing))
    commands.write_figures(options.json, [{**about, **row} for row in rows])


if __name__ == "__main__":
  main()

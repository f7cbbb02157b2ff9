"""What a cluster costs beside one process: python -m eval.speed.cluster --pictures 20000 --items 1000000 --queries 64.

Each command runs alone in a process of its own, then on a Ray cluster of 1, 2 and 4 nodes on this machine, a worker
each; nothing else of Ray may run. The workers share this machine's cores: what is seen here is overhead, not how it
scales.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval import commands
from eval.markdown import markdown
from eval.speed.tools import random_chunks
from qat_jax.runs import ANEW

STAGES = ("extraction", "ranking")
SHARDS = 8  # shards of pictures; blocks of queries
SIZES = (10**6, 10**8, 10**9)


def make_inputs(root: pathlib.Path, pictures: int, items: int, width: int, queries: int, rank_R: int) -> None:
  """Writes random pictures, a gallery in fp16 as one folder, queries, and an adapter that nobody trained."""
  import jax
  from PIL import Image

  from qat_jax.adapter import Adapter
  from qat_jax.features.store import write_features
  from qat_jax.models.head import Head

  rng = np.random.default_rng(0)
  (root / "pictures").mkdir()
  for i in range(pictures):
    colours = rng.integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(colours).resize((96, 96)).save(root / f"pictures/{i:07d}.jpg")
  settings = {"hidden": 64, "rank": rank_R, "token_hidden": 32}
  variables = Head("adaptive", settings, {}).initialise(width)
  moved = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), variables["params"])
  Adapter(width, {"text": Head("adaptive", settings, {**variables, "params": moved})}).save(root / "adapter")
  np.save(root / "queries.npy", rng.standard_normal((queries, width), np.float32))
  write_features(root / "gallery", {"img": random_chunks(items, width)}, {"id": [f"item{i}" for i in range(items)]})


def run_stage(stage: str, root: pathlib.Path, out: pathlib.Path, cluster: str) -> None:
  """Extracts features or ranks queries, in `SHARDS` shards."""
  from qat_jax.datasets.folder import FolderSource
  from qat_jax.encoders import load_encoder
  from qat_jax.features.extraction import extract
  from qat_jax.serve.batch import rerank_files

  if stage == "extraction":
    source = FolderSource(root / "pictures")
    rows = -(-len(source) // SHARDS)
    extract(source, load_encoder("toy_clip", 64), out, ("img",), 64, rows, progress=False, cluster=cluster)
  else:
    queries = len(np.load(root / "queries.npy", mmap_mode="r"))
    inputs = root / "adapter", root / "queries.npy", root / "gallery", out / "rankings.parquet"
    rerank_files(*inputs, block=max(1, queries // SHARDS), cluster=cluster)


def seconds_of(stage: str, root: pathlib.Path, name: str, cluster: str) -> float:
  """Returns how long a whole command takes, from its start to its end."""
  out = root / f"{stage}-{name}"
  out.mkdir()
  words = [f"--stage={stage}", f"--root={root}", f"--out={out}", f"--cluster={cluster}"]
  began = time.perf_counter()
  done = subprocess.run([sys.executable, "-m", "eval.speed.cluster", *words], capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{stage} on {name} ended with status {done.returncode}: {done.stderr[-2000:]}")
  return time.perf_counter() - began


def traffic(root: pathlib.Path, shards: int, k: int) -> float:
  """Returns the bytes a query and shard that travel when a small gallery is ranked whose shards know the adapter."""
  import qat_jax
  from qat_jax.distributed.gallery import Gallery
  from qat_jax.features.store import write_features

  query_QD, adapter = np.load(root / "queries.npy"), qat_jax.load(root / "adapter")
  folders = []
  for shard in range(shards):
    folders.append(root / f"shards-{shards}" / str(shard))
    rows, names = 5 * k, [f"{shard}-{i}" for i in range(5 * k)]
    write_features(folders[-1], {"img": random_chunks(rows, adapter.width)}, {"id": names})
  with Gallery(folders, adapter=root / "adapter") as gallery:
    qat_jax.rank(adapter(query_QD), gallery, k)
    return (gallery.traffic.sent + gallery.traffic.received) / gallery.traffic.asked


def measured(root: pathlib.Path, counts: list[int], k: int) -> list[dict[str, Any]]:
  """Returns a row for one process and each number of workers: seconds of the commands, seconds to start, bytes."""
  import ray
  from ray.cluster_utils import Cluster

  rows: list[dict[str, Any]] = [
    {"workers": 0, **{stage: seconds_of(stage, root, "local", "local") for stage in STAGES}}
  ]
  for count in counts:
    began = time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(count - 1):
      cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    row: dict[str, Any] = {"workers": count, "start": time.perf_counter() - began}
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
      row |= {stage: seconds_of(stage, root, str(count), "auto") for stage in STAGES}
      row["bytes"] = traffic(root, count, k)
    finally:
      ray.shutdown()
      cluster.shutdown()
    rows.append(row)
  return rows


def markdown_tables(rows: list[dict[str, Any]], flags: argparse.Namespace) -> str:
  """Returns what was measured, and what it comes to for more images, as two tables in Markdown."""
  alone, lines = rows[0], []
  for row in rows:
    times = [f"{row[stage]:.1f} s ({row[stage] / alone[stage]:.2f})" for stage in STAGES]
    start = [f"{row['start']:.1f} s", f"{row['bytes']:.0f}"] if "start" in row else ["–", "–"]
    lines.append([str(row["workers"] or "one process"), *times, *start])
  cores = len(os.sched_getaffinity(0))
  image, pair = cores * alone["extraction"] / flags.pictures, cores * alone["ranking"] / flags.items / flags.queries
  sizes = [
    [f"{size:.0e}", f"{2 * flags.width * size / 1e9:.3g} GB", f"{image * size:.3g}", f"{pair * size:.3g}"]
    for size in SIZES
  ]
  features = f"features, {flags.width} × fp16"
  return "\n\n".join(
    [
      markdown(["workers", *STAGES, "start of the cluster", "bytes a query and shard"], lines),
      markdown(["images", features, "encoding, core-seconds", "ranking, core-seconds a query"], sizes),
    ]
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and prints the tables; with `--stage`, is a command that is measured."""
  parser = commands.parser("eval.speed.cluster", __doc__, "--json")
  parser.add_argument("--pictures", type=int, default=20_000, help="pictures that are encoded, by the demo's CLIP")
  parser.add_argument("--items", type=int, default=1_000_000, help="gallery items N")
  parser.add_argument("--width", type=int, default=256, help="width D of features")
  parser.add_argument("--rank", type=int, default=8, help="rank R of the map")
  parser.add_argument("--queries", type=int, default=64, help="queries Q")
  parser.add_argument("--k", type=int, default=100, help="results of a query, for the bytes")
  parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4], help="nodes of the clusters")
  parser.add_argument("--folder", help="where to put everything; the system's temporary folder by default")
  for name in ("stage", "cluster"):
    parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
  for name in ("root", "out"):
    parser.add_argument(f"--{name}", type=pathlib.Path, help=argparse.SUPPRESS)
  with commands.started(parser, arguments, ANEW) as flags:
    if flags.stage:
      return run_stage(flags.stage, flags.root, flags.out, flags.cluster)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
      make_inputs(pathlib.Path(folder), flags.pictures, flags.items, flags.width, flags.queries, flags.rank)
      rows = measured(pathlib.Path(folder), flags.workers, flags.k)
    print(markdown_tables(rows, flags))
    commands.write_figures(flags.json, rows)


if __name__ == "__main__":
  main()

"""What a collection costs that grows while it is searched: python -m eval.speed.living. On this machine alone.

A collection of random unit rows without an encoder, vectors as queries, k = 20. Searches come at random times, at half
of the rate that closed clients reached, first while nothing changes, then while single items are added and removed.
Last a search after many additions is timed beside one of a gallery of the same items in one piece. Clients are
processes of their own, on the same cores.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from eval import commands
from eval.markdown import markdown
from eval.speed.service import OPEN_CLIENTS, answers, write_bodies
from eval.speed.tools import free_port, random_chunks, seconds_in_turn, watched_memory
from qat_jax.features.store import write_features
from qat_jax.runs import ANEW
from qat_jax.serve.collection.blocks import ADDED, Item
from qat_jax.serve.encoding import SIZES
from qat_jax.serve.items import Items
from qat_jax.serve.limits import Limits
from qat_jax.serve.places import Place
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.starting import Running
from qat_jax.serve.web.app import create
from qat_jax.serve.web.server import in_thread
from qat_jax.serve.web.state import State
from qat_jax.types import ArrayGallery

KEY = "written"
KEPT = 5_000  # added items that are there at once: then each addition removes the oldest
CLOSED = 8  # clients that find out what the most is


def change(port: int, rate: float, width: int) -> None:
  """Adds single items at a rate a second, without end, and removes the oldest ones."""
  rng, connection = np.random.default_rng(os.getpid()), http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  headers, began = {"X-API-Key": KEY, "Content-Type": "application/json"}, time.perf_counter()

  def request(method: str, path: str, body: Any = None) -> None:
    connection.request(method, path, json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.read() and answer.status != 200:
      raise SystemExit(f"{method} {path} was answered {answer.status}")

  for number in itertools.count():
    time.sleep(max(0.0, began + number / rate - time.perf_counter()))
    vector = rng.standard_normal(width).round(4).tolist()
    request("POST", "/v1/items", {"items": [{"id": f"new{number}", "vector": vector, "metadata": {"n": number}}]})
    if number >= KEPT:
      request("DELETE", f"/v1/items?id=new{number - KEPT}")


@contextlib.contextmanager
def changing(port: int, rate: float, width: int) -> Iterator[None]:
  """Changes the collection by a process of its own, while the block runs."""
  command = [sys.executable, "-m", __spec__.name, f"--load={port}", f"--rate={rate}", f"--width={width}"]
  with subprocess.Popen(command) as process:
    yield
    if process.poll() is not None:
      raise RuntimeError(f"the process that changes the collection ended with {process.returncode}")
    process.kill()


def report(state: State, port: int, folder: pathlib.Path, flags: argparse.Namespace) -> str:
  """Returns latencies without and with changes, and what the memory did."""
  bodies = write_bodies(folder / "plain.jsonl", "plain", flags.width)
  most = answers(port, bodies, clients=CLOSED, seconds=flags.seconds)["a_second"]
  ask = lambda seconds: answers(port, bodies, clients=OPEN_CLIENTS, seconds=seconds, rate=most / 2)
  rows = [("nothing changes", ask(flags.seconds))]
  assert state.running is not None
  collection = state.running.collection
  before = collection.changes
  with watched_memory(1) as held, changing(port, flags.rate, flags.width):
    rows.append((f"{flags.rate:g} items a second", ask(flags.changing)))
  some = len(held) // 4
  lines = [[name, *(str(one[key]) for key in ("a_second", "p50", "p99", "statuses"))] for name, one in rows]
  memory = f"{held[0]:.0f} MB, {held[some]:.0f} after a fourth of the time, {held[-1]:.0f} at the end"
  ratio = f"{rows[1][1]['p99'] / rows[0][1]['p99']:.2f}"
  counts = f"{collection.changes - before:,} changes, {len(collection):,} items there"
  table = markdown(["while", "answers a second", "p50 ms", "p99 ms", "statuses"], lines)
  return f"{table}\n{counts}; p99 {ratio} times; memory {memory}"


def beside_fresh(state: State, added: int, repeats: int) -> str:
  """Returns how long a search takes after additions, in times of one of the same items in one array."""
  running = state.running
  assert running is not None and running.service is not None
  collection, rng = running.collection, np.random.default_rng(2)
  rows_ND = rng.standard_normal((added, collection.width)).astype(np.float32)
  rows_ND /= np.linalg.norm(rows_ND, axis=1, keepdims=True)
  before = running.service.items.count
  for at in range(0, added, 100):
    collection.change([Item(f"more{at + i}", {}, row_D, stamp=ADDED) for i, row_D in enumerate(rows_ND[at : at + 100])])
  while running.service.items.count < before + added:
    time.sleep(0.05)
  grown, blocks = running.service, collection.snapshot()[1]
  array = ArrayGallery(jnp.asarray(np.concatenate([block.living()[0] for block in blocks]), jnp.float32), "frozen")
  ids = pa.chunked_array([pa.array(np.arange(len(array))).cast(pa.string())])
  fresh = grown.over(Items(ids, pa.table({})), dict.fromkeys(grown.galleries, array))
  lines = []
  for queries in (1, 8, 32):
    vectors = rng.standard_normal((queries, collection.width)).astype(np.float32)
    jobs = [Search((Part(vector=vector, query_type="text"),), mode="plain") for vector in vectors]
    runs = {"grown": lambda jobs=jobs: grown.search(jobs), "fresh": lambda jobs=jobs: fresh.search(jobs)}
    best = {name: min(seconds) for name, seconds in seconds_in_turn(runs, repeats).items()}
    ratio, milliseconds = best["grown"] / best["fresh"], (f"{1000 * best[name]:.1f}" for name in ("grown", "fresh"))
    lines.append([str(queries), *milliseconds, f"{ratio:.2f}"])
  return markdown(["queries", f"ms in {len(blocks)} blocks", "ms in one array", "times"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
  """Serves, asks, changes, prints; with `--load`, is the process that changes."""
  parser = commands.parser("eval.speed.living", __doc__)
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--rate", type=float, default=50, help="items that come a second")
  parser.add_argument("--seconds", type=float, default=20, help="of each measurement without changes")
  parser.add_argument("--changing", type=float, default=60, help="seconds of changes")
  parser.add_argument("--added", type=int, default=10_000, help="items that are added before searches are compared")
  parser.add_argument("--repeats", type=int, default=15, help="runs of each search")
  parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
  with commands.started(parser, arguments, ANEW) as flags:
    if flags.load:
      change(flags.load, flags.rate, flags.width)
    else:
      serve_and_report(flags)


def serve_and_report(flags: argparse.Namespace) -> None:
  """Serves a collection, and prints what is measured of it."""
  port = free_port()
  with tempfile.TemporaryDirectory() as name:
    folder, state = pathlib.Path(name), State(Limits())
    ids = {"id": [f"i{i}" for i in range(flags.items)]}
    write_features(folder / "features", {"img": random_chunks(flags.items, flags.width)}, ids)
    began = time.perf_counter()
    state.running = Running(Place(str(folder / "features"), encoder="none"), state.limits, state.show, state.allow)
    state.running.start(print)
    while len(state.running.living.batches) < len(SIZES):
      time.sleep(0.1)
    print(f"{flags.items:,} × {flags.width}: compiled in {time.perf_counter() - began:.0f} s", flush=True)
    with in_thread(create(state, None, frozenset({"127.0.0.1"}), (), KEY), port):
      print(report(state, port, folder, flags), flush=True)
    print(beside_fresh(state, flags.added, flags.repeats))
    state.running.stop()


if __name__ == "__main__":
  main()

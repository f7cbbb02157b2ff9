"""What the search service carries: python -m eval.speed.service. On this machine alone, over loopback.

A gallery of random unit rows, an adapter of random weights, vectors as text queries, k = 20. Closed clients from 1 to
64, adapted and plain in turn; then random arrivals at half of what it carried, and at twice. Clients are a process of
their own, on the same cores.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import pyarrow as pa

import qat_jax
from eval.speed.service import load
from eval.speed.tools import make_gallery, watched_memory
from qat_jax.serve.items import Items
from qat_jax.serve.limits import Limits
from qat_jax.serve.service import Service
from qat_jax.serve.web.app import create
from qat_jax.serve.web.server import in_thread
from qat_jax.serve.web.state import State
from qat_jax.types import ArrayGallery

OPEN_CLIENTS = 400  # threads that send at random times; the queue holds fewer, so some are refused


def service_of(items: int, width: int, rank: int) -> Service:
  """Returns a service of a random gallery and a random adapter, compiled."""
  rng = np.random.default_rng(0)
  variables = qat_jax.Head("adaptive", {"rank": rank}, {}).initialise(width)
  moved = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape).astype(np.float32), variables["params"])
  head = qat_jax.Head("adaptive", {"rank": rank}, {**variables, "params": moved})
  gallery = ArrayGallery(make_gallery(items, width, "float32"), "frozen")
  ids = pa.chunked_array([pa.array(np.arange(items)).cast(pa.string())])
  service = Service(qat_jax.Adapter(width, {"text": head}), Items(ids, pa.table({})), gallery, {"text": gallery})
  service.warm()
  return service


def write_bodies(path: pathlib.Path, mode: str, width: int, count: int = 200) -> pathlib.Path:
  """Writes search requests, a line each, and returns the file."""
  rng = np.random.default_rng(1)
  rows = ([round(float(x), 5) for x in rng.standard_normal(width)] for _ in range(count))
  lines = [json.dumps({"query": {"vector": row, "query_type": "text"}, "mode": mode}) for row in rows]
  path.write_text("\n".join(lines) + "\n")
  return path


def answers(port: int, bodies: pathlib.Path, **flags: float) -> dict[str, Any]:
  """Returns what clients in a process of their own measured."""
  words = [f"--{name}={value}" for name, value in flags.items()]
  command = [sys.executable, "-m", load.__name__, str(port), str(bodies), *words]
  return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(
  port: int, folder: pathlib.Path, width: int, clients: list[int], seconds: float, overload: float
) -> list[str]:
  """Returns the lines of the report."""
  bodies = {mode: write_bodies(folder / f"{mode}.jsonl", mode, width) for mode in ("adapted", "plain")}
  lines = [
    "| clients | adapted a second | p50 ms | p99 ms | plain a second | adapted / plain, p50 |",
    "|---|---|---|---|---|---|",
  ]
  carried: dict[int, dict[str, Any]] = {}
  for count in clients:
    by_mode = {mode: answers(port, path, clients=count, seconds=seconds) for mode, path in bodies.items()}
    ours, plain = by_mode["adapted"], by_mode["plain"]
    carried[count] = ours
    ratio = ours["p50"] / plain["p50"]
    row = (count, ours["a_second"], ours["p50"], ours["p99"], plain["a_second"], f"{ratio:.2f}")
    lines.append(f"| {' | '.join(map(str, row))} |")
  most = max(one["a_second"] for one in carried.values())
  half = answers(port, bodies["adapted"], clients=OPEN_CLIENTS, seconds=4 * seconds, rate=most / 2)
  lines.append(f"at half of {most} a second: p50 {half['p50']} ms, p99 {half['p99']} ms, {half['statuses']}")
  with watched_memory(1) as held:
    twice = answers(port, bodies["adapted"], clients=OPEN_CLIENTS, seconds=overload, rate=2 * most)
  tenth = held[len(held) // 10]
  memory = f"memory {tenth - held[0]:+.0f} MB in the first tenth and {held[-1] - tenth:+.0f} MB after it"
  told = f"p50 {twice['p50']} ms of what is answered, {twice['statuses']}, {memory}"
  lines.append(f"at twice, {overload:g} s: {told}")
  return lines


def main() -> None:
  """Serves, asks, prints."""
  parser = argparse.ArgumentParser(description="Measures the search service on this machine.")
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--clients", default="1,8,32,64", help="how many at once, by commas")
  parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
  parser.add_argument("--overload", type=float, default=30, help="seconds at twice the load")
  flags = parser.parse_args()
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  state = State(Limits())
  began = time.perf_counter()
  state.service = service_of(flags.items, flags.width, flags.rank)
  print(
    f"{flags.items:,} × {flags.width}, rank {flags.rank}: compiled in {time.perf_counter() - began:.0f} s", flush=True
  )
  app = create(state, None, frozenset({"127.0.0.1"}))
  with tempfile.TemporaryDirectory() as folder, in_thread(app, port):
    clients = [int(count) for count in flags.clients.split(",")]
    print("\n".join(measure(port, pathlib.Path(folder), flags.width, clients, flags.seconds, flags.overload)))

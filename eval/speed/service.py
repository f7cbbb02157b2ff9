"""What the search service carries: python -m eval.speed.service. On this machine alone, over loopback.

A gallery of random unit rows, an adapter of random weights, vectors as text queries, k = 20. Closed clients from 1 to
64, adapted and plain in turn: each client asks again when it is answered. Then open ones: requests come at random
times, at half of the rate that closed clients reached, and at twice; a latency counts from the time that was due.
Clients are a process of their own, on the same cores.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa

import qat_jax
from eval import commands
from eval.markdown import markdown
from eval.speed.tools import free_port, make_gallery, watched_memory
from qat_jax.runs import ANEW
from qat_jax.serve.items import Items
from qat_jax.serve.limits import Limits
from qat_jax.serve.service import Service
from qat_jax.serve.web.app import create
from qat_jax.serve.web.server import in_thread
from qat_jax.serve.web.state import State
from qat_jax.types import ArrayGallery

OPEN_CLIENTS = 400  # threads that send at random times; the queue holds fewer, so some are refused


def under_load(port: int, bodies: list[bytes], clients: int, seconds: float, rate: float = 0.0) -> dict[str, Any]:
  """Returns statuses, answers a second, and the median and 99th percentile latency in milliseconds of status 200.

  Args:
    port: of the server on this machine.
    bodies: search requests; each request sends one of them.
    clients: how many threads ask at once.
    seconds: how long requests are sent.
    rate: requests a second at random times; 0 for closed clients.
  """
  statuses: collections.Counter[str] = collections.Counter()
  latencies: list[float] = []
  lock, rng, began = threading.Lock(), random.Random(0), time.perf_counter()
  due = [began]

  def next_due() -> tuple[float, bytes]:
    with lock:
      due[0] += rng.expovariate(rate) if rate else 0.0
      return due[0] if rate else time.perf_counter(), rng.choice(bodies)

  def client() -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while True:
      at, body = next_due()
      if at - began > seconds:
        return connection.close()
      time.sleep(max(0.0, at - time.perf_counter()))
      status = ask(connection, body)
      if status.isalpha():  # a connection that was idle may have been closed: once more, on a new one
        status = ask(connection, body)
      with lock:
        statuses[status] += 1
        if status == "200":
          latencies.append(time.perf_counter() - at)

  threads = [threading.Thread(target=client) for _ in range(clients)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  a_second = round(len(latencies) / (time.perf_counter() - began), 2)
  ordered = sorted(latencies) or [0.0]
  at_share = lambda share: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
  return {"statuses": dict(statuses), "a_second": a_second, "p50": at_share(0.5), "p99": at_share(0.99)}


def ask(connection: http.client.HTTPConnection, body: bytes) -> str:
  """Returns the status of a search, or the name of the connection's error; the connection is closed then."""
  try:
    connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return str(answer.status)
  except (OSError, http.client.HTTPException) as error:
    connection.close()
    return type(error).__name__


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
  rng = random.Random(1)
  rows = ([round(rng.gauss(0, 1), 5) for _ in range(width)] for _ in range(count))
  lines = [json.dumps({"query": {"vector": row, "query_type": "text"}, "mode": mode}) for row in rows]
  path.write_text("\n".join(lines) + "\n")
  return path


def answers(port: int, bodies: pathlib.Path, **settings: float) -> dict[str, Any]:
  """Returns what clients in a process of their own measured."""
  command = [sys.executable, "-m", __spec__.name, f"--load={port}", f"--bodies={bodies}"]
  command += [f"--settings={json.dumps(settings)}"]
  return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def load_report(
  port: int, folder: pathlib.Path, width: int, clients: list[int], seconds: float, overload: float
) -> list[str]:
  """Returns the lines of the report.

  Args:
    port: of the server.
    folder: for the files of requests.
    width: of the vectors.
    clients: how many closed clients ask at once, one measurement each.
    seconds: of each measurement.
    overload: seconds at twice the most.
  """
  bodies = {mode: write_bodies(folder / f"{mode}.jsonl", mode, width) for mode in ("adapted", "plain")}
  rows, most = [], 0.0
  for count in clients:
    by_mode = {mode: answers(port, path, clients=count, seconds=seconds) for mode, path in bodies.items()}
    ours, plain = by_mode["adapted"], by_mode["plain"]
    most = max(most, ours["a_second"])
    ratio = f"{ours['p50'] / plain['p50']:.2f}"
    rows.append([*map(str, (count, ours["a_second"], ours["p50"], ours["p99"], plain["a_second"])), ratio])
  head = ["clients", "adapted a second", "p50 ms", "p99 ms", "plain a second", "adapted / plain, p50"]
  half = answers(port, bodies["adapted"], clients=OPEN_CLIENTS, seconds=4 * seconds, rate=most / 2)
  with watched_memory(1) as held:
    twice = answers(port, bodies["adapted"], clients=OPEN_CLIENTS, seconds=overload, rate=2 * most)
  tenth = held[len(held) // 10]
  memory = f"memory {tenth - held[0]:+.0f} MB in the first tenth and {held[-1] - tenth:+.0f} MB after it"
  return [
    markdown(head, rows),
    f"at half of {most} a second: p50 {half['p50']} ms, p99 {half['p99']} ms, {half['statuses']}",
    f"at twice, {overload:g} s: p50 {twice['p50']} ms of what is answered, {twice['statuses']}, {memory}",
  ]


def main(arguments: Sequence[str] | None = None) -> None:
  """Serves, asks, prints; with `--load`, is the clients' process."""
  parser = commands.parser("eval.speed.service", __doc__)
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--clients", default="1,8,32,64", help="how many at once, by commas")
  parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
  parser.add_argument("--overload", type=float, default=30, help="seconds at twice the load")
  for name, kind in (("load", int), ("bodies", pathlib.Path), ("settings", json.loads)):
    parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
  with commands.started(parser, arguments, ANEW) as flags:
    if flags.load:
      print(json.dumps(under_load(flags.load, flags.bodies.read_bytes().splitlines(), **flags.settings)))
    else:
      serve_and_report(flags)


def serve_and_report(flags: argparse.Namespace) -> None:
  """Serves a gallery, and prints what clients in another process measure of it."""
  port = free_port()
  state, began = State(Limits()), time.perf_counter()
  state.service = service_of(flags.items, flags.width, flags.rank)
  seconds = time.perf_counter() - began
  print(f"{flags.items:,} × {flags.width}, rank {flags.rank}: compiled in {seconds:.0f} s", flush=True)
  app = create(state, None, frozenset({"127.0.0.1"}))
  with tempfile.TemporaryDirectory() as folder, in_thread(app, port):
    clients = [int(count) for count in flags.clients.split(",")]
    print("\n".join(load_report(port, pathlib.Path(folder), flags.width, clients, flags.seconds, flags.overload)))


if __name__ == "__main__":
  main()

"""Clients of a server on this machine: python -m eval.speed.service.load 8000 BODIES. In a process of its own.

BODIES is a file of search requests, a JSON line each. Closed: each client asks again when it is answered. Open, with
--rate: requests come at random times, whatever the answers take, and a latency counts from the time that was due.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import pathlib
import random
import threading
import time

from qat_jax.runs import ANEW, end_on_signals


def run(port: int, bodies: list[bytes], clients: int, seconds: float, rate: float = 0.0) -> dict[str, object]:
  """Returns statuses, answers a second, and the median and 99th percentile latency in milliseconds of status 200."""
  counted: collections.Counter[str] = collections.Counter()
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
        counted[status] += 1
        if status == "200":
          latencies.append(time.perf_counter() - at)

  threads = [threading.Thread(target=client) for _ in range(clients)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  took, ordered = time.perf_counter() - began, sorted(latencies) or [0.0]
  at_share = lambda share: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
  return {
    "statuses": dict(counted),
    "a_second": round(len(latencies) / took, 2),
    "p50": at_share(0.5),
    "p99": at_share(0.99),
  }


def ask(connection: http.client.HTTPConnection, body: bytes) -> str:
  """Returns the status of a search, or the name of what went wrong with the connection, which is closed then."""
  try:
    connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return str(answer.status)
  except (OSError, http.client.HTTPException) as error:
    connection.close()
    return type(error).__name__


def main() -> None:
  """Prints the result as JSON."""
  parser = argparse.ArgumentParser(description="Asks a server on this machine.")
  parser.add_argument("port", type=int)
  parser.add_argument("bodies", type=pathlib.Path)
  parser.add_argument("--clients", type=int, default=1)
  parser.add_argument("--seconds", type=float, default=5)
  parser.add_argument("--rate", type=float, default=0)
  flags = parser.parse_args()
  bodies = flags.bodies.read_bytes().splitlines()
  print(json.dumps(run(flags.port, bodies, flags.clients, flags.seconds, flags.rate)))


if __name__ == "__main__":
  end_on_signals(ANEW)
  main()

"""Sends malformed requests to a running server and says what it answered: python tests/faults/malformed.py PORT PID.

No answer may be a 500 or hold a traceback, and the process may not grow. The same seed sends the same requests.
"""

from __future__ import annotations

import argparse
import base64
import collections
import http.client
import io
import json
import pathlib
import random
import struct
import sys
import zlib
from typing import Any

from PIL import Image

POSTS = ("/v1/search", "/v1/rerank", "/v1/adapt", "/v1/why", "/knn-service", "/metadata", "/v1/admin/reload")
GETS = ("/v1/items/", "/v1/items?id=", "/v1/info", "/indices-list", "/metrics", "/ready", "/", "/openapi.json")
KINDS = (
  "application/json",
  "text/plain",
  "",
  "multipart/form-data; boundary=x",
  "image/png",
  "a" * 300,
  "multipart/form-data",
)
ODD = (
  "",
  " ",
  "\0",
  "\u202e",
  "\ud800",
  "é" * 500,
  "🙂",
  "../../etc/passwd",
  "%2e%2e%2f",
  "x" * 5000,
  "'; --",
  "<script>",
  "null",
)
NUMBERS = (0, -1, 1, 20, 1001, 10**9, 2**53 + 1, 2**63, -(2**70), 1e308, 1e-320, float("nan"), float("inf"), 0.5, True)
WORDS = (
  *("query", "k", "mode", "filters", "exclude", "allowed", "text", "image", "item", "vector", "weight", "query_type"),
  *("documents", "vectors", "top_n", "items", "adaptation", "ids", "indice_name", "modality", "num_images", "caption"),
  *("num_result_ids", "embedding_input", "image_url", "least", "most", "plain", "adapted", "both", "family"),
)


def pictures(rng: random.Random) -> list[bytes]:
  """Returns broken pictures: cut, changed, of other kinds, and bombs."""
  whole = []
  for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
    buffer = io.BytesIO()
    Image.new("RGB", (33, 21), (200, 30, 30)).save(buffer, kind)
    whole.append(buffer.getvalue())
  found = [b"", b"<svg/>", b"GIF89a", b"%PDF-1.4", b"\x80\x04."]
  for data in whole:
    found += [data, data[: rng.randrange(len(data))]]
    for _ in range(6):
      changed = bytearray(data)
      for _ in range(rng.randrange(1, 12)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
      found.append(bytes(changed))
  chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
  for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (0, 5), (6_000, 6_000)):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000), 9)
    found.append(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
  return found


def value(rng: random.Random, images: list[bytes], depth: int = 0) -> Any:
  """Returns any JSON value, now and then one that a request may have."""
  choice = rng.randrange(9 if depth < 4 else 5)
  if choice == 0:
    return rng.choice(ODD)
  if choice == 1:
    return rng.choice(NUMBERS)
  if choice == 2:
    return rng.choice([None, "a red mug", "plain", "both", *WORDS])
  if choice == 3:
    return base64.b64encode(rng.choice(images)).decode()
  if choice == 4:
    return [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 95, 96, 97, 512)))]
  if choice == 5:
    return [value(rng, images, depth + 1) for _ in range(rng.randrange(4))]
  return {rng.choice(WORDS): value(rng, images, depth + 1) for _ in range(rng.randrange(5))}


def request(rng: random.Random, images: list[bytes]) -> tuple[str, str, bytes, dict[str, str]]:
  """Returns method, path, body and headers of a malformed request."""
  if rng.random() < 0.15:
    name = rng.choice(ODD).encode("utf-8", "surrogatepass")
    path = (
      rng.choice(GETS) + "".join(f"%{byte:02x}" for byte in name[:300]) + rng.choice(("", "/picture", "/thumbnail"))
    )
    return rng.choice(("GET", "HEAD", "PUT", "DELETE", "OPTIONS")), path, b"", {}
  path, kind = rng.choice(POSTS), rng.choice(KINDS)
  said = value(rng, images)
  if rng.random() < 0.7:
    said = {
      "query": value(rng, images, 2),
      **{rng.choice(WORDS): value(rng, images, 2) for _ in range(rng.randrange(3))},
    }
  body = json.dumps(said).encode()
  if rng.random() < 0.2:
    body = rng.choice(
      (body[: rng.randrange(len(body) + 1)], b"[" * 50_000, b"\xff" + body, b'{"k":' + b"1" * 5000 + b"}", b"")
    )
  if kind.endswith("boundary=x") and rng.random() < 0.7:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    rest = b'\r\n--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + body + b"\r\n--x--\r\n"
    body = head + rng.choice(images) + rest
    body = body[: rng.randrange(len(body))] if rng.random() < 0.2 else body
  headers = {"Content-Type": kind} if kind else {}
  if rng.random() < 0.02:
    headers["Content-Length"] = str(rng.choice((0, 1 << 40)))
  return "POST", path, body, headers


def memory(process: int) -> int:
  """Returns the megabytes that a process holds."""
  lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
  return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) >> 10


def main() -> None:
  """Sends the requests, prints what came back, and ends with status 1 where something is wrong."""
  parser = argparse.ArgumentParser(description="Sends malformed requests to a server on this machine.")
  parser.add_argument("port", type=int)
  parser.add_argument("process", type=int, help="the server's process id")
  parser.add_argument("--count", type=int, default=10_000)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  rng = random.Random(flags.seed)
  images, statuses, wrong, grown = pictures(rng), collections.Counter(), [], []
  for number in range(flags.count):
    method, path, body, headers = request(rng, images)
    connection = http.client.HTTPConnection("127.0.0.1", flags.port, timeout=3 if "Content-Length" in headers else 30)
    try:
      connection.request(method, path, body, headers)
      answer = connection.getresponse()
      text = answer.read()
      statuses[answer.status] += 1
      if answer.status == 500 or b"Traceback" in text:
        wrong.append((method, path, body[:200], text[:200]))
    except (TimeoutError, OSError, http.client.HTTPException) as error:
      statuses[type(error).__name__] += 1
    finally:
      connection.close()
    if number % (flags.count // 10 or 1) == 0:
      grown.append(memory(flags.process))
      print(f"{number} sent, {grown[-1]} MB", file=sys.stderr, flush=True)
  grown.append(memory(flags.process))
  print(
    f"{flags.count} requests: {dict(statuses.most_common())}; memory {grown[1]} to {grown[-1]} MB; wrong: {len(wrong)}"
  )
  for one in wrong[:10]:
    print(one)
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()

"""The campaign of malformed changes: none is answered by a 500, and what is refused writes nothing.

Each is a change that a server would take with something in it replaced, or with its text cut or added to.
"""

import base64
import contextlib
import io
import json
import pathlib
import random
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from qat_jax.serve import living
from qat_jax.serve.limits import Limits
from qat_jax.serve.places import Place
from qat_jax.serve.starting import Running
from qat_jax.serve.web.app import create
from qat_jax.serve.web.state import State
from tests.qat_jax.serve.pictures_test import bomb
from tests.qat_jax.serve.web.clients import png

KEY = {"X-API-Key": "secret"}
BATCH = 500  # cases a server
ODD = ("", " ", "\0", "\u202e", "\ud800", "é" * 500, "🙂", "../../etc/passwd", "%2e%2e%2f", "x" * 5000, "null")
NUMBERS = (0, -1, 1, 20, 10**9, 2**53 + 1, 2**63, -(2**70), 1e308, 1e-320, float("nan"), float("inf"), 0.5, True)
WORDS = ("id", "image", "vector", "metadata", "items", "price", "name", "file", "query")
CUTS = ("", "{", '"', ",", "\\", "é", "\x00")


def cases(bench: Any, numbers: list[int], seed: int) -> list[Any]:
  """Sends the changes of some cases to one server, and looks at its collection after each."""
  from tests.faults.bench import Outcome  # which imports all stages: the service's test goes without

  folder = bench.scratch / "writes"
  folder.mkdir()
  (folder / "red.png").write_bytes(png("red"))
  with served(folder) as client:
    images = pictures(random.Random(seed))
    ends = [
      Outcome("malformed changes", *sent(client, images, random.Random(f"{seed}/writes/{number}")))
      for number in numbers
    ]
  shutil.rmtree(folder)
  return ends


@contextlib.contextmanager
def served(folder: pathlib.Path, share: bool = False) -> Iterator[Any]:
  """Yields a client of a collection of pictures that takes changes with KEY; nothing is compiled ahead."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(living.Living, "_warm_for", lambda self, capacity, batches: self._warm.add((capacity, 1)))
    patch.setattr(living.Living, "_compile_next", lambda self: None)
    state = State(Limits(seconds=120, body_bytes=1 << 20))
    state.running = running = Running(Place(str(folder), share=share), state.limits, state.show)
    running.start(lambda line: None)
    app = create(state, None, frozenset({"localhost"}), (), KEY["X-API-Key"])
    client: Any = TestClient(app, "http://localhost", raise_server_exceptions=False)
    client.running = running
    settle(client, len(list(folder.glob("*.png"))))
    yield client
    running.stop()


def settle(client: Any, count: int | None = None) -> None:
  """Waits until all changes are shown, and until there are so many items, where a number is given."""
  until = time.monotonic() + 60
  while time.monotonic() < until:
    if count in (None, len(client.running.collection)) and client.running.living.is_settled:
      return
    time.sleep(0.02)
  raise AssertionError("the collection did not settle")


def sent(client: Any, images: list[bytes], rng: random.Random) -> tuple[str, str]:
  """Sends one malformed change; returns what came of it, and what is wrong with that."""
  before = written(client)
  method, path, body, headers = change(rng, images)
  answer = client.request(method, path, content=body, headers={**headers, **KEY})
  wrong, changed = "", written(client) != before
  if answer.status_code >= 500 or "Traceback" in answer.text:
    wrong = f"answered {answer.status_code}"
  elif answer.status_code != 200 and changed:
    wrong = "refused, and yet something was written"
  elif answer.status_code == 200 and not changed:
    wrong = "acknowledged, and nothing was written"
  elif answer.status_code != 200 and not answer.json()["error"]["message"]:
    wrong = "refused without a reason"
  happened = "wrong" if wrong else "kept: it was well-formed" if answer.status_code == 200 else f"{answer.status_code}"
  return happened, wrong and f"{method} {path} {body[:300]!r}: {wrong} {answer.text[:300]}"


def written(client: Any) -> tuple[int, dict[str, int]]:
  """Returns how many changes a collection counts, and the files beside its pictures with their sizes."""
  root = client.running.root
  sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*") if path.is_file()}
  return client.running.collection.changes, sizes


def change(rng: random.Random, images: list[bytes]) -> tuple[str, str, bytes, dict[str, str]]:
  """Returns method, path, body and headers of a change in which something is wrong, as a rule."""
  picture, headers = base64.b64encode(png("red")).decode(), {"Content-Type": "application/json"}
  said: Any = {"items": [{"id": "a", "image": picture, "metadata": {"price": 3, "name": "mug"}}]}
  method, path = "POST", "/v1/items"
  if rng.random() < 0.3:
    method, path, said = "PUT", "/v1/items?id=red.png", {"metadata": {"price": 3, "name": "mug"}}
  if rng.random() < 0.7:
    said = hurt(said, rng, images)
  text = json.dumps(said)
  if rng.random() < 0.4:
    place = rng.randrange(len(text) + 1)
    text = text[:place] + rng.choice(CUTS) + text[place + rng.randrange(4) :]
  if rng.random() < 0.15:
    method = rng.choice(("POST", "PUT", "DELETE", "PATCH"))
    path += rng.choice(("", "?id=", "?id=%ff", "?id=a&id=b", "?id=../red.png", "/red.png", "?id=" + "x" * 5000))
  body = text.encode("utf-8", "surrogatepass")
  if method == "POST" and rng.random() < 0.2:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="../a.png"\r\n\r\n'
    rest = b'\r\n--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + body + b"\r\n--x--\r\n"
    body, headers = head + rng.choice(images) + rest, {"Content-Type": "multipart/form-data; boundary=x"}
  return method, path, body, headers


def hurt(said: Any, rng: random.Random, images: list[bytes]) -> Any:
  """Returns JSON with one value in it replaced, at any depth, or with one name more."""
  if not isinstance(said, dict | list) or not said or rng.random() < 0.2:
    return value(rng, images)
  if isinstance(said, list):
    return [hurt(said[0], rng, images), *said[1:]]
  name = rng.choice([*said, rng.choice(("file", ".stamp", "", "vector", "x" * 300, "\ud800"))])
  return {**said, name: hurt(said.get(name), rng, images)}


def value(rng: random.Random, images: list[bytes], depth: int = 0) -> Any:
  """Returns any JSON value, now and then one that a change may have."""
  choice = rng.randrange(8 if depth < 4 else 5)
  if choice < 3:
    return rng.choice((ODD, NUMBERS, (None, "a red mug", *WORDS))[choice])
  if choice == 3:
    return base64.b64encode(rng.choice(images)).decode()
  if choice == 4:
    return [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 127, 128, 129, 512)))]
  if choice == 5:
    return [value(rng, images, depth + 1) for _ in range(rng.randrange(4))]
  return {rng.choice(WORDS): value(rng, images, depth + 1) for _ in range(rng.randrange(5))}


def pictures(rng: random.Random) -> list[bytes]:
  """Returns pictures, whole, cut, changed, of other kinds, and bombs."""
  found = [b"", b"<svg/>", b"GIF89a", b"%PDF-1.4"]
  for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
    buffer = io.BytesIO()
    Image.new("RGB", (33, 21), (200, 30, 30)).save(buffer, kind)
    data = buffer.getvalue()
    found += [data, data[: rng.randrange(len(data))]]
    for _ in range(6):
      changed = bytearray(data)
      for _ in range(rng.randrange(1, 12)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
      found.append(bytes(changed))
  return [*found, *(bomb(*size) for size in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (0, 5)))]

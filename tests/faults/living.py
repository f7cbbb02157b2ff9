"""The campaign of a collection that changes: its process is killed, its disk gets full or read-only, under searches.

After the restart it holds exactly what was acknowledged, or the one change more that was under way; nothing twice; and
its rankings are those of an array of its items, bit for bit. Changes are drawn from a seed, so both sides know them.
"""

import contextlib
import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

import qat_jax
from qat_jax.adaptation import plain, unit
from qat_jax.adapter import Adapter
from qat_jax.features.store import FeatureStore
from qat_jax.models.head import Head
from qat_jax.serve.collected import Collected
from qat_jax.serve.collection import collection as module
from qat_jax.serve.collection.collection import Collection, Item
from qat_jax.serve.collection.shared import Shared
from qat_jax.serve.living import Living
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.service import Service
from qat_jax.types import Pieces
from tests.faults.bench import Bench, Outcome
from tests.faults.disk import remounted, room, tmpfs

WIDTH, ENCODER = 256, ("drawn", "1")
ITEMS = 100_000
KILLED, FULL, READ_ONLY = "SIGKILL", "a full disk", "a read-only disk"
WAYS = (KILLED, KILLED, KILLED, FULL, READ_ONLY)
LOG_BYTES = 200_000  # after which the victim compacts: often
QUERIES, K = 4, 50


def case(bench: Bench, number: int, rng: random.Random) -> Outcome:
  """Ends a process that changes a collection, twice, and opens what it left each time."""
  base, way = base_of(bench), WAYS[number % len(WAYS)]
  disk, done, wrong = bench.scratch / f"living-{number}", 0, ""
  with contextlib.ExitStack() as stack:
    if way == KILLED:
      stack.callback(shutil.rmtree, disk)
    else:
      stack.enter_context(tmpfs(disk))
    victim = functools.partial(ended, base, disk / "collection", number)
    followed = way == KILLED and number % 2 == 1  # by a process that takes the victim's place
    for _ in range(2):
      if way == FULL:
        room(disk, rng.randrange(100_000, 4_000_000))
      acknowledged, said, heir = victim(done, 60.0 if way == FULL else rng.uniform(0.0, 3.0), followed)
      if way == FULL:
        wrong = "" if "no room" in said else f"a full disk was not told: {said[-500:]}"
        room(disk, 1 << 30)
      if way == READ_ONLY:
        remounted(disk, "ro")
        again, said, _ = victim(acknowledged, 60.0)
        wrong = "" if again == acknowledged and "Read-only" in said else f"a read-only disk was not told: {said[-500:]}"
        remounted(disk, "rw")
      done, lost = checked(base, disk / "collection", number, acknowledged, heir)
      if wrong := wrong or lost:
        break
  name, happened = f"collection, {way}{', followed' * followed}", "all acknowledged, nothing twice"
  return Outcome(name, "wrong" if wrong else happened, wrong)


@functools.cache
def base_of(bench: Bench, items: int = ITEMS) -> pathlib.Path:
  """Returns a folder of drawn features, which the collections of all cases begin with."""
  rows_ND = unit(np.random.default_rng(0).standard_normal((items, WIDTH)), np.float32).astype(np.float16)
  about = {"encoder": ENCODER[0], "revision": ENCODER[1]}
  columns = {"id": [f"i{i}" for i in range(items)], "n": list(range(items))}
  return qat_jax.write_features(bench.scratch / "base", {"img": rows_ND}, columns, about).folder


def change(seed: int, number: int, items: int) -> tuple[list[Item], list[str]]:
  """Returns one change of a sequence: items that come or are replaced, and ids that go."""
  rng = np.random.default_rng([seed, number])
  names = [f"i{i}" for i in rng.choice(items + items // 20, rng.integers(0, 8), replace=False)]
  rows_ND = unit(rng.standard_normal((len(names), WIDTH)), np.float32).astype(np.float16)
  new = [Item(name, {"n": number}, row_D) for name, row_D in zip(names, rows_ND, strict=True)]
  return new, [f"i{i}" for i in rng.integers(0, items, rng.integers(0, 4))]


def ended(
  base: pathlib.Path, folder: pathlib.Path, seed: int, done: int, seconds: float, followed: bool = False
) -> tuple[int, str, Collection | None]:
  """Starts a victim, and kills it so long after its first change.

  Returns what it acknowledged, what it said (nothing if it was killed), and where it was followed its heir.
  """
  heir = None
  words = [sys.executable, "-m", "tests.faults.living", str(base), str(folder), str(seed), str(done)]
  with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as victim:
    assert victim.stdout is not None and victim.stderr is not None
    lines, acknowledged = iter(victim.stdout.readline, ""), done
    for line in lines:  # the first
      acknowledged = int(line)
      heir = Shared(folder, ENCODER, WIDTH, FeatureStore.open(base)) if followed else None
      break
    killer = threading.Timer(seconds, victim.kill)
    killer.start()
    for line in lines:
      acknowledged = int(line) if line.endswith("\n") else acknowledged
      if heir is not None:
        heir.read_on()
    said = victim.stderr.read()
    killer.cancel()
  while heir is not None and not heir.writes:
    heir.read_on()
  return acknowledged, "" if victim.returncode == -signal.SIGKILL else said or "nothing", heir


def checked(
  base: pathlib.Path, folder: pathlib.Path, seed: int, acknowledged: int, collection: Collection | None = None
) -> tuple[int, str]:
  """Returns how many changes a collection holds, and what is wrong with it."""
  store = FeatureStore.open(base)
  rows = dict(zip(store.ids.tolist(), store[:], strict=True))
  for number in range(acknowledged):
    follow(rows, *change(seed, number, len(store)))
  try:
    collection = collection or Collection(folder, ENCODER, WIDTH, store)
  except Exception as error:
    return 0, f"it does not open: {error!r}"
  with contextlib.closing(collection):
    _, blocks = collection.snapshot()
    names = [name for block in blocks for name in block.living()[1].column("id").to_pylist()]
    if len(set(names)) < len(names):
      return 0, "an item is there twice"
    if names != list(rows):
      follow(rows, *change(seed, acknowledged, len(store)))
      acknowledged += 1
    if names != list(rows):
      return 0, f"after {acknowledged} changes it holds {len(names)} items, wanted {len(rows)}"
    rows_ND = np.stack(list(rows.values()))
    if rows_ND.tobytes() != np.concatenate([block.living()[0] for block in blocks]).tobytes():
      return 0, "features differ"
    query_QD, array_ND = (
      np.random.default_rng(seed).standard_normal((QUERIES, WIDTH)),
      jnp.asarray(rows_ND, jnp.float32),
    )
    service = shown(collection)
    for query_D in query_QD:
      (found,) = service.search([Search((Part(vector=query_D, query_type="image"),), K, "plain")])
      assert not isinstance(found, Exception) and found.plain is not None
      wanted = qat_jax.rank(plain(jnp.asarray(found.feature[None])), array_ND, K)
      if [service.items.id(p) for p in found.plain.ids.tolist()] != [names[i] for i in wanted.ids[0]]:
        return 0, "a ranking has other items than that of an array"
      if found.plain.scores.tobytes() != wanted.scores[0].tobytes():
        return 0, "a ranking has other scores than that of an array"
  return acknowledged, ""


def follow(rows: dict[str, np.ndarray], items: list[Item], removed: list[str]) -> None:
  """Changes a dictionary as a collection is changed."""
  for name in (*removed, *(item.id for item in items)):
    rows.pop(name, None)
  rows |= {item.id: item.feature for item in items}


def shown(collection: Collection) -> Service:
  """Returns the service of a collection without an encoder, compiled for nothing."""
  adapter = Adapter(WIDTH, {name: Head("plain", {}, {}) for name in ("text", "image")})
  empty = Pieces((jnp.ones((1, WIDTH)),), (0,), (np.zeros(0, bool),), "frozen")
  services: list[Service] = []
  living = Living(collection, Service(adapter, Collected([]), empty, {"text": empty, "image": empty}), services.append)
  living.batches = ()
  living.publish()
  return services[-1]


def victim(base: str, folder: str, seed: str, done: str) -> None:
  """Changes a collection without end, one acknowledged change a line, while a thread searches and another compacts."""
  module.LEAST_LOG, module.SHARE = LOG_BYTES, 1 << 40
  store = FeatureStore.open(base)
  collection = Collection(pathlib.Path(folder), ENCODER, WIDTH, store)
  vector_D = np.ones(WIDTH, np.float32)

  def search() -> None:
    while True:
      shown(collection).search([Search((Part(vector=vector_D, query_type="image"),), K)])

  def compact() -> None:
    while True:
      if collection.wants_compacting:
        with contextlib.suppress(OSError):
          collection.compact()
      time.sleep(0.05)

  for work in (search, compact):
    threading.Thread(target=work, daemon=True).start()
  for number in range(int(done), int(done) + 100_000):
    items, removed = change(int(seed), number, len(store))
    try:
      collection.change(items, removed, {"n": pa.int64()})
    except OSError as error:
      print(error, file=sys.stderr, flush=True)
      os._exit(1)
    print(number + 1, flush=True)


if __name__ == "__main__":
  victim(*sys.argv[1:])

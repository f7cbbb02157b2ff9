"""A source of pictures → a collection: what is new is encoded, what changed is replaced, what is gone is removed.

An item is known by its id and by a digest of all that its source says of it (for a file: path, size, date, caption).
Where that differs its bytes are read; where these are known, under whatever name, its feature is taken over.
"""

import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qat_jax.datasets import Source, UnreadableImage, tables
from qat_jax.datasets.columns import SIGNED
from qat_jax.features import records
from qat_jax.serve.collection.blocks import ADDED, CONTENT, STAMP, Item
from qat_jax.serve.collection.collection import Collection, types_for

AHEAD = 64  # pictures that are read ahead
THREADS = 4
WINDOW = 30.0  # seconds that the rate is measured over
REST = 10  # times as long as a look at the source took, until the next


@dataclasses.dataclass
class Progress:
  """What is done of the source; read by others while it changes."""

  all: int = 0  # items of the source
  left: int = 0  # that are still to be read
  encoded: int = 0  # by this process
  unreadable: dict[str, str] = dataclasses.field(default_factory=dict)  # id → why
  seconds_left: float | None = None
  error: str = ""  # why the source cannot be looked at


class _Known:
  """Contents that have a feature, as `records.record` asks for them."""

  def __init__(self, ids: dict[str, str]) -> None:
    self.ids = ids  # content → id

  def row(self, digest: bytes) -> str | None:
    """Returns the id of an item with this content."""
    return self.ids.get(digest.hex()) if any(digest) else None


class Feeder:
  """Brings a collection up to its source. Its `run` is for one thread."""

  def __init__(
    self,
    collection: Collection,
    source: Callable[[], Source],
    encode: Callable[[list[Any]], np.ndarray],
    batch: int,
    progress: Progress,
  ) -> None:
    """`source` opens the source anew; `encode` makes unit features (ND) of pictures, `batch` at a time."""
    self.collection, self.open, self.encode, self.batch, self.progress = collection, source, encode, batch, progress
    self.source: Source | None = None
    self.places: dict[str, int] = {}  # id → position in the source
    self._bad: dict[str, str] = {}  # stamps of what could not be read → id
    self.stopped = threading.Event()

  def stop(self) -> None:
    """Ends `run` and `follow` soon."""
    self.stopped.set()

  def follow(self, least: float = 1.0) -> None:
    """Runs again and again until it is stopped; a source that cannot be looked at changes nothing."""
    while not self.stopped.is_set():
      began = time.monotonic()
      try:
        self.run()
        self.progress.error = ""
      except (OSError, ValueError) as error:
        self.progress.error = " ".join(str(error).split())
      self.stopped.wait(max(least, REST * (time.monotonic() - began)))

  def run(self) -> None:
    """Looks at the source once, and does what is to be done; raises as the source does, and OSError of the disk."""
    source, stamps = self.look()
    followed, posted, contents = self._there()
    gone = self.collection.gone
    todo = [
      position
      for name, position in self.places.items()
      if name not in posted and stamps[position][1] not in (followed.get(name), gone.get(name))
      if stamps[position][1] not in self._bad
    ]
    self.progress.all, self.progress.left = len(self.places), len(todo)
    there = {name: self._bad[stamp] for name, stamp in stamps if stamp in self._bad}
    self.progress.unreadable = {name: why for name, why in self.progress.unreadable.items() if name in there}
    for number, (name, _) in enumerate(stamps):
      if self.places[name] != number:
        self.progress.unreadable[name] = "the id occurs more than once in the source"
    self._read(source, todo, stamps, contents)
    if not self.stopped.is_set() and (old := [name for name in followed if name not in self.places]):
      self.collection.change(removed=old)
    self.progress.left, self.progress.seconds_left = 0, None

  def look(self) -> tuple[Source, list[tuple[str, str]]]:
    """Opens the source anew, and returns it with id and stamp of each of its items."""
    source = self.open()
    stamps = [_stamp(source, position) for position in range(len(source))]
    self.source, self.places = source, {name: i for i, (name, _) in enumerate(stamps)}
    return source, stamps

  def _there(self) -> tuple[dict[str, str], set[str], dict[str, str]]:
    """Returns id → stamp of what came from the source, the ids of what did not, and content → id."""
    followed, posted, contents = {}, set(), {}
    for block in self.collection.snapshot()[1]:
      table = block.living()[1].select(["id", CONTENT, STAMP])
      for name, content, stamp in zip(*(table.column(i).to_pylist() for i in range(3)), strict=True):
        if content:
          contents[content] = name
        if stamp not in ("", ADDED):
          followed[name] = stamp
        else:
          posted.add(name)
    return followed, posted, contents

  def _read(self, source: Source, todo: list[int], stamps: list[tuple[str, str]], contents: dict[str, str]) -> None:
    """Reads and encodes the items at some positions, and puts them into the collection, a batch at a time."""
    done, count = [(time.monotonic(), 0)], 0
    reading = records.read_ahead(source, todo, True, THREADS, AHEAD, _Known(contents))  # type: ignore[arg-type]
    pairs = zip(todo, reading, strict=False)
    while some := list(itertools.islice(pairs, self.batch)):
      if self.stopped.is_set():
        return
      readable = []
      for position, record in some:
        if isinstance(record, UnreadableImage):
          reason = record.reason
          self.progress.unreadable[stamps[position][0]] = self._bad[stamps[position][1]] = reason
        else:
          readable.append((record, stamps[position][1]))
      self._put(readable)
      count += len(some)
      done = [*(one for one in done if one[0] > time.monotonic() - WINDOW), (time.monotonic(), count)]
      self.progress.left -= len(some)
      if len(done) > 1:
        rate = (done[-1][1] - done[0][1]) / max(done[-1][0] - done[0][0], 1e-6)
        self.progress.seconds_left = self.progress.left / max(rate, 1e-6)

  def _put(self, some: Sequence[tuple[dict[str, Any], str]]) -> None:
    new = [record for record, _ in some if record[records.REUSED] is None]
    rows = iter(self.encode([record["image"] for record in new])) if new else iter(())
    items, types = [], dict[str, pa.DataType]()
    for record, stamp in some:
      before = None if record[records.REUSED] is None else self.collection.get(record[records.REUSED])
      if before is None and record[records.REUSED] is not None:
        continue  # it went meanwhile: the next look reads it
      metadata = metadata_of(record)
      types |= types_for({**self.collection.items.types, **types}, metadata, widen=True)
      row_D = before.feature if before is not None else next(rows)
      items.append(Item(record["id"], metadata, row_D, record[records.CONTENT].hex(), stamp))
    if items:
      self.collection.change(items, types=types)
    self.progress.encoded += len(new)


def metadata_of(record: dict[str, Any]) -> dict[str, Any]:
  """Returns the plain fields of a record, as a collection keeps them."""
  kept = {}
  for name, value in record.items():
    if name in ("id", "image", records.CONTENT, records.REUSED) or name.startswith("."):
      continue
    if not tables.is_plain(value) or value != value:
      continue
    kept[name] = str(value) if isinstance(value, int) and not -SIGNED <= value < SIGNED else value
  return {name: value for name, value in kept.items() if not isinstance(value, str) or tables.is_utf8(value)}


def _stamp(source: Any, position: int) -> tuple[str, str]:
  """Returns the id of an item, and a digest of all that its source says of it."""
  about = source.stamp(position)
  text = json.dumps(about, sort_keys=True, default=str)
  name = about["id"] if "id" in about else source.about(position)["id"]  # a row of Parquet is known by its place
  return str(name), hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

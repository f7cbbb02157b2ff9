"""A collection on the disk: what `change` returned for survives a kill, and is there once.

A folder holds `collection.json` (which base and which logs count), a base `rows-N/` (a feature folder), and logs
`log-N`. A change is one frame of the newest log. `compact` begins a new log, writes all living items as a new base, and
then replaces collection.json: so either the old base and all logs count, or the new base and the new log.
"""

import contextlib
import errno
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qat_jax.adaptation import unit
from qat_jax.features.shards import META
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.features.writer import FeatureWriter
from qat_jax.sealed import check_format, read_record, write_record
from qat_jax.serve.collection import blocks, log
from qat_jax.serve.collection.blocks import HIDDEN, Block, Blocks, Change, Item, by_batch, concatenated
from qat_jax.stages import checksum, lock
from qat_jax.types import EncoderName, check_encoders

FORMAT = 1
RECORD = "collection.json"
OUTER = ".."  # a base that is the feature folder around the collection's own
LEAST_LOG = 64 << 20  # bytes of logs that are compacted, at least
SHARE = 4  # and a fourth of the base
CLOSING = 5.0  # seconds that a compaction has, to end
BATCH = 65536  # rows that are written at once
WIDER = {pa.int64(): (pa.float64(), pa.string()), pa.float64(): (pa.string(),), pa.bool_(): (pa.string(),)}


class Collection:
  """Items that come, change and go; every change is on the disk before it is seen. For many threads, one process."""

  writes = True  # whether this process is the one that may change it

  def __init__(self, folder: Path, encoder: EncoderName, width: int, around: FeatureStore | None = None) -> None:
    """Opens the collection in a folder, or begins one: empty, or with the features `around` the folder.

    Raises BlockingIOError where another process has it, ValueError where it is damaged or of another encoder.
    """
    self.folder, self.encoder, self.width, self.around = folder, encoder, width, around
    self._stack = contextlib.ExitStack()
    self._lock, self._compacting = threading.Lock(), threading.Lock()
    self.changes = 0  # since it was opened
    self._open()

  def read_on(self) -> None:
    """Reads what another process has written: nothing, where no other may."""

  def _open(self) -> None:
    """Takes the collection for this process alone, and begins it where there is none."""
    self._stack.enter_context(lock(self.folder))
    try:
      path = self.folder / RECORD
      if not path.exists():
        base = None if self.around is None else OUTER
        begun = {"encoder": list(self.encoder), "width": self.width, "dtype": "float16", "base": base, "log": 0}
        state = None if self.around is None else _state(self.around)
        write_record(path, {"format": FORMAT, **begun, "gone": {}, "around": state})
      numbers, size = self._read()
      self._remove_left()
      self._log = log.Log(self.folder / f"log-{self._number}", size)
      self._before = sum((self.folder / f"log-{number}").stat().st_size for number in numbers[:-1])
    except BaseException:
      self._stack.close()
      raise

  def _read(self) -> tuple[list[int], int]:
    """Reads base and logs; returns the logs' numbers, and how much of the last one counts."""
    path = self.folder / RECORD
    about = read_record(path)
    check_format(path, about.get("format"), FORMAT, f"delete {self.folder}, it is made anew")
    name, revision = about["encoder"]
    check_encoders(f"the collection {self.folder}", (name, revision), "what is asked for", self.encoder)
    if about["width"] != self.width:
      raise ValueError(
        f"the collection {self.folder} is {about['width']} wide, the encoder {self.width}; use its own encoder"
      )
    self.about, self.dtype = about, np.dtype(about["dtype"])
    types = {name: pa.type_for_alias(kind) for name, kind in about.get("types", {}).items()}  # without a base
    self.items, self.gone = Blocks(self.width, self.dtype, types), dict(about["gone"])
    if about["base"] is not None:
      self._read_base()
    numbers = sorted(int(path.name[4:]) for path in self.folder.glob("log-*") if path.name[4:].isdigit())
    numbers, size = [number for number in numbers if number >= about["log"]], 0
    for number in numbers:
      frames, size = log.read(self.folder / f"log-{number}")
      self._take(frames)
    self._number = numbers[-1] if numbers else about["log"]
    return numbers, size

  def _read_base(self) -> None:
    if self.about["base"] == OUTER:
      if self.around is None or _state(self.around) != self.about["around"]:
        raise ValueError(
          f"the features around {self.folder} are not those that it was begun with; restore them, or delete "
          f"{self.folder} with the changes that it holds"
        )
      store = self.around
    else:
      store = FeatureStore.open(self.folder / self.about["base"], "img")
    store.check_files()
    store.check_ids()
    table = store.metadata()
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    table = table.select(plain)
    for name in HIDDEN:
      if name not in table.column_names:
        table = table.append_column(name, pa.array([""] * len(table)))
    rows_ND = np.empty((len(store), store.width), self.dtype)
    for start, chunk_ND in store.chunks():
      rows_ND[start : start + len(chunk_ND)] = chunk_ND if self.about["base"] != OUTER else unit(chunk_ND, np.float32)
    self.items.types = {field.name: field.type for field in table.schema if field.name not in ("id", *HIDDEN)}
    self.items.load(rows_ND, table)

  def _remove_left(self) -> None:
    """Removes what a compaction left behind that was killed, or had just ended."""
    for path in self.folder.iterdir():
      number = re.fullmatch(r"(log|rows)-(\d+)", path.name)
      if number and number[1] == "log" and int(number[2]) < self.about["log"]:
        path.unlink()
      elif number and number[1] == "rows" and path.name != self.about["base"]:
        shutil.rmtree(path)

  def change(
    self,
    items: Sequence[Item] = (),
    removed: Sequence[str] = (),
    types: Mapping[str, pa.DataType] | None = None,
    gone: Mapping[str, str] | None = None,
  ) -> None:
    """Adds or replaces items, and removes others, all or nothing; they are on the disk when it returns.

    Args:
      items: what comes; of an id that is there the earlier item goes.
      removed: ids that go.
      types: columns that are new, or wider than before.
      gone: id → stamp of what a source still has, and shall not bring again.

    Raises OSError where the disk does not take it, and then nothing has changed.
    """
    self.changed(lambda _: Change(items, removed, types or {}, gone or {}))

  def changed(self, make: Callable[[Blocks], Change]) -> None:
    """As `change`, of what a function makes of the items as they are, while nothing else changes."""
    with self._lock:
      frame = blocks.as_frame(make(self.items), self.dtype)
      self._log.append(frame)
      self._take([frame])

  def _take(self, frames: Sequence[bytes]) -> None:
    """Applies frames of a log."""
    for frame in frames:
      self._apply(blocks.from_frame(frame, self.width, self.dtype))

  def _apply(self, change: Change) -> None:
    if change.types:
      self.items.retype(change.types)
    self.items.remove(change.removed)
    self.items.add(change.items)
    self.gone |= change.gone
    self.changes += 1

  def snapshot(self) -> tuple[int, list[Block]]:
    """Returns the number of changes so far, and all items; none of these blocks will change."""
    with self._lock:
      return self.changes, self.items.snapshot()

  def get(self, name: str) -> Item | None:
    """Returns an item by its id; None where it is not there."""
    with self._lock:
      return self.items.get(name)

  def __len__(self) -> int:
    with self._lock:
      return self.items.count

  @property
  def wants_compacting(self) -> bool:
    """Whether the logs have become long beside the base."""
    base = self.items.count * self.width * self.dtype.itemsize
    return self._before + self._log.size > max(LEAST_LOG, base // SHARE)

  def compact(self) -> None:
    """Writes all living items as a new base, while changes go on; a kill at any moment loses nothing.

    Raises OSError where the disk is full: then the logs stay.
    """
    with self._compacting:
      with self._lock:
        self._before += self._log.size
        self._log.close()
        self._number += 1
        self._log = log.Log(self.folder / f"log-{self._number}", 0)
        self.items.tidy()
        blocks, number, types = self.items.snapshot(), self._number, dict(self.items.types)
        gone = dict(self.gone)
      base = None
      if blocks:
        base = f"rows-{number}"
        self._write_base(base, blocks, types)
      with self._lock:
        self.about = {**self.about, "base": base, "log": number, "around": None, "gone": gone}
        plain = {kind for _, kind in _KINDS}
        self.about["types"] = {} if base else {name: str(kind) for name, kind in types.items() if kind in plain}
        write_record(self.folder / RECORD, self.about)
        self._before = 0
        self._remove_left()

  def _write_base(self, name: str, blocks: list[Block], types: Mapping[str, pa.DataType]) -> None:
    table = concatenated([block.living()[1] for block in blocks])
    for column, kind in types.items():
      if column not in table.column_names:
        table = table.append_column(column, pa.nulls(len(table), kind))
    about = {"encoder": self.encoder[0], "revision": self.encoder[1]}
    if (self.folder / name).exists():
      FeatureWriter.discard(self.folder / name)
    write_features(self.folder / name, {"img": by_batch(blocks, BATCH)}, table, about)

  def close(self) -> None:
    """Lets go of the folder; where a compaction is under way for long, the end of the process does."""
    if self._compacting.acquire(timeout=CLOSING):
      with self._lock:
        self._log.close()
        self._stack.close()
      self._compacting.release()


def types_for(
  known: Mapping[str, pa.DataType], metadata: Mapping[str, Any], widen: bool = False
) -> dict[str, pa.DataType]:
  """Returns the types of columns that metadata would add, or widen; raises ValueError that names a value of another."""
  found: dict[str, pa.DataType] = {}
  for name, value in metadata.items():
    if value is None:
      continue
    kind = next(kind for of, kind in _KINDS if isinstance(value, of))
    old = found.get(name, known.get(name))
    if old is None:
      found[name] = kind
    elif not (_fits(value, kind, old) or (widen and pa.types.is_string(old))):
      wide = next((wide for wide in WIDER.get(old, ()) if wide == kind or wide == pa.string()), None)
      if not widen or wide is None:
        raise ValueError(f"the column {name!r} is {old}; {str(value)[:100]!r} is no value of it")
      found[name] = wide
  return found


_KINDS = ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()), (str, pa.string()))


def _fits(value: Any, kind: pa.DataType, column: pa.DataType) -> bool:
  if kind == column:
    return True
  if pa.types.is_boolean(kind) or pa.types.is_boolean(column):
    return False
  try:
    pa.array([value]).cast(column)
  except pa.ArrowException:
    return False
  return kind == pa.string() or not pa.types.is_string(column)


def _state(store: FeatureStore) -> dict[str, Any]:
  """Returns what tells a feature folder from others, or from what it was before."""
  path = store.folder / META
  files = {shard.path.name: shard.path.stat().st_size for shard in store.shards}
  return {"rows": len(store), "files": files, "meta": checksum(path) if path.exists() else None}


def is_full(error: OSError) -> bool:
  """Says whether the disk took nothing because it is full or only to be read."""
  return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

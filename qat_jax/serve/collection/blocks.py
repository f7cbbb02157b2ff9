"""The items of a collection in memory: blocks that do not change, and the newest items.

Blocks have few sizes, each eight times the one before, so that programs are compiled for few shapes. The newest items
fill a block of the least size; blocks of one size are merged into one of the next when there are four of them. An item
that goes, or is replaced, is dead in its block until that is merged.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa

from qat_jax.serve.items import Items

SIZES = (1024, 8192, 65536, 524288)
MOST_DEAD = 0.25  # of what blocks hold
TOGETHER = 4  # blocks of one size that are merged
CONTENT, STAMP = ".content", ".stamp"  # columns: a digest of the picture's bytes; what its source said of it
HIDDEN = (CONTENT, STAMP)
PLACED = "placed"  # the stamp of what a map placed, until it is encoded
ADDED = "added"  # the stamp of what came by the API


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
  """An item as it is written: a unit feature (D), metadata of plain values, and what its picture is."""

  id: str
  metadata: Mapping[str, Any]
  feature: np.ndarray
  content: str = ""  # digest of its picture's bytes, hexadecimal; "" where there is none
  stamp: str = ""  # what its source says of it, as a digest; ADDED for what came by the API, "" for a feature's own


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
  """Consecutive items; `alive` is replaced, never changed."""

  rows: np.ndarray  # ND, as stored
  table: pa.Table  # id, metadata, hidden columns
  alive: np.ndarray  # bool N
  items: Items

  @classmethod
  def of(cls, rows: np.ndarray, table: pa.Table) -> Self:
    """Returns a block whose items are all alive."""
    shown = table.select([name for name in table.column_names if name not in ("id", *HIDDEN)])
    return cls(rows, table, np.ones(len(rows), bool), Items(table.column("id"), shown, "the collection"))

  @property
  def capacity(self) -> int:
    """The least size that holds it."""
    return capacity_of(len(self.rows))

  def living(self) -> tuple[np.ndarray, pa.Table]:
    """Returns the rows and the table of what is alive."""
    return (self.rows, self.table) if self.alive.all() else (self.rows[self.alive], self.table.filter(self.alive))


def capacity_of(count: int) -> int:
  """Returns the least of SIZES that is no smaller; the greatest for more."""
  return next((size for size in SIZES if size >= count), SIZES[-1])


def cuts(count: int) -> list[int]:
  """Returns how many of so many items each block gets: full ones, the greatest first, and at most three of a size."""
  found: list[int] = []
  for size in reversed(SIZES):
    full, rest = divmod(count, size)
    if size == SIZES[-1] or full < TOGETHER:
      found += [size] * full
      count = rest
    else:
      return [*found, count]
  return [*found, count] if count else found


class Blocks:
  """The items by their blocks: found by id, added, removed, merged. Not for several threads."""

  def __init__(self, width: int, dtype: np.dtype, types: Mapping[str, pa.DataType] | None = None) -> None:
    """`types` are those of the metadata's columns so far."""
    self.width, self.dtype, self.types = width, dtype, dict(types or {})
    self.blocks: list[Block] = []
    self.new: dict[str, Item] = {}
    self._sealed: Block | None = None  # of `new`, as it is

  @property
  def count(self) -> int:
    """How many items are alive."""
    return sum(int(block.alive.sum()) for block in self.blocks) + len(self.new)

  def load(self, rows: np.ndarray, table: pa.Table) -> None:
    """Puts many items behind what is there, as blocks."""
    table, at = self.cast(table), 0
    for count in cuts(len(rows)):
      self.blocks.append(Block.of(rows[at : at + count], table.slice(at, count)))
      at += count

  def get(self, name: str) -> Item | None:
    """Returns an item by its id."""
    if name in self.new:
      return self.new[name]
    place = self._place(name)
    if place is None:
      return None
    block, row = self.blocks[place[0]], place[1]
    (about,) = block.table.slice(row, 1).to_pylist()
    metadata = {k: as_plain(v) for k, v in about.items() if k not in ("id", *HIDDEN) and v is not None}
    return Item(name, metadata, block.rows[row], about[CONTENT], about[STAMP])

  def remove(self, names: Iterable[str]) -> None:
    """Removes items; those that are not there are passed over."""
    gone: dict[int, list[int]] = {}
    for name in names:
      if self.new.pop(name, None) is not None:
        self._sealed = None
      elif (place := self._place(name)) is not None:
        gone.setdefault(place[0], []).append(place[1])
    for number, rows in gone.items():
      alive_N = self.blocks[number].alive.copy()
      alive_N[rows] = False
      self.blocks[number] = dataclasses.replace(self.blocks[number], alive=alive_N)
    if gone:
      self.blocks = [block for block in self.blocks if block.alive.any()]

  def add(self, items: Sequence[Item]) -> None:
    """Puts items behind all others; of an id that is there the earlier item goes."""
    self.remove(item.id for item in items)
    for item in items:
      self.new[item.id] = item
      self._sealed = None
      if len(self.new) == SIZES[0]:
        self.blocks.append(self._block())
        self.new, self._sealed = {}, None
        self._merge()

  def snapshot(self) -> list[Block]:
    """Returns all blocks, the newest items as the last; none of them will change."""
    return [*self.blocks, *([self._block()] if self.new else [])]

  def retype(self, types: Mapping[str, pa.DataType]) -> None:
    """Adds columns, and gives others a wider type."""
    other = {name for name, kind in types.items() if name in self.types and self.types[name] != kind}
    self.types |= types
    if other:
      self.blocks = [
        dataclasses.replace(Block.of(block.rows, self.cast(block.table)), alive=block.alive) for block in self.blocks
      ]
      for item in self.new.values():
        wide = {
          name: as_plain(_array([item.metadata[name]], self.types[name])[0].as_py())
          for name in other & item.metadata.keys()
        }
        self.new[item.id] = dataclasses.replace(item, metadata={**item.metadata, **wide})
    self._sealed = None

  def cast(self, table: pa.Table) -> pa.Table:
    """Returns a table with the columns of known types in these."""
    for i, name in enumerate(table.column_names):
      if name in self.types and table.schema.field(i).type != self.types[name]:
        table = table.set_column(i, name, table.column(i).cast(self.types[name]))
    return table

  def _block(self) -> Block:
    if self._sealed is None:
      items = list(self.new.values())
      names = dict.fromkeys(name for item in items for name in item.metadata)
      columns = {name: _array([item.metadata.get(name) for item in items], self.types[name]) for name in names}
      hidden = {CONTENT: [item.content for item in items], STAMP: [item.stamp for item in items]}
      table = pa.table({"id": pa.array([item.id for item in items], pa.string()), **columns, **hidden})
      self._sealed = Block.of(np.stack([item.feature for item in items]).astype(self.dtype), table)
    return self._sealed

  def tidy(self) -> None:
    """Makes the blocks anew where more than a fourth of what they hold is dead."""
    rows = sum(len(block.rows) for block in self.blocks)
    if rows and sum(int(block.alive.sum()) for block in self.blocks) < (1 - MOST_DEAD) * rows:
      parts, self.blocks = [block.living() for block in self.blocks], []
      self.load(np.concatenate([part for part, _ in parts]), concatenated([table for _, table in parts]))

  def _place(self, name: str) -> tuple[int, int] | None:
    for number in reversed(range(len(self.blocks))):
      row = self.blocks[number].items.position(name)
      if row is not None and self.blocks[number].alive[row]:
        return number, row
    return None

  def _merge(self) -> None:
    """Merges the last blocks of one size when there are four of them, with a half empty one of the next size."""
    for size, larger in itertools.pairwise(SIZES):
      last = 0
      while last < len(self.blocks) and self.blocks[-1 - last].capacity == size:
        last += 1
      if last < TOGETHER:
        return
      living = lambda blocks: sum(int(block.alive.sum()) for block in blocks)
      before = self.blocks[-1 - last] if last < len(self.blocks) else None
      if before is not None and before.capacity == larger and living(self.blocks[-1 - last :]) <= larger:
        last += 1
      parts = [block.living() for block in self.blocks[-last:]]
      del self.blocks[-last:]
      self.load(np.concatenate([rows for rows, _ in parts]), concatenated([table for _, table in parts]))


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
  """Returns tables behind one another; what one lacks is missing there."""
  return pa.concat_tables(tables, promote_options="default").combine_chunks()


def as_plain(value: Any) -> Any:
  """Returns a metadata value as JSON has it: what is neither number nor text, as text."""
  return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
  """Returns plain values in the type of a column; times and the like are written as text."""
  if any(isinstance(value, str) for value in values) and not pa.types.is_string(kind):
    return pa.array([None if value is None else str(value) for value in values], pa.string()).cast(kind)
  if pa.types.is_string(kind):
    return pa.array([None if value is None else pa.scalar(value).cast(kind).as_py() for value in values], kind)
  return pa.array(values, kind)


@dataclasses.dataclass(frozen=True)
class Change:
  """What happens at once: columns are added or widened, items go, and then items come."""

  items: Sequence[Item] = ()
  removed: Sequence[str] = ()
  types: Mapping[str, pa.DataType] = dataclasses.field(default_factory=dict)
  gone: Mapping[str, str] = dataclasses.field(default_factory=dict)  # id → stamp: what a source has and nobody wants


def as_frame(change: Change, dtype: np.dtype) -> bytes:
  """Returns a change as a frame of the log."""
  items = change.items
  about = {
    "remove": list(change.removed),
    "types": {name: str(kind) for name, kind in change.types.items()},
    "gone": dict(change.gone),
    "items": [[item.id, dict(item.metadata), item.content, item.stamp] for item in items],
  }
  rows = b"".join(np.ascontiguousarray(item.feature, dtype).tobytes() for item in items)
  return json.dumps(about).encode() + b"\0" + rows


def from_frame(content: bytes, width: int, dtype: np.dtype) -> Change:
  """Returns what `as_frame` wrote."""
  about, _, rows = content.partition(b"\0")
  told = json.loads(about)
  rows_ND = np.frombuffer(rows, dtype).reshape(-1, width)
  items = [Item(name, kept, row_D, *rest) for (name, kept, *rest), row_D in zip(told["items"], rows_ND, strict=True)]
  types = {name: pa.type_for_alias(kind) for name, kind in told["types"].items()}
  return Change(items, told["remove"], types, told["gone"])


def by_batch(blocks: Sequence[Block], rows: int) -> Iterator[np.ndarray]:
  """Yields the living rows of blocks, some at a time."""
  for block in blocks:
    living = np.flatnonzero(block.alive)
    for at in range(0, len(living), rows):
      yield block.rows[living[at : at + rows]]

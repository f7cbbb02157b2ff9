"""Changes that clients ask for: items that come, other metadata, items that go. All is checked before it is kept."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.datasets import tables
from qat_jax.datasets.columns import SIGNED
from qat_jax.datasets.tables import FILE_COLUMNS
from qat_jax.serve.collection.blocks import ADDED, Blocks, Change, Item
from qat_jax.serve.collection.collection import Collection, is_full, types_for
from qat_jax.serve.limits import COLUMNS, Refused, invalid
from qat_jax.serve.pictures import Stored
from qat_jax.serve.service import Service

RESERVED = ("id", *FILE_COLUMNS)  # a path is never taken from a client


@dataclasses.dataclass(frozen=True)
class New:
  """An item that a client sends, checked: `pixels` as the encoder takes them, or a vector (D)."""

  id: str
  metadata: Mapping[str, Any]
  pixels: Any = None
  vector: np.ndarray | None = None
  data: bytes = b""  # of its picture

  @classmethod
  def of(cls, service: Service, name: str | None, metadata: Mapping[str, Any], **given: Any) -> Self:
    """Returns a new item of what a request gave: data and pixels, or a vector. Without an id it gets its content's."""
    digest = hashlib.blake2b(given.get("data") or np.asarray(given.get("vector")).tobytes(), digest_size=16)
    return cls(checked_id(name or digest.hexdigest()), checked(metadata), **given)


def add(service: Service, collection: Collection, new: Sequence[New], encoded: Sequence[np.ndarray]) -> list[str]:
  """Puts items into the collection and returns their ids, once all are on the disk; `encoded` are their pictures'.

  Raises Refused for what does not fit (422), and for a disk that takes nothing (507).
  """
  names = [item.id for item in new]
  if len(set(names)) < len(names):
    raise invalid("an id is given twice in one request; send an item once")
  rows, items = iter(encoded), []
  for item in new:
    row_D = unit(next(rows)) if item.vector is None else unit(item.vector, np.float32)
    content = hashlib.blake2b(item.data, digest_size=16).hexdigest() if item.data else ""
    items.append(Item(item.id, item.metadata, row_D, content, ADDED))

  def make(blocks: Blocks) -> Change:
    change = Change(items, types=_types(blocks, [item.metadata for item in items]))  # or refuses, with no file written
    if isinstance(service.pictures, Stored):
      for item, made in zip(new, items, strict=True):
        if item.data:
          service.pictures.keep(made.content, item.data)
    return change

  with _room():
    collection.changed(make)
  return names


def describe(collection: Collection, name: str, metadata: Mapping[str, Any]) -> None:
  """Replaces an item's metadata; what names its file stays. Raises Refused where it is not there (404)."""
  kept = checked(metadata, also=FILE_COLUMNS)

  def make(blocks: Blocks) -> Change:
    before = _there(blocks, name)
    files = {column: before.metadata[column] for column in FILE_COLUMNS if column in before.metadata}
    for column in kept.keys() & set(FILE_COLUMNS):
      if kept[column] != files.get(column):
        raise invalid(f"{column!r} names a file, which cannot be changed; leave it out")
    after = {**kept, **files}
    return Change([dataclasses.replace(before, metadata=after)], types=_types(blocks, [after]))

  with _room():
    collection.changed(make)


def remove(collection: Collection, name: str) -> None:
  """Removes an item; one that came from a source does not come again until its file changes. Refused (404)."""

  def make(blocks: Blocks) -> Change:
    stamp = _there(blocks, name).stamp
    return Change(removed=[name], gone={} if stamp in ("", ADDED) else {name: stamp})

  with _room():
    collection.changed(make)


def _there(blocks: Blocks, name: str) -> Item:
  """Returns an item by its id; raises Refused where it is not there (404)."""
  if (item := blocks.get(name)) is None:
    raise Refused(404, "no_item", f"the gallery has no item {name[:200]!r}")
  return item


def checked(metadata: Mapping[str, Any], also: Sequence[str] = ()) -> dict[str, Any]:
  """Returns metadata without missing values; raises Refused for names and values that cannot be kept."""
  kept = {}
  for name, value in metadata.items():
    if name.startswith(".") or not name.strip() or not tables.is_utf8(name):
      raise invalid(f"{name[:100]!r} is no name for metadata; it may not be empty, nor begin with a period")
    if name in RESERVED and name not in also:
      raise invalid(f"the metadata {name!r} is the server's own; choose another name")
    if isinstance(value, str) and not tables.is_utf8(value):
      raise invalid(f"the metadata {name[:100]!r} is no text that UTF-8 can write")
    if isinstance(value, int) and not -SIGNED <= value < SIGNED:
      raise invalid(f"the metadata {name[:100]!r} is a whole number beyond 64 bits; send it as text")
    if value is not None:
      kept[name] = value
  return kept


def checked_id(name: str) -> str:
  """Returns an id; raises Refused for one that no item can have."""
  if not name.strip() or not tables.is_utf8(name) or "\0" in name:
    raise invalid(f"{name[:100]!r} is no id: it may not be empty, nor hold a NUL or half a letter")
  return name


def _types(blocks: Blocks, all_: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the columns that metadata adds; raises Refused for a value of another type, and for too many columns."""
  types: dict[str, Any] = {}
  for metadata in all_:
    try:
      types |= types_for({**blocks.types, **types}, metadata)
    except ValueError as error:
      raise invalid(str(error)) from error
  if len(blocks.types | types) > COLUMNS:
    raise invalid(f"that would be more than {COLUMNS} metadata columns; use names that are there already")
  return types


@contextlib.contextmanager
def _room() -> Iterator[None]:
  """Raises Refused (507) where the disk does not take what the block writes."""
  try:
    yield
  except OSError as error:
    code, reason = "no_room", "the disk is full or only to be read, so nothing has changed; free some space"
    if not is_full(error):
      code, reason = "not_kept", "the disk did not take the change, so nothing has changed; see the server's log"
    raise Refused(507, code, reason) from error

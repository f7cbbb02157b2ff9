"""Parquet files with encoded images in a column as a source with random access, as dataset hubs publish them."""

from __future__ import annotations

import bisect
import collections
import os
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.files import File, listed, splits_of, stems
from qat_jax.sealed import readable

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "image_bytes", "bytes")
CAPTION_COLUMNS = ("caption", "text", "captions", "sentences")
ID_COLUMNS = ("id", "key", "image_id", "file_name")
HELD = 4  # row groups that are kept in memory: readers ahead are seldom in more


class ParquetSource:
  """The rows of Parquet files, in the order of files and rows, with an image's bytes in one column.

  The image is a column of bytes, or of {bytes, path}; of several captions the first counts; `instance` and `split` are
  columns of these names. Without a column of ids, an id is FILE/ROW.
  """

  def __init__(self, where: str | os.PathLike, image: str | None = None, caption: str | None = None) -> None:
    """Reads the files' footers: a folder, a file, a pattern with *, or an address that fsspec opens.

    `image` and `caption` name columns other than those known. Raises FileNotFoundError where there are no files,
    ValueError where one is broken or has no such column.
    """
    self.files = listed(where, ".parquet")
    self.names, self.splits = stems(self.files, ".parquet"), splits_of(self.files)
    self.groups: list[tuple[int, int]] = []  # file and row group
    self.starts, self.first = [0], [0]  # position of each group's first row; each file's first group
    schema: pa.Schema | None = None
    for number, file in enumerate(self.files):
      footer = _footer(file)
      if schema is not None and not footer.schema.to_arrow_schema().equals(schema):
        raise ValueError(f"{file.path} has other columns than {self.files[0].path}; give files of one schema")
      schema = footer.schema.to_arrow_schema()
      for group in range(footer.num_row_groups):
        self.groups.append((number, group))
        self.starts.append(self.starts[-1] + footer.row_group(group).num_rows)
      self.first.append(len(self.groups))
    assert schema is not None
    self.image = _chosen(schema, image, IMAGE_COLUMNS, self.files[0])
    self.caption = _named(schema, caption, CAPTION_COLUMNS)
    self.id = _named(schema, None, ID_COLUMNS)
    kept = [field.name for field in schema if field.name in (self.id, self.caption, "instance") or _simple(field.type)]
    self.columns = [name for name in kept if name != self.image]
    self._held: collections.OrderedDict[tuple[int, bool], pa.Table] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name not in ("_held", "_lock")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _held=collections.OrderedDict(), _lock=threading.Lock())

  def __len__(self) -> int:
    return self.starts[-1]

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of a row without its image, which is not read."""
    table, row, file = self._row(position, images=False)
    record = table.slice(row, 1).to_pylist()[0]
    number = position - self.starts[self.first[file]]
    caption = record.pop(self.caption) if self.caption else None
    caption = next(iter(caption), None) if isinstance(caption, list) else caption
    name, instance = record.get(self.id) if self.id else None, record.get("instance")
    own = {
      "id": f"{self.names[file]}/{number}" if name is None else str(name),
      "caption": None if caption in (None, "") else str(caption),
      "instance": None if instance in (None, "") else str(instance),
    }
    split = record.get("split") or self.splits[file]
    return {**record, **own, **({} if split is None else {"split": split})}

  def stamp(self, position: int) -> dict[str, Any]:
    """Returns what changes when a row does: its place, and size and date of its file. Reads nothing."""
    group = bisect.bisect_right(self.starts, position) - 1
    file = self.files[self.groups[group][0]]
    return {"file": (file.name, file.size, file.changed), "row": position}

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of a row: id, image (encoded), caption, instance, further simple columns.

    Raises UnreadableImage where the row has no image.
    """
    record = self.about(position)
    table, row, _ = self._row(position, images=True)
    image = table.column(self.image)[row].as_py()
    image = image.get("bytes") if isinstance(image, dict) else image
    if not image:
      raise UnreadableImage(record["id"], f"the column {self.image!r} is empty")
    return {**record, "image": image}

  def _row(self, position: int, images: bool) -> tuple[pa.Table, int, int]:
    """Returns the row group that a row is in, its place there, and its file; images and the rest are read apart."""
    if not 0 <= position < len(self):
      raise IndexError(f"position {position} asked of a source of {len(self)}")
    group = bisect.bisect_right(self.starts, position) - 1
    file, number = self.groups[group]
    with self._lock:
      if (group, images) not in self._held:
        with readable(self.files[file].path), self.files[file].open() as opened:
          columns = [self.image] if images else self.columns
          self._held[group, images] = pq.ParquetFile(opened).read_row_group(number, columns=columns)
        while len(self._held) > 2 * HELD:
          self._held.popitem(last=False)
      self._held.move_to_end((group, images))
      return self._held[group, images], position - self.starts[group], file


def _footer(file: File) -> pq.FileMetaData:
  try:
    with file.open() as opened:
      return pq.ParquetFile(opened).metadata
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f"{file.path} is no whole Parquet file ({error}); write or fetch it again") from error


def _named(schema: pa.Schema, asked: str | None, known: tuple[str, ...]) -> str | None:
  if asked and asked not in schema.names:
    raise ValueError(f"no column {asked!r}; the files have {schema.names}")
  return asked or next((name for name in known if name in schema.names), None)


def _chosen(schema: pa.Schema, asked: str | None, known: tuple[str, ...], file: File) -> str:
  """Returns the column of images; raises ValueError where there is none, or it holds no bytes."""
  name = _named(schema, asked, known)
  kind = None if name is None else schema.field(name).type
  if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
    kind = kind.field("bytes").type
  if name is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
    there = ", ".join(f"{field.name} {field.type}" for field in schema)
    raise ValueError(f"{file.path} has no column of image bytes ({there}); name it {' or '.join(known[:2])}")
  return name


def _simple(kind: pa.DataType) -> bool:
  tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
  return any(test(kind) for test in tests)

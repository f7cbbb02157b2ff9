"""Parquet files with encoded images in a column as a source with random access, as dataset hubs publish them."""

from __future__ import annotations

import bisect
import collections
import os
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qat_jax.datasets import UnreadableImage, columns, tables
from qat_jax.datasets.files import File, LeftOut, listed, named_splits, stems
from qat_jax.datasets.tables import ID_COLUMNS
from qat_jax.sealed import readable

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "image_bytes", "bytes")
TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
SIMPLE = (*TEXT, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
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
    self.left_out = LeftOut()
    footers = [(file, _footer(file)) for file in listed(where, ".parquet", self.left_out)]
    named = [(file, footer, _images(footer.schema.to_arrow_schema(), image, file)) for file, footer in footers]
    if not any(column for _, _, column in named):
      file, footer = footers[0]
      there = ", ".join(f"{field.name} {field.type}" for field in footer.schema.to_arrow_schema())
      names = " or ".join(IMAGE_COLUMNS[:2])
      raise ValueError(f"{file.path} has no column {image or 'of image bytes'!s} ({there}); name it {names}")
    self.left_out.add("Parquet files without image bytes", [file.name for file, _, column in named if not column])
    chosen = [(file, footer, column) for file, footer, column in named if column is not None]
    self.files = [file for file, _, _ in chosen]
    self.images = [column for _, _, column in chosen]
    self.names = stems(self.files, ".parquet")
    self.splits = named_splits([name.split("/") for name in self.names])
    self.groups: list[tuple[int, int]] = []  # file and row group
    self.starts, self.first = [0], [0]  # position of each group's first row; each file's first group
    self.columns: list[dict[str, str]] = []  # of each file: clean name → written name
    for number, (file, footer, column) in enumerate(chosen):
      for group in range(footer.num_row_groups):
        self.groups.append((number, group))
        self.starts.append(self.starts[-1] + footer.row_group(group).num_rows)
      self.first.append(len(self.groups))
      self.columns.append(self._kept(footer.schema.to_arrow_schema(), file, column, caption))
    self.left_out.update({kind: list(dict.fromkeys(names)) for kind, names in self.left_out.items()})
    self._held: collections.OrderedDict[tuple[int, bool], pa.Table] = collections.OrderedDict()
    self._lock = threading.Lock()
    self._check_ids(where)

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name not in ("_held", "_lock")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _held=collections.OrderedDict(), _lock=threading.Lock())

  def __len__(self) -> int:
    return self.starts[-1]

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of a row without its image, which is not read."""
    table, row, file = self._row(position, images=False)
    number = position - self.starts[self.first[file]]
    place = f"{self.names[file]}/{number}"
    where = f"{self.files[file].path}, row {number}"
    fields = {name: table.column(name)[row].as_py() for name in self.columns[file]}
    record = tables.described(fields, place, where, ID_COLUMNS)
    split = record.get("split") or self.splits[file]
    return {**record, **({} if split is None else {"split": split})}

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
    table, row, file = self._row(position, images=True)
    image = table.column(self.images[file])[row].as_py()
    image = image.get("bytes") if isinstance(image, dict) else image
    if not image:
      raise UnreadableImage(record["id"], f"the column {self.images[file]!r} is empty")
    return {**record, "image": image}

  def _check_ids(self, where: str | os.PathLike) -> None:
    """Raises ValueError for ids that occur twice, before any picture is read."""
    chunks: list[pa.Array] = []
    for file, written in zip(self.files, self.columns, strict=True):
      if name := next((name for name in ID_COLUMNS if name in written), None):
        with readable(file.path), file.for_arrow() as opened:
          column = pq.ParquetFile(opened).read(columns=[written[name]]).column(0)
        place = f"{file.path}, column {name!r},"
        chunks += columns.names(columns.utf8(column, name, place), place).drop_null().chunks
    columns.check_ids(pa.chunked_array(chunks, pa.string()), where)

  def _kept(self, schema: pa.Schema, file: File, image: str, caption: str | None) -> dict[str, str]:
    """Returns the columns of a file that are read, clean name → written name; notes those that cannot be kept."""
    written = tables.clean(schema.names, file.path)
    if caption:
      if caption not in written:
        raise ValueError(f"no column {caption!r}; {file.path} has {schema.names}")
      written = {n: w for n, w in written.items() if n != "caption"}
      written = {"caption" if n == caption else n: w for n, w in written.items()}
    named = tables.caption_column(written, file.path)
    known = (named, "instance", "split", next((name for name in ID_COLUMNS if name in written), None))
    kept = {n: w for n, w in written.items() if w != image and (n in known or _simple(schema.field(w).type))}
    sample = {n: () if n not in kept else "" if _simple(schema.field(w).type, TEXT) else 0 for n, w in written.items()}
    self.left_out.add_columns([{n: value for n, value in sample.items() if written[n] != image}], named is not None)
    return kept

  def _row(self, position: int, images: bool) -> tuple[pa.Table, int, int]:
    """Returns the row group that a row is in, its place there, and its file; images and the rest are read apart."""
    if not 0 <= position < len(self):
      raise IndexError(f"position {position} asked of a source of {len(self)}")
    group = bisect.bisect_right(self.starts, position) - 1
    file, number = self.groups[group]
    with self._lock:
      if (group, images) not in self._held:
        with readable(self.files[file].path), self.files[file].for_arrow() as opened:
          columns = [self.images[file]] if images else list(self.columns[file].values())
          content = pq.ParquetFile(opened).read_row_group(number, columns=columns)
        if not images:
          content = self._sound(content, file)
        self._held[group, images] = content
        while len(self._held) > 2 * HELD:
          self._held.popitem(last=False)
      self._held.move_to_end((group, images))
      return self._held[group, images], position - self.starts[group], file

  def _sound(self, content: pa.Table, file: int) -> pa.Table:
    """Returns the columns of a row group by their clean names, without text that is not UTF-8."""
    where, written = self.files[file].path, self.columns[file].items()
    return pa.table({n: columns.utf8(content.column(w), n, f"{where}, column {w!r},") for n, w in written})


def _footer(file: File) -> pq.FileMetaData:
  try:
    with file.for_arrow() as opened:
      return pq.ParquetFile(opened).metadata
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f"{file.path} is no whole Parquet file ({error}); write or fetch it again") from error


def _images(schema: pa.Schema, given: str | None, file: File) -> str | None:
  """Returns the column of image bytes as it is written in a file, None where there is none."""
  written = tables.clean(schema.names, file.path)
  for name in [given] if given else IMAGE_COLUMNS:
    field = schema.field(written[name]) if name in written else None
    kind = None if field is None else field.type
    if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
      kind = kind.field("bytes").type
    if kind is not None and _simple(kind, BINARY):
      return written[name]
  return None


def holds_images(path: str | os.PathLike) -> bool:
  """Says whether some Parquet file of a folder has a column of image bytes."""
  return any(_images(_footer(file).schema.to_arrow_schema(), None, file) for file in listed(path, ".parquet"))


def _simple(kind: pa.DataType, tests: tuple = SIMPLE) -> bool:
  kind = kind.value_type if pa.types.is_dictionary(kind) else kind
  return any(test(kind) for test in tests)

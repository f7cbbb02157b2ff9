"""Parquet files with encoded images in a column as a source with random access, as dataset hubs publish them."""

import bisect
import itertools
import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qat_jax.datasets import columns, tables
from qat_jax.datasets.files import File, Shards, listed
from qat_jax.datasets.sources import Kept
from qat_jax.datasets.tables import ID_COLUMNS
from qat_jax.sealed import readable

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "image_bytes", "bytes")
TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
SIMPLE = (*TEXT, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
HELD = 4  # row groups that are kept in memory: readers ahead are seldom in more


class ParquetSource(Shards):
  """The rows of Parquet files, in the order of files and rows, with an image's bytes in one column.

  The image is a column of bytes, or of {bytes, path}; of several captions the first counts; `instance` and `split` are
  columns of these names. Without a column of ids, an id is FILE/ROW.
  """

  def __init__(self, where: str | os.PathLike) -> None:
    """Reads the files' footers: a folder, a file, a pattern with *, or an address that fsspec opens.

    Raises FileNotFoundError where there are no files, ValueError where one is broken or has no column of images.
    """
    super().__init__(where, ".parquet")
    footers = [_footer(file) for file in self.shards]
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    images = [_images(schema, file) for schema, file in zip(schemas, self.shards, strict=True)]
    if not any(images):
      there = ", ".join(f"{field.name} {field.type}" for field in schemas[0])
      names = " or ".join(IMAGE_COLUMNS[:2])
      raise ValueError(f"{self.shards[0].path} has no column of image bytes ({there}); name it {names}")
    files = list(zip(self.shards, footers, schemas, images, strict=True))
    self.left_out.add("Parquet files without image bytes", [file.name for file, *_, image in files if not image])
    files = [file for file in files if file[-1]]
    self.shards, self.images = [file for file, *_ in files], [image for *_, image in files]
    self.columns = [self._kept(schema, file, image) for file, _, schema, image in files]  # clean → written names
    self.groups: list[list[int]] = []  # of each file: its row groups' first rows, and the count of all
    for _, footer, *_ in files:
      rows = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
      self.groups.append([0, *itertools.accumulate(rows)])
    self.number(groups[-1] for groups in self.groups)
    self.left_out.update({kind: list(dict.fromkeys(names)) for kind, names in self.left_out.items()})
    self._held = Kept(self._read, 2 * HELD)
    self._check_ids(where)

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of a row without its image, which is not read."""
    file, row = self.place(position)
    table, at = self._row(file, row, images=False)
    where, split = f"{self.shards[file].path}, row {row}", self.splits[file]
    fields = {name: table.column(name)[at].as_py() for name in self.columns[file]}
    return tables.described(fields, f"{self.names[file]}/{row}", where, split, ID_COLUMNS)

  def stamp(self, position: int) -> dict[str, Any]:
    """Returns what changes when a row does: its place, and size and date of its file. Reads nothing."""
    file = self.shards[self.place(position)[0]]
    return {"file": (file.name, file.size, file.changed), "row": position}

  def _image(self, position: int) -> bytes:
    file, row = self.place(position)
    table, at = self._row(file, row, images=True)
    image = table.column(0)[at].as_py()
    image = image.get("bytes") if isinstance(image, dict) else image
    if not image:
      raise OSError(f"the column {self.images[file]!r} is empty")
    return image

  def _check_ids(self, where: str | os.PathLike) -> None:
    """Raises ValueError for ids that occur twice, before any picture is read."""
    chunks: list[pa.Array] = []
    for file, written in zip(self.shards, self.columns, strict=True):
      if name := next((name for name in ID_COLUMNS if name in written), None):
        with readable(file.path), file.for_arrow() as opened:
          column = pq.ParquetFile(opened).read(columns=[written[name]]).column(0)
        place = f"{file.path}, column {name!r},"
        chunks += columns.names(columns.utf8(column, name, place), place).drop_null().chunks
    columns.check_ids(pa.chunked_array(chunks, pa.string()), where)

  def _kept(self, schema: pa.Schema, file: File, image: str | None) -> dict[str, str]:
    """Returns the columns of a file that are read, clean name → written name; notes those that cannot be kept."""
    written = tables.clean(schema.names, file.path)
    named = tables.caption_column(written, file.path)
    known = (named, "instance", "split", next((name for name in ID_COLUMNS if name in written), None))
    kept = {n: w for n, w in written.items() if w != image and (n in known or _simple(schema.field(w).type))}
    sample = {n: () if n not in kept else "" if _simple(schema.field(w).type, TEXT) else 0 for n, w in written.items()}
    self.left_out.add_columns([{n: value for n, value in sample.items() if written[n] != image}], named is not None)
    return kept

  def _row(self, file: int, row: int, images: bool) -> tuple[pa.Table, int]:
    """Returns the row group that a row is in, and its place there; images and the rest are read apart."""
    group = bisect.bisect_right(self.groups[file], row) - 1
    return self._held((file, group, images)), row - self.groups[file][group]

  def _read(self, place: tuple[int, int, bool]) -> pa.Table:
    """Returns a row group: its images, or the other columns by their clean names without text that is not UTF-8."""
    file, group, images = place
    shard, written = self.shards[file], self.columns[file]
    with readable(shard.path), shard.for_arrow() as opened:
      names = [self.images[file]] if images else list(written.values())
      content = pq.ParquetFile(opened).read_row_group(group, columns=names)
    if images:
      return content
    place_of = lambda column: f"{shard.path}, column {column!r},"
    return pa.table({n: columns.utf8(content.column(w), n, place_of(w)) for n, w in written.items()})


def _footer(file: File) -> pq.FileMetaData:
  try:
    with file.for_arrow() as opened:
      return pq.ParquetFile(opened).metadata
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f"{file.path} is no whole Parquet file ({error}); write or fetch it again") from error


def _images(schema: pa.Schema, file: File) -> str | None:
  """Returns the column of image bytes as it is written in a file, None where there is none."""
  written = tables.clean(schema.names, file.path)
  for name in filter(written.__contains__, IMAGE_COLUMNS):
    kind = schema.field(written[name]).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
      kind = kind.field("bytes").type
    if _simple(kind, BINARY):
      return written[name]
  return None


def holds_images(path: str | os.PathLike) -> bool:
  """Says whether some Parquet file of a folder has a column of image bytes."""
  return any(_images(_footer(file).schema.to_arrow_schema(), file) for file in listed(path, ".parquet"))


def _simple(kind: pa.DataType, tests: tuple = SIMPLE) -> bool:
  kind = kind.value_type if pa.types.is_dictionary(kind) else kind
  return any(test(kind) for test in tests)

"""Tables of files and of Arrow, by the rules of `tables`: rows read, and columns typed, widened and checked."""

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qat_jax.datasets import tables
from qat_jax.datasets.files import IMAGES
from qat_jax.datasets.tables import CAPTION_COLUMNS, FILE_COLUMNS, KNOWN, PAIR_COLUMNS, clean
from qat_jax.sealed import readable

SIGNED = 1 << 63  # whole numbers from here on do not fit into int64, and become text
EXACT = 1 << 53  # whole numbers up to here are exact as floats
SEPARATORS = (",", ";", "\t", "|")
# A cell that has a picture's name at a line's begin or end, with a separator beside it: a quote took in that line.
_PICTURE = rf"[^\n]{{1,255}}({'|'.join(map(re.escape, IMAGES))})\"?"
SWALLOWED = re.compile(rf"\n{_PICTURE} *[,;\t|]|[,;\t|]{_PICTURE} *\r?\n", re.IGNORECASE)
WHOLE = re.compile(r"-?[0-9]+\.0+")  # how a table of text shows a whole number that was a float
NOTHING = ("nan", "none", "null", "<na>", "\\n")  # how programs write a missing value into text, in lower case

log = logging.getLogger(__name__)


def read(table: Path) -> list[dict[str, Any]]:
  """Returns the rows of a .csv, .tsv, .jsonl or .parquet file, with clean names; a ValueError names the line."""
  ending = table.suffix.lower()
  if ending == ".parquet":
    with readable(table):
      content = pq.ParquetFile(table).read()
    columns = clean(content.column_names, table).items()
    return pa.table({n: utf8(content.column(w), n, f"{table}, column {w!r},") for n, w in columns}).to_pylist()
  text = tables.decoded(table.read_bytes(), table)
  if ending == ".jsonl":
    lines = enumerate(re.split("\r\n|\n|\r", text), 1)
    return [tables.parse_object(line, f"{table}, line {number}") for number, line in lines if line.strip()]
  return _separated(table, text, SEPARATORS if ending == ".csv" else ("\t",))


def _separated(table: Path, text: str, separators: Sequence[str]) -> list[dict[str, Any]]:
  """Returns the rows of CSV. The separator is the first that gives the header a known column of files.

  A first line `sep=;`, as Excel writes it, is passed over, as are columns without a name.
  """
  text = re.sub(r"\Asep=.", "", text)
  header = next((line for line in text.splitlines() if line.strip()), "")
  known = lambda mark: {cell.strip(' "').lower() for cell in header.split(mark)} & {*FILE_COLUMNS, *PAIR_COLUMNS}
  mark = next((mark for mark in separators if mark in header and known(mark)), separators[0])
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True)
  rows: list[dict[str, Any]] = []
  heads: list[str] = []
  names: dict[str, str] = {}
  begin = 1
  try:
    for cells in reader:
      if not names:
        heads, names = cells, clean(cells, table)
      elif cells:
        if any(cells[len(heads) :]):
          raise ValueError(
            f"{table}, line {begin}: more cells than the {len(heads)} columns; put text with a comma in quotes"
          )
        if any(SWALLOWED.search(cell) for cell in cells):
          raise ValueError(f"{table}, line {begin}: a quote stays open there and takes in the rows after it; close it")
        row = dict(zip(heads, cells, strict=False))
        rows.append({short: row.get(written) for short, written in names.items()})
      begin = reader.line_num + 1
  except csv.Error as error:
    raise ValueError(f"{table}, line {begin}: {error}; a quote there stays open, or is not doubled: mend it") from error
  # NaN and 3.0 are how programs write a missing and a whole number into text
  for column in ("id", "instance", *PAIR_COLUMNS):
    cells = [row.get(column) or "" for row in rows]
    cells = ["" if cell.strip().lower() in NOTHING else cell for cell in cells]
    whole = all(WHOLE.fullmatch(cell) for cell in cells if cell)
    for row, cell in zip(rows, cells, strict=True):
      row |= {column: cell.partition(".")[0] if whole else cell} if column in row else {}
  return rows


def read_columns(path: Path) -> dict[str, str]:
  """Returns the clean name → the written name of the columns of one metadata shard."""
  with readable(path):
    names = pq.read_schema(path).names
  return clean(names, path)


def read_column(path: Path, columns: Mapping[str, str], name: str) -> pa.ChunkedArray:
  """Returns a column of one metadata shard, null where `columns`, clean → written names, lack it.

  Of a list of captions it is the first. Raises ValueError for captions that are objects, and as `utf8`.
  """
  if name not in columns:
    return pa.chunked_array([pa.nulls(parquet_rows(path))])
  with readable(path):
    column = pq.ParquetFile(path).read(columns=[columns[name]]).column(0)
  where = f"{path}, column {name!r},"
  column = utf8(column, name, where)
  return first_captions(column, where) if name in CAPTION_COLUMNS else column


def parquet_rows(path: Path) -> int:
  """Returns how many rows a Parquet file says it has; raises ValueError for one that cannot be read."""
  with readable(path):
    return pq.read_metadata(path).num_rows


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pa.Table:
  """Returns records as a table: the columns named, and every other plain one; types are widened over the rows."""
  names = dict.fromkeys([*columns, *(key for row in rows for key, value in row.items() if tables.is_plain(value))])
  return pa.table({key: typed([row.get(key) for row in rows]) for key in names})


def typed(values: Sequence[Any]) -> pa.Array:
  """Returns values as the narrowest of bool, int64, float64 and text that holds all; what is not plain is null."""
  plain = [value if tables.is_plain(value) and value == value else None for value in values]  # NaN is missing
  kinds = {type(value) for value in plain if value is not None}
  whole = [value for value in plain if isinstance(value, int)]
  if kinds == {bool}:
    return pa.array(plain, pa.bool_())
  if kinds == {int} and all(-SIGNED <= value < SIGNED for value in whole):
    return pa.array(plain, pa.int64())
  if kinds and kinds <= {int, float} and float in kinds and all(-EXACT <= value <= EXACT for value in whole):
    return pa.array(plain, pa.float64())
  shown = [value if value is None or isinstance(value, str) else tables.name(value, "") for value in plain]
  return pa.array([text if text is None or tables.is_utf8(text) else None for text in shown], pa.string())


def widened(parts: Sequence[pa.ChunkedArray], where: object) -> pa.ChunkedArray:
  """Returns parts of one column, of files whose types differ, as the narrowest type that holds all of them, or as text.

  Raises ValueError where they cannot be told as one, such as lists beside numbers.
  """
  parts = [_undone(part) for part in parts]
  kinds = list(dict.fromkeys(part.type for part in parts if part.null_count < len(part)))
  chunks = lambda kind: [chunk for part in parts for chunk in part.cast(kind).chunks]
  if len(kinds) < 2:
    kinds = kinds or [part.type for part in parts if not pa.types.is_null(part.type)]
    kind = kinds[0] if kinds else pa.string()
    return pa.chunked_array(chunks(kind), kind)
  parts = [part if part.null_count < len(part) else pa.chunked_array([pa.nulls(len(part))]) for part in parts]
  try:
    schemas = [pa.schema({"x": kind}) for kind in kinds]
    kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    return pa.chunked_array(chunks(kind), kind)
  except pa.ArrowException:
    pass
  if any(pa.types.is_nested(kind) or pa.types.is_binary(kind) for kind in kinds):
    raise ValueError(f"{where} is {' and '.join(map(str, kinds))} in different files, which are no one type")
  shown = [part.cast(pa.string()) if _is_text(part.type) else names(part, where) for part in parts]
  return pa.chunked_array([chunk for part in shown for chunk in part.chunks], pa.string())


def names(column: pa.ChunkedArray, where: object, spaces: bool = True) -> pa.ChunkedArray:
  """Returns a column as the text of names or captions, as `name` does, with `spaces` at the ends; null for none."""
  column = _undone(column)
  if pa.types.is_integer(column.type) or pa.types.is_temporal(column.type):
    return column.cast(pa.string())
  if _is_text(column.type):
    column = column.cast(pa.string())
    short = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(short, ""), pa.scalar(None, pa.string()), column if spaces else short)
  return pa.chunked_array([[tables.name(value, where) for value in column.to_pylist()]], pa.string())


def first_captions(column: pa.ChunkedArray, where: object) -> pa.ChunkedArray:
  """Returns a column of captions as text: of a list the first, of blank text none. Refuses objects; keeps numbers."""
  column = _undone(column)
  if pa.types.is_nested(column.type):
    firsts = [next(iter(tables.texts(value, where)), None) for value in column.to_pylist()]
    return pa.chunked_array([firsts], pa.string())
  return names(column, where) if _is_text(column.type) else column


def utf8(column: pa.ChunkedArray, name: str, where: object) -> pa.ChunkedArray:
  """Returns a column; one with text that is not UTF-8 is missing, and a line of the log names it.

  Raises ValueError for such text in a known column, those of files, ids, captions, instances and splits.
  """
  try:
    column.validate(full=True)
    return column
  except (pa.ArrowInvalid, UnicodeDecodeError) as error:
    told = f"{where} is not UTF-8 ({error}); write it as UTF-8, it may be Latin-1"
  if name in KNOWN:
    raise ValueError(told)
  log.warning("values are left out: %s", told)
  return pa.chunked_array([pa.nulls(len(column), column.type)])


def check_ids(ids: pa.ChunkedArray, where: object) -> None:
  """Raises ValueError that names repeated ids, or the first row that has none."""
  if ids.null_count:
    row = int(np.flatnonzero(ids.is_null().to_numpy())[0])
    raise ValueError(f"{where}: {ids.null_count} items have no id, the first in row {row}; give each its own")
  if len(ids.unique()) == len(ids):  # much cheaper than to count
    return
  counts = ids.value_counts()
  repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
  names = ", ".join(map(repr, repeated[:5].to_pylist()))
  raise ValueError(f"{where}: {len(repeated)} ids occur more than once: {names}; give each item its own")


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _undone(column: pa.ChunkedArray) -> pa.ChunkedArray:
  return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

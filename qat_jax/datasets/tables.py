"""The one reader of captions, names and columns, whatever holds them: docs/data.md has its rules as a table.

A text is UTF-8. A column's name is stripped, and known names are lower case. A caption is one text, or a list of texts
of which the first counts. An id or an instance is a text: 3, 3.0 and "3" are the same. Other columns stop nothing.
"""

from __future__ import annotations

import csv
import decimal
import io
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qat_jax.sealed import readable

FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_path", "path", "file_path", "filepath", "image_name")
CAPTION_COLUMNS = ("caption", "text", "captions", "sentences")
ID_COLUMNS = ("id", "key", "image_id", "file_name")
KNOWN = {*FILE_COLUMNS, *CAPTION_COLUMNS, *ID_COLUMNS, "instance", "split", "relevant"}
SIGNED = 1 << 63  # whole numbers from here on do not fit into int64, and become text
EXACT = 1 << 53  # whole numbers up to here are exact as floats
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testing": "test"}
SEPARATORS = (",", ";", "\t", "|")
# A cell that has a picture's name at a line's begin or end, with a separator beside it: a quote took in that line.
_PICTURE = r"[^\n]{1,255}\.(jpe?g|png|webp|gif|bmp|tiff?|avif|jfif|heic)\"?"
SWALLOWED = re.compile(rf"\n{_PICTURE} *[,;\t|]|[,;\t|]{_PICTURE} *\r?\n", re.IGNORECASE)
NEAR = re.compile("caption|text|descr|title|prompt|comment|sentence|^alt", re.IGNORECASE)
WHOLE = re.compile(r"-?[0-9]+\.0+")  # how a table of text shows a whole number that was a float

log = logging.getLogger(__name__)


def decoded(data: bytes, where: object) -> str:
  """Returns UTF-8 text without its byte order mark; raises ValueError that names the line of any other text."""
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):
    raise ValueError(f"{where} is UTF-16; save it as UTF-8")
  if b"\0" in data:
    line = data.count(b"\n", 0, data.index(b"\0")) + 1
    raise ValueError(f"{where}, line {line}, has a NUL byte; save it as UTF-8")
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    byte = data[error.start]
    raise ValueError(
      f"{where}, line {line}, is not UTF-8 (byte {byte:#04x}); save it as UTF-8, it may be Latin-1"
    ) from error


def clean(names: Iterable[str], where: object) -> dict[str, str]:
  """Returns the clean name → the written name of each column; raises ValueError where two become the same.

  Spaces around a name and a byte order mark go; a known name becomes lower case unless it is there in lower case too.
  """
  written = list(names)
  cleaned: dict[str, str] = {}
  for name in written:
    short = str(name).lstrip("\ufeff").strip()
    if not is_utf8(short):
      raise ValueError(f"{where} has the column {short!r} with half a surrogate pair; it is no UTF-8, rename it")
    lower = short.lower()
    short = lower if lower in KNOWN and (lower not in written or lower == name) else short
    if short in cleaned:
      raise ValueError(f"{where} has the columns {cleaned[short]!r} and {name!r}, which are one name; rename one")
    cleaned[short] = name
  return cleaned


def caption_column(names: Iterable[str], where: object) -> str | None:
  """Returns which of some clean columns holds captions; raises ValueError where it may be several."""
  there = [name for name in CAPTION_COLUMNS if name in set(names)]
  if len(there) > 1 and there[0] != "caption":
    raise ValueError(f"{where} may have its captions in {' or '.join(map(repr, there))}; name one of them `caption`")
  return there[0] if there else None


def texts(value: Any, where: object) -> list[str]:
  """Returns the texts of a caption: none where it is missing or blank, several of a list; refuses an object by name."""
  if isinstance(value, Mapping):
    raise ValueError(f"{where} has a caption that is an object with the fields {list(value)}; give its text alone")
  if isinstance(value, list | tuple) or (hasattr(value, "ndim") and value.ndim):
    return [text for item in value for text in texts(item, where)]
  text = name(value, where)
  return [] if text is None or not text.strip() else [text.strip()]


def name(value: Any, where: object) -> str | None:
  """Returns a value as the text of a name: None where it is missing, NaN or blank.

  Raises ValueError for a list, an object, and text with half a surrogate pair.
  """
  value = value.item() if hasattr(value, "item") else value
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  if isinstance(value, float | decimal.Decimal) and math.isfinite(value) and value == int(value):
    value = int(value)
  if isinstance(value, bytes):
    value = decoded(value, where)
  if isinstance(value, Mapping | list | tuple):
    raise ValueError(f"{where} has a {type(value).__name__} where a name is wanted; give text or a number")
  text = str(value)
  if not is_utf8(text):
    raise ValueError(f"{where} has text with half a surrogate pair, {text[:40]!r}; it is no UTF-8, mend it")
  return text if text.strip() else None


def described(fields: Mapping[str, Any], place: str, where: object, ids: Sequence[str] = ("id",)) -> dict[str, Any]:
  """Returns a record's plain fields with id, caption, instance and split, from fields with clean names.

  Args:
    fields: what the source says of the item; a missing id is the place.
    place: the item's name where it has no other.
    where: what an error names.
    ids: the columns that may hold an id, in order.
  """
  caption = caption_column(fields, where)
  own = {column: name(fields.get(column), f"{where}, {column!r},") for column in ("instance", "split")}
  given = next((column for column in ids if column in fields), None)
  identity = name(fields[given], f"{where}, {given!r},") if given else None
  captions = texts(fields[caption], where) if caption else []
  dropped = {caption, "instance", "split"}
  rest = {key: value for key, value in fields.items() if key not in dropped and is_plain(value)}
  record = {**rest, "id": identity or place, "caption": next(iter(captions), None), "instance": own["instance"]}
  split = own["split"]
  return record if split is None else {**record, "split": SPLITS.get(split.strip().lower(), split)}


def is_plain(value: Any) -> bool:
  """Says whether a value can be kept as metadata: text, a number, or true and false."""
  return isinstance(value, str | bool | int | float)


def odd_columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
  """Returns the columns with values that cannot be kept as metadata, but for captions."""
  odd = (key for row in rows for key, value in row.items() if value is not None and not is_plain(value))
  return [key for key in dict.fromkeys(odd) if key not in CAPTION_COLUMNS]


def near_captions(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
  """Returns what a source tells of its columns: those that may hold captions, where none is a known column of them."""
  captioned = any(column in row for row in rows for column in CAPTION_COLUMNS)
  near = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, str) and NEAR.search(key))
  return "columns as captions; call the one that holds them caption", [] if captioned else list(near)


def parse_object(data: str, where: object) -> dict[str, Any]:
  """Returns the JSON object in a text, with clean names; raises ValueError that says what else it is."""
  try:
    content = json.loads(data, object_pairs_hook=lambda pairs: _once(pairs, where))
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}, is no JSON: {error.msg} at character {error.colno}; mend it") from error
  except RecursionError as error:
    raise ValueError(f"{where}, is JSON of too many levels; mend it") from error
  if not isinstance(content, dict):
    raise ValueError(f"{where}, is a JSON {type(content).__name__}; wanted an object a line")
  return {short: content[key] for short, key in clean(content, where).items()}


def _once(pairs: list[tuple[str, Any]], where: object) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [key for key, _ in pairs]
    raise ValueError(f"{where}, has the field {next(n for n in names if names.count(n) > 1)!r} twice; remove one")
  return fields


def read(table: Path) -> list[dict[str, Any]]:
  """Returns the rows of a .csv, .tsv, .jsonl or .parquet file, with clean names; a ValueError names the line."""
  if not table.is_file():
    raise FileNotFoundError(f"no captions file {table}")
  ending = table.suffix.lower()
  if ending == ".parquet":
    with readable(table):
      content = pq.ParquetFile(table).read()
    columns = clean(content.column_names, table).items()
    return pa.table({n: utf8(content.column(w), n, f"{table}, column {w!r},") for n, w in columns}).to_pylist()
  if ending not in (".csv", ".tsv", ".jsonl"):
    raise ValueError(f"{table} is no .csv, .tsv, .jsonl or .parquet file")
  text = decoded(table.read_bytes(), table)
  if ending == ".jsonl":
    lines = enumerate(text.split("\n"), 1)
    return [parse_object(line, f"{table}, line {number}") for number, line in lines if line.strip()]
  return _separated(table, text, SEPARATORS if ending == ".csv" else ("\t",))


def _separated(table: Path, text: str, separators: Sequence[str]) -> list[dict[str, Any]]:
  """Returns the rows of CSV. The separator is the first that gives the header a known column of files."""
  header = text.partition("\n")[0]
  known = lambda mark: {cell.strip(' "\r').lower() for cell in header.split(mark)} & set(FILE_COLUMNS)
  mark = next((mark for mark in separators if mark in header and known(mark)), separators[0])
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True)
  rows: list[dict[str, Any]] = []
  names: list[str] = []
  begin = 1
  try:
    for cells in reader:
      if not names:
        names = list(clean(cells, table)) if cells else []
      elif cells:
        if len(cells) > len(names):
          raise ValueError(
            f"{table}, line {begin}: more cells than the {len(names)} columns; put text with a comma in quotes"
          )
        if any(SWALLOWED.search(cell) for cell in cells):
          raise ValueError(f"{table}, line {begin}: a quote stays open there and takes in the rows after it; close it")
        rows.append(dict(zip(names, [*cells, *[None] * (len(names) - len(cells))], strict=True)))
      begin = reader.line_num + 1
  except csv.Error as error:
    raise ValueError(f"{table}, line {begin}: {error}; a quote there stays open, or is not doubled: mend it") from error
  for column in ("id", "instance"):  # NaN and 3.0 are how programs write a missing and a whole number into text
    cells = [row.get(column) or "" for row in rows]
    cells = ["" if cell in ("nan", "NaN") else cell for cell in cells]
    whole = all(WHOLE.fullmatch(cell) for cell in cells if cell)
    for row, cell in zip(rows, cells, strict=True):
      row |= {column: cell.partition(".")[0] if whole else cell} if column in row else {}
  return rows


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pa.Table:
  """Returns records as a table: the columns named, and every other plain one; types are widened over the rows."""
  names = dict.fromkeys([*columns, *(key for row in rows for key, value in row.items() if is_plain(value))])
  return pa.table({key: typed([row.get(key) for row in rows]) for key in names})


def typed(values: Sequence[Any]) -> pa.Array:
  """Returns values as the narrowest of bool, int64, float64 and text that holds all; what is not plain is null."""
  plain = [value if is_plain(value) and value == value else None for value in values]  # NaN is missing
  kinds = {type(value) for value in plain if value is not None}
  whole = [value for value in plain if isinstance(value, int)]
  if kinds == {bool}:
    return pa.array(plain, pa.bool_())
  if kinds == {int} and all(-SIGNED <= value < SIGNED for value in whole):
    return pa.array(plain, pa.int64())
  if kinds and kinds <= {int, float} and float in kinds and all(-EXACT <= value <= EXACT for value in whole):
    return pa.array(plain, pa.float64())
  shown = [value if value is None or isinstance(value, str) else name(value, "") for value in plain]
  return pa.array([text if text is None or is_utf8(text) else None for text in shown], pa.string())


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


def names(column: pa.ChunkedArray, where: object) -> pa.ChunkedArray:
  """Returns a column as the text of names or captions, as `name` does; null where there is none."""
  column = _undone(column)
  if pa.types.is_integer(column.type):
    return column.cast(pa.string())
  if pa.types.is_temporal(column.type):
    return column.cast(pa.string())
  if _is_text(column.type):
    column = column.cast(pa.string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), pa.scalar(None, pa.string()), column)
  return pa.chunked_array([[name(value, where) for value in column.to_pylist()]], pa.string())


def first_captions(column: pa.ChunkedArray, where: object) -> pa.ChunkedArray:
  """Returns a column of captions as text: of a list the first, of blank text none. Refuses objects; keeps numbers."""
  column = _undone(column)
  if pa.types.is_nested(column.type):
    return pa.chunked_array([[next(iter(texts(value, where)), None) for value in column.to_pylist()]], pa.string())
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


def is_utf8(text: str) -> bool:
  """Says whether text can be written as UTF-8: half a surrogate pair cannot."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True

"""The one reader of captions, names and fields, whatever holds them: docs/data.md has its rules as a table.

A text is UTF-8. A column's name is stripped, and known names are lower case. A caption is one text, or a list of texts
of which the first counts. An id or an instance is a text: 3, 3.0 and "3" are the same. Other columns stop nothing.
"""

import decimal
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qat_jax.stages import check_fetched

FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_path", "path", "file_path", "filepath", "image_name")
CAPTION_COLUMNS = ("caption", "text", "captions", "sentences")
ID_COLUMNS = ("id", "key", "image_id", "file_name")
PAIR_COLUMNS = ("query_id", "item_id")  # of shortlists and marks
KNOWN = {*FILE_COLUMNS, *CAPTION_COLUMNS, *ID_COLUMNS, "instance", "split", "relevant"}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testing": "test"}
NEAR = re.compile("caption|text|txt|descr|title|prompt|comment|sentence|^alt", re.IGNORECASE)
LONG = 1000  # digits, from which on a whole number of JSON is read as text: Python's int takes 4300


def decoded(data: bytes, where: object) -> str:
  """Returns UTF-8 text without its byte order mark; raises ValueError that names the line of any other text."""
  check_fetched(data, where)
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

  Spaces around a name and a byte order mark go, and so do columns without a name. A known name becomes lower case
  unless it is there in lower case too.
  """
  written = list(names)
  cleaned: dict[str, str] = {}
  for name in written:
    short = str(name).lstrip("\ufeff").strip()
    if not is_utf8(short):
      raise ValueError(f"{where} has the column {short!r} with half a surrogate pair; it is no UTF-8, rename it")
    lower = short.lower()
    short = lower if lower in KNOWN and (lower not in written or lower == name) else short
    if not short:
      continue
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
  if isinstance(value, Mapping | tuple):  # Arrow gives the entries of a map as tuples
    raise ValueError(f"{where} has a caption that is an object with the fields {list(value)}; give its text alone")
  if isinstance(value, list) or (hasattr(value, "ndim") and value.ndim):
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


def described(
  fields: Mapping[str, Any], place: str, where: object, split: str | None = None, ids: Sequence[str] = ("id",)
) -> dict[str, Any]:
  """Returns a record's plain fields with id, caption, instance and split, from fields with clean names.

  Args:
    fields: what the source says of the item.
    place: the item's id where it has no other.
    where: what an error names.
    split: the item's split where it names none.
    ids: the columns that may hold an id, in order.
  """
  caption = caption_column(fields, where)
  labels = {column: name(fields.get(column), f"{where}, {column!r},") for column in ("instance", "split")}
  labels = {column: text and text.strip() for column, text in labels.items()}
  given = next((column for column in ids if column in fields), None)
  identity = name(fields[given], f"{where}, {given!r},") if given else None
  captions = texts(fields[caption], where) if caption else []
  dropped = {caption, "instance", "split"}
  rest = {key: value for key, value in fields.items() if key not in dropped and is_plain(value)}
  record = {**rest, "id": identity or place, "caption": next(iter(captions), None), "instance": labels["instance"]}
  split = labels["split"] or split
  return record if split is None else {**record, "split": SPLITS.get(split.lower(), split)}


def is_plain(value: Any) -> bool:
  """Says whether a value can be kept as metadata: text, a number, or true and false."""
  return isinstance(value, str | bool | int | float)


def left_out_columns(rows: Sequence[Mapping[str, Any]], captioned: bool = False) -> dict[str, list[str]]:
  """Returns kind → the columns of rows that are not kept, or may hold captions; `captioned`: those lie elsewhere."""
  captioned = captioned or any(column in row for row in rows for column in CAPTION_COLUMNS)
  such = lambda test: list(dict.fromkeys(key for row in rows for key, value in row.items() if test(key, value)))
  odd = lambda key, value: value is not None and not is_plain(value) and key not in CAPTION_COLUMNS
  near = lambda key, value: not captioned and isinstance(value, str) and NEAR.search(key)
  return {
    "columns of no plain values": such(odd),
    "columns called image, which is the picture": such(lambda key, value: key == "image"),
    "columns as captions; call the one that holds them caption": such(near),
  }


def parse_object(data: str, where: object) -> dict[str, Any]:
  """Returns the JSON object in a text, with clean names; raises ValueError that says what else it is."""
  try:
    whole = lambda digits: int(digits) if len(digits) < LONG else digits
    content = json.loads(data, object_pairs_hook=lambda pairs: once(pairs, where), parse_int=whole)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}, is no JSON: {error.msg} at character {error.colno}; mend it") from error
  except RecursionError as error:
    raise ValueError(f"{where}, is JSON of too many levels; mend it") from error
  if not isinstance(content, dict):
    raise ValueError(f"{where}, is a JSON {type(content).__name__}; wanted an object a line")
  return {short: content[key] for short, key in clean(content, where).items()}


def once(pairs: list[tuple[str, Any]], where: object) -> dict[str, Any]:
  """Returns the fields of a JSON object, as a hook of json.loads; raises ValueError where one is there twice."""
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [key for key, _ in pairs]
    raise ValueError(f"{where}, has the field {next(n for n in names if names.count(n) > 1)!r} twice; remove one")
  return fields


def is_utf8(text: str) -> bool:
  """Says whether text can be written as UTF-8: half a surrogate pair cannot."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True

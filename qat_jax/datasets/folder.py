"""A folder of images with its captions as a source: a table of captions, or a text file beside each image.

pictures/a.jpg, pictures/more/b.png, …
pictures/captions.csv      file,caption,instance     (or .tsv, .jsonl, .parquet; `caption` and `instance` optional)
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from qat_jax.datasets import UnreadableImage
from qat_jax.sealed import readable

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.parquet")
FILE_COLUMNS = ("file", "file_name", "image", "image_path", "path")


class FolderSource:
  """Random access to the images in a folder; ids are their paths within it, "/" between the parts.

  Hidden files, which begin with a dot, are passed over. With a table there is one row a line, in its order, and its
  further columns come along. Without one there is a row
  an image, in the order of the paths; the caption is the text file of the same name, if any.
  """

  def __init__(
    self, folder: str | os.PathLike, captions: str | os.PathLike | None = None, instance_by_folder: bool = False
  ) -> None:
    """Lists the images; `captions` is the table (None: captions.csv, .tsv, .jsonl or .parquet in the folder, if any).

    With `instance_by_folder` images in one subfolder are of one instance, unless the table says otherwise.

    Raises FileNotFoundError for a missing folder or table, or images that the table names and the folder lacks;
    ValueError for a table without a column of file names, or a line that cannot be read; it is named.
    """
    self.folder = Path(folder)
    if not self.folder.is_dir():
      raise FileNotFoundError(f"no folder {self.folder}; give one with images")
    table = Path(captions) if captions else next((p for n in TABLES if (p := self.folder / n).is_file()), None)
    self.rows = _listed(self.folder) if table is None else _named(self.folder, table)
    if not self.rows:
      raise FileNotFoundError(f"no images in {table or self.folder}; these endings are known: {', '.join(IMAGES)}")
    self.instance_by_folder = instance_by_folder

  def __len__(self) -> int:
    return len(self.rows)

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of a row without its image, which is not looked at."""
    row = self.rows[position]
    beside = (self.folder / row["file"]).with_suffix(".txt")
    caption = _text(row.get("caption"))
    if "caption" not in row and beside.is_file():
      caption = _decoded(beside).strip()
    instance = _text(row.get("instance")) or (str(Path(row["file"]).parent) if self.instance_by_folder else None)
    return {**row, "id": _text(row.get("id")) or row["file"], "caption": caption, "instance": instance}

  def stamp(self, position: int) -> dict[str, Any]:
    """Returns what changes when a row does: its record, and size and date of its image."""
    record = self.about(position)
    try:
      file = (self.folder / record["file"]).stat()
    except OSError:
      return record
    return {**record, "size": file.st_size, "changed": file.st_mtime_ns}

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of a row: id, image (the file's bytes), caption, instance, further columns.

    Raises UnreadableImage where the file cannot be read.
    """
    record = self.about(position)
    try:
      image = (self.folder / record["file"]).read_bytes()
    except OSError as error:
      raise UnreadableImage(record["id"], error.strerror or str(error)) from error
    return {**record, "image": image}


def _text(value: Any) -> str | None:
  """Returns what a table says as text; an empty cell and a missing one are alike."""
  return None if value is None or value == "" else str(value)


def _listed(folder: Path) -> list[dict[str, Any]]:
  paths = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
  names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
  for name in names:
    if not _is_text(name):
      raise ValueError(f"the file name {name!r} in {folder} is not UTF-8; rename the file")
  return [{"file": name} for name in names]


def _named(folder: Path, table: Path) -> list[dict[str, Any]]:
  rows = _read(table)
  column = next((name for name in FILE_COLUMNS if rows and name in rows[0]), None)
  if not rows:
    return []
  if column is None:
    raise ValueError(f"{table} has the columns {list(rows[0])}; one of {FILE_COLUMNS} must name the image files")
  for number, row in enumerate(rows, start=1):
    if not row.get(column):
      raise ValueError(f"row {number} of {table} names no image: its {column!r} is empty; give it or remove the row")
  rows = [{"file": str(row[column]), **{k: v for k, v in row.items() if k != column}} for row in rows]
  missing = [row["file"] for row in rows if not (folder / row["file"]).is_file()]
  if missing:
    raise FileNotFoundError(f"{table} names {len(missing)} files that are not in {folder}: {', '.join(missing[:5])}")
  return rows


def _read(table: Path) -> list[dict[str, Any]]:
  if not table.is_file():
    raise FileNotFoundError(f"no captions file {table}")
  if table.suffix == ".parquet":
    import pyarrow.parquet as pq

    with readable(table):
      return pq.read_table(table).to_pylist()
  if table.suffix == ".jsonl":
    return [_object(table, number, line) for number, line in enumerate(_decoded(table).split("\n"), 1) if line.strip()]
  if table.suffix not in (".csv", ".tsv"):
    raise ValueError(f"{table} is no .csv, .tsv, .jsonl or .parquet file")
  reader = csv.DictReader(io.StringIO(_decoded(table), newline=""), delimiter="\t" if table.suffix == ".tsv" else ",")
  rows = []
  try:
    for row in reader:
      if None in row:
        raise ValueError(
          f"{table}, line {reader.line_num}: more cells than the {len(reader.fieldnames or ())} columns; put text with "
          "a comma in quotes"
        )
      rows.append(row)
  except csv.Error as error:
    raise ValueError(f"{table}, line {reader.line_num}: {error}; save it as plain CSV") from error
  return rows


def _object(table: Path, number: int, line: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{table}, line {number}, is no JSON: {error.msg} at character {error.colno}; mend it") from error
  if not isinstance(row, dict):
    raise ValueError(f"{table}, line {number}, is a JSON {type(row).__name__}; wanted an object a line")
  return row


def _decoded(path: Path) -> str:
  """Returns a text file's content; raises ValueError that names the line where it is not UTF-8."""
  data = path.read_bytes()
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):
    raise ValueError(f"{path} is UTF-16; save it as UTF-8")
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise ValueError(
      f"{path}, line {line}, is not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8, it may be Latin-1"
    ) from error


def _is_text(name: str) -> bool:
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return True

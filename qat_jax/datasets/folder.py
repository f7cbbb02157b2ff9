"""A folder of images with its captions as a source: a table of captions, or a text file beside each image.

pictures/a.jpg, pictures/more/b.png, …
pictures/captions.csv      file,caption,instance     (or .tsv, .jsonl, .parquet; `caption` and `instance` optional)
pictures/train/metadata.csv, pictures/test/metadata.csv, …     where the folder itself has no table
"""

import os
import unicodedata
from pathlib import Path
from typing import Any

from qat_jax.datasets import columns, tables
from qat_jax.datasets.files import IMAGES, LeftOut, hidden, named_splits, opened_endings
from qat_jax.datasets.sources import Corpus
from qat_jax.datasets.tables import FILE_COLUMNS

TABLES = tuple(f"{stem}.{ending}" for stem in ("captions", "metadata") for ending in ("csv", "tsv", "jsonl", "parquet"))
TEXTS = (".txt", ".caption", ".text")  # endings of a caption's file


class FolderSource(Corpus):
  """Random access to the images in a folder; ids are their paths within it, "/" between the parts.

  With a table there is one row a line, in its order. Without one there is a row an image, in the order of the paths;
  the caption is the text file of the same name, if any. `left_out` has what was not taken.
  """

  def __init__(
    self, folder: str | os.PathLike, instance_by_folder: bool = False, further: tuple[str, ...] = ()
  ) -> None:
    """Lists the images, by the table captions.* or an image folder's metadata.*, if there is one.

    With `instance_by_folder` images in one subfolder are of one instance, unless the table says otherwise; images in no
    subfolder are of none. Files with an ending of `further` are taken for images.

    Raises FileNotFoundError for a missing folder, or images that the table names and the folder lacks;
    ValueError for a table without a column of file names, or a line that cannot be read; it is named.
    """
    self.folder, self.left_out, self.instance_by_folder = Path(folder), LeftOut(), instance_by_folder
    if not self.folder.is_dir():
      raise FileNotFoundError(f"no folder {self.folder}; give one with images")
    files = self._files()
    images = [file for file in files if file.lower().endswith((*opened_endings(), *further))]
    self.texts: dict[str, list[str]] = {}  # the name as `_plain` has it → the text files that are called so
    for file in files:
      if file.lower().endswith(TEXTS):
        self.texts.setdefault(_plain(file), []).append(file)
    self.tables: dict[str, Path] = {}  # the beginning of the paths that a table speaks of → the table
    rows = self._read_tables(files, images)
    self.rows = [{"file": image} for image in images] if rows is None else rows
    self._leave_out(files, images)
    if not self.rows:
      told = "; ".join([f"these endings are known: {', '.join((*IMAGES, *further))}", *self.left_out.lines()])
      raise FileNotFoundError(f"no images in {next(iter(self.tables.values()), self.folder)}; {told}")
    for file in images if rows is None else ():
      if not tables.is_utf8(file):
        raise ValueError(f"the file name {file!r} in {folder} is not UTF-8; rename the file")
    self.splits = named_splits([row["file"].split("/")[:-1] for row in self.rows])

  def __len__(self) -> int:
    return len(self.rows)

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of a row without its image, which is not looked at."""
    row, split = self.rows[position], self.splits[position]
    where = f"{self._table_of(row['file']) or self.folder}: {row['file']}"
    record = tables.described(row, row["file"], where, split)
    if tables.caption_column(row, where) is None and (beside := self._beside(row["file"])):
      path = self.folder / beside
      record["caption"] = next(iter(tables.texts(tables.decoded(path.read_bytes(), path), path)), None)
    folder = row["file"].rpartition("/")[0] if self.instance_by_folder else None
    return {**record, "instance": record["instance"] or folder or None}

  def stamp(self, position: int) -> dict[str, Any]:
    """Returns what changes when a row does: its record, and size and date of its image."""
    record = self.about(position)
    try:
      file = (self.folder / record["file"]).stat()
    except OSError:
      return record
    return {**record, "size": file.st_size, "changed": file.st_mtime_ns}

  def _image(self, position: int) -> bytes:
    return (self.folder / self.rows[position]["file"]).read_bytes()

  def _beside(self, file: str) -> str | None:
    """Returns the text file of an image: a.jpg.txt or a.txt, of several such names the one in the same letters."""
    names = [f"{stem}{ending}" for ending in TEXTS for stem in (file, os.path.splitext(file)[0])]
    near = [text for name in names for text in self.texts.get(_plain(name), ())]
    return next((text for text in near if text in names), next(iter(near), None))

  def _files(self) -> list[str]:
    """Returns the paths of all files that are no system's, sorted; links to folders are followed, a folder once."""
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [self.folder]
    closed = lambda error: self.left_out.add("folders that cannot be read", [str(error.filename)])
    for start in waiting:  # which grows: links wait until what is here in person is read
      for at, folders, names in os.walk(start, onerror=closed):
        place, about = Path(at), os.stat(at)
        within = "" if place == self.folder else place.relative_to(self.folder).as_posix() + "/"
        if (about.st_dev, about.st_ino) in seen:
          self.left_out.add("links to folders that are read already, or in circles", [within])
          folders.clear()
          continue
        seen.add((about.st_dev, about.st_ino))
        self.left_out.add("system and hidden folders", (within + name for name in sorted(folders) if hidden(name)))
        shown = sorted(name for name in folders if not hidden(name))
        waiting += [place / name for name in shown if (place / name).is_symlink()]
        folders[:] = [name for name in shown if not (place / name).is_symlink()]
        for name in sorted(names):
          if hidden(name):
            self.left_out.add_file(within + name)
          elif not (place / name).is_file():
            self.left_out.add("links to nothing", [within + name])
          else:
            files.append(within + name)
    return sorted(files)

  def _read_tables(self, files: list[str], images: list[str]) -> list[dict[str, Any]] | None:
    """Fills `tables` with the folder's own table, or those of its folders; returns the rows, None of no table.

    A picture outside of all tables' folders is a row. What names no files is no table, but the folder's own captions.*.
    """
    there = {file.lower(): file for file in files}
    rows: list[dict[str, Any]] = []
    for within in sorted({"", *(file[: file.rfind("/") + 1] for file in files)}):
      if within.startswith(tuple(self.tables)):
        continue
      for name in (there[low] for low in (f"{within}{table}".lower() for table in TABLES) if low in there):
        path = self.folder / name
        content = columns.read(path)
        column = next((name for name in FILE_COLUMNS if content and name in content[0]), None)
        if content and column is None and (path.stem.lower() == "metadata" or within):
          continue
        self.tables[within] = path
        rows += self._once(path, self._named(path, content, column, within))
        break
    rows += [{"file": image} for image in images if self.tables and self._table_of(image) is None]
    return rows if self.tables else None

  def _table_of(self, file: str) -> Path | None:
    beginnings = ("", *(file[: place + 1] for place, letter in enumerate(file) if letter == "/"))
    return next((self.tables[within] for within in beginnings if within in self.tables), None)

  def _named(self, table: Path, rows: list[dict[str, Any]], column: str | None, within: str) -> list[dict[str, Any]]:
    """Returns rows with the paths of their files as `file`: a table's names begin at its own folder, `within`."""
    if rows and column is None:
      raise ValueError(f"{table} has the columns {list(rows[0])}; one of {FILE_COLUMNS} must name the image files")
    named, missing, root = [], [], os.path.normpath(self.folder)
    for number, row in enumerate(rows, start=1):
      file = tables.name(row.get(column or ""), f"{table}, row {number}")
      if not file:
        raise ValueError(f"row {number} of {table} names no image: its {column!r} is empty; give it or remove the row")
      meant = file.strip().replace("\\", "/")  # as Windows writes it, and with accents composed or not
      forms = (file, *(unicodedata.normalize(form, meant) for form in ("NFC", "NFD")))
      within_root = (os.path.relpath(os.path.normpath(self.folder / within / form), root) for form in forms)
      paths = [path.replace(os.sep, "/") for path in within_root]
      there = next((path for path in paths if (self.folder / path).is_file()), None)
      missing += [file] if there is None else []
      named.append({"file": there, **{key: value for key, value in row.items() if key != column}})
    if missing:
      shown = ", ".join(missing[:5])
      raise FileNotFoundError(f"{table} names {len(missing)} files that are not in {self.folder}: {shown}")
    return named

  def _once(self, table: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with each item once: of several captions of a picture the first counts, the others are left out.

    Raises ValueError for rows of one id that differ in their file, instance or split.
    """
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
      name = tables.name(row.get("id"), f"{table}: {row['file']}, 'id',") or row["file"]
      before = first.setdefault(name, row)
      if before is row:
        continue
      same = lambda key, row=row, before=before: tables.name(row.get(key), key) == tables.name(before.get(key), key)
      if differing := [key for key in ("file", "instance", "split") if not same(key)]:
        raise ValueError(
          f"{table} has {name!r} in two rows that differ in {differing[0]!r}; give each row its own `id`"
        )
      column = tables.caption_column(row, table)
      told = f"{name}: {row[column]}" if column else name
      self.left_out.add("further rows of pictures, of which the first counts", [told])
    return list(first.values())

  def _leave_out(self, files: list[str], images: list[str]) -> None:
    """Notes the files that no row takes: not the table, the pictures of the rows, and the texts beside these."""
    taken = {row["file"] for row in self.rows}
    bare = [row["file"] for row in self.rows if tables.caption_column(row, self._table_of(row["file"])) is None]
    by_text, read = {self._beside(file) for file in bare}, set(self.tables.values())
    pictures = set(images)
    for file in files:
      if file in taken or file in by_text or self.folder / file in read:
        continue
      if file in pictures:
        self.left_out.add(f"pictures that {self._table_of(file)} does not name", [file])
      elif os.path.basename(file).lower() in TABLES:
        self.left_out.add("tables of captions that are not read", [file])
      else:
        self.left_out.add_file(file)
    self.left_out.add_columns(self.rows)


def _plain(file: str) -> str:
  """Returns a file's name in lower case, its accents composed: whichever way a system writes it."""
  return unicodedata.normalize("NFC", file).lower()

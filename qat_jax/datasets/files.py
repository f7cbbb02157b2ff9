"""Files of a corpus, here or wherever fsspec reaches: listed in order, read by ranges; and what is left out of it."""

import bisect
import functools
import importlib.util
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qat_jax.datasets.sources import Corpus, checked_position
from qat_jax.datasets.tables import SPLITS, left_out_columns
from qat_jax.stages import check_fetched

# What Pillow opens by itself, and what it opens with the extra `heif`: the one list of pictures.
# Endings → Pillow's name of the format. Left out are formats that run a program (EPS) or name other files.
PILLOW = {
  **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
  **{".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF"},
  **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG2000"),
  **{".ppm": "PPM", ".pgm": "PPM", ".tga": "TGA"},
}
HEIF = {".heic": "HEIF", ".heif": "HEIF"}
IMAGES = (*PILLOW, *HEIF)
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")  # of which `Frames` takes pictures
FORMATS = tuple(dict.fromkeys((*PILLOW.values(), *HEIF.values())))
# Folders that a system or a NAS keeps for itself.
SYSTEM = {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx"}


@functools.cache
def opened_endings() -> tuple[str, ...]:
  """Returns the endings of pictures that can be opened here: HEIC wants the package of the extra `heif`."""
  heif = importlib.util.find_spec("pillow_heif") is not None
  return tuple(ending for ending in IMAGES if heif or ending not in HEIF)


def hidden(path: str) -> bool:
  """Says whether a path lies in a system's own folder, or a part of it is hidden by a period."""
  parts = [part for part in path.split("/") if part not in ("", ".", "..")]
  return any(part.startswith(".") or part.lower() in SYSTEM for part in parts)


class LeftOut(dict[str, list[str]]):
  """What a source did not take: kind → names."""

  def add(self, kind: str, names: Iterable[str]) -> None:
    """Adds names to a kind."""
    if new := [name.encode("utf-8", "backslashreplace").decode() for name in names]:
      self.setdefault(kind, []).extend(new)

  def add_columns(self, rows: Sequence[Mapping[str, Any]], captioned: bool = False) -> None:
    """Adds the columns of some rows that are not kept, as `tables.left_out_columns`."""
    for kind, names in left_out_columns(rows, captioned).items():
      self.add(kind, names)

  def add_file(self, name: str) -> None:
    """Adds a file that is not opened, by its ending."""
    ending = os.path.splitext(name)[1].lower()
    advice = "; pip install 'qat-jax[heif]' opens them" if ending in HEIF else ""
    self.add("system and hidden files" if hidden(name) else f"{ending or 'unnamed'} files{advice}", [name])

  def lines(self) -> list[str]:
    """Returns what was left out, a line a kind: its count and its first names."""
    shown = lambda names: ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"left out: {len(names)} {kind} ({shown(names)})" for kind, names in self.items()]


def left_out_of(source: Any) -> LeftOut:
  """Returns a copy of what a source did not take; nothing of one that does not say."""
  return LeftOut({kind: list(names) for kind, names in getattr(source, "left_out", {}).items()})


@dataclass(frozen=True)
class File:
  """One file: its path in a file system, and what changes when it does."""

  system: Any  # an fsspec file system
  path: str
  size: int
  changed: str  # its date or its checksum, as the file system tells it; "" where it does not

  @property
  def name(self) -> str:
    """The last part of its path."""
    return self.path.rsplit("/", 1)[-1]

  def read(self, start: int, length: int) -> bytes:
    """Returns so many bytes from a place on, fewer where the file ends before."""
    return self.system.cat_file(self.path, start=start, end=start + length)

  def open(self) -> Any:
    """Returns the file, to be read anywhere."""
    return self.system.open(self.path, "rb")

  def for_arrow(self) -> Any:
    """Returns what Arrow opens. A local file is Arrow's own: its threads abort a program that ends with Python's."""
    import pyarrow as pa

    return pa.OSFile(self.path) if "file" in (protocol := self.system.protocol) or protocol == "local" else self.open()


def listed(where: str | os.PathLike, ending: str, left_out: LeftOut | None = None) -> list[File]:
  """Returns the files of a folder with an ending, one file, or those of a pattern with *, in the order of their paths.

  A folder's other files are added to `left_out`. Raises FileNotFoundError where there are no such files, ImportError
  where the kind of address wants a package.
  """
  import fsspec.core

  system, path = fsspec.core.url_to_fs(os.path.expanduser(os.fspath(where)))
  if system.isdir(path):
    infos = system.ls(path, detail=True)
  elif system.isfile(path):
    infos = [system.info(path)]
  else:
    infos = list(system.glob(_escaped(system, path), detail=True).values())
  files = {info["name"]: info for info in infos if info["type"] == "file"}
  taken = {n for n in files if n.lower().endswith(ending) and not n.rsplit("/", 1)[-1].startswith(".")}
  if not taken:
    raise FileNotFoundError(f"no {ending} files at {where}; give a folder of them, one of them, or a pattern with *")
  for name in sorted(taken):
    if files[name]["size"] < 1000:
      check_fetched(system.cat_file(name), name)
  if left_out is not None:
    for name in sorted(files.keys() - taken):
      left_out.add_file(name.rsplit("/", 1)[-1])
    inside = sorted(info["name"].rsplit("/", 1)[-1] for info in infos if info["type"] == "directory")
    left_out.add(f"folders; a pattern, {where}/*/*{ending}, reads them", [name for name in inside if not hidden(name)])
  dates = ("mtime", "ETag", "etag", "md5Hash", "LastModified", "updated", "created")
  date = lambda info: str(next((info[date] for date in dates if info.get(date)), ""))
  return [File(system, name, files[name]["size"], date(files[name])) for name in sorted(taken)]


class Shards(Corpus):
  """Items that lie in files, one file after the other. A file whose name says a split says that of its items.

  `starts` has the position of each file's first item, and the count of all.
  """

  def __init__(self, where: str | os.PathLike, ending: str) -> None:
    """Lists the files with an ending, as `listed`; `number` is to be called next."""
    self.left_out, self.ending = LeftOut(), ending
    self.shards = listed(where, ending, self.left_out)

  def number(self, counts: Iterable[int]) -> None:
    """Sets how many items each of `shards` has."""
    self.names = stems(self.shards, self.ending)
    self.splits = named_splits([name.split("/") for name in self.names])
    self.starts = [0, *itertools.accumulate(counts)]

  def __len__(self) -> int:
    return self.starts[-1]

  def place(self, position: int) -> tuple[int, int]:
    """Returns the number of an item's file, and its place there."""
    file = bisect.bisect_right(self.starts, checked_position(position, self)) - 1
    return file, position - self.starts[file]


def _escaped(system: Any, pattern: str) -> str:
  """Returns a pattern in which the folders that are there with these very names are no patterns."""
  folder = pattern
  while folder and not system.isdir(folder):
    folder = folder.rpartition("/")[0]
  return folder.replace("[", "[[]") + pattern[len(folder) :]


def named_splits(paths: Sequence[Sequence[str]]) -> list[str | None]:
  """Returns the split of each path: that of its first part which names one, such as `train`, `val2017`, `test-00.tar`.

  None for all of them unless train and another split are named.
  """
  words = [[re.split(r"\d*$|\d*[-_. ]", part.lower())[0] for part in path] for path in paths]
  splits = [next((SPLITS[word] for word in path if word in SPLITS), None) for path in words]
  return splits if "train" in splits and {"val", "test"} & set(splits) else [None] * len(splits)


def stems(files: Sequence[File], ending: str) -> list[str]:
  """Returns a name a file, without its ending: the last part of the path, or all of it below what they share."""
  names = [file.name[: -len(ending)] for file in files]
  if len(set(names)) == len(names):
    return names
  shared = os.path.commonpath([file.path for file in files])
  return [file.path[len(shared) :].lstrip("/")[: -len(ending)] for file in files]

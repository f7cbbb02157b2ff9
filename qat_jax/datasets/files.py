"""Files of a corpus, on this machine or wherever fsspec reaches: listed in order, read by ranges."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


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


def listed(where: str | os.PathLike, ending: str) -> list[File]:
  """Returns the files of a folder with an ending, one file, or those of a pattern with *, in the order of their paths.

  Raises FileNotFoundError where there are none, ImportError where the kind of address wants a package.
  """
  import fsspec.core

  address = os.path.expanduser(os.fspath(where))
  system, path = fsspec.core.url_to_fs(address)
  if not any(sign in path for sign in "*?["):
    path = f"{path.rstrip('/')}/*{ending}" if system.isdir(path) else path
  found = system.glob(path, detail=True)
  infos = [info for info in found.values() if info["type"] == "file" and info["name"].endswith(ending)]
  if not infos:
    raise FileNotFoundError(f"no {ending} files at {where}; give a folder of them, one of them, or a pattern with *")
  dates = ("mtime", "ETag", "etag", "md5Hash", "LastModified", "updated", "created")
  return [
    File(system, info["name"], info["size"], str(next((info[date] for date in dates if info.get(date)), "")))
    for info in sorted(infos, key=lambda info: info["name"])
  ]


def splits_of(files: Sequence[File]) -> list[str | None]:
  """Returns the split that each file's name begins with, None for all unless there are some of train, val and test."""
  found = [SPLITS.get(re.split(r"[^a-z]", file.name.lower())[0]) for file in files]
  return list(found) if None not in found and set(found) == set(SPLITS.values()) else [None] * len(files)


def stems(files: Sequence[File], ending: str) -> list[str]:
  """Returns a name a file, without its ending: the last part of the path, or all of it below what they share."""
  names = [file.name.removesuffix(ending) for file in files]
  if len(set(names)) == len(names):
    return names
  shared = os.path.commonpath([file.path for file in files])
  return [file.path[len(shared) :].lstrip("/").removesuffix(ending) for file in files]

"""Files that are whole or not there: written to a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path | str, *pieces: Any) -> str:
  """Writes bytes-like pieces as one file and returns its checksum; a killed or failed write leaves the name untouched.

  Raises OSError that says what could not be written where the disk is full.
  """
  path = Path(path)
  temporary = path.with_name(path.name + ".tmp")
  digest = hashlib.blake2b(digest_size=16)
  try:
    with open(temporary, "wb") as file:
      for piece in pieces:
        view = memoryview(piece).cast("B") if memoryview(piece).nbytes else b""
        file.write(view)
        digest.update(view)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    if error.errno in FULL:
      size = sum(memoryview(piece).nbytes for piece in pieces) / 1e6
      raise OSError(error.errno, f"no room for {path} ({size:.1f} MB); free some space and run again") from error
    raise
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  return digest.hexdigest()


def write_json(path: Path | str, content: Any) -> None:
  """Writes `content` as a JSON file, whole or not at all."""
  write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def checksum(path: Path | str) -> str:
  """Returns the checksum of a file (blake2b, 128 bits, hexadecimal), read in pieces."""
  digest = hashlib.blake2b(digest_size=16)
  with open(path, "rb") as file:
    while piece := file.read(1 << 22):
      digest.update(piece)
  return digest.hexdigest()


def sync_folder(folder: Path) -> None:
  """Makes renames in a folder outlive a power cut, where the system can open folders."""
  if os.name == "posix":
    handle = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)

"""A log that only grows: what `append` returned for is on the disk, whole; a kill leaves the end of the last frame off.

A frame is its head (length, and a checksum of that), a digest of its content, and the content. So an end that was cut
off is told from damage: the first was never acknowledged and is left out, the second is an error.
"""

import contextlib
import hashlib
import logging
import os
import struct
import zlib
from pathlib import Path

from qat_jax.stages import FULL, sync_folder

MAGIC = b"qat-jax log 1\n"
HEAD = struct.Struct("<QI")  # length of the content, and the checksum of these bytes
DIGEST = 16  # bytes

_log = logging.getLogger(__name__)


class Log:
  """Appends to one file. For one writer."""

  def __init__(self, path: Path, size: int) -> None:
    """`size` is what of the file counts, as `read` tells; what follows is cut off. A missing file is made."""
    self.path, self.size = path, size
    self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    self.broken = False
    try:
      os.ftruncate(self._file, size)
      if not size:
        self._write(MAGIC)
      os.fsync(self._file)
      sync_folder(path.parent)
    except OSError:
      os.close(self._file)
      raise

  def append(self, content: bytes) -> None:
    """Returns once the content is on the disk. Raises OSError, and then nothing of it counts."""
    if self.broken:
      raise OSError(f"{self.path} could not be written to; start the server again")
    before = self.size
    try:
      self._write(heading(content) + content)
      os.fsync(self._file)
    except OSError as error:
      self.size = before
      try:
        os.ftruncate(self._file, before)
        os.fsync(self._file)
      except OSError:
        self.broken = True
      if error.errno in FULL:
        raise OSError(error.errno, f"no room for {self.path}; free some space and ask again") from error
      raise

  def close(self) -> None:
    """Closes the file."""
    with contextlib.suppress(OSError):
      os.close(self._file)

  def _write(self, data: bytes) -> None:
    written = 0
    while written < len(data):
      written += os.pwrite(self._file, data[written:], self.size + written)
    self.size += written


def read(path: Path) -> tuple[list[bytes], int]:
  """Returns the contents of a log's frames, and how much of the file they take.

  An end that was cut off is named in the log. Raises ValueError where anything before it is damaged.
  """
  data = path.read_bytes()
  if not data.startswith(MAGIC):
    if MAGIC.startswith(data):
      return [], 0
    raise ValueError(f"{path} is damaged, or of another version: it does not begin as a log does; restore it")
  frames, end = frames_of(data[len(MAGIC) :], path, len(MAGIC))
  if end < len(data):
    _log.warning(
      "%s: the last %d bytes were cut short before anybody was told of them; left out", path, len(data) - end
    )
  return frames, end


def frames_of(data: bytes, path: Path, first: int) -> tuple[list[bytes], int]:
  """Returns the contents of the whole frames that a part of a log begins with, and where in the log they end.

  `first` is where in the log the part begins. Raises ValueError where anything before the last frame is damaged.
  """
  at, frames = 0, []
  while at < len(data):
    start = at + HEAD.size + DIGEST
    if start > len(data) or not any(data[at:]):
      break
    length, check = HEAD.unpack_from(data, at)
    if zlib.crc32(struct.pack("<Q", length)) != check:
      raise ValueError(f"{path} is damaged at byte {first + at}: a frame's head differs from its checksum; restore it")
    content = data[start : start + length]
    if len(content) < length:
      break
    if _digest(content) != data[start - DIGEST : start]:
      if start + length < len(data):
        raise ValueError(f"{path} is damaged at byte {first + at}: a frame differs from its checksum; restore it")
      break
    frames.append(content)
    at = start + length
  return frames, first + at


def heading(content: bytes) -> bytes:
  """Returns what stands before a frame's content."""
  return HEAD.pack(len(content), zlib.crc32(struct.pack("<Q", len(content)))) + _digest(content)


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=DIGEST).digest()

"""A collection that several processes have open: one writes, the others follow; when it ends, one of them writes.

Who holds the folder's lock writes. A follower reads the frames that come to the newest log, and goes on to the next log
when there is one: nothing is written to a log once the next has begun. It reads all anew where it missed a log, and
where the last frame that it read is gone: the writer takes a frame back that the disk did not take whole.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qat_jax.features.store import FeatureStore
from qat_jax.serve.collection import log
from qat_jax.serve.collection.blocks import Blocks, Change
from qat_jax.serve.collection.collection import RECORD, Collection
from qat_jax.types import EncoderName

TRIES, PAUSE = 100, 0.05  # to read all while the writer changes what there is; seconds between two
TURN = 1.0  # seconds between two tries to become the one that writes
NO_FRAME = b"", 0  # a frame's head, and the length of its content
ONLY_READ = (errno.EACCES, errno.EPERM, errno.EROFS)


class Shared(Collection):
  """As `Collection`, for many processes: `writes` says whether this is the one that may change it."""

  def __init__(self, folder: Path, encoder: EncoderName, width: int, around: FeatureStore | None = None) -> None:
    """Opens the collection to write where nobody else does, else to follow.

    Raises as `Collection` does, and FileNotFoundError where there is nothing yet to follow.
    """
    self._file, self._at, self._last = -1, 0, NO_FRAME  # the log that is read, and how far
    self._whole, self._next = False, 0.0
    try:
      super().__init__(folder, encoder, width, around)
    except OSError as error:
      if not _is_held(error):
        raise
      self.writes = False
      self._read_anew()

  def changed(self, make: Callable[[Blocks], Change]) -> None:
    """As `Collection` has it; raises PermissionError in a process that follows."""
    if not self.writes:
      raise PermissionError(f"another process writes the collection {self.folder}; ask that one")
    super().changed(make)

  @property
  def wants_compacting(self) -> bool:
    """Whether this process may make the logs shorter, and they have become long."""
    return self.writes and super().wants_compacting

  def read_on(self) -> None:
    """Reads what was written since; where nobody writes any more, becomes the one that does."""
    if self.writes:
      return
    with self._lock:
      if time.monotonic() >= self._next:
        self._next = time.monotonic() + TURN
        state = self._state()
        try:
          self._open()
        except (OSError, ValueError) as error:
          vars(self).update(state)  # it may have read a part
          if not _is_held(error):
            raise
        else:
          self.writes = True
          self.changes += 1
          self._let_go()
          return
      if not self._read_frames():
        self._read_anew()

  def close(self) -> None:
    """Lets go of the folder."""
    if self.writes:
      super().close()
    self._let_go()

  def _take(self, frames: Sequence[bytes]) -> None:
    super()._take(frames)
    if frames:
      self._last = log.heading(frames[-1]), len(frames[-1])

  def _read_frames(self) -> bool:
    """Reads what is new, log after log; says whether all that was read before still counts."""
    while self._whole:
      path, later = self._log_path(0), self._log_path(1).exists()
      head, length = self._last
      if os.pread(self._file, len(head), self._at - length - len(head)) != head:
        return False
      size = os.fstat(self._file).st_size
      frames, self._at = log.frames_of(os.pread(self._file, max(0, size - self._at), self._at), path, self._at)
      self._take(frames)
      if not later:
        return path.exists()
      try:
        self._go_to(self._number + 1)
      except FileNotFoundError:
        return False
    return False

  def _read_anew(self) -> None:
    """Reads everything as the writer has it at one moment: the record is the same before and after."""
    state, self._whole = self._state(), False
    error: Exception = OSError(f"{self.folder} changes faster than it can be read; try again")
    for _ in range(TRIES):
      try:
        before = (self.folder / RECORD).read_bytes()
        self._last = NO_FRAME
        _, size = self._read()
        self._go_to(self._number, size)
        if (self.folder / RECORD).read_bytes() == before:
          self._whole = True
          self.changes += 1
          return
      except (OSError, ValueError) as failure:  # what the writer may just be removing, or beginning
        error = failure
      vars(self).update(state)
      time.sleep(PAUSE)
    raise error

  def _state(self) -> dict[str, Any]:
    """Returns what reading anew replaces, to put it back."""
    return {name: vars(self).get(name) for name in ("about", "items", "gone", "_number", "_last")}

  def _go_to(self, number: int, size: int = 0) -> None:
    """Goes on with a log, after what of it was read."""
    file = os.open(self.folder / f"log-{number}", os.O_RDONLY | os.O_CLOEXEC)
    self._let_go()
    self._file, self._number, self._at = file, number, max(size, len(log.MAGIC))
    if not size:
      self._last = NO_FRAME

  def _let_go(self) -> None:
    if self._file >= 0:
      os.close(self._file)
    self._file = -1

  def _log_path(self, further: int) -> Path:
    return self.folder / f"log-{self._number + further}"


def _is_held(error: Exception) -> bool:
  """Says whether another process writes, or this one may only read."""
  return isinstance(error, BlockingIOError) or (isinstance(error, OSError) and error.errno in ONLY_READ)

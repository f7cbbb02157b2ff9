"""Marks that stay: a folder of records, one a line with its checksum, on the disk before anybody is told so.

Each process appends to a file of its own, so several may write to one folder. A line that a kill cut short does not end
in a line feed, or does not match its checksum: `read_marks` leaves it out and names it in the log.

A record has:

    query     "feature": its unit feature, float16 in base64; "type": text or image; "text", where it is one
    told      true where the search had several parts or was told in words: then the feature is not all of the query
    item      an id
    right     true or false
    adapter   the fingerprint of its heads
    encoder   of the features, name and revision
    format    of the record

Nothing about who marked is in it. A folder takes LIMIT bytes.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qat_jax.stages import sync_folder

FORMAT = 1
LIMIT = 1 << 30  # bytes of a folder: some 500,000 marks at 512 wide
KNOWN = 100_000  # marks that are remembered, so that a page asked for again adds nothing

_log = logging.getLogger(__name__)


class KeptMarks:
  """Appends marks to a folder; for many threads."""

  def __init__(self, folder: str | os.PathLike, limit: int = LIMIT) -> None:
    """Makes the folder, which takes `limit` bytes; raises OSError where that fails."""
    self.folder, self.limit = Path(folder), limit
    self.folder.mkdir(parents=True, exist_ok=True)
    self._path: Path | None = None
    self._known: dict[str, None] = {}
    self._lock = threading.Lock()

  def append(self, records: list[dict[str, Any]]) -> int:
    """Returns how many of the marks are new, once they are on the disk. Raises OSError, and then keeps none of them."""
    texts = (json.dumps({"format": FORMAT, **record}, sort_keys=True) for record in records)
    lines = {hashlib.blake2b(text.encode(), digest_size=16).hexdigest(): text for text in texts}
    with self._lock:
      new = {digest: text for digest, text in lines.items() if digest not in self._known}
      if new:
        self._write("".join(f"{digest} {text}\n" for digest, text in new.items()).encode())
      for digest in lines:
        self._known.pop(digest, None)
        self._known[digest] = None
      while len(self._known) > KNOWN:
        self._known.pop(next(iter(self._known)))
    return len(new)

  def _write(self, data: bytes) -> None:
    """Appends to this process's file and waits for the disk; after a failure the next call begins another file."""
    there = sum(path.stat().st_size for path in self.folder.glob("marks-*.jsonl"))
    if there + len(data) > self.limit:
      raise OSError(errno.EDQUOT, f"{self.folder} has {there:,} bytes of marks, {self.limit:,} are the most; empty it")
    path = self._path or self.folder / f"marks-{os.getpid()}-{secrets.token_hex(8)}.jsonl"
    self._path = None
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
      before = os.fstat(descriptor).st_size
      try:
        written = 0
        while written < len(data):
          written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
      except OSError:
        os.ftruncate(descriptor, before)
        raise
      if not before:
        sync_folder(self.folder)
    finally:
      os.close(descriptor)
    self._path = path


def read_marks(folder: str | os.PathLike) -> Iterator[Mapping[str, Any]]:
  """Yields the marks of a folder, each once, in the order of files and lines; damaged lines are named in the log."""
  seen: set[bytes] = set()
  for path in sorted(Path(folder).glob("marks-*.jsonl")):
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
      digest, _, text = line.partition(b" ")
      if not line or digest in seen:
        continue
      if hashlib.blake2b(text, digest_size=16).hexdigest().encode() != digest:
        _log.warning("%s: line %d is cut short or damaged; it is left out", path, number)
        continue
      seen.add(digest)
      record = json.loads(text)
      if record.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {record.get('format')!r}, this version reads {FORMAT}: upgrade qat-jax")
      yield record

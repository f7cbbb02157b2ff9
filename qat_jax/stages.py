"""The base of every stage that can be resumed: files that are whole or absent, fingerprints, locks.

A stage writes the *fingerprint* of all its inputs beside or inside its result. The result is used again only if nothing
in the fingerprint has changed. A change is named with the old and the new value.
"""

import concurrent.futures
import contextlib
import errno
import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

LFS = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SOON = 1.0  # seconds until the owner of a lock has written its name into it
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # errors of a file system without locks
SETTLED_NS = 10**9  # nanoseconds; a younger file may change again without a new time stamp
SHOWN = 80  # characters of a value in a message

_log = logging.getLogger(__name__)
_number = itertools.count()
_ABSENT = object()


def fingerprint(**reads: object) -> dict[str, Any]:
  """Returns the inputs of a stage as plain JSON: its settings, and the fingerprints of its sources.

  Raises TypeError for a value that is not made of mappings, sequences, numbers, text, None and paths.
  """
  return json.loads(json.dumps(reads, default=_plain, sort_keys=True))


def differences(
  made_with: Mapping[str, object], inputs: Mapping[str, object], words: str = "{name} was {old}, is {new}"
) -> list[str]:
  """Returns a text for each difference of two fingerprints, such as `noise.scale was 0.5, is 0.3`."""
  old, new = _leaves(fingerprint(**made_with)), _leaves(fingerprint(**inputs))
  names = [name for name in sorted(old.keys() | new.keys()) if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
  return [words.format(name=name, old=_shown(old, name), new=_shown(new, name)) for name in names]


def made(what: str | os.PathLike, made_with: Mapping[str, object] | None, inputs: Mapping[str, object]) -> bool:
  """Says whether a result can be used again: whether its fingerprint, `made_with`, equals that of `inputs`.

  None means that there is no result. If the two differ, a line of the log names `what` and all differences.
  """
  if made_with is None:
    return False
  differing = differences(made_with, inputs)
  if differing:
    _log.warning("%s is made anew: %s", what, "; ".join(differing))
  return not differing


def check_same(
  what: str | os.PathLike, made_with: Mapping[str, object], inputs: Mapping[str, object], advice: str
) -> None:
  """Raises ValueError if two fingerprints differ; it names all differences and ends with the advice."""
  if differing := differences(made_with, inputs):
    raise ValueError(f"{what} was made with other inputs or settings: {'; '.join(differing)}. {advice}")


def digest_of_files(paths: Iterable[str | os.PathLike]) -> str:
  """Returns a digest of the contents of files, in the order given, without their names, places and dates.

  A file is read once in a process (about a second per gigabyte), and again only if its size or dates change.
  """
  return checksum_of("".join(checksums(paths)).encode())


def checksums(paths: Iterable[str | os.PathLike]) -> list[str]:
  """Returns the checksum of each file, read as `digest_of_files` reads it."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(_checksum_once, map(Path, paths)))


def changed(written: Mapping[Path, str]) -> Path | None:
  """Returns the first file whose checksum is not the one in `written`; None if all are equal."""
  now_in_files = checksums(written)
  return next((path for path, now in zip(written, now_in_files, strict=True) if written[path] != now), None)


def write_whole(path: str | os.PathLike, *pieces: bytes | memoryview | np.ndarray) -> str:
  """Writes bytes-like pieces as one file and returns its checksum; a killed or failed write leaves the name untouched.

  Several processes may write the same file: each has its own temporary file, and the last one to finish wins.
  Temporary files left by killed processes are removed. Raises OSError that names the file if the disk is full.
  """
  path = Path(path)
  temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{next(_number)}.tmp")
  digest = hashlib.blake2b(digest_size=16)
  try:
    with open(temporary, "wb") as file:
      for piece in pieces:
        file.write(_bytes(piece))
        digest.update(_bytes(piece))
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    _remove_left(path)
    sync_folder(path.parent)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    if error.errno in FULL:
      size = sum(len(_bytes(piece)) for piece in pieces) / 1e6
      raise OSError(error.errno, f"no room for {path} ({size:.1f} MB); free some space and run again") from error
    raise
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  return digest.hexdigest()


def write_json(path: str | os.PathLike, content: object) -> None:
  """Writes `content` as a JSON file, whole or not at all."""
  write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def checksum_of(data: bytes | memoryview) -> str:
  """Returns the checksum of bytes, as `checksum` has it for a file."""
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def checksum(path: str | os.PathLike) -> str:
  """Returns the checksum of a file (blake2b, 128 bits, hexadecimal), read in pieces."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
  """Locks a folder against other processes that lock it, while the block runs; makes the folder if it is missing.

  The operating system holds the lock and releases it when the process ends in any way, so a stale `.lock` file does no
  harm. Raises BlockingIOError that names the owner's process and host. Without file locks in the system, nothing is
  locked, and a line of the log says so.
  """
  try:
    import fcntl
  except ImportError:
    yield
    return
  path, patience = Path(folder) / ".lock", time.monotonic() + SOON
  while True:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      file = open(path, "a+")  # noqa: SIM115 (closed below, or where it is another's)
    except FileNotFoundError:
      continue  # the owner has just removed the folder
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        file.seek(0)
        owner = file.read()
        if not owner and time.monotonic() < patience:
          time.sleep(0.01)
          continue  # the owner has just come or is leaving: soon its name is there, or the lock is free
        owner = owner or "another process"
        raise BlockingIOError(f"{folder} is in use by {owner}; wait for it, end it, or choose another folder") from None
      except OSError as error:
        if error.errno not in NO_LOCKS:
          raise
        _log.warning("the file system of %s has no locks (%s): see to it that nobody else writes there", folder, error)
        yield
        return
      if not _is(file, path):
        continue  # the folder or the lock file was removed meanwhile
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}")
      file.flush()
      try:
        yield
      finally:
        if _is(file, path):  # a process that has opened the file meanwhile finds that its name is gone
          path.unlink()
          with contextlib.suppress(OSError):
            path.parent.rmdir()  # if it is empty
      return


def empty(folder: str | os.PathLike) -> None:
  """Removes everything in a folder except its lock, which the caller holds; the folder goes with the lock."""
  for path in Path(folder).iterdir():
    if path.name != ".lock":
      shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync_folder(folder: Path) -> None:
  """Makes renames in a folder outlive a power cut, where the system can open folders."""
  if os.name == "posix":
    handle = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def _is(file: IO[str], path: Path) -> bool:
  """Says whether a path is the name of an open file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


def _bytes(piece: Any) -> memoryview | bytes:
  view = memoryview(piece)
  return view.cast("B") if view.nbytes else b""


def _plain(value: Any) -> Any:
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, Mapping):
    return dict(value)
  raise TypeError(f"a fingerprint cannot hold a {type(value).__name__}: {value!r}; give its digest, or what made it")


def _leaves(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
  """Returns the values of nested dicts by their dotted names; an empty dict is a value."""
  leaves: dict[str, Any] = {}
  for name, value in tree.items():
    leaves |= _leaves(value, f"{before}{name}.") if isinstance(value, dict) and value else {f"{before}{name}": value}
  return leaves


def _shown(leaves: dict[str, Any], name: str) -> str:
  text = repr(leaves[name]) if name in leaves else "not there"
  return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _checksum_once(path: Path) -> str:
  about = path.stat()
  if time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns) < SETTLED_NS:
    return checksum(path)
  return _known_checksum(path.resolve(), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _known_checksum(path: Path, *_: int) -> str:
  return checksum(path)


def _remove_left(path: Path) -> None:
  """Removes temporary files of `path` whose process, on this host, is gone."""
  host = socket.gethostname()
  for left in path.parent.glob(f"{glob.escape(path.name)}.{glob.escape(host)}-*.tmp"):
    parts = re.fullmatch(r"(\d+)-\d+\.tmp", left.name.removeprefix(f"{path.name}.{host}-"))
    if parts and not _alive(int(parts[1])):
      left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:
    pass  # of another user
  return True


def check_fetched(data: bytes, where: object) -> None:
  """Raises ValueError for the first bytes of a pointer that Git LFS has not replaced by the file."""
  if data.startswith(LFS):
    raise ValueError(f"{where} is a pointer of Git LFS, not the file; fetch it with git lfs pull")

"""Files with a checksum inside, so that damage is noticed: JSON records, and bytes.

A record without a checksum, which an earlier version wrote, is read as it is.
"""

import contextlib
import json
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qat_jax.stages import checksum_of, write_whole

CHECKSUM = "checksum"  # the last entry of a record
SEAL = b"\nsealed "  # before the digest that ends a sealed file
DIGEST = 16  # bytes
# errors that NumPy, zipfile and others raise for damaged files
UNREADABLE = (
  *(ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, RuntimeError, ArithmeticError, MemoryError),
  *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error),
)


def write_record(path: str | os.PathLike, content: Mapping[str, object]) -> None:
  """Writes a JSON object with the checksum of its content, whole or not at all."""
  content = json.loads(json.dumps(content))
  text = json.dumps({**content, CHECKSUM: _of_record(content)}, indent=2, ensure_ascii=False)
  write_whole(path, (text + "\n").encode())


def read_record(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the content that `write_record` wrote; raises ValueError that names a damaged or edited file."""
  return record_in(path, Path(path).read_bytes())


def record_in(path: str | os.PathLike, data: bytes) -> dict[str, Any]:
  """Returns the record in the bytes of a file; raises as `read_record`."""
  try:
    content = json.loads(data)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged, it is not JSON ({error}); restore it, or delete its folder") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} is damaged, it holds no JSON object; restore it, or delete its folder")
  written = content.pop(CHECKSUM, None)
  if written is not None and written != _of_record(content):
    raise ValueError(
      f"{path} is not what was written: its checksum differs; restore it, or delete its folder "
      f'(its entry "{CHECKSUM}" alone, where you changed it on purpose)'
    )
  return content


@contextlib.contextmanager
def readable(path: str | os.PathLike, what: str = "Parquet file") -> Iterator[None]:
  """Raises ValueError that names the file if the block cannot read it; libraries often do not name it."""
  try:
    yield
  except FileNotFoundError:
    raise
  except (OSError, *UNREADABLE) as error:
    raise ValueError(f"{path} is truncated or no {what} ({error}); restore it, or write it again") from error


def check_format(what: str | os.PathLike, number: object, newest: int, older: str, oldest: int | None = None) -> None:
  """Raises ValueError if this version does not read a format.

  Args:
    what: the name of the file or folder, for the message.
    number: the format that it says it has.
    newest: the newest format that this version reads.
    older: the advice for an older format.
    oldest: the oldest format that this version reads; `newest` if None.
  """
  if type(number) is not int or not (newest if oldest is None else oldest) <= number <= newest:
    reads = newest if oldest is None else f"up to {newest}"
    advice = older if type(number) is int and number < newest else "upgrade qat-jax"
    raise ValueError(f"{what} is of format {number!r}, and this version reads {reads}: {advice}")


def write_sealed(path: str | os.PathLike, data: bytes | memoryview) -> None:
  """Writes bytes with their digest at the end, whole or not at all."""
  write_whole(path, data, SEAL + _digest(data))


def read_sealed(path: str | os.PathLike) -> bytes:
  """Returns the bytes that `write_sealed` wrote; raises ValueError that names a damaged file."""
  data = Path(path).read_bytes()
  end = len(data) - len(SEAL) - DIGEST
  if end < 0 or data[end:] != SEAL + _digest(data[:end]):
    raise ValueError(f"{path} is damaged, or of an earlier version; delete it, it is made anew")
  return data[:end]


def _of_record(content: Mapping[str, object]) -> str:
  return checksum_of(json.dumps(content, sort_keys=True).encode())


def _digest(data: bytes | memoryview) -> bytes:
  return bytes.fromhex(checksum_of(data))

"""The records of a source: read ahead by threads, their images decoded, and as rows of metadata."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from qat_jax.datasets import Source, UnreadableImage, decode
from qat_jax.features import reuse
from qat_jax.features.reuse import Encoded

CONTENT, REUSED = "\0content", "\0reused"  # keys of a record that no source has
TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def read_ahead(
  source: Source, positions: Iterable[int], images: bool, threads: int, ahead: int, encoded: Encoded | None = None
) -> Iterator[Any]:
  """Yields what `record` returns at `positions`, in order."""
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for position in positions:
      waiting.append(pool.submit(record, source, position, images, encoded))
      if len(waiting) > ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def record(
  source: Source, position: int, images: bool = False, encoded: Encoded | None = None
) -> dict[str, Any] | UnreadableImage:
  """Returns the record at a position, or why it cannot be read.

  Where images are asked for, its image is decoded, CONTENT has the digest of its bytes, and REUSED the place of its
  features among those `encoded` before; then it is not decoded.
  """
  try:
    found = source[position]
    if not images:
      return {**found, "id": str(found["id"]), "image": None}
    content = reuse.digest(found["image"])
    row = None if encoded is None else encoded.row(content)
    image = decode(found) if row is None else None
    return {**found, "id": str(found["id"]), "image": image, CONTENT: content, REUSED: row}
  except UnreadableImage as error:
    return error


def schema(source: Source) -> pa.Schema:
  """Returns the metadata columns: id, instance, caption; of the first record `relevant` and the other scalar fields."""
  fields = {name: pa.string() for name in ("id", "instance", "caption")}
  first = record(source, 0)
  for name, value in ({} if isinstance(first, UnreadableImage) else first).items():
    if name == "relevant":
      fields[name] = pa.list_(pa.string())
    elif type(value) in TYPES:
      fields.setdefault(name, TYPES[type(value)])
  return pa.schema(fields)


def table(rows: list[dict[str, Any]], columns: pa.Schema) -> pa.Table:
  """Returns records as rows of metadata; raises ValueError where a field is of another type than the first item's."""
  try:
    return pa.Table.from_pylist(rows, schema=columns)
  except (pa.ArrowException, TypeError) as error:
    first, last = rows[0]["id"], rows[-1]["id"]
    raise ValueError(
      f"a field of the items {first!r} to {last!r} is not of the first item's type ({error}); wanted {columns}"
    ) from error

"""The records of a source: read ahead by threads, their images decoded, and as rows of metadata."""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from qat_jax.datasets import Source, UnreadableImage, columns
from qat_jax.datasets.pictures import decode
from qat_jax.features import reuse
from qat_jax.features.reuse import Encoded

CONTENT, REUSED = "\0content", "\0reused"  # keys of a record that no source has


def read_ahead(
  source: Source, positions: Iterable[int], images: bool, threads: int, ahead: int, encoded: Encoded | None = None
) -> Iterator[Any]:
  """Yields what `record` returns at `positions`, in order.

  Args:
    source, images, encoded: as of `record`.
    positions: of the items.
    threads: how many read.
    ahead: how many records wait at most.
  """
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

  Args:
    source: the items.
    position: of the item.
    images: whether its image is decoded; CONTENT then has the digest of the image's bytes.
    encoded: features of images; REUSED then has the place of the item's among them, and its image is not decoded.
  """
  try:
    fields = source[position]
    if not images:
      return {**fields, "id": str(fields["id"]), "image": None}
    content = reuse.digest(fields["image"])
    row = None if encoded is None else encoded.row(content)
    image = decode(fields) if row is None else None
    return {**fields, "id": str(fields["id"]), "image": image, CONTENT: content, REUSED: row}
  except UnreadableImage as error:
    return error


def metadata_table(rows: list[dict[str, Any]]) -> pa.Table:
  """Returns records as rows of metadata: id, instance, caption, plain fields, and lists `relevant`."""
  hidden = ("image", CONTENT, REUSED)
  plain = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
  metadata = columns.table(plain, ("id", "instance", "caption"))
  lists = [row["relevant"] if isinstance(row.get("relevant"), list) else None for row in rows]
  if any(lists) and "relevant" not in metadata.column_names:
    metadata = metadata.append_column("relevant", pa.array(lists, pa.list_(pa.string())))
  return metadata

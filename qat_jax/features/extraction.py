"""Images and texts → features on disk: decoded by threads, encoded in fixed batches, written shard by shard.

A shard is a range of positions of the source and batches never cross it, so an extraction that was killed goes on with
the first missing shard and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import errno
import hashlib
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from qat_jax.datasets import Source, UnreadableImage, decode
from qat_jax.encoders import Encoder
from qat_jax.features.shards import INCOMPLETE, KINDS, META, check_rows, read_meta
from qat_jax.features.store import FeatureStore
from qat_jax.features.writer import FeatureWriter
from qat_jax.stages import check_same, write_json

UNREADABLE = "unreadable.json"
MOST_UNREADABLE = 0.01  # a larger share is a broken source, not a few broken files
MOST_WITHOUT_CAPTION = 0.5  # with more the captions are somewhere else
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # Pillow names objects by their address, which is another in every run
TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def extract(
  source: Source,
  encoder: Encoder,
  folder: str | os.PathLike,
  kinds: Sequence[str] = KINDS,
  batch_size: int = 256,
  rows_per_shard: int = 8192,
  dtype: str = "float16",
  threads: int = 8,
  progress: bool = True,
  beside: tuple[int, int] = (0, 0),
) -> dict[str, FeatureStore]:
  """Encodes a source into `folder` and returns the stores by kind; what is there already is not encoded again.

  `kinds` says what to encode: "img" and "text" (the captions) give one row an item each; all scalar fields of the
  records become metadata. Images that cannot be decoded are left out, listed in unreadable.json and counted in
  meta.json. So are, where captions are encoded, items without one; captions longer than the encoder takes are cut and
  counted. Holds two batches of decoded images and one shard. meta.json also says how fast the last run was, and which
  share of its time the encoder computed: with much less than 1 it waits for pictures.

  `beside` is of the other parts of the same set: how many images they have, and how many of these are known to be
  unreadable; the share of 1% is one of all.

  Raises ValueError where more than 1% of the images are unreadable, more than half of the captions are missing, ids
  repeat, a feature is NaN (named by id), or the folder was begun with other settings; OSError where the disk is too
  small or gets full.
  """
  folder = Path(folder)
  _check_settings(len(source), kinds, batch_size, rows_per_shard, dtype)
  plan = _plan(source, encoder, kinds, batch_size, rows_per_shard, dtype)
  if not (folder / META).exists():
    writer = FeatureWriter(folder, plan, -(-len(source) // rows_per_shard))
    _Extraction(source, encoder, writer, plan, threads, progress, beside).run()
  else:
    check_same(folder, read_meta(folder).get("extraction", {}), plan, "Delete it or choose another folder")
    shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)  # a kill after meta.json may have left the notes
  return {kind: FeatureStore.open(folder, kind) for kind in kinds}


@dataclasses.dataclass
class _Extraction:
  """One run over the missing shards."""

  source: Source
  encoder: Encoder
  writer: FeatureWriter
  plan: dict[str, Any]
  threads: int
  progress: bool
  beside: tuple[int, int]

  def run(self) -> None:
    """Encodes and writes what is missing, then declares the folder whole."""
    missing, size = self.writer.missing(), self.plan["rows_per_shard"]
    ranges = {shard: range(shard * size, min((shard + 1) * size, len(self.source))) for shard in missing}
    left = sum(map(len, ranges.values()))
    self._check_room(left)
    reports = self.writer.reports()
    self.unreadable = [entry for report in reports for entry in report["unreadable"]]
    self.bare = [name for report in reports for name in report["without_caption"]]
    self.seen = self._finished_ids()
    self.schema = self._schema()
    positions = itertools.chain.from_iterable(ranges.values())
    records = _read_ahead(self.source, positions, "img" in self.plan["kinds"], self.threads, self.plan["batch_size"])
    count, self.began, self.encoding = len(self.source), time.perf_counter(), 0.0
    with tqdm.tqdm(
      total=count, initial=count - left, unit=" images", desc=self.writer.folder.name, disable=not self.progress
    ) as bar:
      for shard in missing:
        self._encode_shard(shard, ranges[shard], records, bar)
    seconds = time.perf_counter() - self.began
    self._finish({"items_per_second": round(left / seconds, 1), "encoding_share": round(self.encoding / seconds, 3)})

  def _encode_shard(self, shard: int, positions: range, records: Iterator, bar: tqdm.tqdm) -> None:
    kinds, size = self.plan["kinds"], self.plan["batch_size"]
    parts: dict[str, list[np.ndarray]] = {
      kind: [np.empty((0, self.encoder.width), self.plan["dtype"])] for kind in kinds
    }
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"unreadable": [], "without_caption": []}
    truncated_before = self.encoder.truncated
    for start in range(positions.start, positions.stop, size):
      batch = []
      for position in range(start, min(start + size, positions.stop)):
        record = next(records)
        if isinstance(record, UnreadableImage):
          report["unreadable"].append({"position": position, "id": record.id, "reason": ADDRESS.sub("", record.reason)})
          self._check_share(report["unreadable"])
        else:
          self._check_new(record["id"], position)
          if "text" in kinds and not record.get("caption"):
            report["without_caption"].append(record["id"])
            self._check_captions(report["without_caption"])
          else:
            batch.append(record)
      for kind in kinds if batch else ():
        parts[kind].append(self._encode(kind, batch))
      rows += [{name: record.get(name) for name in self.schema.names} for record in batch]
      bar.set_postfix_str(
        f"encoding {self.encoding / (time.perf_counter() - self.began):.0%} of the time", refresh=False
      )
      bar.update(min(size, positions.stop - start))
    report["truncated"] = self.encoder.truncated - truncated_before
    table = _table(rows, self.schema)
    self.writer.write(shard, {kind: np.concatenate(part) for kind, part in parts.items()}, table, report)
    self.unreadable += report["unreadable"]
    self.bare += report["without_caption"]

  def _encode(self, kind: str, batch: list[dict[str, Any]]) -> np.ndarray:
    """Returns the features of a batch in the stored dtype; raises ValueError that names items without sound ones."""
    began = time.perf_counter()
    if kind == "img":
      features_BD = self.encoder.images([record["image"] for record in batch])
    else:
      features_BD = self.encoder.texts([record["caption"] for record in batch])
    features_BD = np.asarray(features_BD)  # waits for the device
    self.encoding += time.perf_counter() - began
    if features_BD.shape != (len(batch), self.encoder.width):
      wanted = (len(batch), self.encoder.width)
      raise ValueError(f"{self.encoder.name} gave features of shape {features_BD.shape}, wanted {wanted}")
    features_BD = features_BD.astype(self.plan["dtype"])
    check_rows(features_BD, f"{self.encoder.name} ({kind})", lambda row: batch[row]["id"])
    return features_BD

  def _check_new(self, name: str, position: int) -> None:
    if name in self.seen:
      raise ValueError(f"the id {name!r} occurs again at position {position} of the source; give each item its own")
    self.seen.add(name)

  def _check_captions(self, here: list[str]) -> None:
    bare, items = self.bare + here, len(self.source)
    if len(bare) > MOST_WITHOUT_CAPTION * items:
      names = ", ".join(map(repr, bare[:5]))
      raise ValueError(
        f"{len(bare)} items of {items} and maybe more have no caption, more than half: {names}; "
        "give them one, leave them out, or extract with kinds=('img',)"
      )

  def _check_share(self, here: list[dict[str, Any]]) -> None:
    bad, (others, bad_others) = self.unreadable + here, self.beside
    count, items = len(bad) + bad_others, len(self.source) + others
    if count > MOST_UNREADABLE * items:
      write_json(self.writer.folder / INCOMPLETE / UNREADABLE, bad)
      names = ", ".join(f"{entry['id']!r} ({entry['reason']})" for entry in bad[:5])
      raise ValueError(
        f"{count} images of {items} cannot be read, more than 1%: {names}; mend or remove them. "
        f"All so far are in {self.writer.folder / INCOMPLETE / UNREADABLE}"
      )

  def _check_room(self, rows: int) -> None:
    needed = rows * self.encoder.width * np.dtype(self.plan["dtype"]).itemsize * len(self.plan["kinds"])
    free = shutil.disk_usage(self.writer.folder).free
    if needed > free:
      raise OSError(
        errno.ENOSPC,
        f"{self.writer.folder} needs {needed / 1e6:.1f} MB more, the disk has {free / 1e6:.1f} MB; free some",
      )

  def _finished_ids(self) -> set[str]:
    done = set(range(self.writer.shards)) - set(self.writer.missing())
    files = [self.writer.folder / "metadata" / f"metadata_{shard:04d}.parquet" for shard in sorted(done)]
    return {name for path in files for name in pq.read_table(path, columns=["id"]).column("id").to_pylist()}

  def _schema(self) -> pa.Schema:
    """Returns the metadata columns: id, instance, caption, and the other scalar fields of the first record."""
    fields = {name: pa.string() for name in ("id", "instance", "caption")}
    record = _record(self.source, 0)
    for name, value in ({} if isinstance(record, UnreadableImage) else record).items():
      if type(value) in TYPES:
        fields.setdefault(name, TYPES[type(value)])
    return pa.schema(fields)

  def _finish(self, speed: dict[str, float]) -> None:
    truncated = sum(report["truncated"] for report in self.writer.reports())
    notes = {"unreadable": len(self.unreadable), "truncated_captions": truncated, "without_caption": len(self.bare)}
    if self.unreadable:
      write_json(self.writer.folder / UNREADABLE, self.unreadable)
      names = _first([entry["id"] for entry in self.unreadable])
      tqdm.tqdm.write(f"{len(self.unreadable)} unreadable images left out ({names}): {self.writer.folder / UNREADABLE}")
    if self.bare:
      where = self.writer.folder
      tqdm.tqdm.write(f"{len(self.bare)} of {len(self.source)} left out of {where}: no caption ({_first(self.bare)})")
    if truncated:
      tqdm.tqdm.write(f"{truncated} captions were longer than the {self.encoder.max_tokens} tokens that are read; cut")
    about = {"encoder": self.plan["encoder"], "revision": self.plan["revision"], "space": "frozen"}
    self.writer.finish({**about, **notes, "speed": speed, "extraction": self.plan})


def _read_ahead(source: Source, positions: Iterable[int], images: bool, threads: int, ahead: int) -> Iterator[Any]:
  """Yields the records at `positions` in order, their images decoded, or UnreadableImage in the place of one."""
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for position in positions:
      waiting.append(pool.submit(_record, source, position, images))
      if len(waiting) > ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _record(source: Source, position: int, images: bool = False) -> dict[str, Any] | UnreadableImage:
  try:
    record = source[position]
    return {**record, "id": str(record["id"]), "image": decode(record) if images else None}
  except UnreadableImage as error:
    return error


def _first(names: list[str]) -> str:
  return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
  try:
    return pa.Table.from_pylist(rows, schema=schema)
  except (pa.ArrowException, TypeError) as error:
    first, last = rows[0]["id"], rows[-1]["id"]
    raise ValueError(
      f"a field of the items {first!r} to {last!r} is not of the first item's type ({error}); wanted {schema}"
    ) from error


def _plan(
  source: Source, encoder: Encoder, kinds: Sequence[str], batch_size: int, rows_per_shard: int, dtype: str
) -> dict[str, Any]:
  """Returns all that the bytes on disk depend on.

  The source is known by its length and three of its ids; one that has stamps (a folder), by everything in it.
  """
  sample = [_record(source, position) for position in (0, len(source) // 2, len(source) - 1)]
  ids = [record.id if isinstance(record, UnreadableImage) else record["id"] for record in sample]
  about = {"type": type(source).__name__, "items": len(source), "ids": ids}
  if hasattr(source, "stamp"):
    digest = hashlib.blake2b(digest_size=16)
    for position in range(len(source)):
      digest.update(repr(source.stamp(position)).encode())
    about["content"] = digest.hexdigest()
  return {
    "source": about,
    "encoder": encoder.name,
    "revision": encoder.revision,
    "kinds": list(kinds),
    "batch_size": batch_size,
    "rows_per_shard": rows_per_shard,
    "dtype": dtype,
  }


def _check_settings(items: int, kinds: Sequence[str], batch_size: int, rows_per_shard: int, dtype: str) -> None:
  if items == 0:
    raise ValueError("the source is empty; nothing can be encoded")
  if not kinds or set(kinds) - set(KINDS):
    raise ValueError(f"kinds is {tuple(kinds)}; wanted one or both of {KINDS}")
  if batch_size < 1 or rows_per_shard < 1:
    raise ValueError(f"batch_size is {batch_size}, rows_per_shard {rows_per_shard}; both must be at least 1")
  if dtype not in ("float16", "float32"):
    raise ValueError(f"dtype is {dtype!r}; features are stored as float16 or float32")

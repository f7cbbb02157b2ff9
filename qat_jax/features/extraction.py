"""Images and texts → features on disk: decoded by threads, encoded in fixed batches, written shard by shard.

A shard is a range of positions of the source and batches never cross it, so an extraction that was killed goes on with
the first missing shard and ends with the same bytes as one that was not.
"""

import dataclasses
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from qat_jax.cluster.work import LOCAL, reach, run
from qat_jax.datasets import Source, UnreadableImage
from qat_jax.datasets.columns import check_ids
from qat_jax.datasets.files import left_out_of
from qat_jax.encoders import Encoder
from qat_jax.features import records
from qat_jax.features.encoding import Encoding
from qat_jax.features.reuse import UNKNOWN, Encoded, write_content
from qat_jax.features.shards import INCOMPLETE, KINDS, META, read_meta
from qat_jax.features.store import FeatureStore
from qat_jax.features.writer import FeatureWriter
from qat_jax.stages import check_same, lock, write_json

UNREADABLE = "unreadable.json"
LEFT_OUT = "left_out.json"  # kind → names of all that the source holds and was not taken
MOST_UNREADABLE = 0.01  # a larger share is a broken source, not a few broken files
MOST_WITHOUT_CAPTION = 0.5  # with more the captions are somewhere else
AGAIN = "Delete it or choose another folder; told to reuse this one, that encodes what is new alone"


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
  cluster: str = LOCAL,
  reuse: str | os.PathLike | None = None,
) -> dict[str, FeatureStore]:
  """Encodes a source into `folder` and returns the stores by kind; what is there already is not encoded again.

  Images that cannot be decoded are left out and listed in unreadable.json, and so are, where captions are encoded,
  items without one; left_out.json has all of them. Captions longer than the encoder takes are cut. meta.json counts
  these, and says which share of the last run's time the encoder computed: with much less than 1 it waits for pictures.
  Holds two batches of decoded images and one shard.

  Args:
    source: the items; scalar fields of their records become metadata.
    encoder, folder: what encodes them, and where the features are written.
    kinds: what is encoded, "img" and "text" (the captions), one row an item each.
    batch_size, rows_per_shard: how many items are encoded at once, and how many of the source a shard has.
    dtype: of the stored features, "float16" or "float32".
    threads, progress: how many read and decode pictures ahead; whether a progress bar is shown.
    beside: of the other parts of the same set, how many images they have, and how many of these are known to be
      unreadable; the share of 1% is one of all.
    cluster: who makes the shards: this process, or a Ray cluster (docs/scale.md).
    reuse: a folder beneath which this function has written features: those of pictures with the same bytes are copied.
      Captions are encoded anew. In another batch an encoder may round a stored number's last bit otherwise.

  Raises ValueError where more than 1% of the images are unreadable, more than half of the captions are missing, ids
  repeat, a feature is NaN (named by id), the folder was begun with other settings, or `reuse` is of another encoder;
  OSError where the disk is too small or gets full; BlockingIOError where another process writes the folder.
  """
  reach(cluster)
  folder = Path(folder)
  plan = _plan(source, encoder, kinds, batch_size, rows_per_shard, dtype)
  if not (folder / META).exists():
    with lock(folder):
      if not (folder / META).exists():  # which somebody else may just have written
        encoded = Encoded(reuse, plan) if reuse and "img" in kinds else None
        writer = FeatureWriter(folder, plan, -(-len(source) // rows_per_shard))
        shards = _Shards(source, encoder, writer, plan, threads, beside, encoded)
        _finish(shards, _make_missing(shards, progress, cluster))
  check_same(folder, read_meta(folder).get("extraction", {}), plan, AGAIN)
  shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)  # a kill after meta.json may have left the notes
  return {kind: FeatureStore.open(folder, kind) for kind in kinds}


@dataclasses.dataclass
class _Shards:
  """Makes one shard whole: its records read, encoded, checked and written. A copy of it works elsewhere."""

  source: Source
  encoder: Encoder
  writer: FeatureWriter
  plan: dict[str, Any]
  threads: int
  beside: tuple[int, int]
  encoded: Encoded | None
  seen: set[str] = dataclasses.field(default_factory=set)  # the ids that this copy has met
  bar: tqdm.tqdm | None = None

  def __post_init__(self) -> None:
    self.reread()

  def reread(self) -> list[dict[str, Any]]:
    """Returns the reports of the shards that are whole, and sets `unreadable` and `bare`, which they have left out."""
    reports = self.writer.reports()
    self.unreadable = [entry for report in reports for entry in report["unreadable"]]
    self.bare = [name for report in reports for name in report["without_caption"]]
    return reports

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"seen": set(), "bar": None}

  def positions(self, shard: int) -> range:
    """Returns which positions of the source a shard has."""
    size = self.plan["rows_per_shard"]
    return range(shard * size, min((shard + 1) * size, len(self.source)))

  def __call__(self, shard: int) -> float:
    """Writes a shard and returns how many seconds the encoder computed."""
    if self.writer.is_whole(shard):  # by a worker that was lost before it could say so
      return 0.0
    kinds, size, positions = self.plan["kinds"], self.plan["batch_size"], self.positions(shard)
    of_kind = {kind: Encoding(kind, self.encoder, self.plan["dtype"], size, self.encoded) for kind in kinds}
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"unreadable": [], "without_caption": [], "reused": 0}
    digests, truncated_before, began = [], self.encoder.truncated, time.perf_counter()
    seconds = lambda: sum(encoding.seconds for encoding in of_kind.values())
    reading = records.read_ahead(self.source, positions, "img" in kinds, self.threads, size, self.encoded)
    for position, record in zip(positions, reading, strict=True):
      if self.bar is not None:
        share = seconds() / (time.perf_counter() - began)
        self.bar.set_postfix_str(f"encoding {share:.0%} of the time", refresh=False)
        self.bar.update()
      if isinstance(record, UnreadableImage):
        report["unreadable"].append({"position": position, "id": record.id, "reason": record.reason})
        self.check_share(report["unreadable"])
        continue
      if record["id"] in self.seen:
        told = f"the id {record['id']!r} occurs again at position {position} of the source"
        raise ValueError(f"{told}; give each item its own")
      self.seen.add(record["id"])
      if "text" in kinds and not record.get("caption"):
        report["without_caption"].append(record["id"])
        self.check_captions(report["without_caption"])
        continue
      for encoding in of_kind.values():
        encoding.add(record)
      digests.append(record.get(records.CONTENT, UNKNOWN))
      report["reused"] += record.get(records.REUSED) is not None
      rows.append({name: value for name, value in record.items() if name != "image"})
    features = {kind: encoding.features() for kind, encoding in of_kind.items()}
    report |= {"truncated": self.encoder.truncated - truncated_before, "content": b"".join(digests).hex()}
    self.writer.write(shard, features, records.metadata_table(rows), report)
    self.unreadable += report["unreadable"]
    self.bare += report["without_caption"]
    return seconds()

  def check_captions(self, here: list[str]) -> None:
    """Raises ValueError where more than half of the captions are missing, those of a shard included."""
    bare, items = self.bare + here, len(self.source)
    if len(bare) > MOST_WITHOUT_CAPTION * items:
      names = ", ".join(map(repr, bare[:5]))
      raise ValueError(
        f"{len(bare)} items of {items} and maybe more have no caption, more than half: {names}; "
        "give them one, leave them out, or extract with kinds=('img',)"
      )

  def check_share(self, here: list[dict[str, Any]]) -> None:
    """Raises ValueError where more than 1% of the images are unreadable, those of a shard included."""
    bad, (others, bad_others) = self.unreadable + here, self.beside
    count, items = len(bad) + bad_others, len(self.source) + others
    if count > MOST_UNREADABLE * items:
      write_json(self.writer.folder / INCOMPLETE / UNREADABLE, bad)
      names = ", ".join(f"{entry['id']!r} ({entry['reason']})" for entry in bad[:5])
      raise ValueError(
        f"{count} images of {items} cannot be read, more than 1%: {names}; mend or remove them. "
        f"All so far are in {self.writer.folder / INCOMPLETE / UNREADABLE}"
      )


def _make_missing(shards: _Shards, progress: bool, cluster: str) -> dict[str, float]:
  """Makes what is missing, and returns how fast that was."""
  missing, count = shards.writer.missing(), len(shards.source)
  left = sum(len(shards.positions(shard)) for shard in missing)
  _check_room(shards, left)
  done = set(range(shards.writer.shards)) - set(missing)
  shards.seen = set(shards.writer.ids(done).to_pylist())
  began, encoding = time.perf_counter(), 0.0
  with tqdm.tqdm(
    total=count, initial=count - left, unit=" images", desc=shards.writer.folder.name, disable=not progress
  ) as bar:
    shards.bar = bar
    for shard, seconds in run(shards, missing, cluster):
      encoding += seconds
      bar.update(len(shards.positions(shard)) if cluster != LOCAL else 0)
  if cluster != LOCAL:  # shards that were made apart know their own ids alone
    check_ids(shards.writer.ids(range(shards.writer.shards)), shards.writer.folder)
  seconds = time.perf_counter() - began
  return {"items_per_second": round(left / seconds, 1), "encoding_share": round(encoding / seconds, 3)}


def _finish(shards: _Shards, speed: dict[str, float]) -> None:
  """Checks the shards together, says what was left out, and declares the folder whole."""
  writer, plan, encoder = shards.writer, shards.plan, shards.encoder
  reports = shards.reread()
  shards.check_share([])  # shards that were made apart have counted their own alone
  shards.check_captions([])
  truncated = sum(report["truncated"] for report in reports)
  notes = {"unreadable": len(shards.unreadable), "truncated_captions": truncated, "without_caption": len(shards.bare)}
  reused = sum(report.get("reused", 0) for report in reports)
  if "img" in plan["kinds"] and all("content" in report for report in reports):  # none was made by an earlier version
    write_content(writer.folder, (report["content"] for report in reports))
  if reused:
    notes["reused"] = reused
    tqdm.tqdm.write(f"{writer.folder}: {reused} pictures were encoded before")
  if shards.unreadable:
    write_json(writer.folder / UNREADABLE, shards.unreadable)
  left_out = left_out_of(shards.source)
  left_out.add("pictures that cannot be read", (f"{entry['id']}: {entry['reason']}" for entry in shards.unreadable))
  left_out.add("items without a caption", shards.bare)
  if left_out:
    write_json(writer.folder / LEFT_OUT, left_out)
  for line in left_out.lines():
    tqdm.tqdm.write(f"{writer.folder}: {line}")
  if truncated:
    tqdm.tqdm.write(f"{truncated} captions were longer than the {encoder.max_tokens} tokens that are read; cut")
  about = {"encoder": plan["encoder"], "revision": plan["revision"], "space": "frozen"}
  writer.finish({**about, **notes, "speed": speed, "extraction": plan})


def _check_room(shards: _Shards, rows: int) -> None:
  plan, folder = shards.plan, shards.writer.folder
  needed = rows * shards.encoder.width * np.dtype(plan["dtype"]).itemsize * len(plan["kinds"])
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise OSError(
      errno.ENOSPC, f"{folder} needs {needed / 1e6:.1f} MB more, the disk has {free / 1e6:.1f} MB; free some"
    )


def _plan(
  source: Source, encoder: Encoder, kinds: Sequence[str], batch_size: int, rows_per_shard: int, dtype: str
) -> dict[str, Any]:
  """Returns all that the bytes on disk depend on; raises ValueError for settings without meaning.

  The source is known by its length and three of its ids; one that has stamps (a folder), by everything in it.
  """
  if len(source) == 0:
    raise ValueError("the source is empty; nothing can be encoded")
  if not kinds or set(kinds) - set(KINDS):
    raise ValueError(f"kinds is {tuple(kinds)}; wanted one or both of {KINDS}")
  if batch_size < 1 or rows_per_shard < 1:
    raise ValueError(f"batch_size is {batch_size}, rows_per_shard {rows_per_shard}; both must be at least 1")
  if dtype not in ("float16", "float32"):
    raise ValueError(f"dtype is {dtype!r}; features are stored as float16 or float32")
  sample = [records.record(source, position) for position in (0, len(source) // 2, len(source) - 1)]
  ids = [record.id if isinstance(record, UnreadableImage) else record["id"] for record in sample]
  about = {"type": type(source).__name__, "items": len(source), "ids": ids}
  if hasattr(source, "stamp"):
    digest = hashlib.blake2b(digest_size=16)
    for position in range(len(source)):
      digest.update(repr(source.stamp(position)).encode())
    about["content"] = digest.hexdigest()
  precision = getattr(encoder, "dtype", "float32")  # in which it computes; float32 is not written, as it never was
  return ({} if precision == "float32" else {"precision": precision}) | {
    "source": about,
    "encoder": encoder.name,
    "revision": encoder.revision,
    "kinds": list(kinds),
    "batch_size": batch_size,
    "rows_per_shard": rows_per_shard,
    "dtype": dtype,
  }

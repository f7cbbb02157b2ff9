"""Features on disk: one row an item, in the shards that the clip-retrieval tools write.

A folder holds `img_emb/img_emb_0.npy`, `text_emb/…`, `metadata/metadata_0.parquet` and our `meta.json` (optional for
folders made elsewhere). Opening reads file headers only, indexing only the rows asked for: a store may be far larger
than memory.
"""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from qat_jax.datasets import columns
from qat_jax.datasets.columns import check_ids, parquet_rows, read_column, read_columns
from qat_jax.features import eight_bits
from qat_jax.features import shards as disk
from qat_jax.features.shards import INCOMPLETE, KINDS, META, Shard, ShardedRows, read_meta, shard_files
from qat_jax.features.writer import FeatureWriter, RowStream
from qat_jax.sealed import write_record
from qat_jax.stages import changed, checksum, digest_of_files, lock
from qat_jax.types import EncoderName

ID_COLUMNS = ("id", "key", "image_path")
ROWS_PER_SHARD = 65536


class FeatureStore(ShardedRows):
  """The features of one kind in a folder (N rows, D wide) with the metadata of their items; read-only.

  >>> columns = {"id": ["a", "b"], "instance": ["mug", "pot"]}
  >>> written = write_features("shop", {"img": np.eye(2, 4, dtype=np.float32)}, columns)
  >>> store = FeatureStore.open("shop")
  >>> store[1:].shape, store.column("instance").tolist()
  ((1, 4), ['mug', 'pot'])
  """

  def __init__(self, folder: Path, kind: str, meta: dict[str, Any]) -> None:
    """Reads the headers of all shards; use `open`."""
    self.folder, self.kind, self.meta = folder, kind, meta
    super().__init__([Shard.of(path) for path in shard_files(folder, f"{kind}_emb", "npy")])
    self.metadata_shards = shard_files(folder, "metadata", "parquet")
    self._columns: dict[str, np.ndarray] = {}
    for other in KINDS:
      paths = shard_files(folder, f"{other}_emb", "npy")
      if other != kind and paths:
        disk.check_numbers([shard.path for shard in self.shards], paths)
    disk.check_counts(folder, kind, meta.get("files", {}), self.shards, self.metadata_shards)

  @classmethod
  def open(cls, folder: str | os.PathLike, kind: str | None = None) -> Self:
    """Returns the store of `kind` ("img" or "text"; None: the one that exists) in a folder.

    A folder with both gives its images where no kind is named: they are what a gallery is made of. Reads no features.
    Raises FileNotFoundError where there are none, ValueError for a folder that is still being
    written, a truncated shard, or counts that disagree.
    """
    folder = Path(folder)
    if not folder.is_dir():
      raise FileNotFoundError(f"no folder {folder}; give a folder that holds img_emb/ or text_emb/")
    if kind not in (None, *KINDS):
      raise ValueError(f"kind is {kind!r}; use one of {KINDS}")
    there = [k for k in KINDS if shard_files(folder, f"{k}_emb", "npy")]
    if (folder / INCOMPLETE).is_dir() and not (folder / META).exists():
      raise ValueError(f"{folder} is not finished; run what writes it again (it goes on), or delete the folder")
    if not there or (kind and kind not in there):
      pattern = f"{kind}_emb/{kind}_emb_*.npy" if kind else "img_emb/img_emb_*.npy or text_emb/text_emb_*.npy"
      names = sorted(p.name for p in folder.iterdir())
      more = f" and {len(names) - 5} more; qat-jax extract encodes pictures" if len(names) > 5 else ""
      raise FileNotFoundError(f"no {pattern} in {folder}; it holds {names[:5]}{more}")
    return cls(folder, kind or there[0], read_meta(folder))

  def __reduce__(self) -> tuple:
    shards = [(shard.path.name, shard.rows) for shard in self.shards]
    return _reopened, (self.folder, self.kind, (self.meta, shards))

  @property
  def space(self) -> str:
    """Either "frozen", or the space of the adapter that prepared these features."""
    return self.meta.get("space", "frozen")

  @property
  def encoder(self) -> EncoderName | None:
    """Name and revision of the encoder, as meta.json has them; None where it does not say."""
    name, revision = self.meta.get("encoder"), self.meta.get("revision")
    return (str(name), str(revision) if revision else None) if name else None

  @property
  def fingerprint(self) -> dict[str, Any]:
    """What the store holds, as `stages.fingerprint` takes it: digests of features and of metadata, all read anew.

    A copy has the fingerprint of the original. Raises ValueError as `check_files`.
    """
    self.check_files()
    features, metadata = digest_of_files(shard.path for shard in self.shards), digest_of_files(self.metadata_shards)
    return {"kind": self.kind, "rows": len(self), "space": self.space, "features": features, "metadata": metadata}

  @functools.cached_property
  def eight_bits(self) -> eight_bits.EightBits | None:
    """The 8-bit copy beside the features, which streamed searches read first; None where there is none that fits."""
    return eight_bits.open_eight_bits(self)

  @functools.cached_property
  def _written(self) -> list[dict[str, str]]:
    return [read_columns(path) for path in self.metadata_shards]

  @property
  def columns(self) -> list[str]:
    """The names of the metadata columns that some shard has, stripped; known ones are lower case."""
    return list(dict.fromkeys(name for columns in self._written for name in columns))

  @property
  def id_column(self) -> str | None:
    """The metadata column that names the items, None where they are only numbered."""
    return next((name for name in ID_COLUMNS if name in self.columns), None)

  def _parts(self, name: str) -> Iterator[pa.ChunkedArray]:
    """Yields a column shard by shard, null where a shard lacks it; raises KeyError where all do."""
    if name not in self.columns:
      raise KeyError(f"no metadata column {name!r} in {self.folder}; there are {self.columns}")
    for path, written in zip(self.metadata_shards, self._written, strict=True):
      yield read_column(path, written, name)

  def arrow_column(self, name: str) -> pa.ChunkedArray:
    """Returns a metadata column as Arrow holds it, read at each call; where the types of shards differ, widened.

    Raises KeyError where there is none, ValueError where the shards' types have nothing in common, or for other text
    than UTF-8.
    """
    return columns.widened(list(self._parts(name)), f"{self.folder}, column {name!r},")

  def names(self, name: str) -> pa.ChunkedArray:
    """Returns a column as the text of names: 3, 3.0 and "3" are the same; null where it is missing, NaN or blank.

    Spaces at the ends go, but for ids.
    """
    where = f"{self.folder}, column {name!r},"
    spaces = name == self.id_column
    chunks = [chunk for part in self._parts(name) for chunk in columns.names(part, where, spaces).chunks]
    return pa.chunked_array(chunks, pa.string())

  def column(self, name: str) -> np.ndarray:
    """Returns a metadata column (N; text as an object array of str, None where missing), kept after the first use."""
    if name not in self._columns:
      self._columns[name] = self.arrow_column(name).to_numpy()
    return self._columns[name]

  def metadata(self) -> pa.Table:
    """Returns all metadata, with the ids in a column `id`; a folder without metadata gives row numbers.

    A column whose types have nothing in common from shard to shard is left out; a line of the log names it.
    """
    table = {"id": self.arrow_ids()}
    for name in self.columns:
      try:
        table.setdefault(name, self.arrow_column(name) if name != "id" else table["id"])
      except ValueError as error:
        if name in ("caption", "instance"):
          raise
        columns.log.warning("a column is left out: %s", error)
    return pa.table(table)

  def arrow_ids(self) -> pa.ChunkedArray:
    """Returns the items' ids as Arrow strings: the column `id`, else `key`, else `image_path`, else row numbers."""
    name = self.id_column
    return pa.chunked_array([pa.array(np.arange(len(self))).cast(pa.string())]) if name is None else self.names(name)

  @functools.cached_property
  def ids(self) -> np.ndarray:
    """The items' ids (N, object array of str), read on first use."""
    return self.arrow_ids().to_numpy()

  def write_eight_bits(self) -> None:
    """Writes an 8-bit copy of unit features beside them, which searches from the disk read first; anew if it is there.

    Raises ValueError that names an item which is NaN or not of unit length; OSError as any writing does, and for a
    shard that is changed meanwhile; BlockingIOError where another process writes in the folder.
    """
    with lock(self.folder):
      eight_bits.make(self)
    self.__dict__.pop("eight_bits", None)

  def verify(self) -> None:
    """Reads everything and raises ValueError for what is wrong: checksums, broken rows, repeated ids."""
    self.check_files()
    if self.eight_bits is not None:
      self.eight_bits.verify()
    self.check_rows()
    self.check_ids()

  def check_files(self) -> None:
    """Raises ValueError that names a file whose checksum is not the one in meta.json, where that has it; reads all."""
    written = {self.folder / name: about["checksum"] for name, about in self.meta.get("files", {}).items()}
    paths = (*(shard.path for shard in self.shards), *self.metadata_shards)
    if path := changed({path: written[path] for path in paths if path in written}):
      advice = f"restore it, write it again, or delete {META} where you changed it on purpose"
      raise ValueError(f"{path} is not what was written: its checksum differs from {META}; {advice}")

  def check_rows(self) -> None:
    """Raises ValueError that names the items whose features are NaN, infinite or zero; reads all features."""
    for start, features_ND in self.chunks():
      disk.check_rows(features_ND, f"{self.folder} ({self.kind})", lambda row: self.ids[start + row])  # noqa: B023

  def check_ids(self) -> None:
    """Raises ValueError that names repeated or missing ids."""
    check_ids(self.arrow_ids(), self.folder)

  def write_meta(self, **extra: object) -> None:
    """Writes meta.json for a folder made elsewhere: counts, checksums, and what `extra` says (encoder=…, revision=…).

    Raises FileExistsError where there is one, since new checksums would hide damage.
    """
    if (self.folder / META).exists():
      raise FileExistsError(f"{self.folder / META} is there already; delete it to describe the folder anew")
    stores = [FeatureStore(self.folder, k, {}) for k in KINDS if shard_files(self.folder, f"{k}_emb", "npy")]
    files = {}
    for store in stores:
      for shard in store.shards:
        files[shard.path.relative_to(self.folder).as_posix()] = {"rows": shard.rows, "checksum": checksum(shard.path)}
    for path in self.metadata_shards:
      files[path.relative_to(self.folder).as_posix()] = {"rows": parquet_rows(path), "checksum": checksum(path)}
    unit = all(disk.is_unit(chunk_ND) for store in stores for _, chunk_ND in store.chunks())
    kinds = {store.kind: {"width": store.width, "dtype": str(store.dtype)} for store in stores}
    self.meta = disk.describe_shards(extra, rows=len(self), kinds=kinds, normalised=unit, files=files)
    write_record(self.folder / META, self.meta)


def _reopened(folder: Path, kind: str, known: tuple[dict[str, Any], list[tuple[str, int]]]) -> FeatureStore:
  """Returns the store of a folder on the node that this runs on; raises ValueError where it is not the one pickled."""
  store = FeatureStore.open(folder, kind)
  if store.__reduce__()[1][2] != known:
    raise ValueError(f"{folder} is not the same on all nodes, or was changed: give all of them the same files")
  return store


def write_features(
  folder: str | os.PathLike,
  features: Mapping[str, np.ndarray | Iterable[np.ndarray]],
  columns: Mapping[str, object] | pa.Table,
  meta: Mapping[str, object] | None = None,
  rows_per_shard: int = ROWS_PER_SHARD,
) -> FeatureStore:
  """Writes features and metadata as a folder and returns its store, of the first kind.

  What an earlier call left unfinished is written anew.

  Args:
    folder: where they are written.
    features: by kind, an array ND or chunks of one that need not fit in memory.
    columns: the metadata; one of them must be `id`.
    meta: what meta.json says beside, of values that JSON can hold.
    rows_per_shard: how many items a shard has.

  Raises FileExistsError where the folder holds anything else, ValueError for broken rows, repeated ids, or fewer or
  more features than ids, BlockingIOError where another process writes the folder.

  >>> store = write_features("toys", {"img": np.eye(3, 8, dtype=np.float32)}, {"id": ["a", "b", "c"]})
  >>> len(store), store.width, store.ids.tolist()
  (3, 8, ['a', 'b', 'c'])
  """
  folder, table, about = Path(folder), disk.as_table(columns), json.loads(json.dumps(dict(meta or {})))
  if not features or set(features) - set(KINDS) or rows_per_shard < 1:
    got = f"features of {list(features)}, {rows_per_shard} rows a shard"
    raise ValueError(f"{folder}: got {got}; wanted one or both of {KINDS}, at least 1 row")
  check_ids(table.column("id"), folder)
  if not len(table):
    raise ValueError(f"{folder}: no items to write; give at least one")
  starts = range(0, len(table), rows_per_shard)
  with lock(folder):
    FeatureWriter.discard(folder)
    writer = FeatureWriter(folder, {"rows": len(table)}, len(starts))
    streams = {kind: RowStream(array) for kind, array in features.items()}
    for shard, start in enumerate(starts):
      part = table.slice(start, rows_per_shard)
      writer.write(shard, {kind: stream.take(len(part)) for kind, stream in streams.items()}, part)
    for kind, stream in streams.items():
      if stream.take(1).size:
        raise ValueError(f"{folder}: more {kind} features than the {len(table)} ids; give one row an item")
    writer.finish(about)
  return FeatureStore.open(folder, next(iter(features)))

"""A gallery's rows → those that an adapter's queries are scored against, written once, shard by shard."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from qat_jax.cluster.work import LOCAL, reach, run
from qat_jax.features.eight_bits import make_worthwhile
from qat_jax.features.shards import as_table, read_meta
from qat_jax.features.store import ROWS_PER_SHARD, FeatureStore
from qat_jax.features.writer import FeatureWriter
from qat_jax.stages import fingerprint, lock, made
from qat_jax.types import Gallery


def prepared_features(
  folder: str | os.PathLike,
  gallery: Gallery,
  prepare: Callable[[np.ndarray], np.ndarray],
  space: str,
  cluster: str = LOCAL,
) -> FeatureStore:
  """Writes what `prepare` makes of a gallery's rows (ND → NE) as a feature folder of `space`; opens it if it is there.

  A call goes on with what a killed one left. A folder that was made from another gallery, or for another space, is
  written anew; a line of the log says so. A large gallery gets an 8-bit copy beside it (docs/search.md).

  Args:
    folder: where the features are written.
    gallery: the rows; on a cluster a FeatureStore.
    prepare: the static map, of any number of rows.
    space: the name of what it maps to.
    cluster: who makes the shards: this process, or a Ray cluster (docs/scale.md).

  Raises FileExistsError where the folder holds anything that was not made here, BlockingIOError where another process
  writes it.
  """
  folder, kind = Path(folder), getattr(gallery, "kind", "img")
  if cluster != LOCAL and not isinstance(gallery, FeatureStore):
    raise ValueError(
      f"the gallery is a {type(gallery).__name__}; on a cluster give a feature folder, which all can read"
    )
  reach(cluster)
  made_with = fingerprint(space=space, gallery=getattr(gallery, "fingerprint", None))
  with lock(folder):
    before = read_meta(folder).get("prepared")
    if before and made_with["gallery"] and made(folder, before, made_with):
      return _with_copy(FeatureStore.open(folder, kind), cluster)
    if before:
      FeatureWriter.undo(folder)
    starts, plan = range(0, len(gallery), ROWS_PER_SHARD), {"rows": len(gallery), "prepared": made_with}
    if not made_with["gallery"] or FeatureWriter.begun(folder) != {**plan, "shards": len(starts)}:
      FeatureWriter.discard(folder)
    writer = FeatureWriter(folder, plan, len(starts))
    for _ in run(_Shards(gallery, prepare, writer, kind, ROWS_PER_SHARD), writer.missing(), cluster):
      pass
    meta = gallery.meta if isinstance(gallery, FeatureStore) else {}
    writer.finish({**meta, "space": space, "normalised": True, "prepared": made_with})
    return _with_copy(FeatureStore.open(folder, kind), cluster)


def _with_copy(store: FeatureStore, cluster: str) -> FeatureStore:
  """Returns a gallery, with its 8-bit copy; on a cluster without one: this process would have to read all of it."""
  if cluster == LOCAL:
    make_worthwhile(store)
  return store


@dataclasses.dataclass
class _Shards:
  """Makes one shard whole; metadata are read at the first."""

  gallery: Gallery
  prepare: Callable[[np.ndarray], np.ndarray]
  writer: FeatureWriter
  kind: str
  rows: int
  table: pa.Table | None = None

  def __call__(self, shard: int) -> None:
    if self.writer.is_whole(shard):  # by a worker that was lost before it could say so
      return
    if self.table is None:
      self.table = _metadata(self.gallery)
    start = shard * self.rows
    features_NE = self.prepare(np.asarray(self.gallery[start : min(start + self.rows, len(self.gallery))]))
    self.writer.write(shard, {self.kind: features_NE}, self.table.slice(start, len(features_NE)))


def _metadata(gallery: Gallery) -> pa.Table:
  if isinstance(gallery, FeatureStore):
    return gallery.metadata()
  return as_table({"id": [str(name) for name in getattr(gallery, "ids", range(len(gallery)))]})

"""Reranking as a batch job: queries and a gallery on disk → a Parquet file of rankings, by the ids of both.

Done block by block of queries. A finished block lies in a folder beside the output, so that a killed run goes on.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from qat_jax.adapter import Adapter, load
from qat_jax.cluster.work import LOCAL, reach, run
from qat_jax.datasets.tiles import BOX
from qat_jax.evidence import Evidence, calibrate
from qat_jax.features.shards import check_npy
from qat_jax.features.store import FeatureStore
from qat_jax.sealed import UNREADABLE, read_record, read_sealed, readable, write_record, write_sealed
from qat_jax.search.grouping import groups_of
from qat_jax.search.rank import rank, rerank
from qat_jax.stages import check_same, digest_of_files, empty, fingerprint, lock, write_whole
from qat_jax.types import KIND_OF_QUERY, Gallery, Ranking, as_gallery, check_encoders

FORMAT = 1  # of the blocks that are kept beside the output

_log = logging.getLogger(__name__)


def rerank_files(
  adapter: str | os.PathLike,
  queries: str | os.PathLike,
  gallery: str | os.PathLike,
  out: str | os.PathLike,
  shortlist: str | os.PathLike | None = None,
  k: int = 100,
  query_type: str | None = None,
  block: int = 64,
  cluster: str = LOCAL,
  group: str | None = None,
  evidence: bool = False,
  alarms: float | None = None,
) -> Path:
  """Writes the adapted ranking of every query to `out` (Parquet) and returns its path.

  A row is query_id, rank (from 1), item_id, score (the exact cosine). Items that a query does not have are left out.

  Args:
    adapter: a run's folder, or an exported adapter's.
    queries: frozen features, a .npy file (QD; ids are row numbers) or a feature folder.
    gallery: a feature folder. Where the adapter maps the gallery and it is not mapped yet, that is done first, into
      `<out>.gallery`; give that folder as the gallery next time.
    shortlist: what to rerank; the whole gallery if None. A Parquet file with query_id and item_id, or a .npy file of
      gallery positions (QS, −1 as padding).
    k: how many of each query to keep.
    query_type: "text" or "image"; None where the adapter's heads are the same, or the queries' folder says it.
    block: queries a step.
    cluster: who makes the steps: "local" (this process), "auto" or "ray://HOST:PORT", a Ray cluster (docs/scale.md).
    group: a metadata column of the gallery, such as picture: the best k groups of each query are written, each by its
      best item. The column stands beside item_id, with the item's box where it has one.
    evidence: write the column `evidence`, the probability that an item is the thing (`qat_jax.calibrate`); null where
      it is not known. What is known of the gallery is kept in `<out>.gallery`.
    alarms: leave out what has less evidence than lets this share of queries through whose thing is not there.

  Raises ValueError or FileNotFoundError, before anything is written, for inputs that do not fit together, and for a run
  that was begun with other inputs; BlockingIOError where another process writes the same output.
  """
  out = Path(out)
  for name, value in (("k", k), ("block", block)):
    if not isinstance(value, int) or value < 1:
      raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
  if out.suffix not in ("", ".parquet", ".pq"):
    raise ValueError(f"the output is {out.name}; rankings are written as Parquet: call it {out.stem}.parquet")
  reach(cluster)
  model, store = load(adapter), FeatureStore.open(gallery)
  query, query_type = _open_queries(Path(queries), model, query_type)
  space = model.head(query_type).space
  if group is not None:
    if shortlist is not None:
      raise ValueError("group goes with the whole gallery; leave the shortlist out")
    store.arrow_column(group)  # raises where there is none
  if query.width != model.width or store.width != model.width:
    raise ValueError(
      f"the queries {queries} are {query.width} wide, the gallery {gallery} {store.width}; the adapter {adapter} wants "
      f"{model.width}"
    )
  encoders = [("the adapter", model.encoder), (f"the gallery {gallery}", store.encoder)]
  encoders.append((f"the queries {queries}", getattr(query, "encoder", None)))
  for (one, own), (other, its) in itertools.combinations(encoders, 2):
    check_encoders(one, own, other, its)
  if store.space not in ("frozen", space):
    raise ValueError(f"the gallery {gallery} was prepared by another adapter ({store.space}); give the frozen one")
  query_ids, item_ids = _ids(query), store.arrow_ids()
  shortlist_QS = None if shortlist is None else read_shortlist(Path(shortlist), query_ids, item_ids)
  reads = fingerprint(
    format=FORMAT,
    adapter=model.fingerprint,
    queries=query.fingerprint if isinstance(query, FeatureStore) else digest_of_files([queries]),
    gallery=store.fingerprint,
    shortlist=None if shortlist is None else digest_of_files([shortlist]),
    **{"k": k, "query_type": query_type, "block": block},
    **({} if group is None else {"group": group}),
    **({"evidence": alarms or True} if evidence or alarms else {}),
  )

  parts = out.with_name(out.name + ".parts")
  with lock(parts):
    _begin(parts, reads)
    store = model.prepare(store, query_type, out.with_name(out.name + ".gallery"), cluster)
    known = None
    if evidence or alarms is not None:
      known = calibrate(model, store, query_type, out.with_name(out.name + ".gallery") / "evidence")
      known.least(alarms=0.1 if alarms is None else alarms)  # raises for what is no share
      if known.status != "calibrated" and alarms is not None:
        raise ValueError(f"the evidence in {gallery} is {known.status}; leave alarms out (docs/evidence.md)")
    blocks = _Blocks(
      adapter, model, Path(queries), query_type, store, shortlist_QS, k, block, parts, group, known, alarms
    )
    starts = range(0, len(query), block)
    missing = [start for start in starts if not blocks.there(start)]
    with tqdm(total=len(starts), initial=len(starts) - len(missing), desc="rerank", unit="block") as bar:
      for _ in run(blocks, missing, cluster):
        bar.update()
    write_whole(out, _as_parquet([blocks.read(start) for start in starts]))
    empty(parts)
  return out


class _Blocks:
  """Writes the rankings of one block of queries, the shard of this stage: its number is that of its first query."""

  def __init__(
    self,
    adapter: str | os.PathLike,
    model: Adapter,
    queries: Path,
    query_type: str | None,
    gallery: FeatureStore,
    shortlist_QS: np.ndarray | None,
    k: int,
    block: int,
    parts: Path,
    group: str | None,
    known: Evidence | None,
    alarms: float | None,
  ) -> None:
    self.adapter, self.reads, self.model = adapter, model.fingerprint, model
    self.queries, self.query_type, self.gallery = queries, query_type, gallery
    self.shortlist_QS, self.k, self.block, self.parts, self.group = shortlist_QS, k, block, parts, group
    self.known, self.alarms = known, alarms

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name not in ("ids", "groups", "beside", "model")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__ |= state
    self.model = load(self.adapter)  # a copy reads its own
    check_same(str(self.adapter), self.model.fingerprint, self.reads, "Give all nodes the same adapter")

  @functools.cached_property
  def ids(self) -> tuple[Gallery, pa.Array, pa.ChunkedArray]:
    """The queries, their ids, and those of the gallery."""
    query, _ = _open_queries(self.queries, self.model, self.query_type)
    return query, _ids(query), self.gallery.arrow_ids()

  @functools.cached_property
  def groups(self) -> np.ndarray | None:
    """The group of each item."""
    return None if self.group is None else groups_of(self.group, self.gallery)

  @functools.cached_property
  def beside(self) -> dict[str, pa.ChunkedArray]:
    """The metadata columns that go beside the items of a grouped ranking."""
    names = [self.group, *BOX] if self.group else []
    return {name: self.gallery.arrow_column(name) for name in names if name in self.gallery.columns}

  def path(self, start: int) -> Path:
    """Returns the file of the block that begins with a query."""
    return self.parts / f"block_{start:09d}.sealed"

  def read(self, start: int) -> pa.Table:
    """Returns a block that is there; raises ValueError where it is damaged."""
    return pq.read_table(pa.BufferReader(read_sealed(self.path(start))))

  def there(self, start: int) -> bool:
    """Says whether a block is there; a line of the log names one that is damaged."""
    try:
      read_sealed(self.path(start))
    except FileNotFoundError:
      return False
    except ValueError as error:
      _log.warning("%s", error)
      return False
    return True

  def __call__(self, start: int) -> None:
    if self.there(start):  # from a worker that was lost before it could say so
      return
    query, query_ids, item_ids = self.ids
    rows = slice(start, min(start + self.block, len(query)))
    adaptation = self.model(np.asarray(query[rows]), self.query_type)
    if self.shortlist_QS is None:
      ranking = rank(adaptation, self.gallery, self.k, group=self.groups)
    else:
      ranking = rerank(adaptation, self.gallery, self.shortlist_QS[rows], self.k)
    if self.known is not None:
      ranking = self.known.of(ranking, np.asarray(query[rows]))
      if self.alarms is not None:
        assert ranking.evidence is not None
        enough_QK = ranking.evidence >= self.known.least(alarms=self.alarms)
        ranking = ranking.replace(ids=np.where(enough_QK, ranking.ids, -1))
    table = _table(ranking, query_ids[rows.start : rows.stop], item_ids, self.beside)
    write_sealed(self.path(start), _as_parquet([table]))


def read_shortlist(path: Path, query_ids: pa.Array, item_ids: pa.ChunkedArray) -> np.ndarray:
  """Returns gallery positions (QS, −1 as padding) from a .npy file, or a Parquet file with query_id and item_id.

  Raises ValueError for ids that the queries or the gallery do not have, by name, and for positions outside the gallery.
  """
  if path.suffix == ".npy":
    return _read_positions(path, len(query_ids), len(item_ids))
  with readable(path):
    table = pq.read_table(path)
  if missing := {"query_id", "item_id"} - set(table.column_names):
    raise ValueError(f"{path} has the columns {table.column_names}; {sorted(missing)} is missing")
  columns = []
  for name, ids in (("query_id", query_ids), ("item_id", item_ids)):
    values = table.column(name).cast(pa.string())
    places = pc.index_in(values, value_set=ids)
    if places.null_count:
      unknown = values.filter(pc.is_null(places))[0].as_py()
      raise ValueError(
        f"{path}: {name} {unknown!r} is not among the {len(ids)} there are ({places.null_count} such rows)"
      )
    columns.append(places.to_numpy())
  query, item = columns
  order = np.argsort(query, kind="stable")
  query, item = query[order], item[order]
  counts_Q = np.bincount(query, minlength=len(query_ids))
  place = np.arange(len(query)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
  position_QS = np.full((len(query_ids), max(1, int(counts_Q.max(initial=0)))), -1, np.int32)
  position_QS[query, place] = item
  return position_QS


def _read_positions(path: Path, queries: int, items: int) -> np.ndarray:
  position_QS = _read_array(path, "the shortlist")
  if position_QS.ndim != 2 or position_QS.dtype.kind not in "iu" or len(position_QS) != queries:
    raise ValueError(
      f"the shortlist {path} holds {position_QS.dtype} of shape {position_QS.shape}; wanted positions in the gallery, "
      f"one row for each of {queries} queries"
    )
  if position_QS.size and not -1 <= position_QS.min() <= position_QS.max() < items:
    raise ValueError(
      f"the shortlist {path} holds positions {position_QS.min()} to {position_QS.max()}; the gallery has {items} "
      "items, −1 is padding"
    )
  return position_QS.astype(np.int32)


def _open_queries(path: Path, model: Adapter, query_type: str | None) -> tuple[Gallery, str | None]:
  """Returns the queries and their type: the one asked for, the only one that the adapter has, or the store's own."""
  if not path.is_dir():
    if path.suffix != ".npy" or not path.exists():
      raise FileNotFoundError(f"no queries at {path}; give a .npy file (Q×D) or a feature folder")
    query_QD = _read_array(path, "the queries")
    model.head(query_type)  # raises where the type is missing
    if query_QD.ndim != 2 or not len(query_QD):
      raise ValueError(f"{path} holds an array of shape {query_QD.shape}; wanted queries × width")
    return as_gallery(query_QD), query_type
  there = [name for name, kind in KIND_OF_QUERY.items() if (path / f"{kind}_emb").is_dir()]
  if query_type is None:
    fitting = [name for name in there if name in model.heads]
    if len(there) > 1 and len(fitting) > 1:
      raise ValueError(f"{path} has features of {' and '.join(there)} queries; say which: query_type")
    query_type = next(iter(fitting or there), None)
  model.head(query_type)
  return FeatureStore.open(path, KIND_OF_QUERY.get(query_type or "")), query_type


def _read_array(path: Path, what: str) -> np.ndarray:
  check_npy(path)
  try:
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except UNREADABLE as error:
    raise ValueError(f"{what} {path} is no .npy file of numbers, or is cut short ({error})") from error


def _ids(queries: Gallery) -> pa.Array:
  if isinstance(queries, FeatureStore):
    return queries.arrow_ids().combine_chunks()
  return pa.array(np.arange(len(queries))).cast(pa.string())


def _begin(parts: Path, reads: dict[str, Any]) -> None:
  """Begins the folder of finished blocks; raises ValueError if it holds those of another job."""
  path = parts / "plan.json"
  if path.exists():
    check_same(parts, read_record(path), reads, "Delete it, or change --out")
  else:
    write_record(path, reads)


def _table(
  ranking: Ranking,
  query_ids: pa.Array,
  item_ids: pa.ChunkedArray,
  beside: Mapping[str, pa.ChunkedArray] = MappingProxyType({}),
) -> pa.Table:
  there_QK = ranking.ids >= 0
  query, place = np.nonzero(there_QK)
  position_P = pa.array(ranking.ids[there_QK])
  return pa.table(
    {
      "query_id": query_ids.take(pa.array(query)),
      "rank": pa.array((place + 1).astype(np.int32)),
      "item_id": item_ids.take(position_P),
      "score": pa.array(ranking.scores[there_QK]),
      **({} if ranking.evidence is None else {"evidence": pa.array(ranking.evidence[there_QK], from_pandas=True)}),
      **{name: column.take(position_P) for name, column in beside.items()},
    }
  )


def _as_parquet(tables: list[pa.Table]) -> pa.Buffer:
  stream = pa.BufferOutputStream()
  pq.write_table(pa.concat_tables(tables), stream)
  return stream.getvalue()

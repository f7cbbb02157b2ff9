"""Reranking as a batch job: queries and a gallery on disk → a Parquet file of rankings, by the ids of both.

Done block by block of queries. A finished block lies in a folder beside the output, so that a killed run goes on.
"""

import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from qat_jax.adapter import Adapter, load
from qat_jax.cluster.work import LOCAL, reach, run
from qat_jax.evidence import Evidence, calibrate
from qat_jax.features.store import FeatureStore
from qat_jax.sealed import read_record, read_sealed, write_record, write_sealed
from qat_jax.search.grouping import groups_of
from qat_jax.search.rank import rank, rerank
from qat_jax.serve.job_files import as_parquet, group_columns, ids_of, inputs_of, open_queries, read_shortlist, table_of
from qat_jax.serve.variety import Variety
from qat_jax.stages import check_same, digest_of_files, empty, fingerprint, lock, write_whole
from qat_jax.types import Gallery

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
  diversity: float = 0.0,
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
      best item. The column stands beside item_id, with the item's box where it has one. Without such a column,
      "duplicates": of near-duplicates among the best 1,000 the best is written; `alike` says how many it stands for.
    evidence: write the column `evidence`, the probability that an item is the thing (`qat_jax.calibrate`); null where
      it is not known. What is known of the gallery is kept in `<out>.gallery`.
    alarms: leave out what has less evidence than lets this share of queries through whose thing is not there.
    diversity: from 0 to 1: how much items shall differ from those before them, as `search.diversity.diverse` takes it.

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
  if group is not None and shortlist is not None:
    raise ValueError("group goes with the whole gallery; leave the shortlist out")
  model, query, query_type, store, column, variety = inputs_of(adapter, queries, gallery, query_type, group, diversity)
  shortlist_QS = None if shortlist is None else read_shortlist(Path(shortlist), ids_of(query), store.arrow_ids())
  reads = fingerprint(
    format=FORMAT,
    adapter=model.fingerprint,
    queries=query.fingerprint if isinstance(query, FeatureStore) else digest_of_files([queries]),
    gallery=store.fingerprint,
    shortlist=None if shortlist is None else digest_of_files([shortlist]),
    **{"k": k, "query_type": query_type, "block": block},
    **({} if group is None else {"group": group}),
    **({"evidence": alarms or True} if evidence or alarms else {}),
    **({"diversity": diversity} if diversity else {}),
  )

  parts, mapped = (out.with_name(out.name + ending) for ending in (".parts", ".gallery"))
  with lock(parts):
    _begin(parts, reads)
    prepared, known = model.prepare(store, query_type, mapped, cluster), None
    if evidence or alarms is not None:
      known = _known(model, prepared, query_type, mapped / "evidence", alarms)
    blocks = _Blocks(
      *(adapter, model, Path(queries), query_type, prepared, store, shortlist_QS, k, block, parts, column),
      *(known, alarms, variety),
    )
    starts = range(0, len(query), block)
    missing = [start for start in starts if not blocks.there(start)]
    with tqdm(total=len(starts), initial=len(starts) - len(missing), desc="rerank", unit="block") as bar:
      for _ in run(blocks, missing, cluster):
        bar.update()
    write_whole(out, as_parquet([blocks.read(start) for start in starts]))
    empty(parts)
  return out


def _known(model: Adapter, store: Gallery, query_type: str | None, folder: Path, alarms: float | None) -> Evidence:
  """Returns what is known of scores in a prepared gallery, and keeps the planted queries' scores in a folder.

  Raises ValueError where a share of false alarms is allowed and cannot be kept.
  """
  known = calibrate(model, store, query_type, folder)
  known.least(alarms=0.1 if alarms is None else alarms)  # raises for what is no share
  if known.status != "calibrated" and alarms is not None:
    raise ValueError(f"the evidence in the gallery is {known.status}; leave alarms out (docs/evidence.md)")
  return known


@dataclasses.dataclass
class _Blocks:
  """Writes the rankings of one block of queries, the shard of this stage: its number is that of its first query."""

  adapter: str | os.PathLike
  model: Adapter  # of that path
  queries: Path
  query_type: str | None
  gallery: FeatureStore  # prepared
  items: FeatureStore  # as it was given
  shortlist_QS: np.ndarray | None
  k: int
  block: int
  parts: Path
  group: str | None
  known: Evidence | None
  alarms: float | None
  variety: Variety

  def __getstate__(self) -> dict[str, Any]:
    state = {name: value for name, value in self.__dict__.items() if name not in ("ids", "groups", "beside")}
    return {**state, "model": self.model.fingerprint}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__ |= {**state, "model": load(state["adapter"])}  # a copy reads its own
    check_same(str(self.adapter), self.model.fingerprint, state["model"], "Give all nodes the same adapter")

  @functools.cached_property
  def ids(self) -> tuple[Gallery, pa.Array, pa.ChunkedArray]:
    """The queries, their ids, and those of the gallery."""
    query, _ = open_queries(self.queries, self.model, self.query_type)
    return query, ids_of(query), self.gallery.arrow_ids()

  @functools.cached_property
  def groups(self) -> np.ndarray | None:
    """The group of each item."""
    return None if self.group is None else groups_of(self.group, self.gallery)

  @functools.cached_property
  def beside(self) -> dict[str, pa.ChunkedArray]:
    """The metadata columns that go beside the items of a grouped ranking."""
    return group_columns(self.group, self.gallery)

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
    depth = self.variety.depth(self.k)
    if self.shortlist_QS is None:
      ranking = rank(adaptation, self.gallery, depth, group=self.groups)
    else:
      ranking = rerank(adaptation, self.gallery, self.shortlist_QS[rows], depth)
    if self.known is not None:
      ranking = self.known.of(ranking, np.asarray(query[rows]))
    ranking, alike_QK = self.variety.of(ranking, self.items, self.k)
    if self.known is not None and self.alarms is not None:
      assert ranking.evidence is not None
      enough_QK = ranking.evidence >= self.known.least(alarms=self.alarms)
      ranking = ranking.replace(ids=np.where(enough_QK, ranking.ids, -1))
    table = table_of(ranking, query_ids[rows.start : rows.stop], item_ids, self.beside, alike_QK)
    write_sealed(self.path(start), as_parquet([table]))


def _begin(parts: Path, reads: dict[str, Any]) -> None:
  """Begins the folder of finished blocks; raises ValueError if it holds those of another job."""
  path = parts / "plan.json"
  if path.exists():
    check_same(parts, read_record(path), reads, "Delete it, or change --out")
  else:
    write_record(path, reads)

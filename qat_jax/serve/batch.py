"""Reranking as a batch job: queries and a gallery on disk → a Parquet file of rankings, by the ids of both.

Done block by block of queries. A finished block lies in a folder beside the output, so that a killed run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from qat_jax import adapter as checkpoint
from qat_jax.features.store import FeatureStore
from qat_jax.search.rank import rank, rerank
from qat_jax.stages import write_json, write_whole
from qat_jax.types import Ranking


def rerank_files(
  adapter: str | os.PathLike,
  queries: str | os.PathLike,
  gallery: str | os.PathLike,
  out: str | os.PathLike,
  shortlist: str | os.PathLike | None = None,
  k: int = 100,
  query_type: str | None = None,
  block: int = 64,
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
    query_type: "text" or "image"; see `Adapter`.
    block: queries a step.

  Raises ValueError or FileNotFoundError, before any work, for inputs that do not fit together, and for a run that was
  begun with other inputs.
  """
  out = Path(out)
  model = checkpoint.load(adapter)
  store = FeatureStore.open(gallery)
  query_QD, query_ids = _read_queries(Path(queries), query_type)
  if query_QD.shape[1] != model.width:
    raise ValueError(
      f"the queries in {queries} are {query_QD.shape[1]} wide; the adapter {adapter} wants {model.width}"
    )
  item_ids = store.arrow_ids()
  shortlist_QS = None if shortlist is None else read_shortlist(Path(shortlist), query_ids, item_ids)
  if shortlist_QS is not None and len(shortlist_QS) != len(query_QD):
    raise ValueError(f"the shortlist {shortlist} has {len(shortlist_QS)} rows for {len(query_QD)} queries")

  parts = out.with_name(out.name + ".parts")
  _begin(
    parts,
    {
      **{"adapter": _stamp(adapter), "queries": _stamp(queries), "gallery": _stamp(gallery)},
      **{"shortlist": shortlist and _stamp(shortlist), "k": k, "query_type": query_type, "block": block},
    },
  )
  store = _prepared(model, store, query_type, out.with_name(out.name + ".gallery"))
  names = []
  for start in tqdm(range(0, len(query_QD), block), desc="rerank", unit="block"):
    names.append(parts / f"block_{start:09d}.parquet")
    if names[-1].exists():
      continue
    rows = slice(start, min(start + block, len(query_QD)))
    adaptation = model(query_QD[rows], query_type)
    ranking = rank(adaptation, store, k) if shortlist_QS is None else rerank(adaptation, store, shortlist_QS[rows], k)
    write_whole(names[-1], _as_parquet([_table(ranking, query_ids[rows.start : rows.stop], item_ids)]))
  write_whole(out, _as_parquet([pq.read_table(name) for name in names]))
  shutil.rmtree(parts)
  return out


def read_shortlist(path: Path, query_ids: pa.Array, item_ids: pa.ChunkedArray) -> np.ndarray:
  """Returns gallery positions (QS, −1 as padding) from a .npy file, or a Parquet file with query_id and item_id.

  Raises ValueError for ids that the queries or the gallery do not have, by name.
  """
  if path.suffix == ".npy":
    return np.load(path)
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


def _read_queries(path: Path, query_type: str | None) -> tuple[np.ndarray, pa.Array]:
  if path.is_dir():
    kind = {"text": "text", "image": "img", None: None}.get(query_type, query_type)
    store = FeatureStore.open(path, kind)
    return store[:], store.arrow_ids().combine_chunks()
  if path.suffix != ".npy" or not path.exists():
    raise FileNotFoundError(f"no queries at {path}; give a .npy file (Q×D) or a feature folder")
  query_QD = np.load(path, mmap_mode="r")
  if query_QD.ndim != 2 or len(query_QD) == 0:
    raise ValueError(f"{path} holds an array of shape {query_QD.shape}; wanted queries × width")
  return query_QD, pa.array(np.arange(len(query_QD))).cast(pa.string())


def _prepared(model: checkpoint.Adapter, store: FeatureStore, query_type: str | None, folder: Path) -> FeatureStore:
  if store.space != model.head(query_type).space and (folder / "meta.json").exists():
    store = FeatureStore.open(folder)  # from an earlier run
  return model.prepare(store, query_type, folder=folder)


def _begin(parts: Path, plan: dict[str, Any]) -> None:
  """Makes the folder of finished blocks; raises ValueError if it holds those of another job."""
  path = parts / "plan.json"
  if not path.exists():
    parts.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)
    return
  begun = json.loads(path.read_text())
  if begun != plan:
    differing = [name for name in plan if begun.get(name) != plan[name]]
    raise ValueError(f"{parts} holds blocks of another run ({', '.join(differing)} differ); delete it, or change --out")


def _stamp(path: str | os.PathLike) -> list:
  """Returns what changes when a file or a folder's content is written anew."""
  path = Path(path).resolve()
  files = [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]
  return [
    str(path),
    len(files),
    sum(file.stat().st_size for file in files),
    max(file.stat().st_mtime for file in files),
  ]


def _table(ranking: Ranking, query_ids: pa.Array, item_ids: pa.ChunkedArray) -> pa.Table:
  there_QK = ranking.ids >= 0
  query, place = np.nonzero(there_QK)
  return pa.table(
    {
      "query_id": query_ids.take(pa.array(query)),
      "rank": pa.array((place + 1).astype(np.int32)),
      "item_id": item_ids.take(pa.array(ranking.ids[there_QK])),
      "score": pa.array(ranking.scores[there_QK]),
    }
  )


def _as_parquet(tables: list[pa.Table]) -> pa.Buffer:
  stream = pa.BufferOutputStream()
  pq.write_table(pa.concat_tables(tables), stream)
  return stream.getvalue()

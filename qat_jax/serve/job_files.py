"""The files of a ranking job: reads queries, their ids and shortlists, and makes tables of rankings."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qat_jax.adapter import Adapter, load
from qat_jax.datasets import BOX, SECOND, columns, tables
from qat_jax.datasets.tables import PAIR_COLUMNS
from qat_jax.features.shards import check_npy
from qat_jax.features.store import FeatureStore
from qat_jax.models.head import Head
from qat_jax.sealed import UNREADABLE, readable
from qat_jax.serve.variety import Variety
from qat_jax.types import KIND_OF_QUERY, QUERY_TYPES, Gallery, Ranking, as_gallery, check_encoders

SIGNS = ("right", "sign", "label", "relevant", "relevance", "positive")  # columns that say of a mark what it is


def read_shortlist(path: Path, query_ids: pa.Array, item_ids: pa.ChunkedArray) -> np.ndarray:
  """Returns gallery positions (QS, −1 as padding) from a .npy file, or a table with query_id and item_id.

  A table is Parquet, .csv, .tsv or .jsonl. Raises ValueError for ids that the queries or the gallery do not have, by
  name, and for positions outside the gallery.
  """
  if path.suffix == ".npy":
    return _read_positions(path, len(query_ids), len(item_ids))
  query, item = _places(_read_table(path), path, query_ids, item_ids)
  return _lists(query, item, len(query_ids))


def read_right(path: Path, query_ids: pa.Array, item_ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
  """Returns positions of the items that were marked as right, and of all that were marked (QS, −1 as padding).

  A row is right unless a column of SIGNS is false, zero or below zero there. Raises as `read_shortlist`, and ValueError
  for other values in that column, and for an item that a query marks as both.
  """
  if path.suffix == ".npy":
    return (position_QS := _read_positions(path, len(query_ids), len(item_ids))), position_QS
  table = _read_table(path)
  query, item = _places(table, path, query_ids, item_ids)
  right = _signs(table, path)
  if both := set(zip(query[right], item[right], strict=True)) & set(zip(query[~right], item[~right], strict=True)):
    one, other = min(both)
    raise ValueError(f"{path}: query {query_ids[one]} marks item {item_ids[other]} as right and as wrong; keep one")
  return _lists(query[right], item[right], len(query_ids)), _lists(query, item, len(query_ids))


def _read_table(path: Path) -> dict[str, pa.ChunkedArray]:
  """Returns the columns of a table of query_id and item_id, by their names in lower case."""
  if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
    rows = [{name.lower(): value for name, value in row.items()} for row in columns.read(path)]
    for number, row in enumerate(rows, 1):
      row |= {name: tables.name(row[name], f"{path}, row {number}, {name!r},") for name in PAIR_COLUMNS if name in row}
    table = columns.table(rows, () if rows else PAIR_COLUMNS)
  else:
    with readable(path):
      table = pq.read_table(path)
  found = {name.lower(): table.column(written) for name, written in tables.clean(table.column_names, path).items()}
  if missing := set(PAIR_COLUMNS) - set(found):
    raise ValueError(f"{path} has the columns {table.column_names}; {sorted(missing)} is missing")
  return found


def _places(
  table: Mapping[str, pa.ChunkedArray], path: Path, query_ids: pa.Array, item_ids: pa.ChunkedArray
) -> list[np.ndarray]:
  """Returns the positions of a table's queries, and of its items."""
  found = []
  for name, ids in zip(PAIR_COLUMNS, (query_ids, item_ids), strict=True):
    where = f"{path}, column {name!r},"
    values = columns.names(columns.utf8(table[name], "id", where), where)
    places = pc.index_in(values, value_set=ids)
    if places.null_count:
      row = int(np.flatnonzero(places.is_null().to_numpy())[0])
      unknown = values[row].as_py()
      what = f"row {row + 1} has no {name}" if unknown is None else f"{name} {unknown!r} is not among the {len(ids)}"
      raise ValueError(f"{path}: {what}{' there are' * (unknown is not None)} ({places.null_count} such rows)")
    found.append(places.to_numpy())
  return found


def _signs(table: Mapping[str, pa.ChunkedArray], path: Path) -> np.ndarray:
  """Returns which rows of marks are right."""
  there = [name for name in SIGNS if name in table]
  if not there:
    return np.ones(len(table["query_id"]), bool)
  name, right = there[0], []
  for row, value in enumerate(table[name].to_pylist(), 1):
    sign = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value) if isinstance(value, str) else value
    try:
      number = float(sign)
    except (TypeError, ValueError):
      number = float("nan")
    # a label of 7 numbers classes, and its 0 is no mark
    if number != number or (name == "label" and number not in (-1, 0, 1)):
      what = "true or false, 1, 0 or -1" if name == "label" else "true or false, or a number"
      raise ValueError(f"{path}, row {row}: {name} is {value!r}; wanted {what}")
    right.append(number > 0)
  return np.array(right, bool)


def _lists(query: np.ndarray, item: np.ndarray, queries: int) -> np.ndarray:
  """Returns the items of each query in their order, −1 as padding."""
  order = np.argsort(query, kind="stable")
  query, item = query[order], item[order]
  counts_Q = np.bincount(query, minlength=queries)
  place = np.arange(len(query)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
  position_QS = np.full((queries, max(1, int(counts_Q.max(initial=0)))), -1, np.int32)
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


def open_queries(path: Path, model: Adapter, query_type: str | None) -> tuple[Gallery, str | None]:
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


def inputs_of(
  adapter: str | os.PathLike | None,
  queries: str | os.PathLike,
  gallery: str | os.PathLike,
  query_type: str | None,
  group: str | None,
  diversity: float,
) -> tuple[Adapter, Gallery, str | None, FeatureStore, str | None, Variety]:
  """Returns an adapter, queries and their type, a gallery, all of which fit together, its groups' column, and variety.

  Args:
    adapter: a folder; None: what adapts nothing.
    queries: a .npy file or a feature folder.
    gallery: a feature folder, frozen or prepared for the head of the queries' type.
    query_type: "text" or "image", or None where the adapter's heads are the same, or the queries' folder says it.
    group: a metadata column, or "duplicates", as `Variety.asked` takes it.
    diversity: 0 to 1.

  Raises ValueError where widths, encoders or spaces differ; KeyError for a column that is not there.
  """
  known = load(adapter) if adapter else None
  store = FeatureStore.open(gallery)
  model = known or Adapter(store.width, {name: Head("plain", {}, {}) for name in QUERY_TYPES})
  column, variety = Variety.asked(group, store.columns, diversity)
  query, query_type = open_queries(Path(queries), model, query_type)
  if column is not None:
    store.arrow_column(column)  # raises where there is none
  if query.width != model.width or store.width != model.width:
    raise ValueError(
      f"the queries {queries} are {query.width} wide, the gallery {gallery} {store.width}; the adapter {adapter} wants "
      f"{model.width}"
    )
  encoders = [("the adapter", model.encoder), (f"the gallery {gallery}", store.encoder)]
  encoders.append((f"the queries {queries}", getattr(query, "encoder", None)))
  for (one, encoder), (other, other_encoder) in itertools.combinations(encoders, 2):
    check_encoders(one, encoder, other, other_encoder)
  if store.space not in ("frozen", model.head(query_type).space):
    raise ValueError(f"the gallery {gallery} was prepared by another adapter ({store.space}); give the frozen one")
  return model, query, query_type, store, column, variety


def _read_array(path: Path, what: str) -> np.ndarray:
  check_npy(path)
  try:
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except UNREADABLE as error:
    raise ValueError(f"{what} {path} is no .npy file of numbers, or is cut short ({error})") from error


def ids_of(queries: Gallery) -> pa.Array:
  """Returns the ids of queries as text: those of a feature folder, else row numbers."""
  if isinstance(queries, FeatureStore):
    return queries.arrow_ids().combine_chunks()
  return pa.array(np.arange(len(queries))).cast(pa.string())


def group_columns(group: str | None, store: FeatureStore) -> dict[str, pa.ChunkedArray]:
  """Returns the metadata columns that go beside the items of a grouped ranking: the groups', and where in them."""
  names = [group, *BOX, SECOND] if group else []
  return {name: store.arrow_column(name) for name in names if name in store.columns}


def table_of(
  ranking: Ranking,
  query_ids: pa.Array,
  item_ids: pa.ChunkedArray,
  beside: Mapping[str, pa.ChunkedArray] = MappingProxyType({}),
  alike_QK: np.ndarray | None = None,
) -> pa.Table:
  """Returns the rows of a ranking: query_id, rank from 1, item_id, score, and more columns of the items.

  Args:
    ranking: of Q queries; −1 as id is no row.
    query_ids: Q.
    item_ids: N, of the gallery.
    beside: columns of the gallery (N each) by name, written beside item_id.
    alike_QK: how many near-duplicates each stands for, written where given.
  """
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
      **({} if alike_QK is None else {"alike": pa.array(alike_QK[there_QK])}),
      **{name: column.take(position_P) for name, column in beside.items()},
    }
  )


def as_parquet(tables: list[pa.Table]) -> pa.Buffer:
  """Returns tables, one after the other, as the bytes of a Parquet file."""
  stream = pa.BufferOutputStream()
  pq.write_table(pa.concat_tables(tables), stream)
  return stream.getvalue()

"""LanceDB: a table of Lance files in a folder or an object store, searched in this process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from qat_jax.search.index import SMALL, Ids, Metric, check_columns, check_gallery, chunks, ids_or_positions
from qat_jax.search.indexes.stored import ID, SAMPLE, StoredIndex, needed
from qat_jax.search.rank import GalleryLike
from qat_jax.types import Ranking

VECTOR = "vector"  # the column of tables that are built here
SPACE = b"qat_jax.space"  # of the schema's metadata
NAMES: dict[Metric, str] = {"ip": "dot", "cosine": "cosine", "l2": "l2"}


class LanceIndex(StoredIndex):
  """A table; its ids are those of a column of numbers or texts (UUIDs are texts there)."""

  def __init__(self, table: Any, metric: Metric, unit: bool, space: str, id_column: str, vector: str) -> None:
    """Use `build` or `connect`."""
    schema = table.schema
    kinds = {field.name: field.type for field in schema}
    kind = kinds.get(vector)
    fits = kind is not None and pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    if not fits or id_column not in kinds:
      there = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
      raise ValueError(
        f"the table {table.name} has the columns {there}; wanted {id_column}, and {vector} of vectors: name yours, "
        "id_column=…, vector=…"
      )
    self.table, self.metric, self.unit, self.space, self.where = table, metric, unit, space, f"the table {table.name}"
    self.id_column, self.vector, self.width = id_column, vector, kinds[vector].list_size
    self.integers = pa.types.is_integer(kinds[id_column])

  @classmethod
  def build(
    cls,
    gallery: GalleryLike,
    location: str | os.PathLike,
    table: str = "gallery",
    ids: Ids | None = None,
    columns: Mapping[str, Any] | pa.Table | None = None,
  ) -> LanceIndex:
    """Returns the index of a gallery in a new table, which is there when it is whole.

    `location` is a folder, or an object store's address; `columns`, a row an item, are stored beside the vectors. From
    20,000 items on it gets partitions (IVF_FLAT). Raises ValueError if there is such a table.
    """
    _lancedb()  # says what to install
    from lancedb.index import BTree, IvfFlat

    gallery = check_gallery(gallery)
    names = ids_or_positions(ids, len(gallery))
    names = [str(name) for name in names] if isinstance(names[0], uuid.UUID) else names
    beside = check_columns(columns, len(gallery), (ID, VECTOR))
    space = gallery.space or "frozen"
    fields = [(ID, pa.int64() if isinstance(names[0], int) else pa.string())]
    fields += [(VECTOR, pa.list_(pa.float32(), gallery.width))]
    fields += [] if beside is None else [(field.name, field.type) for field in beside.schema]
    schema = pa.schema(fields, metadata={SPACE: space})

    wrong: list[ValueError] = []

    def batches() -> Iterator[pa.RecordBatch]:
      try:
        yield from whole_batches()
      except ValueError as error:  # which would come out of Arrow's pipes as something else
        wrong.append(error)
        raise

    def whole_batches() -> Iterator[pa.RecordBatch]:
      for start, item_ND in chunks(gallery):
        rows = len(item_ND)
        arrays = [pa.array(names[start : start + rows], schema.field(ID).type)]
        arrays += [pa.FixedSizeListArray.from_arrays(pa.array(item_ND.ravel()), gallery.width)]
        arrays += [] if beside is None else [c.combine_chunks() for c in beside.slice(start, rows).columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    database, reader = _lancedb().connect(os.fspath(location)), pa.RecordBatchReader.from_batches(schema, batches())
    try:
      made = database.create_table(table, reader, schema=schema)
    except RuntimeError as error:
      if wrong:
        raise wrong[0] from None
      raise OSError(f"LanceDB could not write {table}: {' '.join(str(error).split())}") from error
    if len(gallery) >= SMALL:
      made.create_index(ID, config=BTree())
      made.create_index(VECTOR, config=IvfFlat(distance_type="dot"))
    return cls(made, "ip", True, space, ID, VECTOR)

  @classmethod
  def connect(
    cls,
    location: str | os.PathLike,
    table: str,
    unit: bool = True,
    space: str | None = None,
    id_column: str = ID,
    vector: str = VECTOR,
    metric: Metric | None = None,
  ) -> LanceIndex:
    """Returns the index over a table that exists.

    `unit`: its vectors are of unit length; `metric`: "ip", "cosine" or "l2", by default that of the column's own index.
    Raises ValueError where there is no such table or column, or its vectors are not of unit length.
    """
    opened = _lancedb().connect(os.fspath(location)).open_table(table)
    own = (opened.schema.metadata or {}).get(SPACE, b"frozen").decode()
    indexes = [index.name for index in opened.list_indices() if list(index.columns) == [vector]]
    named = {name: metric for metric, name in NAMES.items()}
    if metric is None and indexes:
      kind = opened.index_stats(indexes[0]).distance_type
      if kind not in named:
        raise ValueError(f"the index of {table}.{vector} compares by {kind}; wanted one of {sorted(named)}")
      metric = named[kind]
    metric = metric or ("ip" if unit else "cosine")  # without an index every row is compared, by whatever is asked for
    found = cls(opened, metric, unit, space or own, id_column, vector)
    sample = opened.search().where(f"`{vector}` IS NOT NULL").select([vector]).limit(SAMPLE).to_arrow().column(vector)
    found._check(found._vectors(sample), unit)
    return found

  def search(
    self,
    query_QD: np.ndarray | jax.Array,
    k: int,
    filter: str | None = None,
    nprobes: int | None = None,
    refine_factor: int | None = None,
  ) -> Ranking:
    """As `Index.search`; `filter` is a condition in SQL, applied before the search: "price < 30".

    `nprobes`: partitions looked into; `refine_factor`: how many times k items of a quantised index are compared
    exactly. Both are LanceDB's own, with its defaults.
    """

    def answers(query_QD: np.ndarray) -> Iterator[tuple[list[Any], np.ndarray]]:
      query = self.table.search(list(query_QD), vector_column_name=self.vector).distance_type(NAMES[self.metric])
      query = query.where(filter, prefilter=True) if filter is not None else query
      query = query.nprobes(nprobes) if nprobes is not None else query
      query = query.refine_factor(refine_factor) if refine_factor is not None else query
      answer = query.limit(k).select([self.id_column, "_distance"]).to_arrow()
      which = answer.column("query_index").to_numpy() if len(query_QD) > 1 else np.zeros(len(answer), np.int64)
      names, distances = answer.column(self.id_column).to_pylist(), answer.column("_distance").to_numpy()
      values = distances if self.metric == "l2" else 1 - distances.astype(np.float64)
      for i in range(len(query_QD)):
        rows = np.flatnonzero(which == i)
        yield [names[row] for row in rows], values[rows]

    return self._searched(query_QD, k, answers)

  def fetch(self, ids: Ids) -> np.ndarray:
    """Returns the vectors (ND, float32) of some of its ids; raises KeyError for one that is not there."""
    return super().fetch([str(name) if isinstance(name, uuid.UUID) else name for name in np.asarray(ids, object)])

  def _rows(self, names: list[Any]) -> list[tuple[Any, Any]]:
    these = f"`{self.id_column}` IN ({', '.join(map(_literal, names))}) AND `{self.vector}` IS NOT NULL"
    answer = self.table.search().where(these).select([self.id_column, self.vector]).limit(len(names) + 1).to_arrow()
    return list(zip(answer.column(self.id_column).to_pylist(), self._vectors(answer.column(self.vector)), strict=True))

  def _vectors(self, column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32).reshape(-1, self.width)


def _literal(name: int | str) -> str:
  return str(name) if isinstance(name, int) else "'" + name.replace("'", "''") + "'"


def _lancedb() -> Any:
  return needed("lancedb", "LanceIndex", "pip install 'qat-jax[lancedb]'")

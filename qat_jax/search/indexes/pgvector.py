"""pgvector: a table of PostgreSQL's with a column of vectors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from qat_jax.search.index import SMALL, Ids, Metric, check_columns, check_gallery, chunks, ids_or_positions
from qat_jax.search.indexes.stored import ID, SAMPLE, StoredIndex, needed
from qat_jax.search.rank import GalleryLike
from qat_jax.types import Gallery, Ranking

WIDEST_GRAPH = 2000  # dimensions that pgvector's HNSW takes
MOST_LOOKED_AT = 1000  # the largest hnsw.ef_search
VECTOR = "embedding"  # the column of tables that are built here
OPERATORS: dict[Metric, str] = {"ip": "<#>", "cosine": "<=>", "l2": "<->"}  # negative product, 1 − cosine, distance
SQL_TYPES = {"int": "bigint", "str": "text", "UUID": "uuid"}


class PgvectorIndex(StoredIndex):
  """A table; its ids are those of a column of numbers, texts or UUIDs."""

  def __init__(
    self,
    location: str,
    table: str,
    unit: bool = True,
    space: str | None = None,
    id_column: str = ID,
    vector: str = VECTOR,
    metric: Metric | None = None,
    settings: Mapping[str, object] | None = None,
  ) -> None:
    """Connects; use `build` or `connect`."""
    self.location, self.table, self.unit, self.where = location, table, unit, f"the table {table}"
    self._connection: Any = None
    names = {"id": id_column, "vector": vector, "table": table}
    self._names = {key: _psycopg().sql.Identifier(*name.split(".")) for key, name in names.items()}
    regclass = self._names["table"].as_string(None)
    with self._connected() as connection:
      self._type, self.width, self.integers = self._columns(connection, regclass, id_column, vector)
      rows = connection.execute(_STATEMENTS["indexes"], [regclass, vector]).fetchall()
      own = connection.execute("SELECT obj_description(%s::regclass, 'pg_class')", [regclass]).fetchone()[0]
      version = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()[0]
    found: list[Metric] = [m for m in OPERATORS for (operators,) in rows if operators.endswith(f"_{m}_ops")]
    # without an index every row is compared, by whatever is asked for
    self.metric: Metric = metric or (found[0] if found else "ip" if unit else "cosine")
    self.space = space or _about(own).get("space", "frozen")
    self.settings = dict(settings or {})
    self._goes_on = tuple(int(part) for part in version.split(".")[:2]) >= (0, 8)

  @classmethod
  def build(
    cls,
    gallery: GalleryLike,
    location: str,
    table: str = "gallery",
    ids: Ids | None = None,
    columns: Mapping[str, Any] | pa.Table | None = None,
    graph: bool | None = None,
  ) -> PgvectorIndex:
    """Returns the index of a gallery in a new table, written in one transaction: whole, or not at all.

    `location` is a URL or a connection string of PostgreSQL's; `columns`, a row an item, are stored beside the vectors;
    `graph`: with an HNSW index (None: from 20,000 items on), else every row is compared. Raises ValueError if there is
    such a table, ConnectionError if the server does not answer.
    """
    gallery = check_gallery(gallery)
    names = ids_or_positions(ids, len(gallery))
    beside = check_columns(columns, len(gallery), (ID, VECTOR))
    graph = len(gallery) >= SMALL and gallery.width <= WIDEST_GRAPH if graph is None else graph
    if graph and gallery.width > WIDEST_GRAPH:
      raise ValueError(f"pgvector's HNSW takes {WIDEST_GRAPH} dimensions, the gallery has {gallery.width}: graph=False")
    with _one_line(location), _psycopg().connect(location) as connection:
      _write(connection, gallery, table, names, beside, graph)
    return cls(location, table)

  @classmethod
  def connect(
    cls,
    location: str,
    table: str,
    unit: bool = True,
    space: str | None = None,
    id_column: str = ID,
    vector: str = VECTOR,
    metric: Metric | None = None,
    settings: Mapping[str, object] | None = None,
  ) -> PgvectorIndex:
    """Returns the index over a table that exists ("table" or "schema.table").

    `unit`: its vectors are of unit length; `metric`: "ip", "cosine" or "l2", by default that of the column's HNSW or
    IVFFlat index; `settings`: of PostgreSQL's, for each search: {"ivfflat.probes": 10}, or {"enable_indexscan": "off"}
    to compare every row. Raises ValueError where there is no such table or column, or its vectors are not of unit
    length.
    """
    found = cls(location, table, unit, space, id_column, vector, metric, settings)
    statement = _psycopg().sql.SQL("SELECT {vector}::real[] FROM {table} WHERE {vector} IS NOT NULL LIMIT %s")
    with found._connected() as connection:
      rows = connection.execute(statement.format(**found._names), [SAMPLE]).fetchall()
    found._check([row[0] for row in rows], unit)
    return found

  def search(
    self,
    query_QD: np.ndarray | jax.Array,
    k: int,
    filter: str | tuple[str, Sequence[Any]] = "true",
  ) -> Ranking:
    """As `Index.search`; `filter` is a condition in SQL, or one with %s and its values: ("price < %s", [30]).

    In a condition alone a % is a %: "name LIKE 'mug%'". Beside values a literal one is written %%, as in psycopg. The
    condition becomes part of the statement: never take it from a stranger, take values alone.
    """
    condition, values = (filter.replace("%", "%%"), ()) if isinstance(filter, str) else filter
    sql = _psycopg().sql
    statement = sql.SQL(
      "SELECT {id}, {vector} {operator} %s::{type} AS distance FROM {table} WHERE ({condition}) "
      "ORDER BY distance LIMIT %s"
    )
    parts = {"operator": OPERATORS[self.metric], "type": self._type, "condition": condition}
    statement = statement.format(**self._names, **{name: sql.SQL(part) for name, part in parts.items()})
    with self._connected() as connection, connection.transaction():
      for name, value in {**self._settings(k), **self.settings}.items():
        connection.execute("SELECT set_config(%s, %s, true)", [name, str(value)])

      def answers(query_QD: np.ndarray) -> Iterator[tuple[list[Any], np.ndarray]]:
        with connection.pipeline():
          cursors = [connection.execute(statement, [_text(query_D), *values, k]) for query_D in query_QD]
          tables = [cursor.fetchall() for cursor in cursors]
        for rows in tables:
          value_K = np.array([np.nan if row[1] is None else row[1] for row in rows], np.float64)
          yield [row[0] for row in rows], {"ip": -value_K, "cosine": 1 - value_K, "l2": value_K**2}[self.metric]

      return self._searched(query_QD, k, answers)

  def _rows(self, names: list[Any]) -> list[tuple[Any, Any]]:
    statement = _psycopg().sql.SQL("SELECT {id}, {vector}::real[] FROM {table} WHERE {id} = ANY(%s)")
    with self._connected() as connection:
      return connection.execute(statement.format(**self._names), [names]).fetchall()

  def close(self) -> None:
    """Ends the connection; the next search makes another."""
    if self._connection is not None:
      self._connection.close()

  def __del__(self) -> None:
    with contextlib.suppress(Exception):
      self.close()

  @contextlib.contextmanager
  def _connected(self) -> Iterator[Any]:
    """Gives the connection, made anew where the server or the network has ended it."""
    with _one_line(self.location):
      if self._connection is None or self._connection.closed:
        self._connection = _psycopg().connect(self.location, autocommit=True, prepare_threshold=None)
      yield self._connection

  def _columns(self, connection: Any, regclass: str, id_column: str, vector: str) -> tuple[str, int, bool]:
    """Returns the type and width of the vectors, and whether the ids are numbers."""
    rows = connection.execute(_STATEMENTS["columns"], [regclass]).fetchall()
    kinds = {name: (kind, width) for name, kind, width in rows}
    kind, width = kinds.get(vector, ("", -1))
    if kind not in ("vector", "halfvec") or width < 1 or id_column not in kinds:
      there = ", ".join(f"{name} {kind}" for name, (kind, _) in kinds.items())
      raise ValueError(
        f"{self.where} has the columns {there}; wanted {id_column}, and {vector} of the type vector(D) or "
        "halfvec(D): name yours, id_column=…, vector=…"
      )
    return kind, width, kinds[id_column][0] in ("int2", "int4", "int8")

  def _settings(self, k: int) -> dict[str, object]:
    """Returns what makes an index look at as many items as are asked for; pgvector would give fewer otherwise."""
    asked: dict[str, object] = {"hnsw.ef_search": min(max(k, 40), MOST_LOOKED_AT)}
    if self._goes_on:
      asked |= {"hnsw.iterative_scan": "strict_order", "hnsw.max_scan_tuples": max(20_000, 10 * k)}
      asked |= {"ivfflat.iterative_scan": "relaxed_order"}
    return asked


_STATEMENTS = {
  "columns": "SELECT a.attname, t.typname, a.atttypmod FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
  "WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped",
  "indexes": "SELECT o.opcname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
  "JOIN pg_am m ON m.oid = c.relam JOIN pg_opclass o ON o.oid = i.indclass[0] "
  "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
  "WHERE i.indrelid = %s::regclass AND a.attname = %s AND m.amname IN ('hnsw', 'ivfflat')",
}


def _write(
  connection: Any, gallery: Gallery, table: str, names: Sequence[Any], beside: pa.Table | None, graph: bool
) -> None:
  """Writes the table in the connection's transaction."""
  from pgvector.psycopg import register_vector

  sql = _psycopg().sql
  connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
  register_vector(connection)
  types = {ID: SQL_TYPES[type(names[0]).__name__], VECTOR: "vector"}
  types |= {} if beside is None else {field.name: _sql_type(field) for field in beside.schema}
  identifier = sql.Identifier(*table.split("."))
  declared = [
    sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(f"vector({gallery.width})" if name == VECTOR else kind))
    for name, kind in types.items()
  ]
  body = sql.SQL(", ").join([*declared, sql.SQL("PRIMARY KEY ({})").format(sql.Identifier(ID))])
  connection.execute(sql.SQL("CREATE TABLE {} ({})").format(identifier, body))
  fields = sql.SQL(", ").join(map(sql.Identifier, types))
  statement = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT BINARY)").format(identifier, fields)
  with connection.cursor().copy(statement) as copy:
    copy.set_types(list(types.values()))
    for start, item_ND in chunks(gallery):
      part = beside.slice(start, len(item_ND)).to_pylist() if beside is not None else [{}] * len(item_ND)
      for name, item_D, row in zip(names[start : start + len(item_ND)], item_ND, part, strict=True):
        copy.write_row((name, item_D, *row.values()))
  if graph:
    column = sql.Identifier(VECTOR)
    connection.execute(sql.SQL("CREATE INDEX ON {} USING hnsw ({} vector_ip_ops)").format(identifier, column))
  about = json.dumps({"qat_jax": {"space": gallery.space or "frozen"}})
  connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(identifier, sql.Literal(about)))


def _sql_type(field: pa.Field) -> str:
  kinds = {
    "bigint": pa.types.is_integer,
    "boolean": pa.types.is_boolean,
    "double precision": pa.types.is_floating,
    "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind),
    "timestamp": pa.types.is_timestamp,
  }
  for name, fits in kinds.items():
    if fits(field.type):
      return name
  raise ValueError(f"the column {field.name} is {field.type}; wanted numbers, booleans, texts or times")


def _text(query_D: np.ndarray) -> str:
  return "[" + ",".join(map(repr, query_D.tolist())) + "]"


def _about(comment: str | None) -> dict[str, Any]:
  """Returns what `build` wrote as the table's comment; nothing where the comment is another's."""
  try:
    return json.loads(comment or "{}")["qat_jax"]
  except (ValueError, KeyError, TypeError):
    return {}


@contextlib.contextmanager
def _one_line(location: str) -> Iterator[None]:
  """Tells what the server says, or that there is none, in one line and without the password."""
  psycopg = _psycopg()
  try:
    yield
  except psycopg.OperationalError as error:
    raise ConnectionError(f"PostgreSQL: {' '.join(str(error).split())}") from error
  except psycopg.Error as error:
    raise ValueError(f"PostgreSQL: {' '.join(str(error).split())}") from error


def _psycopg() -> Any:
  how = "pip install 'qat-jax[pgvector]'"
  needed("psycopg.sql", "PgvectorIndex", how)
  return needed("psycopg", "PgvectorIndex", how)

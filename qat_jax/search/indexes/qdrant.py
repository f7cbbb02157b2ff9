"""Qdrant: a collection in a server, by its URL, or in its client's embedded mode (a folder, or memory)."""

from __future__ import annotations

import atexit
import contextlib
import os
import uuid
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from qat_jax.search.index import Ids, Metric, check_columns, check_gallery, chunks, ids_or_positions
from qat_jax.search.indexes.stored import ID, SAMPLE, StoredIndex, needed
from qat_jax.search.rank import GalleryLike
from qat_jax.types import Ranking

MARK = "qat_jax"  # of the collection's metadata


class QdrantIndex(StoredIndex):
  """A collection; its ids are the points' own (int or UUID), or a field of their payload."""

  def __init__(
    self,
    client: Any,
    collection: str,
    width: int,
    metric: Metric,
    unit: bool = True,
    space: str = "frozen",
    vector: str | None = None,
    id_field: str | None = None,
    integers: bool = True,
  ) -> None:
    """Use `build` or `connect`. `integers`: its ids are, as far as is known."""
    self.client, self.collection, self.width, self.metric, self.unit = client, collection, width, metric, unit
    self.space, self.vector, self.id_field, self.integers = space, vector, id_field, integers
    self.where = f"the collection {collection!r}"

  @classmethod
  def build(
    cls,
    gallery: GalleryLike,
    location: Any = ":memory:",
    collection: str = "gallery",
    ids: Ids | None = None,
    columns: Mapping[str, Any] | pa.Table | None = None,
    **options: Any,
  ) -> QdrantIndex:
    """Returns the index of a gallery in a new collection, compared by inner product.

    `location` is a URL, a folder, ":memory:" or a QdrantClient, `options` go to the client (api_key, timeout, …);
    `columns`, a row an item, become the payload. Raises ValueError if there is such a collection, ConnectionError if
    the server does not answer. What fails on the way leaves nothing; a killed build leaves what `connect` refuses.
    """
    gallery = check_gallery(gallery)
    names = ids_or_positions(ids, len(gallery))
    by_field = isinstance(names[0], str)
    table = check_columns(columns, len(gallery), (ID,) if by_field else ())
    client, models = _client(location, options), _qdrant().models
    space = gallery.space or "frozen"
    with _one_line(location):
      if client.collection_exists(collection):
        raise ValueError(f"Qdrant has a collection {collection!r} already; connect to it, delete it or name another")
      vectors = models.VectorParams(size=gallery.width, distance=models.Distance.DOT)
      about = {"space": space, "id_field": ID if by_field else None}
      client.create_collection(collection, vectors_config=vectors, metadata={MARK: {**about, "complete": False}})
      try:
        if by_field:
          _index_field(client, collection)
        for start, item_ND in chunks(gallery):
          part = names[start : start + len(item_ND)]
          payloads = table.slice(start, len(part)).to_pylist() if table is not None else [{} for _ in part]
          if by_field:
            payloads = [{**row, ID: name} for row, name in zip(payloads, part, strict=True)]
            points: list[int | str] = list(range(start, start + len(part)))
          else:
            points = [name if isinstance(name, int) else str(name) for name in part]
          batch = models.Batch(ids=points, vectors=item_ND.tolist(), payloads=payloads)
          client.upsert(collection, points=batch, wait=True)
        client.update_collection(collection, metadata={MARK: {**about, "complete": True}})
      except BaseException:
        with contextlib.suppress(Exception):
          client.delete_collection(collection)
        raise
    integers = isinstance(names[0], int)
    return cls(client, collection, gallery.width, "ip", True, space, None, about["id_field"], integers)

  @classmethod
  def connect(
    cls,
    location: Any,
    collection: str,
    unit: bool = True,
    space: str | None = None,
    vector: str | None = None,
    id_field: str | None = None,
    **options: Any,
  ) -> QdrantIndex:
    """Returns the index over a collection that exists.

    `unit`: its vectors are of unit length (those of a cosine collection always are); `vector`: which of several named
    ones; `id_field`: the field of the payload that names an item; default: the point's own id, or what `build` chose.
    Raises ValueError where there is no such collection or vector, where `build` was killed, or it compares otherwise
    than by inner product, cosine or Euclidean distance.
    """
    if isinstance(location, str | os.PathLike) and not os.path.isdir(location) and not _elsewhere(os.fspath(location)):
      raise FileNotFoundError(f"no folder {location}; give one of Qdrant's, or a URL such as http://localhost:6333")
    client = _client(location, options)
    with _one_line(location):
      if not client.collection_exists(collection):
        there = sorted(c.name for c in client.get_collections().collections)
        raise ValueError(f"Qdrant at {_shown(location)} has no collection {collection!r}; it has {there}")
      config = client.get_collection(collection).config
      ours = (config.metadata or {}).get(MARK, {})
      if ours.get("complete") is False:
        raise ValueError(f"the collection {collection!r} was not written to its end; delete it and build it again")
      given = config.params.vectors
      choice = {"": given} if not isinstance(given, dict) else given
      if (vector or "") not in choice:
        raise ValueError(f"the collection {collection!r} has no vector {vector!r}; say which: vector={sorted(choice)}")
      params = choice[vector or ""]
      metrics: dict[str, Metric] = {"Dot": "ip", "Cosine": "cosine", "Euclid": "l2"}
      if params.distance.value not in metrics or params.multivector_config:
        what = "several vectors an item" if params.multivector_config else f"distance {params.distance.value}"
        raise ValueError(f"the collection {collection!r} has {what}; wanted one vector, and one of {sorted(metrics)}")
      metric = metrics[params.distance.value]
      found = cls(client, collection, params.size, metric, unit, space or ours.get("space", "frozen"), vector)
      found.id_field = id_field or ours.get("id_field")
      points, _ = client.scroll(collection, limit=SAMPLE, with_vectors=[vector] if vector else True, with_payload=True)
    points = [point for point in points if found._vector_of(point) is not None]
    found._check(found._vectors_of(points), unit or metric == "cosine")  # which normalised what it took
    found.integers = all(isinstance(found._name_of(point), int) for point in points)
    return found

  def search(
    self,
    query_QD: np.ndarray | jax.Array,
    k: int,
    filter: Any = None,
    params: Any = None,
  ) -> Ranking:
    """As `Index.search`; `filter` and `params` are Qdrant's own: models.Filter, models.SearchParams."""
    models, payload = _qdrant().models, [self.id_field] if self.id_field else False
    for one, kind in ((filter, models.Filter), (params, models.SearchParams)):
      if not isinstance(one, kind | dict | None):
        raise TypeError(f"got a {type(one).__name__} {one!r}; wanted qdrant_client.models.{kind.__name__}")

    def answers(query_QD: np.ndarray) -> Iterator[tuple[list[Any], np.ndarray]]:
      requests = [
        models.QueryRequest(
          query=query_D.tolist(), using=self.vector, limit=k, filter=filter, params=params, with_payload=payload
        )
        for query_D in query_QD
      ]
      with _one_line(self.collection):
        batches = self.client.query_batch_points(self.collection, requests)
      for batch in batches:
        value_K = np.array([point.score for point in batch.points], np.float64)
        yield [self._name_of(point) for point in batch.points], value_K**2 if self.metric == "l2" else value_K

    return self._searched(query_QD, k, answers)

  def _rows(self, names: list[Any]) -> list[tuple[Any, Any]]:
    models, which = _qdrant().models, [self.vector] if self.vector else True
    with _one_line(self.collection):
      if self.id_field:
        kinds = [[name for name in names if isinstance(name, kind)] for kind in (int, str)]
        any_of = [models.FieldCondition(key=self.id_field, match=models.MatchAny(any=some)) for some in kinds if some]
        points, _ = self.client.scroll(
          self.collection, scroll_filter=models.Filter(should=any_of), limit=len(names) + 1, with_vectors=which
        )
      else:
        known = [str(name) if isinstance(name, uuid.UUID) else name for name in names]
        points = self.client.retrieve(self.collection, known, with_vectors=which, with_payload=False)
    return [(self._name_of(point), self._vector_of(point)) for point in points]

  def _name_of(self, point: Any) -> Any:
    if self.id_field is None:
      return point.id if isinstance(point.id, int) else uuid.UUID(point.id)
    name = (point.payload or {}).get(self.id_field)
    if name is None:
      raise ValueError(f"point {point.id} of {self.collection!r} has no field {self.id_field!r}, which is to name it")
    if isinstance(name, bool) or not isinstance(name, int | str):
      kind = type(name).__name__
      raise ValueError(f"point {point.id} of {self.collection!r} has a {kind} in {self.id_field!r}; wanted int or str")
    return name

  def _vectors_of(self, points: list[Any]) -> np.ndarray:
    rows = [self._vector_of(point) for point in points]
    return np.array(rows, np.float32).reshape(len(rows), self.width)

  def _vector_of(self, point: Any) -> Any:
    """Returns the vector of a point; None where it has none of this name, which Qdrant allows."""
    vector = point.vector
    return (vector.get(self.vector or "") if isinstance(vector, dict) else vector) or None


def _client(location: Any, options: Mapping[str, Any]) -> Any:
  client = _qdrant().QdrantClient
  if isinstance(location, client):
    return location
  name = os.fspath(location)
  place = {"path": name} if not _elsewhere(name) else {"url": name} if "://" in name else {"location": name}
  opened = client(**place, **options)
  # The client closes itself when it is collected. At the end of a program the modules that it needs for this are gone.
  atexit.register(_close, weakref.ref(opened))
  return opened


def _elsewhere(location: str) -> bool:
  return location == ":memory:" or "://" in location


def _close(reference: weakref.ref) -> None:
  client = reference()
  if client is not None:
    client.close()


def _index_field(client: Any, collection: str) -> None:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the embedded mode looks through all payloads, and says so
    client.create_payload_index(collection, ID, _qdrant().models.PayloadSchemaType.KEYWORD)


@contextlib.contextmanager
def _one_line(location: Any) -> Iterator[None]:
  """Tells what the server says, or that there is none, in one line."""
  from qdrant_client.http.exceptions import ApiException

  try:
    yield
  except ApiException as error:
    raise ConnectionError(f"Qdrant ({_shown(location)}): {' '.join(str(error).split())}") from error


def _shown(location: Any) -> str:
  return location if isinstance(location, str) else type(location).__name__


def _qdrant() -> Any:
  return needed("qdrant_client", "QdrantIndex", "pip install 'qat-jax[qdrant]'")

"""What an index over gallery items is, and the exact one. Those of others are in `indexes`, one file each.

Two verbs: `build` (or `connect`, to what exists already) and `search`. A query vector is anything of the index's width:
a raw query, or `fold(adaptation)`. Scores are inner products with the stored items, whatever the index computes itself.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from qat_jax.adaptation import plain
from qat_jax.sealed import check_format, read_record, write_record
from qat_jax.search.gallery import LENGTH_ERROR
from qat_jax.search.rank import GalleryLike, rank
from qat_jax.stages import changed, checksums
from qat_jax.types import MISSING, Gallery, Ranking, as_gallery

FORMAT = 1  # of the folder of an index
SMALL = 20_000  # below this many items all are compared: partitions and graphs would be too small to pay
CHUNK_NUMBERS = 1 << 19  # of a gallery that are written to another's index at once

Metric = Literal["ip", "cosine", "l2"]  # inner product, cosine similarity, squared distance
Ids = Sequence[int] | Sequence[str] | Sequence[uuid.UUID] | np.ndarray


class Index(Protocol):
  """What every index does.

  Each also has `build(gallery, …)`, of a prepared gallery, an array (ND) or a FeatureStore, which raises ValueError for
  one that is empty or has NaN; the further arguments, and `connect` or `save` and `load`, are the index's own.
  """

  space: str  # the gallery's FeatureStore.space

  @property
  def width(self) -> int:
    """How wide its items and queries are: a prepared gallery may be wider than the encoder's features."""

  def search(self, query_QD: np.ndarray | jax.Array, k: int) -> Ranking:
    """Returns the k items with the largest inner products; id −1 (None), score −inf where there are fewer.

    ids are positions in the gallery, or the ids that the index knows its items by.
    """


class ExactIndex:
  """Every inner product, in float32."""

  def __init__(self, gallery: GalleryLike, space: str = "frozen") -> None:
    self.gallery, self.space = as_gallery(gallery), space

  @property
  def width(self) -> int:
    return self.gallery.width

  @classmethod
  def build(cls, gallery: GalleryLike) -> ExactIndex:
    """Returns the index, which holds the gallery itself."""
    gallery = check_gallery(gallery)
    return cls(gallery, gallery.space or "frozen")

  def search(self, query_QD: np.ndarray | jax.Array, k: int) -> Ranking:
    query_QD = as_queries(query_QD, self.gallery.width, k)
    ranking = rank(plain(jnp.asarray(query_QD), self.space), self.gallery, k)
    length_Q1 = np.linalg.norm(query_QD, axis=1, keepdims=True)
    return ranking.replace(scores=np.where(ranking.ids < 0, -np.inf, length_Q1 * ranking.scores).astype(np.float32))

  def fetch(self, ids: Ids) -> np.ndarray:
    """Returns the items (ND, float32) at some positions; raises KeyError for one that is not there."""
    position_N = np.asarray(ids, np.int64)
    absent_N = position_N[(position_N < 0) | (position_N >= len(self.gallery))]
    if len(absent_N):  # which NumPy counts from the end, and JAX takes for the last
      raise KeyError(f"the gallery has {len(self.gallery)} items, none at {absent_N[0]}; search again")
    return np.asarray(self.gallery[position_N], np.float32)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the index to a folder, whole or not at all."""
    with whole(folder, {"kind": "exact", "space": self.space}) as temporary:
      np.save(temporary / "gallery.npy", np.asarray(self.gallery[:]))

  @classmethod
  def load(cls, folder: str | os.PathLike, verify: bool = True) -> ExactIndex:
    """Returns the index that `save` wrote; the folder may have moved. `verify` reads all and names what was changed."""
    about = read_about(folder, "exact", verify)
    return cls(np.load(pathlib.Path(folder) / "gallery.npy", mmap_mode="r"), about["space"])


def check_gallery(gallery: GalleryLike) -> Gallery:
  """Returns the gallery as one; raises ValueError if it is empty."""
  gallery = as_gallery(gallery)
  if len(gallery) == 0:
    raise ValueError("the gallery is empty; an index wants at least one item")
  return gallery


def chunks(gallery: Gallery) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (position of the first, items ND in float32); raises ValueError that names an item with NaN or infinity."""
  rows = max(1, CHUNK_NUMBERS // gallery.width)
  for start in range(0, len(gallery), rows):
    item_ND = np.ascontiguousarray(gallery[start : start + rows], np.float32)
    finite_N = np.isfinite(item_ND).all(axis=1)
    if not finite_N.all():
      raise ValueError(f"gallery item {start + int(np.argmin(finite_N))} is NaN or infinite; leave such items out")
    yield start, item_ND


def as_queries(query_QD: np.ndarray | jax.Array, width: int, k: int) -> np.ndarray:
  """Returns the queries as float32 (QD); raises ValueError unless they are finite and of the index's width."""
  query_QD = np.asarray(query_QD, np.float32)
  if k <= 0:
    raise ValueError(f"k is {k}; it must be at least 1")
  if query_QD.ndim != 2 or query_QD.shape[1] != width:
    raise ValueError(f"the queries have shape {query_QD.shape}, the index is {width} wide; give (Q, {width})")
  if not np.isfinite(query_QD).all():
    row = int(np.flatnonzero(~np.isfinite(query_QD).all(axis=1))[0])
    raise ValueError(f"query {row} has NaN or infinite entries; leave it out")
  return query_QD


def ids_or_positions(ids: Ids | None, items: int) -> Sequence[Any]:
  """Returns an id an item, the positions if None, as Python's own types.

  Raises ValueError unless they are as many as the items, each once, and all int from 0 on, all str or all UUID.
  """
  if ids is None:
    return range(items)
  names = np.asarray(ids).tolist() if isinstance(ids, np.ndarray) else list(ids)
  kinds = {type(name) for name in names}
  if len(names) != items or len(kinds) != 1 or not kinds <= {int, str, uuid.UUID}:
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ValueError(f"{len(names)} ids ({found}) for {items} items; give one an item, all int, all str or all UUID")
  if kinds == {int} and min(names) < 0:
    raise ValueError(f"the id {min(names)} is negative, and −1 is padding; give ids from 0 on")
  if len(set(names)) < items:
    seen: set[Any] = set()
    twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise ValueError(f"the id {twice!r} occurs twice; give each item its own")
  return names


def check_columns(
  columns: Mapping[str, Any] | pa.Table | None, items: int, reserved: tuple[str, ...]
) -> pa.Table | None:
  """Returns what is stored beside the items, to filter by, as a table.

  Raises ValueError unless it has a row an item, and none of the reserved names.
  """
  if columns is None:
    return None
  table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
  if len(table) != items or set(table.column_names) & set(reserved):
    got = f"{len(table)} rows of {table.column_names}"
    raise ValueError(f"the columns are {got}; wanted {items} rows, and the names {list(reserved)} left to the index")
  return table


def check_stored(where: str, metric: Metric, unit: bool, sample_ND: np.ndarray | None) -> None:
  """Raises ValueError where the order of a collection's scores would not be that of cosines, as far as a sample shows.

  With unit items (|z| = 1) inner product, cosine and distance order alike; `unit=False` says that they are not unit.
  """
  if not unit and metric == "l2":
    raise ValueError(f"{where} compares distances, which order vectors of any length otherwise than inner products do")
  if not unit or sample_ND is None:
    return
  length_N = np.linalg.norm(sample_ND.astype(np.float32), axis=1)
  bad_N = ~(np.abs(np.square(length_N) - 1) < LENGTH_ERROR)
  if bad_N.any():
    raise ValueError(
      f"{where} holds vectors of length {length_N[np.argmax(bad_N)]:.4g}, wanted 1; store unit vectors, or say "
      "connect(…, unit=False): then its own order makes the shortlist, and what is fetched is normalised"
    )


def inner_products(metric: Metric, values: Any, length: float) -> np.ndarray:
  """Returns w·z of unit items z from what an index computes for a query w of a length."""
  value_K = np.asarray(values, np.float64)
  if metric == "cosine":
    return length * value_K
  return value_K if metric == "ip" else (length**2 + 1 - value_K) / 2


def as_ranking(found: Sequence[tuple[Sequence[Any], np.ndarray]], k: int, integers: bool) -> Ranking:
  """Returns what was found for each query, ids and scores in any order, as a Ranking of k; NaN scores are left out.

  ids are int64 where `integers` says so and all of them are, none of them −1, which is padding; else objects.
  """
  fits = lambda name: type(name) is int and -1 << 63 <= name < 1 << 63 and name != MISSING[True]
  integers = integers and all(fits(name) for names, _ in found for name in names)
  ids_QK = np.full((len(found), k), MISSING[integers], np.int64 if integers else object)
  score_QK = np.full((len(found), k), -np.inf, np.float32)
  for row, (names, scores) in enumerate(found):
    score_K = np.asarray(scores, np.float32)
    name_K = np.empty(len(names), ids_QK.dtype)
    name_K[:] = names
    kept = np.flatnonzero(np.isfinite(score_K))
    # of equal scores the lower id, where ids are numbers
    order = np.lexsort((name_K[kept], -score_K[kept])) if integers else np.argsort(-score_K[kept], kind="stable")
    best = kept[order[:k]]
    ids_QK[row, : len(best)], score_QK[row, : len(best)] = name_K[best], score_K[best]
  return Ranking(ids_QK, score_QK)


def fetched(vectors: Mapping[Any, Any], ids: Ids, unit: bool, where: str) -> np.ndarray:
  """Returns the vectors (ND, float32) of some ids, of unit length unless they are so already.

  Raises KeyError for an id that has none.
  """
  names = list(ids.tolist() if isinstance(ids, np.ndarray) else ids)
  absent = [name for name in names if name not in vectors]
  if absent:
    raise KeyError(f"{where} has no vector for the id {absent[0]!r} ({len(absent)} such ids); search again")
  item_ND = np.array([vectors[name] for name in names], np.float32)
  return item_ND if unit else item_ND / np.maximum(np.linalg.norm(item_ND, axis=1, keepdims=True), 1e-30)


class whole:  # noqa: N801
  """A folder that appears under its name when everything in it is written."""

  def __init__(self, folder: str | os.PathLike, about: dict) -> None:
    self.folder, self.about = pathlib.Path(folder).resolve(), about
    self.temporary = self.folder.with_name(self.folder.name + ".incomplete")

  def __enter__(self) -> pathlib.Path:
    shutil.rmtree(self.temporary, ignore_errors=True)
    self.temporary.mkdir(parents=True)
    return self.temporary

  def __exit__(self, kind: Any, *_: object) -> None:
    if kind is not None:
      shutil.rmtree(self.temporary, ignore_errors=True)
      return
    paths = sorted(path for path in self.temporary.rglob("*") if path.is_file())
    names = [path.relative_to(self.temporary).as_posix() for path in paths]
    files = dict(zip(names, checksums(paths), strict=True))
    write_record(self.temporary / "index.json", {"format": FORMAT, **self.about, "files": files})
    shutil.rmtree(self.folder, ignore_errors=True)
    os.replace(self.temporary, self.folder)


def read_about(folder: str | os.PathLike, kind: str, verify: bool) -> dict:
  """Returns what `whole` wrote beside an index.

  Raises ValueError where it is of another kind, and that names a file which was changed, if asked to look.
  """
  path = pathlib.Path(folder) / "index.json"
  if not path.exists():
    raise FileNotFoundError(f"no index in {folder}: it has no index.json. Write one with index.save(folder)")
  about = read_record(path)
  check_format(path, about.get("format"), FORMAT, "build the index anew")
  if about.get("kind") != kind:
    raise ValueError(f"{folder} holds an index of kind {about.get('kind')!r}, not {kind!r}; load it with its own class")
  files = about.get("files", {}) if verify else {}  # earlier versions wrote none
  if other := changed({path.parent / name: checksum for name, checksum in files.items()}):
    raise ValueError(f"{other} is not what was written: its checksum differs from index.json; build the index anew")
  return about

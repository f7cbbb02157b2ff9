"""FAISS: any of its indexes, built from its factory strings or already there."""

from __future__ import annotations

import os
import pathlib
import uuid
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qat_jax.sealed import readable
from qat_jax.search.index import (
  Ids,
  Metric,
  as_queries,
  check_gallery,
  check_stored,
  chunks,
  fetched,
  ids_or_positions,
  inner_products,
  read_about,
  whole,
)
from qat_jax.search.indexes.stored import SAMPLE, needed
from qat_jax.search.rank import GalleryLike
from qat_jax.stages import check_fetched
from qat_jax.types import MISSING, Gallery, Ranking

TRAINED_ON = 100_000  # items, at most, that partitions and codes are learned from
_OWN_TYPE = {int: "int", str: "str", uuid.UUID: "uuid"}


class FaissIndex:
  """A FAISS index in memory, `index`, whose own settings (nprobe, efSearch) are set there.

  Its ids are FAISS's labels, or `ids[label]` where a list of own ids is given.
  """

  def __init__(self, index: Any, ids: Ids | None = None, unit: bool = True, space: str = "frozen") -> None:
    self.index, self.unit, self.space = index, unit, space
    self.ids = None if ids is None else ids_or_positions(ids, index.ntotal)
    self._labels: dict[Any, int] | None = None

  @property
  def width(self) -> int:
    return self.index.d

  @classmethod
  def build(cls, gallery: GalleryLike, factory: str = "Flat", ids: Ids | None = None) -> FaissIndex:
    """Returns the index that a factory string asks for ("Flat", "HNSW32", "IVF1024,PQ32", …), by inner product.

    Raises ValueError with FAISS's own words where it will not have it.
    """
    gallery, faiss = check_gallery(gallery), _faiss()
    if ids is not None:
      ids_or_positions(ids, len(gallery))
    try:
      index = faiss.index_factory(gallery.width, factory, faiss.METRIC_INNER_PRODUCT)
      if not index.is_trained:
        index.train(_sample(gallery))
      for _, item_ND in chunks(gallery):
        index.add(item_ND)
      if partitions := _partitions(index):
        partitions.make_direct_map()  # so that vectors can be fetched
    except RuntimeError as error:
      raise ValueError(f"FAISS refuses {factory!r} for {len(gallery)} items: {_words(error)}") from error
    return cls(index, ids, space=gallery.space or "frozen")

  @classmethod
  def connect(cls, index: Any, ids: Ids | None = None, unit: bool = True, space: str = "frozen") -> FaissIndex:
    """Returns the index over a FAISS index that exists, or the file of one. It is used as it is, and not changed.

    `unit`: its vectors are of unit length. Raises ValueError where it compares otherwise than by inner product or L2
    distance, or where its vectors are not of unit length as far as they can be read.
    """
    faiss = _faiss()
    if isinstance(index, str | os.PathLike):
      index = _read(index)
    if not isinstance(index, faiss.Index):
      raise TypeError(f"the index is a {type(index).__name__}; give a faiss.Index of floats, or the file of one")
    found = cls(index, ids, unit, space)
    check_stored("the FAISS index", found.metric, unit, _readable(index))
    if not index.ntotal:
      raise ValueError(f"the FAISS index holds no items{'' if index.is_trained else ', and is not trained'}; add some")
    label_N = np.sort(_labels(index))
    if (label_N == MISSING[True]).any():
      raise ValueError("the FAISS index has the label −1, which stands for no item; add that item under another label")
    if (same := np.flatnonzero(label_N[1:] == label_N[:-1])).size:
      raise ValueError(f"the FAISS index has the label {label_N[same[0]]} twice; add each item under its own")
    return found

  @property
  def metric(self) -> Metric:
    """What FAISS compares by."""
    faiss = _faiss()
    known: dict[int, Metric] = {faiss.METRIC_INNER_PRODUCT: "ip", faiss.METRIC_L2: "l2"}
    if any(isinstance(held, faiss.IndexLSH) for held in _layers(self.index)):
      raise ValueError("the FAISS index compares bits (IndexLSH), whose distances say no inner product; take another")
    if self.index.metric_type not in known:
      raise ValueError(f"the FAISS index has metric {self.index.metric_type}; wanted inner product (0) or L2 (1)")
    return known[self.index.metric_type]

  def search(self, query_QD: np.ndarray | jax.Array, k: int, filter: Any = None) -> Ranking:
    """As `Index.search`; `filter` is FAISS's own: SearchParameters of the index's type with a selector of labels."""
    query_QD = as_queries(query_QD, self.width, k)
    try:
      value_QK, label_QK = self.index.search(query_QD, k, params=filter)
    except RuntimeError as error:
      raise ValueError(f"FAISS refuses the search: {_words(error)}") from error
    length_Q1 = np.linalg.norm(query_QD, axis=1, keepdims=True)
    missing_QK = label_QK == MISSING[True]
    score_QK = np.where(missing_QK, -np.inf, inner_products(self.metric, value_QK, length_Q1)).astype(np.float32)
    order_QK = np.lexsort((label_QK, -score_QK), axis=1)  # of equal scores the lower label
    label_QK, score_QK = np.take_along_axis(label_QK, order_QK, 1), np.take_along_axis(score_QK, order_QK, 1)
    if self.ids is None:
      return Ranking(label_QK, score_QK)
    foreign_QK = (label_QK < MISSING[True]) | (label_QK >= len(self.ids))
    if foreign_QK.any():
      raise ValueError(
        f"the FAISS index has a label {label_QK[foreign_QK][0]}, which is no position among {len(self.ids)} ids: its "
        "labels are names already, so connect without ids"
      )
    integers = type(self.ids[0]) is int
    own_N = np.empty(len(self.ids) + 1, np.int64 if integers else object)
    own_N[:-1], own_N[-1] = self.ids, MISSING[integers]  # label −1 is the last
    return Ranking(own_N[label_QK], score_QK)

  def fetch(self, ids: Ids) -> np.ndarray:
    """Returns the vectors (ND, float32) of some of its ids.

    Raises ValueError where the index keeps codes instead of vectors, or no map from labels to them; KeyError for an id
    that it does not have.
    """
    if self._labels is None and self.ids is not None:
      self._labels = {name: label for label, name in enumerate(self.ids)}
    names = np.asarray(ids).tolist() if isinstance(ids, np.ndarray) else list(ids)
    try:
      labels = names if self._labels is None else [self._labels[name] for name in names]
    except KeyError as error:
      raise KeyError(f"the FAISS index has no id {error}; search again") from None
    label_N = np.array(labels, np.int64)
    # Any number but −1 may be a label of an IDMap2, or where a hash table leads from labels to places. The labels of
    # other indexes are positions, and for one below zero FAISS would read before its memory.
    hashed, ivf = _faiss().DirectMap.Hashtable, _partitions(self.index)
    named = isinstance(_layers(self.index)[0], _faiss().IndexIDMap) or (ivf and ivf.direct_map.type == hashed)
    bad_N = label_N[(label_N == MISSING[True]) | ((label_N < 0) & (not named))]
    if len(bad_N):
      raise KeyError(f"the FAISS index has no id {bad_N[0]}; search again")
    item_ND = self._reconstructed(label_N)
    return fetched(dict(zip(names, item_ND, strict=True)), ids, self.unit, "the FAISS index")

  def _reconstructed(self, label_N: np.ndarray) -> np.ndarray:
    codes = _code_bytes(self.index)
    if codes != 4 * self.width:
      kept = "no vectors that can be read back" if codes is None else f"codes of {codes} bytes instead of vectors"
      raise ValueError(f"the FAISS index keeps {kept}; rerank with the gallery itself")
    try:
      return self.index.reconstruct_batch(label_N)
    except RuntimeError as error:
      if "key" in _words(error):
        raise KeyError(f"the FAISS index lacks one of {len(label_N)} ids ({_words(error)}); search again") from error
      advice = "an IVF index wants make_direct_map() first, an IDMap must be an IDMap2"
      raise ValueError(f"FAISS gives no vectors back ({_words(error)}); {advice}") from error

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the index to a folder, whole or not at all."""
    kind = None if self.ids is None else _OWN_TYPE[type(self.ids[0])]
    about = {"kind": "faiss", "space": self.space, "unit": self.unit, "ids": kind}
    with whole(folder, about) as temporary:
      try:
        _faiss().write_index(self.index, str(temporary / "index.faiss"))
      except RuntimeError as error:
        raise OSError(f"could not write {folder}: {_words(error)}") from error
      if self.ids is not None:
        names = self.ids if kind == "int" else [str(name) for name in self.ids]
        pq.write_table(pa.table({"id": names}), temporary / "ids.parquet")

  @classmethod
  def load(cls, folder: str | os.PathLike, verify: bool = True) -> FaissIndex:
    """Returns the index that `save` wrote; the folder may have moved. `verify` reads all and names what was changed."""
    about = read_about(folder, "faiss", verify)
    index, ids = _read(pathlib.Path(folder) / "index.faiss"), None
    if about["ids"]:
      path = pathlib.Path(folder) / "ids.parquet"
      with readable(path):
        ids = pq.read_table(path).column("id").to_pylist()
      ids = [uuid.UUID(name) for name in ids] if about["ids"] == "uuid" else ids
    return cls(index, ids, about["unit"], about["space"])


def _read(path: str | os.PathLike) -> Any:
  if not pathlib.Path(path).exists():
    raise FileNotFoundError(f"no FAISS index {path}; faiss.write_index makes one")
  try:
    return _faiss().read_index(str(path))
  except RuntimeError as error:
    if pathlib.Path(path).is_file():
      with open(path, "rb") as file:
        start = file.read(64)
      check_fetched(start, path)
      if start.startswith(b"IB"):
        raise ValueError(f"{path} is a FAISS index of bits; wanted one of floats") from error
    raise ValueError(f"{path} is no whole FAISS index ({_words(error)}); write it again") from error


def _sample(gallery: Gallery) -> np.ndarray:
  """Returns items (float32) from all over the gallery."""
  rows = np.linspace(0, len(gallery) - 1, min(TRAINED_ON, len(gallery))).astype(np.int64)
  return np.ascontiguousarray(gallery[rows], np.float32)


def _partitions(index: Any) -> Any:
  """Returns the IVF index inside, None where there is none."""
  try:
    return _faiss().extract_index_ivf(index)
  except RuntimeError:
    return None


def _layers(index: Any) -> list[Any]:
  """Returns an index and those that it wraps, one in the other."""
  faiss = _faiss()
  layers = [faiss.downcast_index(index)]
  while isinstance(layers[-1], faiss.IndexIDMap | faiss.IndexPreTransform):
    layers.append(faiss.downcast_index(layers[-1].index))
  return layers


def _code_bytes(index: Any) -> int | None:
  """Returns how many bytes the index keeps of an item; None where nobody can tell, or they are of other vectors."""
  layers = _layers(index)
  if any(isinstance(layer, _faiss().IndexPreTransform) for layer in layers):
    return None
  held = _layers(layers[-1].storage)[-1] if hasattr(layers[-1], "storage") else layers[-1]
  return getattr(held, "code_size", None)


def _labels(index: Any) -> np.ndarray:
  """Returns the labels of all items, in any order."""
  faiss = _faiss()
  for layer in _layers(index):
    if isinstance(layer, faiss.IndexIDMap):
      return faiss.vector_to_array(layer.id_map)
    if isinstance(layer, faiss.IndexIVF):
      lists = layer.invlists
      sizes = {number: lists.list_size(number) for number in range(layer.nlist)}
      return np.concatenate([faiss.rev_swig_ptr(lists.get_ids(n), size) for n, size in sizes.items() if size])
  return np.arange(0)


def _readable(index: Any) -> np.ndarray | None:
  """Returns some of the vectors, whatever their labels; None where codes alone are kept: the person's word is all."""
  if _code_bytes(index) != 4 * index.d or not index.ntotal:
    return None
  held = _layers(index)[-1]
  if not isinstance(held, _faiss().IndexIVF):
    return held.reconstruct_n(0, min(SAMPLE, held.ntotal))
  largest = max(range(held.nlist), key=held.invlists.list_size)
  size = min(SAMPLE, held.invlists.list_size(largest))
  codes = _faiss().rev_swig_ptr(held.invlists.get_codes(largest), size * held.code_size)
  return codes.copy().view(np.float32).reshape(size, index.d)


def _words(error: RuntimeError) -> str:
  """Returns the part of FAISS's message that is for people."""
  text = " ".join(str(error).split())
  return text.split(" at ")[-1].split(": ", 1)[-1] if text.startswith("Error in ") else text


def _faiss() -> Any:
  return needed("faiss", "FaissIndex", "pip install 'qat-jax[faiss]', or use ExactIndex")

"""A retrieval set on disk: a folder of feature folders, checked as a whole before any long work.

    <root>/train/                      rows are images with `instance`; text_emb, if there, is each row's caption
    <root>/{val,test}/gallery/         images
    <root>/{val,test}/text_queries/, image_queries/     either or both

Relevant to a query: gallery items with its `instance`, except the item with its own `id`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.datasets.splits import CAPTION
from qat_jax.features.shards import KINDS, cast
from qat_jax.features.store import FeatureStore
from qat_jax.types import KIND_OF_QUERY, QUERY_TYPES, EncoderName, Relevance, check_encoders

LAYOUT = "a retrieval set has train/, val/ and test/ (docs/data.md)"
SPLIT = "`qat-jax split FOLDER NEW` makes a retrieval set of one folder of features"


class Split:
  """One split: a gallery, its queries by type (those present), and what is relevant to them."""

  def __init__(self, folder: Path, gallery: FeatureStore, queries: dict[str, FeatureStore]) -> None:
    self.folder, self.gallery, self.queries = folder, gallery, queries
    self._relevance: dict[str, Relevance] = {}

  @property
  def fingerprint(self) -> dict[str, Any]:
    """What the gallery and the queries hold, for `stages.fingerprint`."""
    return {"gallery": self.gallery.fingerprint, "queries": {t: q.fingerprint for t, q in self.queries.items()}}

  def relevance(self, query_type: str) -> Relevance:
    """Returns the gallery positions relevant to each query; the item with the query's own id is ignored."""
    if query_type not in self._relevance:
      self._relevance[query_type] = relevance(self.queries[query_type], self.gallery)
    return self._relevance[query_type]

  def without_positives(self, query_type: str) -> int:
    """Returns how many queries have nothing relevant in the gallery; metrics leave them out of the mean."""
    return sum(len(positives) == 0 for positives in self.relevance(query_type).positives)


class RetrievalSet:
  """Training features and the splits; `open` is the only way in, and checks everything."""

  def __init__(self, root: Path, images: FeatureStore, texts: FeatureStore | None, splits: dict[str, Split]) -> None:
    self.root, self.train = root, root / "train"
    self.train_images, self.train_texts = images, texts
    self._splits = splits

  @classmethod
  def open(cls, root: str | os.PathLike) -> RetrievalSet:
    """Returns the set at `root` after reading all of it once.

    Raises FileNotFoundError for missing folders, ValueError for anything that would spoil a run: no `instance`,
    different widths or encoders, NaN or zero rows, repeated ids, an empty store, queries without anything relevant.
    """
    root = Path(root)
    if not root.is_dir():
      raise FileNotFoundError(f"no folder {root}; data.root wants one: {LAYOUT}")
    if any((root / f"{kind}_emb").is_dir() for kind in KINDS):
      raise ValueError(f"{root} is one folder of features, data.root wants a retrieval set of several; {SPLIT}")
    for name in ("train", "val/gallery", "test/gallery"):
      if not (root / name).is_dir():
        raise FileNotFoundError(
          f"{root} has no {name}/, only {sorted(p.name for p in root.iterdir())}; {LAYOUT}; {SPLIT}"
        )
    images = FeatureStore.open(root / "train", "img")
    texts = FeatureStore.open(root / "train", "text") if (root / "train" / "text_emb").is_dir() else None
    splits = {name: _open_split(root / name) for name in ("val", "test")}
    stores = [images, *([texts] if texts else [])]
    for split in splits.values():
      stores += [split.gallery, *split.queries.values()]
    _check_alike(stores)
    for store in stores:
      _check_store(store, every_item=store.folder.name != "gallery")
    if splits["val"].queries.keys() != splits["test"].queries.keys():
      types = {name: sorted(split.queries) for name, split in splits.items()}
      raise ValueError(f"the splits of {root} have different types of queries: {types}; give both the same")
    for split in splits.values():
      _check_relevance(split)
    return cls(root, images, texts, splits)

  @property
  def fingerprint(self) -> dict[str, Any]:
    """What training features and splits hold, for `stages.fingerprint`; all of it is read."""
    texts = None if self.train_texts is None else self.train_texts.fingerprint
    train = {"images": self.train_images.fingerprint, "texts": texts}
    return {"train": train, **{name: split.fingerprint for name, split in self._splits.items()}}

  @property
  def width(self) -> int:
    """The width D of all features."""
    return self.train_images.width

  @property
  def encoder(self) -> EncoderName | None:
    """The encoder of the features, where one of the folders says it."""
    splits = [store for split in self._splits.values() for store in (split.gallery, *split.queries.values())]
    return next((store.encoder for store in (self.train_images, *splits) if store.encoder), None)

  @property
  def query_types(self) -> tuple[str, ...]:
    """The types of queries there are, text first."""
    return tuple(self._splits["val"].queries)

  def split(self, name: str) -> Split:
    """Returns the split "val" or "test"."""
    if name not in self._splits:
      raise ValueError(f"no split {name!r}; there are {sorted(self._splits)}")
    return self._splits[name]


def relevance(queries: FeatureStore, gallery: FeatureStore) -> Relevance:
  """Returns which gallery items share each query's instance; the item with the query's own id is ignored instead."""
  code_Q, instances = _factorise(queries.arrow_column("instance"))
  own_code_Q, ids = _factorise(queries.arrow_ids())
  matching, code_of_matching = _occurrences(gallery.arrow_column("instance"), instances)
  order = np.argsort(code_of_matching, kind="stable")
  matching, code_of_matching = matching[order], code_of_matching[order]
  first_Q = np.searchsorted(code_of_matching, code_Q, "left")
  last_Q = np.searchsorted(code_of_matching, code_Q, "right")
  place_of_id = np.full(len(ids), -1)
  positions, own_codes = _occurrences(gallery.arrow_ids(), ids)
  place_of_id[own_codes] = positions
  positives, ignored = [], []
  for own, first, last in zip(place_of_id[own_code_Q], first_Q, last_Q, strict=True):
    same = matching[first:last]
    positives.append(same[same != own])
    ignored.append(np.array([own] if own >= 0 else [], np.int64))
  return Relevance(positives, ignored)


def _factorise(values: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
  """Returns a code for each value (int64, −1 where missing) and the values that the codes stand for."""
  encoded = cast(values, pa.string(), "the retrieval set").combine_chunks().dictionary_encode()
  return encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary


def _occurrences(values: pa.ChunkedArray, wanted: pa.Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns the positions of the values that are among the wanted ones, ascending, and which of them each is."""
  code_N = (
    pc.index_in(cast(values, pa.string(), "the retrieval set"), value_set=wanted, skip_nulls=True)
    .fill_null(-1)
    .to_numpy()
  )
  positions = np.flatnonzero(code_N >= 0)
  return positions, code_N[positions]


def _open_split(folder: Path) -> Split:
  gallery = FeatureStore.open(folder / "gallery", "img")
  there = [name for name in QUERY_TYPES if (folder / f"{name}_queries").is_dir()]
  if not there:
    raise FileNotFoundError(f"{folder} has neither text_queries/ nor image_queries/; add either or both")
  queries = {name: FeatureStore.open(folder / f"{name}_queries", KIND_OF_QUERY[name]) for name in there}
  return Split(folder, gallery, queries)


def _check_alike(stores: list[FeatureStore]) -> None:
  first = next((store for store in stores if store.encoder), stores[0])
  for store in stores:
    if store.width != first.width:
      raise ValueError(
        f"{_name(store)} is {store.width} wide, {_name(first)} {first.width}; encode all with the same encoder"
      )
    if store.space != "frozen":
      raise ValueError(f"{_name(store)} was prepared by an adapter ({store.space}); give the encoder's own features")
    check_encoders(_name(store), store.encoder, _name(first), first.encoder)


def _check_store(store: FeatureStore, every_item: bool) -> None:
  if not len(store):
    raise ValueError(f"{_name(store)} is empty; it needs at least one item")
  if "instance" not in store.columns:
    raise ValueError(
      f"{_name(store)} has no metadata column `instance`, only {store.columns}; it says which items match; "
      f"{SPLIT}, --by COLUMN names the column that says so"
    )
  if store.id_column is None:
    raise ValueError(
      f"{_name(store)} has no metadata column `id`, only {store.columns}; a query must know its own image"
    )
  missing = store.arrow_column("instance").is_null().to_numpy()
  if missing.all() or (every_item and missing.any()):
    raise ValueError(
      f"{_name(store)}: {missing.sum()} items have no instance, the first is {store.ids[missing.argmax()]!r}"
    )
  store.check_ids()
  store.check_rows()


def _check_relevance(split: Split) -> None:
  for query_type, queries in split.queries.items():
    if query_type == "text" and all(len(own) for own in split.relevance("text").ignored):
      raise ValueError(
        f"the ids of {queries.folder} are those of images in {split.gallery.folder}, and an image with the query's own "
        f"id never counts as relevant: give captions ids that no image has, such as a.jpg{CAPTION}; {SPLIT} and does so"
      )
    if split.without_positives(query_type) == len(queries):
      raise ValueError(
        f"no query in {queries.folder} has anything relevant in {split.gallery.folder}: relevant items share the "
        "query's `instance` and have another `id`; compare these two columns of both"
      )


def _name(store: FeatureStore) -> str:
  return f"{store.folder} ({store.kind})"

"""A retrieval set on disk: a folder of feature folders, checked as a whole before any long work.

    <root>/train/                      rows are images with `instance`; text_emb, if there, is each row's caption
    <root>/{val,test}/gallery/         images
    <root>/{val,test}/text_queries/, image_queries/     either or both
    <root>/train/text_queries/, image_queries/          only for queries that name their relevant rows

Relevant to a query: gallery items with its `instance`, or those that its column `relevant` lists by id, where the
folder of queries has that column. The item with the query's own `id` never counts.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.datasets import columns
from qat_jax.datasets.splits import CAPTION
from qat_jax.features.shards import KINDS
from qat_jax.features.store import FeatureStore
from qat_jax.types import KIND_OF_QUERY, QUERY_TYPES, EncoderName, Relevance, check_encoders

LAYOUT = "a retrieval set has train/, val/ and test/ (docs/data.md)"
RELEVANT = "relevant"  # the column of a folder of queries that lists, by id, what is right for each
SHOWN = 3  # ids in a message
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

  def __init__(self, images: FeatureStore, texts: FeatureStore | None, listed: Split, splits: dict[str, Split]) -> None:
    """Keeps what `open` has checked.

    Args:
      images: the training images.
      texts: their captions, row by row, where there are any.
      listed: the training queries that name their relevant rows, by type, with the training images as their gallery.
      splits: "val" and "test".
    """
    self.root, self.train = images.folder.parent, images.folder
    self.train_images, self.train_texts = images, texts
    self.train_listed, self._splits = listed, splits

  @classmethod
  def open(cls, root: str | os.PathLike) -> Self:
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
    listed = Split(root / "train", images, _open_queries(root / "train"))
    splits = {name: _open_split(root / name) for name in ("val", "test")}
    stores = [
      (store, True, True) for store in (images, texts) if store is not None
    ]  # and which of its items need an instance: every one, any
    for split in (listed, *splits.values()):
      if split is not listed:
        stores.append((split.gallery, False, not all(map(_has_lists, split.queries.values()))))
      stores += [(queries, True, not _has_lists(queries)) for queries in split.queries.values()]
    _check_alike([store for store, *_ in stores])
    for queries in listed.queries.values():
      if not _has_lists(queries):
        raise ValueError(
          f"{_name(queries)} has no metadata column `{RELEVANT}`, only {queries.columns}; training queries in a folder "
          "of their own list the ids of the training images that are right for them (docs/data.md)"
        )
    for store, every_item, wants_instance in stores:
      _check_store(store, every_item, wants_instance)
    if splits["val"].queries.keys() != splits["test"].queries.keys():
      types = {name: sorted(split.queries) for name, split in splits.items()}
      raise ValueError(f"the splits of {root} have different types of queries: {types}; give both the same")
    for split in (listed, *splits.values()):
      _check_relevance(split)
    return cls(images, texts, listed, splits)

  @property
  def fingerprint(self) -> dict[str, Any]:
    """What training features and splits hold, for `stages.fingerprint`; all of it is read."""
    texts = None if self.train_texts is None else self.train_texts.fingerprint
    train = {"images": self.train_images.fingerprint, "texts": texts}
    if self.train_listed.queries:
      train["queries"] = self.train_listed.fingerprint["queries"]
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
  """Returns which gallery items are right for each query; the item with the query's own id is ignored instead.

  Right are the items that the query's `relevant` lists, where the queries have that column, else those with its
  `instance`. Raises ValueError for a list with an id that the gallery does not have.
  """
  groups = _listed(queries, gallery) if _has_lists(queries) else _alike(queries, gallery)
  itself_Q = _positions(queries.arrow_ids(), gallery)
  positives = [rows[rows != itself] for rows, itself in zip(groups, itself_Q, strict=True)]
  return Relevance(positives, [np.array([itself] if itself >= 0 else [], np.int64) for itself in itself_Q])


def _alike(queries: FeatureStore, gallery: FeatureStore) -> Iterator[np.ndarray]:
  """Yields the places in the gallery of the items with each query's instance, ascending."""
  encoded = queries.names("instance").combine_chunks().dictionary_encode()
  code_Q = encoded.indices.fill_null(-1).to_numpy()
  code = pc.index_in(gallery.names("instance"), value_set=encoded.dictionary, skip_nulls=True)
  code_N = code.fill_null(-1).to_numpy()
  rows_N = np.flatnonzero(code_N >= 0)
  rows_N = rows_N[np.argsort(code_N[rows_N], kind="stable")]
  for first, last in zip(*(np.searchsorted(code_N[rows_N], code_Q, side) for side in ("left", "right")), strict=True):
    yield rows_N[first:last]


def _listed(queries: FeatureStore, gallery: FeatureStore) -> Iterator[np.ndarray]:
  """Yields the places in the gallery of what each query lists; an empty list, or none, leaves it without anything."""
  lists = queries.arrow_column(RELEVANT).combine_chunks()
  if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
    raise ValueError(f"{_name(queries)}: the column `{RELEVANT}` holds {lists.type}; give each query a list of ids")
  names = columns.names(pa.chunked_array([pc.list_flatten(lists)]), f"{queries.folder}, column {RELEVANT!r},")
  position_M = _positions(names, gallery)
  if (position_M < 0).any():
    unknown = pc.unique(names.filter(pa.array(position_M < 0))).to_pylist()
    raise ValueError(
      f"{_name(queries)}: the column `{RELEVANT}` lists {len(unknown)} ids that {gallery.folder} does not have: "
      f"{', '.join(map(repr, unknown[:SHOWN]))}{', …' if len(unknown) > SHOWN else ''}; list ids of its items alone"
    )
  starts = np.searchsorted(pc.list_parent_indices(lists).to_numpy(), np.arange(len(queries) + 1))
  for first, last in itertools.pairwise(starts):
    yield np.unique(position_M[first:last])


def _positions(names: pa.ChunkedArray, gallery: FeatureStore) -> np.ndarray:
  """Returns the place in the gallery of each id (int64), −1 where it has none."""
  encoded = names.combine_chunks().dictionary_encode()
  code_N = pc.index_in(gallery.arrow_ids(), value_set=encoded.dictionary, skip_nulls=True).fill_null(-1).to_numpy()
  place_C = np.full(len(encoded.dictionary) + 1, -1)  # the last for what is missing
  place_C[code_N[code_N >= 0]] = np.flatnonzero(code_N >= 0)
  return place_C[encoded.indices.fill_null(-1).to_numpy()]


def _open_split(folder: Path) -> Split:
  gallery, queries = FeatureStore.open(folder / "gallery", "img"), _open_queries(folder)
  if not queries:
    raise FileNotFoundError(f"{folder} has neither text_queries/ nor image_queries/; add either or both")
  return Split(folder, gallery, queries)


def _open_queries(folder: Path) -> dict[str, FeatureStore]:
  there = [name for name in QUERY_TYPES if (folder / f"{name}_queries").is_dir()]
  return {name: FeatureStore.open(folder / f"{name}_queries", KIND_OF_QUERY[name]) for name in there}


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


def _has_lists(queries: FeatureStore) -> bool:
  return RELEVANT in queries.columns


def _check_store(store: FeatureStore, every_item: bool, wants_instance: bool) -> None:
  if not len(store):
    raise ValueError(f"{_name(store)} is empty; it needs at least one item")
  if wants_instance and "instance" not in store.columns:
    raise ValueError(
      f"{_name(store)} has no metadata column `instance`, only {store.columns}; it says which items match; "
      f"{SPLIT}, --by COLUMN names the column that says so"
    )
  if store.id_column is None:
    raise ValueError(
      f"{_name(store)} has no metadata column `id`, only {store.columns}; a query must know its own image"
    )
  if wants_instance:
    missing = store.names("instance").is_null().to_numpy()
    if missing.all() or (every_item and missing.any()):
      raise ValueError(
        f"{_name(store)}: {missing.sum()} items have no instance, the first is {store.ids[missing.argmax()]!r}"
      )
  store.check_ids()
  store.check_rows()


def _check_relevance(split: Split) -> None:
  for query_type, queries in split.queries.items():
    if query_type == "text" and all(len(itself) for itself in split.relevance("text").ignored):
      raise ValueError(
        f"the ids of {queries.folder} are those of images in {split.gallery.folder}, and an image with the query's own "
        f"id never counts as relevant: give captions ids that no image has, such as a.jpg{CAPTION}; {SPLIT} and does so"
      )
    if split.without_positives(query_type) == len(queries):
      listed = f"its `{RELEVANT}` lists them by id, and" if _has_lists(queries) else "they share its `instance`"
      raise ValueError(
        f"no query in {queries.folder} has anything relevant in {split.gallery.folder}: {listed} have another `id`; "
        "compare these two columns of both"
      )


def _name(store: FeatureStore) -> str:
  return f"{store.folder} ({store.kind})"
